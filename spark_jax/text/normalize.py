"""Writes text as it is spoken: numbers, money, dates, times, units, addresses and abbreviations in words.

The grammars are those of WeTextProcessing, for English and Chinese (package wetext). What they misread, or leave as it
is, is put into words that they read well before they see it: each rule here was needed for a text of the tests.
Which language a sentence is in is told by its script; in a Chinese sentence Latin words stay as they are.
"""

import functools
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from spark_jax.text.language import Language, language_of

_LANGUAGE_PART = re.compile(r"(?<=[。！？\n])")
_SENTENCE = re.compile(r"(?<=[.!?])(\s+)")
_WORDS_ALONE = re.compile(r"[^\d_$€£¥%&@#+=~°<>^|\\/*]*")  # nothing that a grammar is needed for
_CURRENCIES = {"$": ("dollar", "cent"), "€": ("euro", "cent"), "£": ("pound", "penny"), "¥": ("yen", None)}
_SCALES = {
    **{scale: scale for scale in ("thousand", "million", "billion", "trillion")},
    **{"k": "thousand", "m": "million", "bn": "billion", "b": "billion"},
}
_ABBREVIATIONS = {
    r"e\.g\.": "for example",
    r"i\.e\.": "that is",
    r"etc\.(?=\s*$)": "et cetera.",
    r"etc\.": "et cetera",
    r"vs\.?": "versus",
    r"approx\.": "approximately",
    r"dept\.": "department",
    r"Prof\.": "Professor",
    r"Capt\.": "Captain",
    r"Gen\.(?=\s+[A-Z])": "General",
    r"Sgt\.": "Sergeant",
    r"Rev\.(?=\s+[A-Z])": "Reverend",
    r"Mrs\.?": "Missus",
    r"Mr\.?": "Mister",
    r"Ms\.": "Miss",
    r"Dr\.?(?=\s+[A-Z])": "Doctor",
    r"(?<=[a-z] )St\.(?=\s*$)": "Street.",
    r"(?<=[a-z] )St\.(?! [A-Z])": "Street",
    r"St\.(?=\s+[A-Z][a-z])": "Saint",
    r"and/or": "and or",
    r"(?<=\d )ft\.": "feet",
    r"(?<=\d )lbs?\.?": "pounds",
    r"(?<=\d )oz\.?": "ounces",
    r"Jr\.": "Junior",
    r"Sr\.": "Senior",
    r"Ave\.": "Avenue",
    r"Blvd\.": "Boulevard",
    r"w/o": "without",
    r"a\.k\.a\.": "also known as",
}
_MONTHS = "January February March April May June July August September October November December".split()
_MONTH_NAME = re.compile(rf"(?<=[a-z] of )(?:{'|'.join(_MONTHS).lower()})\b")
_DECADES = "tens twenties thirties forties fifties sixties seventies eighties nineties".split()
_DIGITS: dict[Language, list[str]] = {
    "en": "zero one two three four five six seven eight nine".split(),
    "zh": list("零一二三四五六七八九"),
}
MAX_WORD = 60  # characters; a longer one with digits in it is no number that anybody reads but digit by digit
MAX_PIECE = 200  # characters that a grammar gets at once, where there are spaces
_SIGNS = {
    "×": " times ",
    "÷": " divided by ",
    "±": " plus or minus ",
    "™": " ",
    "®": " ",
    "©": " copyright ",
    "℠": " ",
    "&": " and ",
    "+": " plus ",
    "=": " equals ",
    "@": " at ",
    "#": " number ",
    "~": " about ",
    "^": " to the power of ",
}


def spoken_text(text: str, languages: Sequence[str] = ("en", "zh")) -> str:
    """Returns cleaned text in the words that a person would say.

    Text that holds nothing but words and punctuation comes back as it is.

    Args:
      text: of `clean_text`; paragraphs may be told apart by line ends.
      languages: those that words may be of: without "zh" the numbers of a Chinese sentence become English words.
    """
    return "".join(_spoken(part, languages) for part in _LANGUAGE_PART.split(text))


def _spoken(part: str, languages: Sequence[str]) -> str:
    body = part.strip()
    if not body:
        return part
    chinese = "zh" in languages and (language_of(body) == "zh" or "en" not in languages)
    spoken = _grammar("zh", body) if chinese else _english(body)
    start, end = part[: len(part) - len(part.lstrip())], part[len(part.rstrip()) :]
    return start + spoken + end


def _english(text: str) -> str:
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    text = " ".join(text.split())
    sentences = (
        piece if not piece.strip() or _WORDS_ALONE.fullmatch(piece) else _english_grammar(piece)
        for piece in _SENTENCE.split(text)
    )
    return re.sub(r"\s+([,.;:!?])", r"\1", "".join(sentences))


def _english_grammar(sentence: str) -> str:
    spoken = _MONTH_NAME.sub(lambda month: month[0].title(), _grammar("en", sentence))
    return spoken[:1].upper() + spoken[1:] if sentence[:1].isupper() else spoken


