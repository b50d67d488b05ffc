"""What a request's text becomes before it is spoken: pauses, and words in the characters that the model knows.

The one way from what people write to what prompts hold, for texts and for transcripts of references: markup is read,
the text is cleaned, capitals that shout are lowered, numbers and the like are put into words, and characters that the
model does not know are left out. Pure functions of the text and of the model's `TextConfig`.
"""

import dataclasses

from spark_jax.errors import SparkError
from spark_jax.text.characters import fit_characters
from spark_jax.text.clean import clean_text, has_speech, lower_shouting
from spark_jax.text.language import language_of
from spark_jax.text.markup import MAX_PAUSE, Marked, read_markup
from spark_jax.text.normalize import spoken_text
from spark_jax.text_config import TextConfig

NORMALIZE = ("auto", "on", "off")
_MAX_NAMED = 8  # characters that a warning names
_MAX_SHOWN = 40  # characters of a text that a message shows


@dataclasses.dataclass(frozen=True)
class Reading:
    """A text as it is spoken.

    Attributes:
      stretches: what is said and the pause after it, in seconds; none is empty.
      lead: seconds of silence before the first.
      normalized: whether it was put into words, as of a sentence.
      warnings: what the model cannot say, one line each.
    """

    stretches: tuple[Marked, ...]
    lead: float
    normalized: bool
    warnings: tuple[str, ...]


def read_text(text: str, config: TextConfig, normalize: str = "auto") -> Reading:
    """Returns what a model says for a text, and what it cannot say.

    Without normalization a text in plain words, with the quotes and punctuation of its language, stays as it is: a
    model that was trained on raw text gets the tokens that it was trained on.

    Args:
      text: as a person wrote it.
      config: what the model knows.
      normalize: "on", "off", or "auto", which is what the model's configuration says.

    Raises:
      SparkError: there is nothing to say.
    """
    marked, tags = read_markup(text)
    written, lost, stretches, lead = "", "", [], 0.0
    for stretch, pause in marked:
        words, unknown = _words(stretch, config, normalize)
        written += stretch
        lost += "".join(character for character in unknown if character not in lost)
        if has_speech(words):
            stretches.append(Marked(words, pause))
        elif stretches:
            stretches[-1] = stretches[-1]._replace(pause=min(stretches[-1].pause + pause, MAX_PAUSE))
        else:
            lead = min(lead + pause, MAX_PAUSE)
    warnings = [f"text: tags are not read: {', '.join(f'<{tag}>' for tag in tags)}"] if tags else []
    if lost:
        warnings.append(f"text: {_unknown(lost, written, config)}: left out")
    if not stretches:
        raise SparkError(f"text is {shown(text)}, expected something to say{_known(lost, written, config)}")
    return Reading(tuple(stretches), lead, is_normalized(config, normalize), tuple(warnings))


def read_transcript(transcript: str, config: TextConfig, normalize: str = "auto") -> str:
    """Returns the transcript of a reference as prompts hold it: read as a text is, without pauses.

    A space at its end stays, since the text follows it without one.

    Raises:
      SparkError: there is nothing in it.
    """
    marked, _ = read_markup(transcript)
    words, _ = _words(" ".join(stretch for stretch, _ in marked), config, normalize, paragraphs=False)
    if not has_speech(words):
        raise SparkError(f"transcript is {shown(transcript)}, expected what the reference says")
    return words + (" " if transcript[-1:].isspace() else "")


def is_normalized(config: TextConfig, normalize: str) -> bool:
    """Returns whether a text is put into words."""
    return config.normalize if normalize == "auto" else normalize == "on"


def as_sentence(text: str) -> str:
    """Returns a piece of a text as a sentence of its own: a capital at its start, a full stop at its end.

    A model that has learned single sentences does not know how to begin or to end in their middle.
    """
    text = text.lstrip(" ,.;:?!…，。；：？！、").rstrip(" ,;:-–—，；：、")
    if not text.endswith((".", "?", "!", "。", "？", "！", "…", '"', "”", "」", "』", ".)")):
        text += "。" if language_of(text[-1:]) == "zh" else "."
    return text[:1].upper() + text[1:]


def check_text(name: str, text: str, expected: str) -> None:
    """Refuses what is no text that can be spoken.

    Args:
      name: what the message calls it.
      text: any string.
      expected: what it should say.

    Raises:
      SparkError: it holds bytes that are no Unicode text, or no letter and no number.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise SparkError(f"{name} is not Unicode text (bytes that are not UTF-8?): {shown(text)}")
    if not has_speech(text):
        raise SparkError(f"{name} is {shown(text)}, expected {expected}: no letter or number is in it")


def shown(text: str) -> str:
    """Returns a text as messages show it: its start where it is long."""
    return repr(text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 1] + "…")


def _words(text: str, config: TextConfig, normalize: str, paragraphs: bool = True) -> tuple[str, str]:
    """The words of a stretch, and the characters that the model does not know."""
    normalizes = is_normalized(config, normalize)
    # Who knows every character was trained on text as it is written.
    words = clean_text(text, paragraphs=paragraphs, fold=normalizes or config.characters is not None)
    if config.lower_capitals:
        words = lower_shouting(words)
    if normalizes:
        words = spoken_text(words, config.languages)
    return (words, "") if config.characters is None else fit_characters(words, config.characters)


def _unknown(lost: str, written: str, config: TextConfig) -> str:
    named = ", ".join(map(repr, lost[:_MAX_NAMED])) + (
        f" and {len(lost) - _MAX_NAMED} more" if lost[_MAX_NAMED:] else ""
    )
    language = language_of(written)
    if language in config.languages:
        return f"the model does not know {named}"
    return f"the model speaks {', '.join(config.languages)}, not {language}, and does not know {named}"


def _known(lost: str, written: str, config: TextConfig) -> str:
    return f"; {_unknown(lost, written, config)}" if lost else ": no letter or number is in it"
