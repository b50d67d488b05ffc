"""Figures with their uncertainty: bootstrap intervals over units, and the spread over seeds."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.stats

RESAMPLES = 1000
INTERVAL = (2.5, 97.5)  # percent
SHORTEST_WAY = 0.05  # from a floor to a ceiling: on a shorter one there is nothing to tell
_SEED = 0  # of the bootstrap: the same results have the same intervals
_DIGITS = 5

Statistic = Callable[..., float]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure.

    Attributes:
      value: of all items together; None where it cannot be told.
      low, high: ends of the 95 % bootstrap interval; None for fewer than two units.
      items: how many values it is of.
      seeds: how many seeds of the synthesis these are of.
      spread: standard deviation of the figures of each seed; None for one seed.
    """

    value: float | None
    low: float | None
    high: float | None
    items: int
    seeds: int = 1
    spread: float | None = None


def estimate(
    statistic: Statistic,
    *columns: Sequence[Any] | np.ndarray,
    units: Sequence[Any] | np.ndarray | None = None,
    seeds: Sequence[int] | None = None,
) -> Estimate:
    """Returns a figure with its interval.

    Args:
      statistic: of arrays, one for each column.
      *columns: values of each item.
      units: what is drawn in the bootstrap, such as the text of each item: its items are drawn together, so that
        several seeds of one text do not pass for several texts. None: each item.
      seeds: of each item; None: one seed.
    """
    arrays = [np.asarray(column, float) for column in columns]
    count = len(arrays[0])
    if not count:
        return Estimate(None, None, None, 0)
    value = _finite(statistic(*arrays))
    names, owner = np.unique(np.asarray(range(count) if units is None else list(units)), return_inverse=True)
    low = high = None
    if len(names) > 1 and value is not None:
        members = [np.flatnonzero(owner == number) for number in range(len(names))]
        drawn = []
        for draw in np.random.default_rng(_SEED).integers(0, len(names), (RESAMPLES, len(names))):
            index = np.concatenate([members[number] for number in draw])
            drawn.append(statistic(*(array[index] for array in arrays)))
        finite = [number for number in drawn if math.isfinite(number)]
        if finite:
            low, high = (_finite(end) for end in np.percentile(finite, INTERVAL))
    each = sorted(set(seeds or [0]))
    spread = None
    if len(each) > 1:
        of_seed = np.asarray(seeds)
        found = [statistic(*(array[of_seed == seed] for array in arrays)) for seed in each]
        spread = _finite(np.std([number for number in found if math.isfinite(number)], ddof=1))
    return Estimate(value, low, high, count, len(each), spread)


def mean(values: np.ndarray) -> float:
    """Returns the mean."""
    return float(values.mean())


def median(values: np.ndarray) -> float:
    """Returns the median."""
    return float(np.median(values))


def ratio(parts: np.ndarray, wholes: np.ndarray) -> float:
    """Returns the sum of the parts by that of the wholes, such as errors by words."""
    return float(parts.sum() / wholes.sum()) if wholes.sum() else math.nan


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the rank correlation; NaN where one of them is constant."""
    return correlation(scipy.stats.rankdata(first), scipy.stats.rankdata(second))


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Returns Pearson's correlation; NaN where one of them is constant."""
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(np.corrcoef(first, second)[0, 1])


def share_of_way(value: np.ndarray, floor: np.ndarray, ceiling: np.ndarray) -> float:
    """Returns where the mean value is between the mean floor (0) and the mean ceiling (1); NaN if they are close."""
    way = ceiling.mean() - floor.mean()
    return float((value.mean() - floor.mean()) / way) if way >= SHORTEST_WAY else math.nan


def confusion(
    asked: Sequence[str], measured: Sequence[str], rows: Sequence[str], columns: Sequence[str]
) -> list[list[int]]:
    """Returns how often each label of a row was asked for where that of a column was measured."""
    counts = [[0] * len(columns) for _ in rows]
    for wanted, found in zip(asked, measured, strict=True):
        counts[list(rows).index(wanted)][list(columns).index(found)] += 1
    return counts


def _finite(value: Any) -> float | None:
    return round(float(value), _DIGITS) if math.isfinite(value) else None