def _grammar(language: Language, sentence: str) -> str:
    """The sentence by the grammars, in pieces: their time grows faster than the text."""
    pieces: list[str] = []
    for word in re.split(r"(?<=\s)|(?<=[，、；])", sentence):
        if len(word) > MAX_WORD and re.search(r"[0-9]", word):
            pieces.append(re.sub(r"[0-9]", lambda digit: f" {_DIGITS[language][int(digit[0])]} ", word))
        elif pieces and len(pieces[-1]) + len(word) <= MAX_PIECE:
            pieces[-1] += word
        else:
            pieces.append(word)
    return "".join(_piece(language, piece) for piece in pieces)


def _piece(language: Language, piece: str) -> str:
    if _WORDS_ALONE.fullmatch(piece):
        return piece
    try:
        spoken = _normalizer(language)(piece).replace('\\"', '"')
    except Exception:  # the package fails by assertions on text that its grammars do not know: it stays as it is
        return piece
    return spoken.strip() + piece[len(piece.rstrip()) :]


def _money(match: re.Match[str]) -> str:
    """$12.50 → 12 dollars and 50 cents; $1.5 million → 1.5 million dollars."""
    (unit, small), amount = _CURRENCIES[match["sign"]], match["amount"].replace(",", "")
    whole, _, part = amount.partition(".")
    plural = "" if unit == "yen" else "s"
    if match["scale"]:
        return f"{amount} {_SCALES[match['scale'].lower()]} {unit}{plural}"
    units = f"{_cardinal(whole)} {unit}{'' if whole == '1' else plural}"
    if len(part) != 2 or small is None:
        return f"{amount} {unit}{plural}" if part else units
    cents = f"{int(part)} {small if int(part) == 1 else {'penny': 'pence'}.get(small, small + 's')}"
    if int(part) == 0:
        return units
    return cents if whole == "0" else f"{units} and {cents}"


def _counted_money(match: re.Match[str]) -> str:
    """12.50 dollars → 12 dollars and 50 cents."""
    sign = next(sign for sign, (unit, _) in _CURRENCIES.items() if match["unit"].startswith(unit))
    return _money(re.fullmatch(_MONEY, f"{sign}{match['amount']}"))


def _cardinal(digits: str) -> str:
    """1234 → 1 thousand 234, which the grammar does not take for a year."""
    if len(digits) != 4 or digits[0] == "0":
        return digits
    return f"{digits[0]} thousand {int(digits[1:]) or ''}".strip()


def _address(match: re.Match[str]) -> str:
    """https://www.example.com/a → example dot com slash a."""
    address = re.sub(r"^(?:[a-z]+://)?(?:www\.)?", "", match[0], flags=re.IGNORECASE)
    address, end = (address[:-1], address[-1]) if address[-1] in ".,;:!?" else (address, "")
    names = {".": "dot", "/": "slash", "@": "at", "-": "dash", "_": "underscore", ":": "colon", "?": "question mark"}
    words = re.sub(r"[./@_:?-]", lambda sign: f" {names[sign[0]]} ", address.rstrip("/"))
    return " ".join(re.sub(r"[=&#%~+]", " ", words).split()) + end


def _digits(match: re.Match[str]) -> str:
    """555-1234 → 5 5 5, 1 2 3 4."""
    return ", ".join(" ".join(group) for group in re.findall(r"\d+", match[0]))


def _power(match: re.Match[str], name: str) -> str:
    """x² → x squared; m² of a number is a unit, which the grammar knows."""
    before = match.string[max(0, match.start() - 8) : match.start()]
    return match[0] if re.search(r"\d ?[a-z]{1,2}$", before) else f" {name}"


def _digits_of(raised: str) -> str:
    return unicodedata.normalize("NFKC", raised).replace("−", "-").replace("+", "")


def _meridiem(match: re.Match[str]) -> str:
    """3:30 pm → 3:30 P M; what ends a sentence keeps its full stop."""
    return f" {match[1].upper()} M{'.' if match[2] is not None else ''}"


def _month(match: re.Match[str]) -> str:
    return next(month for month in _MONTHS if month.startswith(match[1][:3]))


def _decade(match: re.Match[str]) -> str:
    """1990s → 19 nineties."""
    century, decade = match[1] or "", int(match[2])
    if decade:
        return f"{century} {_DECADES[decade - 1]}".strip()
    return f"{century}00s" if not century else f"{century} hundreds" if century != "20" else "two thousands"


