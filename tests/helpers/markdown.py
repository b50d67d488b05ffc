"""What a Markdown file shows: fenced blocks, code spans, links and anchors; and the commands in shell blocks."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
OPERATORS = ";&|"
# Words that run the command behind them.
STARTERS = {"nohup", "srun", "exec", "nice"}


class Block(NamedTuple):
    """A fenced block: its language, "" where none is given, and its text."""

    language: str
    text: str


def blocks(text: str) -> list[Block]:
    """Returns the fenced blocks of a text."""
    return [Block(*match.groups()) for match in FENCE.finditer(text)]


def spans(text: str) -> list[str]:
    """Returns the code spans outside of fenced blocks."""
    return SPAN.findall(FENCE.sub("", text))


def links(text: str) -> list[str]:
    """Returns the targets of links outside of fenced blocks that are not addresses."""
    return [target for target in LINK.findall(FENCE.sub("", text)) if "://" not in target]


def anchors(path: Path) -> set[str]:
    """Returns the anchors of a file's headings."""
    headings = HEADING.findall(FENCE.sub("", path.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def commands(text: str) -> Iterator[list[str]]:
    """Yields the words of each simple command of a shell text, those in quoted arguments of `$…` included.

    Variables, redirections and assignments in front are left out.
    """
    for line in _lines(text):
        lexer = shlex.shlex(line.replace("2>&1", ""), posix=True, punctuation_chars=OPERATORS)
        lexer.whitespace_split, lexer.commenters = True, "#"
        command: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set(OPERATORS):
                yield from _simple(command)
                command = []
            else:
                command.append(word)


def _lines(text: str) -> Iterator[str]:
    """The logical lines: continued ones joined, and those that end inside of quotes."""
    held = ""
    for line in text.replace("\\\n", " ").splitlines():
        held = f"{held}\n{line}" if held else line
        try:
            shlex.split(held, comments=True)
        except ValueError:  # no closing quotation yet
            continue
        yield held
        held = ""
    assert not held, f"quotes are not closed: {held}"


def _simple(words: list[str]) -> Iterator[list[str]]:
    if ">" in words:
        words = words[: words.index(">")]
    while words and (words[0] in STARTERS or re.fullmatch(r"\w+=.*", words[0], re.DOTALL)):
        words = words[1:]
    if words and words[0].startswith("$"):  # runs its argument elsewhere
        for word in words[1:]:
            yield from commands(word)
        return
    words = [word for word in words if not word.startswith("$")]
    if words:
        yield [Path(words[0]).name, *words[1:]]
