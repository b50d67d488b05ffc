"""The labels of a recognizer: characters, and how words are written in them."""

import json
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from spark_jax.errors import SparkError
from spark_jax.shared.files import read_json, write_text

VOCABULARY, LEXICON = "vocabulary.json", "lexicon.json"  # files of a folder that holds a recognizer


def bare(word: str) -> str:
    """Returns a word without the signs around it, and with a straight apostrophe."""
    inside = [place for place, character in enumerate(word) if character.isalnum()]
    return word[inside[0] : inside[-1] + 1].replace("’", "'") if inside else ""


class Vocabulary:
    """Characters as CTC labels 1, 2, …; 0 is the blank."""

    def __init__(self, symbols: Sequence[str]):
        self.symbols = list(symbols)
        self._ids = {symbol: i + 1 for i, symbol in enumerate(self.symbols)}

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Vocabulary":
        """Returns the vocabulary of all characters that occur, in code point order."""
        return cls(sorted(set().union(*map(set, texts))))

    @classmethod
    def load(cls, path: str | Path) -> "Vocabulary":
        """Reads a vocabulary that `save` wrote.

        Raises:
          SparkError: the file cannot be read, or is no list of characters.
        """
        symbols = read_json(path, "a vocabulary")
        if not isinstance(symbols, list) or not all(isinstance(symbol, str) and symbol for symbol in symbols):
            raise SparkError(f"{path}: not a vocabulary, expected a list of characters")
        return cls(symbols)

    def save(self, path: str | Path) -> None:
        """Writes the characters as a JSON list, in the order of their labels.

        Raises:
          SparkError: the file cannot be written.
        """
        write_text(path, json.dumps(self.symbols, ensure_ascii=False))

    def __len__(self) -> int:
        """Returns the number of labels, the blank included."""
        return len(self.symbols) + 1

    def __contains__(self, symbol: str) -> bool:
        return symbol in self._ids

    def encode(self, text: str) -> list[int]:
        """Returns the labels of the characters; characters outside of the vocabulary are left out."""
        return [self._ids[symbol] for symbol in text if symbol in self._ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the characters of labels, none of which is the blank."""
        return "".join(self.symbols[i - 1] for i in ids)


class Speller:
    """Writes words in the labels of a recognizer: by its lexicon, or, without one, in their own letters."""

    def __init__(self, vocabulary: Vocabulary, lexicon: Mapping[str, str] | None = None):
        """Args:
        vocabulary: the labels.
        lexicon: words in small letters, and their labels; None: letters are labels.
        """
        self.vocabulary, self._lexicon = vocabulary, lexicon

    @classmethod
    def load(cls, directory: str | Path) -> "Speller":
        """Reads the vocabulary, and the lexicon if there is one, of a folder that holds a recognizer.

        Raises:
          SparkError: a file cannot be read or holds something else.
        """
        vocabulary = Vocabulary.load(Path(directory) / VOCABULARY)
        path = Path(directory) / LEXICON
        return cls(vocabulary, read_lexicon(path) if path.exists() else None)

    @property
    def pauses(self) -> list[int]:
        """Returns the labels of what is between words: spaces and signs."""
        symbols = self.vocabulary.symbols
        return [i + 1 for i, symbol in enumerate(symbols) if unicodedata.category(symbol[0])[0] in "PSZ"]

    def labels(self, word: str) -> list[int]:
        """Returns the labels of a word with signs around it; none: it cannot be written."""
        word = bare(word)
        if self._lexicon is None:
            return self._letters(word)
        if word.lower() in self._lexicon:
            return self.vocabulary.encode(self._lexicon[word.lower()])
        parts = [bare(part).lower() for part in word.replace("–", "-").split("-")]
        if not all(part in self._lexicon for part in parts):
            return []
        return [label for part in parts for label in self.vocabulary.encode(self._lexicon[part])]

    def _letters(self, word: str) -> list[int]:
        found = []
        for letter in word:
            forms = [form for form in (letter, letter.lower(), letter.upper()) if form in self.vocabulary]
            if forms:
                found += self.vocabulary.encode(forms[0])
            elif letter.isalnum():
                return []
        return found


def read_lexicon(path: str | Path) -> dict[str, str]:
    """Reads a lexicon: a JSON object of words in small letters, and how a recognizer's labels write them.

    Raises:
      SparkError: the file cannot be read or holds something else.
    """
    content = read_json(path, "a lexicon")
    if not isinstance(content, dict) or not all(isinstance(item, str) and item for item in content.values()):
        raise SparkError(f"{path}: not a lexicon, expected an object of words and their labels")
    return content
