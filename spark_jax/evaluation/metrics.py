"""Word error rates over texts normalized as Whisper's authors do (numbers, contractions, spelling)."""

import dataclasses
import functools
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
