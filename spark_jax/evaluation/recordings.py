"""Recordings of speakers: those that come with this package, or a corpus's."""

import dataclasses
import random
from pathlib import Path

from spark_jax.data import manifest
from spark_jax.errors import SparkError

# Where they are from, and which of the speakers the embedded voice has heard in training: recordings/README.md.
BUNDLED = Path(__file__).with_name("recordings") / "metadata.jsonl"


@dataclasses.dataclass(frozen=True)
class Recording:
    """A recording of a sentence.

    Attributes:
      path: of the audio.
      text: what is said.
      speaker: who says it; the path where nobody knows.
      gender: "female" or "male"; None where nobody knows.
      kind: of the speaker, such as "virtual" or "real".
      language: "en" or "zh".
    """

    path: Path
    text: str
    speaker: str
    gender: str | None = None
    kind: str = ""
    language: str = "en"


def read_recordings(metadata: Path | None = None, split: str | None = None) -> list[Recording]:
    """Returns the recordings of a corpus; None: those of this package.

    Args:
      metadata: metadata.jsonl of a corpus, with text and wav_path, and speaker and gender where they are known.
      split: of it; None: all, for the package's own. A corpus without splits has one.

    Raises:
      SparkError: the file cannot be read, or has no recording of the split.
    """
    path = BUNDLED if metadata is None else metadata
    rows = manifest.read_jsonl(path, ("text", "wav_path"), None if metadata is None else split)
    found = []
    for row in rows:
        if wrong := [name for name in ("text", "wav_path") if not isinstance(row[name], str)]:
            raise SparkError(f"{path}: {wrong[0]} is {row[wrong[0]]!r}, expected a text")
        found.append(
            Recording(
                path.parent / row["wav_path"],
                row["text"],
                str(row.get("speaker") or row["wav_path"]),
                row.get("gender"),
                str(row.get("kind") or ""),
                row.get("language") or "en",
            )
        )
    return found


def draw(recordings: list[Recording], count: int, seed: int) -> list[Recording]:
    """Returns at most `count` recordings, of as many speakers as possible: one of each in turn, in a seeded order."""
    of_speaker: dict[str, list[Recording]] = {}
    for recording in recordings:
        of_speaker.setdefault(recording.speaker, []).append(recording)
    rng = random.Random(seed)
    queues = [rng.sample(own, len(own)) for _, own in sorted(of_speaker.items())]
    rng.shuffle(queues)
    drawn: list[Recording] = []
    while any(queues) and len(drawn) < count:
        for queue in queues:
            if queue and len(drawn) < count:
                drawn.append(queue.pop())
    return drawn
