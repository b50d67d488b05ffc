"""Divides text into pieces that a model can speak: at sentences, else at clauses, else at spaces.

Pure text, no model and no JAX. The pieces cover the text: each says where it stands in it, and only white space lies
between them. English, Chinese and both mixed.
"""

import itertools
import re
from collections.abc import Callable
from typing import Literal, NamedTuple

Boundary = Literal["paragraph", "sentence", "clause", "word"]

_ENDS = ".!?…。！？"
_CLOSERS = "\"'’”»)]}）】」』》"
_CLAUSES = ",;:，；：、"
_ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof st sr jr capt lt col gen sgt rev hon vs etc e.g i.e cf al ca ed eds approx dept est inc ltd co "
    "corp bros u.s u.k u.s.a a.m p.m ph.d b.c a.d jan feb mar apr jun jul aug sep sept oct nov dec mt ave blvd "
    "rd".split()
)
_BEFORE_NUMBERS = frozenset("no nos vol fig figs eq sec ch pp p art".split())  # "No." alone is a sentence
# Abbreviations that a sentence ends with as often as not: a capital after them begins a new one.
_MAY_END = frozenset("etc u.s u.k u.s.a a.m p.m ph.d b.c a.d inc ltd co corp jr sr".split())
_SENTENCE_END = re.compile(rf"[{_ENDS}]+[{re.escape(_CLOSERS)}]*")
_CLAUSE_END = re.compile(rf"[{_CLAUSES}]+[{re.escape(_CLOSERS)}]*|[)\]）】]|(?<=\s)[-–—]+(?=\s)|—")
_PARAGRAPH = re.compile(r"\n\s*\n|\u2029")
_NOT_SPACE = re.compile(r"\S")
IDEOGRAPH = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


class Piece(NamedTuple):
    """A stretch of a text.

    Attributes:
      start, end: where it stands in the text, in characters; without the white space around it.
      text: `text[start:end]`.
      boundary: what it ends with.
    """

    start: int
    end: int
    text: str
    boundary: Boundary


def spoken_length(text: str) -> int:
    """Returns a length that grows with the time it takes to say a text: characters, ideographs count as four."""
    return len(text) + 3 * len(IDEOGRAPH.findall(text))


def split_text(
    text: str, max_length: int, *, join: bool = True, length: Callable[[str], int] = spoken_length
) -> list[Piece]:
    """Divides a text into pieces of at most `max_length`.

    Sentences stay whole where they fit; short ones that follow each other in a paragraph are joined as long as they
    fit together. A sentence that is too long is divided at clauses, a clause at spaces, a word at any character.

    Args:
      text: of `clean_text`, paragraphs told apart by empty lines.
      max_length: at least 8, in the units of `length`.
      join: join short sentences; False gives a sentence a piece.
      length: how long a text is to say; at least its number of characters.
    """
    if max_length < 8:
        raise ValueError(f"max_length is {max_length}, expected at least 8")
    pieces: list[Piece] = []
    for start, end in _between(text, 0, len(text), [match.span() for match in _PARAGRAPH.finditer(text)]):
        parts = [
            part
            for sentence in _cut(text, start, end, _sentence_ends(text, start, end), "sentence")
            for part in _fitting(text, sentence, max_length, length)
        ]
        if join:
            parts = _joined(text, parts, max_length, length)
        if parts:
            parts[-1] = parts[-1]._replace(boundary="paragraph")
        pieces += parts
    return pieces


def _sentence_ends(text: str, start: int, end: int) -> list[int]:
    return [
        match.end() for match in _SENTENCE_END.finditer(text, start, end) if _ends_sentence(text, match, start, end)
    ]


def _ends_sentence(text: str, match: re.Match[str], start: int, end: int) -> bool:
    mark = match[0]
    if any(sign in mark for sign in "。！？"):
        return True
    after = text[match.end() : min(end, match.end() + 1)]
    if after and not after.isspace():
        return IDEOGRAPH.match(after) is not None  # 3.5, example.com, "?!" within a word
    found = _NOT_SPACE.search(text, match.end(), end)
    following = found[0] if found else ""
    if mark[0] in "!?":
        return not following.islower()  # "Stop!" he said.
    if mark.startswith("...") or mark[0] == "…":
        return not following.islower()
    before = text[max(start, match.start() - 16) : match.start()]  # longer than any abbreviation
    word = re.search(r"[\w.]*$", before)[0].lower().lstrip(".")
    if re.fullmatch(r"[a-z]", word) and text[match.start() - 1].isupper() and word != "i":
        return False  # J. Smith
    if word in _BEFORE_NUMBERS:
        return not following.isdigit()
    if word in _ABBREVIATIONS:
        return word in _MAY_END and following.isupper()
    return not following.islower()


def _fitting(text: str, piece: Piece, most: int, length: Callable[[str], int]) -> list[Piece]:
    """The piece, or what it is divided into until each part fits."""
    if length(piece.text) <= most:
        return [piece]
    ends = [
        match.end()
        for match in _CLAUSE_END.finditer(text, piece.start, piece.end)
        if not (text[match.start() - 1].isdigit() and text[match.end() : match.end() + 1].isdigit())  # 1,000 and 3:30
    ]
    clauses = _cut(text, piece.start, piece.end, ends, "clause")
    if len(clauses) > 1:
        clauses[-1] = clauses[-1]._replace(boundary=piece.boundary)
        parts = [part for clause in clauses for part in _fitting(text, clause, most, length)]
        return _joined(text, parts, most, length)
    parts, position = [], piece.start
    while position < piece.end:
        position = _NOT_SPACE.search(text, position).start()  # a piece ends with no space
        stop = _longest(text, position, piece.end, most, length)
        boundary = piece.boundary if stop == piece.end else "word"
        parts += [part._replace(boundary=boundary) for part in _cut(text, position, stop, [], boundary)]
        position = stop
    return parts


def _longest(text: str, start: int, end: int, most: int, length: Callable[[str], int]) -> int:
    """The end of the longest stretch that fits, at a space where there is one."""
    low, high = start + 1, min(end, start + most)  # no character takes less than one
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if length(text[start:middle]) <= most else (low, middle - 1)
    if low == end:
        return end
    space = max(text.rfind(" ", start + 1, low + 1), text.rfind("\n", start + 1, low + 1))
    return space if space > start else low


def _joined(text: str, parts: list[Piece], most: int, length: Callable[[str], int]) -> list[Piece]:
    joined: list[Piece] = []
    for part in parts:
        if joined and length(text[joined[-1].start : part.end]) <= most:
            start = joined[-1].start
            joined[-1] = Piece(start, part.end, text[start : part.end], part.boundary)
        else:
            joined.append(part)
    return joined


def _cut(text: str, start: int, end: int, ends: list[int], boundary: Boundary) -> list[Piece]:
    """Pieces of a stretch that is cut at some places, without white space around them; empty ones are left out."""
    edges = [start, *(edge for edge in ends if start < edge < end), end]
    pieces = []
    for left, right in itertools.pairwise(edges):
        part = text[left:right]
        left += len(part) - len(part.lstrip())
        right -= len(part) - len(part.rstrip())
        if left < right:
            pieces.append(Piece(left, right, text[left:right], boundary))
    return pieces


def _between(text: str, start: int, end: int, gaps: list[tuple[int, int]]) -> list[tuple[int, int]]:
    lefts, rights = [start, *(gap[1] for gap in gaps)], [*(gap[0] for gap in gaps), end]
    return list(zip(lefts, rights, strict=True))
