"""Writes text in the characters that a model knows: what it does not know is replaced, left out, or named."""

import re
import unicodedata

# What may stand for a character, in order of preference. None of it is worth a warning.
_STAND_INS = {
    "!": ".",
    ":": ",",
    ";": ",",
    "—": ",",
    "–": ",",
    "(": ",",
    ")": ",",
    "[": ",",
    "]": ",",
    "…": ".",
    "/": " ",
    "_": " ",
    "-": " ",
    "‘": "'",
    "’": "'",
    "。": ".",
    "．": ".",
    "！": "!.",
    "？": "?",
    "，": ",",
    "、": ",",
    "；": ";,",
    "：": ":,",
    "（": ",",
    "）": ",",
}
# Letters that Unicode does not take apart.
_LETTERS = {"ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "đ": "d", "ð": "th", "þ": "th", "ł": "l", "ı": "i", "ħ": "h"}
_ENDS = ",.?!;:"  # a space follows them
_MARKS = re.compile(r"\s*([,.?])(?:\s*[,.?])+")


def fit_characters(text: str, characters: str) -> tuple[str, str]:
    """Returns text in the characters that a model knows, and the others that it has lost, each once.

    Punctuation that the model does not know becomes the nearest that it knows, or nothing. Letters lose their accents.
    Text of known characters comes back as it is.

    Args:
      text: of `clean_text`; paragraphs may be told apart by line ends.
      characters: those that the model knows; white space counts as known.
    """
    known = frozenset(characters)
    if all(character in known or character.isspace() for character in text):
        return text, ""
    written, lost = [], ""
    for character in text:
        fitted, named = _fit(character, known)
        written.append(fitted)
        if named and character not in lost:
            lost += character
    return "\n\n".join(_tidy(paragraph) for paragraph in "".join(written).split("\n\n")), lost


def _fit(character: str, known: frozenset[str]) -> tuple[str, bool]:
    """What stands for a character, and whether something that would be heard is lost."""
    if character in known or character.isspace():
        return character, False
    for stand_in in _STAND_INS.get(character, ""):
        if stand_in in known or stand_in == " ":
            return (f"{stand_in} " if stand_in in _ENDS else stand_in), False
    if (plain := _plain_letters(character, known)) is not None:
        return plain, False
    kind = unicodedata.category(character)[0]
    if kind == "P":  # quotes and the like are not heard
        return "", False
    return ("", True) if kind in "LM" else (" ", True)


def _plain_letters(character: str, known: frozenset[str]) -> str | None:
    """The letters without accents, in the case that the model knows; None: it knows none."""
    lowered = character.lower()
    base = _LETTERS.get(lowered, "".join(c for c in unicodedata.normalize("NFKD", lowered) if c.isalnum()))
    if not base:
        return None
    for form in (base.upper() if character.isupper() else base, base, base.upper()):
        if known.issuperset(form):
            return form
    return None


def _tidy(text: str) -> str:
    """One mark where several have met, none at the start; single spaces."""
    strongest = lambda marks: max(marks[0].strip(), key=",.?".find)  # noqa: E731
    text = _MARKS.sub(strongest, text)
    return " ".join(re.sub(r"\s+(?=[,.?])", "", text).lstrip(" ,.?-\n").split())
