"""Cleans text as people type and paste it, without changing what it says.

The result depends on the text alone, and cleaning twice is cleaning once. What is spoken differently from how it is
written (numbers, abbreviations, addresses) is the business of `spark_jax.text.normalize`.
"""

import re
import unicodedata

# NFKC would destroy what these say: x² is not x2, № is not No.
_KEEP = frozenset("²³¹⁰⁴⁵⁶⁷⁸⁹⁻⁺₀₁₂₃₄₅₆₇₈₉™℠…‥℃℉№")
_FRACTION_SLASH = "⁄"
_FRACTIONS = "¼½¾⅐-⅞↉"
# Full-width punctuation is that of Chinese and Japanese text; alone it is a slip of the keyboard.
_CJK_PUNCTUATION = frozenset("，！？：；（）～")
_SINGLE_QUOTES = dict.fromkeys(map(ord, "‘’‚‛′´`ʼ"), "'")
_DOUBLE_QUOTES = dict.fromkeys(map(ord, "“”„‟«»″"), '"')
_HYPHENS = dict.fromkeys(map(ord, "‐‑‒−﹣"), "-")
_IDEOGRAPH = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]")
_LINE_END = r"(?:\r\n?+|[\n\x85\u2028\u2029])"  # possessive: a \r\n is one
_PARAGRAPH = re.compile(rf"{_LINE_END}[^\S\n]*(?:{_LINE_END}\s*)+|\u2029")

_MARKDOWN = (
    (re.compile(r"^[ \t]*(?:```|~~~)[^\n]*$", re.MULTILINE), ""),  # fences of code
    (re.compile(r"^[ \t]*(?:[-*_][ \t]*){3,}$", re.MULTILINE), ""),  # rules
    (re.compile(r"^[ \t]*\|[-|: \t]*-[-|: \t]*\|[ \t]*$", re.MULTILINE), ""),  # rules of tables
    (re.compile(r"^[ \t]*\|([^\n]+)\|[ \t]*$", re.MULTILINE), lambda row: f"\n\n{_cells(row[1])}"),  # rows of tables
    (re.compile(r"^[ \t]*#{1,6}[ \t]+(.*?)[ \t]*#*[ \t]*$", re.MULTILINE), "\n\n\\1\n\n"),  # headings
    (re.compile(r"^[ \t]*(?:>[ \t]?)+", re.MULTILINE), ""),  # quotations
    (re.compile(r"^[ \t]*[-*+•◦▪‣·][ \t]+", re.MULTILINE), "\n\n"),  # items of a list
    (re.compile(r"\n[ \t]*(?=\d{1,2}[.)][ \t]+\S)"), "\n\n"),  # items of a numbered list
    (re.compile(r"!?\[([^\[\]\n]*)\]\((?:[^()\s]|\([^()\s]*\))*(?:[ \t]+\"[^\"\n]*\")?\)"), r"\1"),  # links, images
    (re.compile(r"(?<![\w`])`{1,2}([^`\n]+)`{1,2}(?![\w`])"), r"\1"),  # code
    (re.compile(r"(?<!\d)(\*{1,3}|~~)(?=\S)([^*~\n]+?)(?<=\S)\1(?!\d)"), r"\2"),  # emphasis, but no 2*3*4
    (re.compile(r"(?<!\w)(_{1,3})(?=\S)([^\n]+?)(?<=\S)\1(?!\w)"), r"\2"),  # emphasis that is no snake_case
)


def clean_text(text: str, *, paragraphs: bool = False, fold: bool = True) -> str:
    """Returns the text without what cannot be heard.

    Line ends and every kind of space become one space; zero-width characters, controls and soft hyphens go; marks of
    Markdown go.

    Args:
      text: any text.
      paragraphs: keep paragraphs apart by one empty line each, for text that is split later.
      fold: also write compatibility forms (full-width letters, ligatures) as plain ones, except where that would
        change what they say, and curly quotes as straight ones. A model that was trained on text as people write it
        knows them as they are.
    """
    before = None
    while text != before:  # marks inside of marks; each round only takes away
        before, text = text, _clean_once(text, "\n\n" if paragraphs else " ", fold)
    return text


