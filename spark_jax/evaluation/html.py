"""The page of an evaluation: tables, confusions, scatter plots and players, in one HTML file beside the audio."""

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from spark_jax.evaluation import plots

WIDEST = 7  # columns of a table that fit on a page

STYLE = """
:root{color-scheme:light dark;--line:#8884;--soft:#8881;--accent:#3b6fb6}
body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin-bottom:.2rem}h2{font-size:1.15rem;margin:2.2rem 0 .6rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;display:block;overflow-x:auto}
th,td{padding:.3rem .7rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}td.text{text-align:left;white-space:normal;min-width:16rem}
td small,p small,.note{color:#8889;color:color-mix(in srgb,currentColor 65%,transparent)}
td small{display:block;line-height:1.2}
.confusion td{min-width:3.4rem;text-align:center}.axis{font-weight:normal}
svg{max-width:100%;height:auto}svg text{font:12px system-ui,sans-serif;fill:currentColor}
svg .grid{stroke:currentColor;stroke-opacity:.12}
svg .identity{stroke:currentColor;stroke-opacity:.5;stroke-dasharray:5 4}
.legend span{margin-right:1rem}
.legend i{display:inline-block;width:.8em;height:.8em;border-radius:50%;margin-right:.35em}
audio{height:2.2rem;width:10.5rem;vertical-align:middle}
dl{display:grid;grid-template-columns:max-content auto;gap:.15rem 1rem}
dt{color:#888}dd{margin:0;overflow-wrap:anywhere}
"""


def page(report: Mapping[str, Any], times: Sequence[tuple[str, str]] = ()) -> str:
    """Returns the page of a report as JSON has it.

    Args:
      report: see `experiments.run.report`.
      times: measurements of time, as name and text: the one part that differs between two runs.
    """
    title = f"{report['experiment']}: {', '.join(report['models'])}"
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>',
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>',
        f"<h1>{_text(title)}</h1>",
        "<p><small>95 % bootstrap intervals over texts or speakers; ±: standard deviation over seeds.</small></p>",
    ]
    for section in report["sections"]:
        parts.append(f"<h2>{_text(section['title'])}</h2>")
        parts.append(_SECTIONS[section["kind"]](section))
        if section.get("note"):
            parts.append(f'<p class="note">{_text(section["note"])}</p>')
    if times:
        parts.append("<h2>Time</h2>")
        parts.append(_list(times))
    parts.append("<h2>How it was measured</h2>")
    facts = [(name, _plain(value)) for name, value in report["settings"].items()]
    facts += [(f"judge {name}", version) for name, version in report["judges"].items()]
    facts += [(f"not measured: {name}", why) for name, why in report["not_measured"].items()]
    facts += [("note", note) for note in report["notes"]]
    parts.append(_list(facts))
    parts.append("</body></html>\n")
    return "\n".join(parts)


def shown(value: Any, form: str | int) -> str:
    """Returns a figure or a text as a cell shows it, in HTML.

    Args:
      value: a number, a text, an `Estimate` as JSON has it, or None.
      form: "percent", or the number of decimals.
    """
    if value is None:
        return "–"
    if isinstance(value, str):
        return _text(value)
    if not isinstance(value, Mapping):
        return _number(value, form)
    if value["value"] is None:
        return "–"
    cell = _number(value["value"], form)
    if value["spread"] is not None:
        cell += f" <small>± {_number(value['spread'], form)}</small>"
    if value["low"] is not None:
        cell += f" <small>{_number(value['low'], form)} … {_number(value['high'], form)}</small>"
    return cell


def _number(value: float, form: str | int) -> str:
    return f"{value:.1%}".replace("%", " %") if form == "percent" else f"{value:.{form}f}"


def _table(section: Mapping[str, Any]) -> str:
    lines = [[_text(column) for column in section["columns"]]]
    for name, *cells in section["rows"]:
        shown_cells = (shown(cell, form) for cell, form in zip(cells, section["formats"], strict=True))
        lines.append([_text(name), *shown_cells])
    if len(lines[0]) > max(WIDEST, len(lines)):  # a row for each figure
        lines = [list(column) for column in zip(*lines, strict=True)]
    head, *rows = lines
    heads = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def _confusion(section: Mapping[str, Any]) -> str:
    heads = "".join(f"<th class=axis>{_text(column)}</th>" for column in section["columns"])
    rows = []
    for name, counts in zip(section["rows"], section["counts"], strict=True):
        total = max(sum(counts), 1)
        cells = "".join(
            f'<td style="background:color-mix(in srgb,var(--accent) {70 * count / total:.0f}%,transparent)">'
            f"{count or ''}</td>"
            for count in counts
        )
        rows.append(f"<tr><th class=axis>{_text(name)}</th>{cells}</tr>")
    return (
        f"<table class=confusion><thead><tr><th class=axis>asked ↓ measured →</th>{heads}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _clips(section: Mapping[str, Any]) -> str:
    if not section["rows"]:
        return "<p>Nothing was spoken.</p>"
    names = list(dict.fromkeys(name for _, clips in section["rows"] for name in clips))
    heads = "".join(f"<th>{_text(name)}</th>" for name in ("", *names))
    rows = []
    for caption, clips in section["rows"]:
        cells = "".join(f"<td>{player(f'audio/{clips[name]}.flac') if name in clips else '–'}</td>" for name in names)
        rows.append(f"<tr><td class=text>{_text(caption)}</td>{cells}</tr>")
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def player(path: str) -> str:
    """Returns an audio player in HTML."""
    return f'<audio controls preload="none" src="{html.escape(path, quote=True)}"></audio>'


def _list(facts: Sequence[tuple[str, Any]]) -> str:
    return "<dl>" + "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts) + "</dl>"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return str(value)


def _text(value: object) -> str:
    return html.escape(str(value))


_SECTIONS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "table": _table,
    "confusion": _confusion,
    "scatter": plots.scatter,
    "clips": _clips,
}
