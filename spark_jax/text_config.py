"""What a model knows of text: the section `text` of its configuration."""

import dataclasses
from typing import Literal

from spark_jax.dataclass_reader import PlainNumbers
from spark_jax.errors import SparkError

Control = Literal["gender", "pitch", "speed", "cloning"]
CONTROLS: tuple[Control, ...] = ("gender", "pitch", "speed", "cloning")
MIN_LENGTH = 20  # below it there would be no sentences left


@dataclasses.dataclass(frozen=True)
class TextConfig(PlainNumbers):
    """What a model knows of text, and how its prompts are written; the defaults are those of the release.

    Attributes:
      languages: those that it speaks.
      characters: those that it has learned; None: any.
      max_length: the longest text that it speaks well in one piece, in characters, an ideograph counting as four;
        None: as much as fits into its longest answer.
      join_sentences: whether short sentences make up one piece together; False: it has learned single sentences.
      normalize: whether numbers, abbreviations and the like are written in words, where a request does not say.
      lower_capitals: whether it has learned no text in capitals, which is then written in ordinary letters.
      controls: which of "gender", "pitch", "speed" and "cloning" change what it says; None: all of them.

    Raises:
      SparkError: no languages or characters, an unknown control, or too small a length.
    """

    languages: tuple[str, ...] = ("en", "zh")
    characters: str | None = None
    max_length: int | None = None
    join_sentences: bool = True
    normalize: bool = False
    lower_capitals: bool = False
    controls: tuple[str, ...] | None = None

    def __post_init__(self):
        if not self.languages:
            raise SparkError("text.languages is empty, expected codes of languages, such as en")
        if self.characters is not None and not self.characters.strip():
            raise SparkError(f"text.characters is {self.characters!r}, expected characters, or null for any")
        if self.max_length is not None and self.max_length < MIN_LENGTH:
            raise SparkError(f"text.max_length is {self.max_length}, expected at least {MIN_LENGTH}, or null")
        if unknown := [name for name in self.controls or () if name not in CONTROLS]:
            raise SparkError(f"text.controls has {unknown[0]!r}, expected some of {', '.join(CONTROLS)}")

    def acts_on(self, control: Control) -> bool:
        """Returns whether a control changes what the model says."""
        return self.controls is None or control in self.controls