def _clean_once(text: str, joint: str, fold: bool) -> str:
    # A paragraph that an earlier round has told apart stays one.
    text = _PARAGRAPH.sub("\n\n", text)
    text = re.sub(r"\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028]", "\n", text)
    text = "".join(_plain(character) for character in text)
    for pattern, replacement in _MARKDOWN:
        text = pattern.sub(replacement, text)
    text = _fold(text) if fold else text
    parts = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]
    return joint.join(part for part in parts if part)


def has_speech(text: str) -> bool:
    """Tells whether there is anything to say: a letter or a number of any script."""
    return any(unicodedata.category(character)[0] in "LN" for character in text)


def lower_shouting(text: str) -> str:
    """Returns text without capitals that only shout, with a capital where a sentence starts.

    Text that is in capitals throughout becomes ordinary letters; a single short word ("USA") is an abbreviation and
    stays. In other text so do words of four letters and more with a vowel ("the WATER"), which nobody spells out.
    """
    letters = [character for character in text if character.lower() != character.upper()]
    words = re.findall(r"[^\W\d_]+", text)
    if not letters or (len(words) < 2 and len(letters) < 5):
        return text
    if any(character.islower() for character in letters):
        return re.sub(r"[^\W\d_]{4,}", lambda word: _lower_word(word, text), text)
    lowered = re.sub(r"\bi\b", "I", text.lower())
    return re.sub(r"(^|[.!?][\"')\]]*\s+)(\w)", lambda match: match[1] + match[2].upper(), lowered)


def _lower_word(word: re.Match[str], text: str) -> str:
    if not word[0].isupper() or re.search(r"[AEIOUYÀ-ÖØ-Þ]", word[0]) is None:
        return word[0]
    starts = re.search(r"(^|[.!?][\"')\]]*\s+)\W*$", text[max(0, word.start() - 8) : word.start()]) is not None
    return word[0].capitalize() if starts else word[0].lower()


def _plain(character: str) -> str:
    """Drops what has no sound of its own; spaces of all kinds become plain ones."""
    category = unicodedata.category(character)
    if character == "\n":
        return character
    if category in ("Zs", "Zl", "Zp") or character == "\t":
        return " "
    if category in ("Cc", "Cf", "Cs", "Co", "Cn") or "\ufe00" <= character <= "\ufe0f":
        return ""
    return character


def _fold(text: str) -> str:
    """Compatibility forms become plain ones, quotes and hyphens straight ones, composed where Unicode composes."""
    ideographs = _IDEOGRAPH.search(text) is not None
    keep = _KEEP | _CJK_PUNCTUATION if ideographs else _KEEP
    text = re.sub(rf"(?<=\d)(?=[{_FRACTIONS}])", " ", text)
    if not ideographs:
        text = text.translate(_SINGLE_QUOTES).translate(_DOUBLE_QUOTES)
    folded = "".join(character if character in keep else _plain_form(character) for character in text).replace(
        _FRACTION_SLASH, "/"
    )
    folded = unicodedata.normalize("NFC", folded).translate(_HYPHENS)
    return re.sub(r"(?<=\w)[‘’ʼ´](?=\w)", "'", folded)


def _plain_form(character: str) -> str:
    """The compatibility form, but of an accent that stands alone: its form begins with a space."""
    plain = unicodedata.normalize("NFKC", character)
    return character if plain.startswith(" ") else plain


def _cells(row: str) -> str:
    cells = ", ".join(cell.strip() for cell in row.split("|") if cell.strip())
    return cells if cells.endswith((".", "!", "?")) or not cells else f"{cells}."
