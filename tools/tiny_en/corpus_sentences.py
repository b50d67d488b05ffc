"""The sentences of a corpus: found, normalized, chosen so that their words can be learned, and divided into splits."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from spark_jax.errors import SparkError

ALLOWED_CHARACTERS = re.compile(r"[A-Za-z][A-Za-z',.?\- ]*")
WORD = re.compile(r"[a-z']+")
QUOTED_EXAMPLE = re.compile(r'"([^"]+)"')
BESIDE_DEFINITIONS = re.compile(r'"[^"]*"?|\([^)]*\)')  # examples, and remarks on where a word is used


class CorpusError(SparkError):
    """Something the caller can mend; its message is one line."""


def wordnet_sentences(folder: Path) -> list[str]:
    """Returns the quoted examples in the glosses of WordNet's `data.*` files, in file order."""
    return [example for gloss in _glosses(folder) for example in QUOTED_EXAMPLE.findall(gloss)]


def wordnet_definitions(folder: Path) -> list[str]:
    """Returns the definitions in the glosses of WordNet's `data.*` files, in file order."""
    parts = (part.strip() for gloss in _glosses(folder) for part in BESIDE_DEFINITIONS.sub("", gloss).split(";"))
    return [part for part in parts if part]


def _glosses(folder: Path) -> list[str]:
    files = sorted(folder.glob("data.*"))
    if not files:
        raise CorpusError(f"{folder}: no WordNet data.* files (apt install wordnet-base, or use --text FILE)")
    lines = (line for file in files for line in file.read_text(encoding="latin-1").splitlines())
    entries = (line for line in lines if not line.startswith("  "))  # the license is indented
    return [entry.split("|", 1)[1] for entry in entries if "|" in entry]


def normalize(sentence: str) -> str:
    """Returns a sentence with single spaces, a capital first letter, and a full stop unless it ends with `.` or `?`."""
    sentence = " ".join(sentence.split()).rstrip(" ,;:-")
    sentence = sentence[:1].upper() + sentence[1:]
    return sentence if sentence.endswith((".", "?")) else sentence + "."


def words(sentence: str) -> list[str]:
    """Returns the words in lower case; a hyphen separates words, an apostrophe belongs to its word."""
    return [word for word in (w.strip("'") for w in WORD.findall(sentence.lower())) if word]


def select(
    sentences: list[str], min_characters: int, max_characters: int, min_words: int, min_word_count: int
) -> list[str]:
    """Returns normalized sentences of allowed characters and lengths, in order, no two with the same words.

    Sentences with a word that occurs less than `min_word_count` times among the kept ones are removed until
    none is left (a fixed point), so the vocabulary is learnable and held-out words are mostly known ones.
    """
    kept: dict[str, str] = {}
    for raw in sentences:
        sentence = normalize(raw)
        if ALLOWED_CHARACTERS.fullmatch(sentence) and min_characters <= len(sentence) <= max_characters:
            spoken = words(sentence)
            if len(spoken) >= min_words:
                kept.setdefault(" ".join(spoken), sentence)
    while True:
        counts = Counter(word for key in kept for word in key.split())
        frequent = {k: s for k, s in kept.items() if all(counts[w] >= min_word_count for w in k.split())}
        if len(frequent) == len(kept):
            return list(kept.values())
        kept = frequent


def split_of(sentence: str, validation: float, test: float) -> str:
    """Returns the split of a sentence: a hash of its words, so it never depends on what else is in the corpus."""
    digest = hashlib.sha256(" ".join(words(sentence)).encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    return "test" if place < test else "validation" if place < test + validation else "train"


def frequent_first(
    sentences: list[str], min_characters: int, max_characters: int, min_words: int, min_word_counts: Sequence[int]
) -> list[str]:
    """Returns the sentences that `select` keeps for the lowest count, in an order of which any prefix is a corpus.

    Those kept for a higher count come before the others; within a count the order is that of a hash of the words.
    """
    ordered: dict[str, None] = {}
    for count in sorted(set(min_word_counts), reverse=True):
        kept = select(sentences, min_characters, max_characters, min_words, count)
        ordered |= dict.fromkeys(sorted(kept, key=_shuffled))
    return list(ordered)


def _shuffled(sentence: str) -> bytes:
    # Another hash than that of `split_of`: by that one, all of the test split would come first.
    return hashlib.sha256(f"order: {' '.join(words(sentence))}".encode()).digest()
