"""The measures that experiments share: what of a judge's findings is a figure, and how it is shown."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from spark_jax.evaluation import statistics
from spark_jax.evaluation.cases import Result
from spark_jax.evaluation.findings import Table
from spark_jax.evaluation.statistics import Estimate, Statistic


@dataclasses.dataclass(frozen=True)
class Measure:
    """A figure of a group of results.

    Attributes:
      name: in the figures of a report.
      title: in a table's head.
      judge: who found it.
      values: names of what was found, the columns of the statistic.
      statistic: makes the figure of them.
      format: "percent", or the number of decimals.
    """

    name: str
    title: str
    judge: str
    values: tuple[str, ...]
    statistic: Statistic = statistics.mean
    format: str | int = 2

    def of(self, results: Sequence[Result]) -> Estimate:
        """Returns the figure of those results that have it; texts are the units of its interval."""
        rows, kept = [], []
        for result in results:
            found = [result.value(self.judge, name) for name in self.values]
            if None not in found:
                rows.append(found)
                kept.append(result)
        columns = list(zip(*rows, strict=True)) if rows else [() for _ in self.values]
        return statistics.estimate(self.statistic, *columns, units=units(kept), seeds=seeds(kept))


WER = Measure("wer", "WER", "words", ("errors", "words"), statistics.ratio, "percent")
MEAN_WER = Measure("wer_mean_of_texts", "mean of the texts' WER", "words", ("rate",), statistics.mean, "percent")
DNSMOS = Measure("dnsmos", "DNSMOS", "dnsmos", ("overall",))
HNR = Measure("hnr", "HNR, dB", "pitch", ("hnr",), format=1)
SELF_CORRELATION = Measure("self_correlation", "self-correlation", "signal", ("self_correlation",))
VOICED = Measure("voiced", "voiced", "pitch", ("voiced",), format="percent")
F0 = Measure("f0", "F0, Hz", "pitch", ("f0",), format=0)
SPEED = Measure("syllables_per_second", "syllables/s", "signal", ("syllables_per_second",))
STOI = Measure("stoi", "STOI", "stoi", ("stoi",), format=3)
PESQ_NARROW = Measure("pesq_narrow", "PESQ-NB", "pesq", ("narrow",))
PESQ_WIDE = Measure("pesq_wide", "PESQ-WB", "pesq", ("wide",))
MCD = Measure("mcd", "MCD, dB", "mcd", ("mcd",))
VOICING = Measure("voicing_agreement", "voicing agreement", "pitch", ("voicing_agreement",), format=3)
F0_CORRELATION = Measure("f0_correlation", "F0 correlation", "pitch", ("f0_correlation",))
F0_ERROR = Measure("f0_median_error", "F0 error, semitones", "pitch", ("f0_median_error",), statistics.median)
F0_GROSS = Measure("f0_gross_errors", "gross F0 errors", "pitch", ("f0_gross_errors",), format="percent")


def units(results: Sequence[Result]) -> list[str]:
    """Returns the unit of each result in a bootstrap: its text, or its recording."""
    return [result.case.text or result.case.source or result.case.key for result in results]


def seeds(results: Sequence[Result]) -> list[int]:
    """Returns the seed of each result."""
    return [int(result.case.request.get("seed", 0)) for result in results]


def measured(measures: Sequence[Measure], judges: Sequence[str]) -> list[Measure]:
    """Returns the measures whose judge has heard."""
    return [measure for measure in measures if measure.judge in judges]


def tabulate(
    title: str,
    head: str,
    groups: Mapping[str, Sequence[Result]],
    measures: Sequence[Measure],
    extra: Mapping[str, tuple[Callable[[Sequence[Result]], Estimate], str | int]] | None = None,
    note: str = "",
) -> tuple[Table, dict[str, Estimate]]:
    """Returns a table of measures by group, and its figures by `group.measure`.

    Args:
      title: of the table.
      head: of the column with the groups' names.
      groups: results by name.
      measures: the columns; see `measured`.
      extra: further columns: how a figure is made and its format, by its name, which is the title too.
      note: below the table.
    """
    extra = dict(extra or {})
    rows, figures = [], {}
    for name, results in groups.items():
        found = {measure.name: measure.of(results) for measure in measures}
        found |= {key: make(results) for key, (make, _) in extra.items()}
        rows.append((name, len(results), *found.values()))
        figures |= {f"{name}.{key}": value for key, value in found.items()}
    columns = (head, "n", *(measure.title for measure in measures), *extra)
    formats = (0, *(measure.format for measure in measures), *(form for _, form in extra.values()))
    return Table(title, columns, tuple(rows), formats, note), figures


def share(condition: Callable[[Result], bool | None]) -> Callable[[Sequence[Result]], Estimate]:
    """Returns a figure: the share of the results that meet a condition; those where it is None do not count."""

    def of(results: Sequence[Result]) -> Estimate:
        kept = [(result, found) for result in results if (found := condition(result)) is not None]
        known = [result for result, _ in kept]
        return statistics.estimate(
            statistics.mean, [found for _, found in kept], units=units(known), seeds=seeds(known)
        )

    return of
