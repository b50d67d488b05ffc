"""The list of Seed-TTS-eval: `meta.lst`, one sentence a line, with the recording whose voice is to speak it.

A line is `id|text of the prompt|path of the prompt|text to speak`, with the path of a recording of the sentence as a
fifth field in some sets. Paths are relative to the list. Word error rates of English are counted with Whisper large-v3,
character error rates of Chinese with Paraformer, similarity to the prompt with WavLM-large; the published figures are
means of the sentences' rates.
"""

import dataclasses
from pathlib import Path

from spark_jax.errors import SparkError
from spark_jax.shared import files
from spark_jax.text.language import language_of


@dataclasses.dataclass(frozen=True)
class Line:
    """A sentence to speak in the voice of a recording.

    Attributes:
      name: its id.
      prompt_text: what the recording says.
      prompt: the recording.
      text: what is to be spoken.
      truth: a recording of it by the same speaker; None: there is none.
    """

    name: str
    prompt_text: str
    prompt: Path
    text: str
    truth: Path | None = None

    @property
    def language(self) -> str:
        """The language of the text: "zh" or "en"."""
        return language_of(self.text)

    @property
    def scoring(self) -> str:
        """How words are compared; see `metrics.NORMALIZERS`."""
        return "characters" if self.language == "zh" else "seed-tts"


def read_list(path: Path) -> list[Line]:
    """Reads a list.

    Raises:
      SparkError: the file cannot be read, a line has another number of fields or an empty one, an id comes twice, or a
        recording is missing.
    """
    lines, names = [], set()
    for number, line in enumerate(files.read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        fields = [field.strip() for field in line.split("|")]
        if len(fields) not in (4, 5) or not all(fields[:4]):
            raise SparkError(f"{path}:{number}: {line[:80]!r}, expected id|prompt text|prompt path|text")
        name, prompt_text, prompt, text = fields[:4]
        truth = path.parent / fields[4] if len(fields) == 5 and fields[4] else None
        found = Line(name.removesuffix(".wav"), prompt_text, path.parent / prompt, text, truth)
        if found.name in names:
            raise SparkError(f"{path}:{number}: id {found.name!r} comes twice")
        if missing := [wave for wave in (found.prompt, found.truth) if wave is not None and not wave.is_file()]:
            raise SparkError(f"{path}:{number}: {missing[0]}: no such file")
        names.add(found.name)
        lines.append(found)
    if not lines:
        raise SparkError(f"{path}: has no line; expected id|prompt text|prompt path|text")
    return lines
