"""What an evaluation found, for JSON and for a page: figures, tables, confusions, scatter plots, things to hear."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from spark_jax.evaluation.statistics import Estimate


@dataclasses.dataclass(frozen=True)
class Table:
    """Figures in rows.

    Attributes:
      title: of it.
      columns: heads; the first is that of the rows' names.
      rows: a name, and a figure or text for each other column; None for what was not measured.
      formats: of each column but the first: "percent", or the number of decimals.
      note: what a reader must know.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | Estimate | int | float | None, ...], ...]
    formats: tuple[str | int, ...]
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Confusion:
    """How often what was asked for in a row was measured as a column's label."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Scatter:
    """Points of several groups.

    Attributes:
      points: x, y, group, and the key of the case.
      identity: a line shows where y is x.
    """

    title: str
    x: str
    y: str
    points: tuple[tuple[float, float, str, str], ...]
    identity: bool = True


@dataclasses.dataclass(frozen=True)
class Clips:
    """Speech to hear: a caption, and keys of cases by what they are."""

    title: str
    rows: tuple[tuple[str, Mapping[str, str]], ...]


Section = Table | Confusion | Scatter | Clips


@dataclasses.dataclass(frozen=True)
class Summary:
    """All of it: figures by name for programs, and sections for readers."""

    figures: Mapping[str, Estimate]
    sections: Sequence[Section]


def as_json(summary: Summary) -> dict[str, Any]:
    """Returns figures and sections as JSON has them; a section says of which kind it is."""
    return {
        "figures": {name: dataclasses.asdict(figure) for name, figure in summary.figures.items()},
        "sections": [
            {"kind": type(section).__name__.lower(), **dataclasses.asdict(section)} for section in summary.sections
        ],
    }
