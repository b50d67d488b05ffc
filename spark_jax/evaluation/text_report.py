"""The tables of a report as plain text, for a terminal."""

from collections.abc import Mapping
from typing import Any


def as_text(report: Mapping[str, Any]) -> str:
    """Returns the tables of a report, and what was not measured."""
    parts = [_table(section) for section in report["sections"] if section["kind"] == "table"]
    parts += [f"not measured: {name}: {why}" for name, why in report["not_measured"].items()]
    return "\n\n".join(parts)


def _table(section: Mapping[str, Any]) -> str:
    lines = [[str(cell) for cell in section["columns"]]]
    for name, *cells in section["rows"]:
        lines.append([str(name), *(shown(cell, form) for cell, form in zip(cells, section["formats"], strict=True))])
    # A line for each figure where the table would be wider than a terminal.
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    if sum(widths) + 2 * len(widths) > 110:
        lines = [list(column) for column in zip(*lines, strict=True)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = [
        "  ".join(cell.ljust(width) if not number else cell.rjust(width) for number, (cell, width) in enumerate(pairs))
        for pairs in (zip(line, widths, strict=True) for line in lines)
    ]
    return "\n".join([section["title"], *(row.rstrip() for row in rows)])


def shown(value: Any, form: str | int) -> str:
    """Returns a figure or a text as a cell shows it; see `html.shown`."""
    if isinstance(value, Mapping):
        text = shown(value["value"], form)
        return text if value["low"] is None else f"{text} [{shown(value['low'], form)}, {shown(value['high'], form)}]"
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return f"{value:.1%}" if form == "percent" else f"{value:.{form}f}"
