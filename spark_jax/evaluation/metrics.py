"""Word error rates over normalized texts, and the normalizations.

"whisper" is the English one of Whisper's authors (numbers, contractions, spelling). "seed-tts" follows the rules of
Seed-TTS-eval: no punctuation but the apostrophe, one space in the place of several, lower case. "characters" is the
same for Chinese, where each character counts as a word; traditional ones in what is heard become simplified ones where
the package zhconv is installed.
"""

import dataclasses
import functools
import string
import unicodedata
from collections.abc import Callable, Sequence

from spark_jax.errors import SparkError
from spark_jax.shared.extra import needs_extra


@dataclasses.dataclass(frozen=True)
class WordErrors:
    """Counts over a set of sentences; the rate is over all words together, not a mean of sentences' rates."""

    sentences: int
    words: int  # of the references
    substitutions: int
    deletions: int
    insertions: int

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Returns the errors per reference word (0.35: 35 %)."""
        return self.errors / self.words


@functools.cache
def _normalizer() -> Callable[[str], str]:
    with needs_extra("evaluation"):
        from whisper_normalizer.english import EnglishTextNormalizer
    return EnglishTextNormalizer()  # reads a table of spellings: once a process


def normalize_text(text: str) -> str:
    """Returns the text in Whisper's English normalization: lower case, no punctuation, one spelling.

    Raises:
      SparkError: the extra `evaluation` is not installed.
    """
    return _normalizer()(text)


def seed_tts_text(text: str) -> str:
    """Returns the text in the normalization of Seed-TTS-eval."""
    kept = "".join(sign for sign in text if sign == "'" or not _is_punctuation(sign))
    return " ".join(kept.lower().split())


def seed_tts_characters(text: str) -> str:
    """Returns the text in the normalization of Seed-TTS-eval for Chinese: characters with spaces between them."""
    return " ".join("".join(_simplified(seed_tts_text(text)).split()))


NORMALIZERS: dict[str, Callable[[str], str]] = {
    "whisper": normalize_text,
    "seed-tts": seed_tts_text,
    "characters": seed_tts_characters,
}


def count_errors(reference: str, hypothesis: str, scoring: str = "whisper") -> tuple[int, int]:
    """Returns the errors in a hypothesis, and the words of the reference.

    Args:
      reference: what was to be said.
      hypothesis: what was heard.
      scoring: a key of `NORMALIZERS`.

    Raises:
      SparkError: there is no such normalization, or the extra `evaluation` is not installed.
    """
    if scoring not in NORMALIZERS:
        raise SparkError(f"scoring {scoring!r} is unknown; expected one of {', '.join(NORMALIZERS)}")
    with needs_extra("evaluation"):
        import jiwer
    normalize = NORMALIZERS[scoring]
    wanted, heard = normalize(reference), normalize(hypothesis)
    words = len(wanted.split())
    if not words:
        return len(heard.split()), 0
    measured = jiwer.process_words(wanted, heard)
    return measured.substitutions + measured.deletions + measured.insertions, words


def _is_punctuation(sign: str) -> bool:
    return sign in string.punctuation or unicodedata.category(sign).startswith("P")


def _simplified(text: str) -> str:
    try:
        with needs_extra("evaluation-chinese"):
            import zhconv
    except SparkError:
        return text
    return zhconv.convert(text, "zh-cn")


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> WordErrors:
    """Returns the word errors of the hypotheses, sentence by sentence, after normalization of both.

    Raises:
      SparkError: the counts differ, a reference has no word, or the extra `evaluation` is not installed.
    """
    with needs_extra("evaluation"):
        import jiwer
    if len(references) != len(hypotheses) or not references:
        raise SparkError(
            f"word errors of {len(hypotheses)} hypotheses for {len(references)} references: "
            "expected one each, and at least one"
        )
    normalized = [normalize_text(text) for text in references]
    for reference, text in zip(references, normalized, strict=True):
        if not any(map(str.isalnum, text)):  # a lone full stop survives normalization
            raise SparkError(f"reference {reference!r} has no word to count errors over")
    measured = jiwer.process_words(normalized, [normalize_text(text) for text in hypotheses])
    return WordErrors(
        sentences=len(references),
        words=measured.hits + measured.substitutions + measured.deletions,
        substitutions=measured.substitutions,
        deletions=measured.deletions,
        insertions=measured.insertions,
    )