_AMOUNT = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
_MONEY = rf"(?P<sign>[$€£¥])\s?(?P<amount>{_AMOUNT})(?:\s?(?P<scale>{'|'.join(_SCALES)}))?\b"
_Replacement = str | Callable[[re.Match[str]], str]
_RULES: list[tuple[re.Pattern[str], _Replacement]] = [
    (re.compile(r"\b[a-z]+://\S+|\bwww\.\S+|(?<![\w.+-])[\w.+-]+@[\w-]+\.[\w.-]*\w", re.IGNORECASE), _address),
    (
        re.compile(r"(?<![\w.-])(?:[\w-]+\.)+(?:com|org|net|edu|gov|io|ai|dev|co\.uk)\b(?:/\S*)?", re.IGNORECASE),
        _address,
    ),
    (re.compile(r"(?<![\w/])24/7(?![\w/])"), "twenty four seven"),
    (re.compile(r"(?<![\w/])9/11(?![\w/])"), "nine eleven"),
    (re.compile(rf"([$€£¥])\s?({_AMOUNT}) ?[-–] ?(?:[$€£¥]\s?)?(?={_AMOUNT})"), r"\2 to \1"),  # $5-10
    (re.compile(rf"(?<![\w.,])({_AMOUNT})\s?([€£¥])(?![\d\s]*\d)"), r"\2\1"),
    (re.compile(_MONEY, re.IGNORECASE), _money),
    (re.compile(r"\b(?P<amount>\d+\.\d\d) (?P<unit>dollars?|euros?|pounds?)\b"), _counted_money),
    (re.compile(r"(?<![\d., ])(\d{1,3}(?: \d{3})* 000)(?![\d.,]*\d)"), lambda match: match[1].replace(" ", "")),
    (re.compile(r"(?<![\d.,])(\d{1,3}(?:,\d{3})+)(?![\d,])"), lambda match: _cardinal(match[1].replace(",", ""))),
    (re.compile(r"(?<![\d-])(?:\+?\d{1,2}[ -])?(?:\(\d{3}\) ?|\d{3}-)?\d{3}-\d{4}(?![\d-])"), _digits),
    (re.compile(r"(\d+)' ?(\d+)\""), r"\1 feet \2"),
    (re.compile(r"\bv\.? ?(?=\d)", re.IGNORECASE), "version "),
    (re.compile(r"(?<![\d.])\d+(?:\.\d+){2,}(?![\d.]*\d)"), lambda match: match[0].replace(".", " point ")),
    (re.compile(r"(?<=\d)\s?([AaPp])(?:\.[Mm]\.|[Mm]\b)(\s*$)?"), _meridiem),
    (re.compile(r"\b(\d{1,2}):00\b(?= [AP] M)"), r"\1"),
    (re.compile(r"\b(\d{1,2}):00\b"), r"\1 o'clock"),
    (re.compile(rf"\b({'|'.join(month[:3] for month in _MONTHS)}|Sept)\.?(?= \d)"), _month),
    (
        re.compile(r"(?<!\w)'(\d)0s\b"),
        lambda match: _DECADES[int(match[1]) - 1] if match[1] != "0" else "two thousands",
    ),
    (re.compile(r"\b(\d\d)?(\d)0'?s\b"), _decade),
    (re.compile(r"(?<=\d) ?m\b(?![/']|\.\w)"), " meters"),
    (
        re.compile(r"(?<![\w.,:-])(\d+(?:[.,:]\d+)*(?: o'clock)?) ?[-–] ?(?=[$€£]?\d+(?:[.,:]\d+)*(?![\d–-]))"),
        r"\1 to ",
    ),
    (re.compile(r"^\s*[-–—]+\s+|^\s*[–—]+|\s*[–—]+\s*$|\s+-+\s*$", re.MULTILINE), ""),
    (re.compile(r"(?<!\w)'(?=\S)([^'\n]*(?:(?<=\w)'(?=\w)[^'\n]*)*)(?<=\S)'(?!\w)"), r'"\1"'),  # a phrase in quotes
    (re.compile(r"([.!?])\s*(?:[–—]+\s*|-+\s+)"), r"\1 "),
    (re.compile(r"\s*—+\s*|\s+[-–]+\s+"), ", "),
    (re.compile(r"(?<=[a-zA-Z])²(?!\w)"), lambda match: _power(match, "squared")),
    (re.compile(r"(?<=[a-zA-Z])³(?!\w)"), lambda match: _power(match, "cubed")),
    (re.compile(r"(?<=\d)([⁻⁺]?[⁰¹²³⁴-⁹]+)"), lambda match: f" to the power of {_digits_of(match[1])}"),
    (re.compile(r"[₀-₉]+"), lambda match: f" {_digits_of(match[0])} "),
    (re.compile("[℃℉]"), lambda match: unicodedata.normalize("NFKC", match[0])),
    (re.compile(r"\.{2,}|…+"), ". "),
    (re.compile(r"\s%"), "%"),
    (re.compile(r"(?<![\d.,:/-])1000(?![\d.,:/-]*\d)"), "one thousand"),  # no year: the grammar's "ten hundred"
    (re.compile(r"(?<!\w)(?:No\.|№) ?(?=\d)"), "number "),
    (re.compile(r"(?<=\d) ?km/h\b"), " kilometers per hour"),
    (re.compile(r"(?<=\d) ?mph\b"), " miles per hour"),
    *((re.compile(rf"(?<!\w){pattern}(?!\w)"), words) for pattern, words in _ABBREVIATIONS.items()),
    (re.compile(r"(?<=[A-Za-z])/(?=[A-Za-z])"), " or "),
    *((re.compile(re.escape(sign)), word) for sign, word in _SIGNS.items()),
]


@functools.cache
def _normalizer(language: Language) -> Callable[[str], str]:
    """The grammars of a language; they take some milliseconds to read."""
    import wetext

    normalizer: Any = wetext.Normalizer(lang=language)
    return normalizer.normalize
