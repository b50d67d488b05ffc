"""Plots as inline SVG, without a plotting library."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH, HEIGHT, MARGIN = 460, 360, 52
COLORS = ("#3b6fb6", "#c8553d", "#4f9d69", "#8b5fbf", "#c79a2b", "#4aa3b8", "#7a7a7a")


def scatter(section: Mapping[str, Any]) -> str:
    """Returns the SVG of a `findings.Scatter` as JSON has it."""
    points: Sequence[Sequence[Any]] = section["points"]
    if not points:
        return "<p>Nothing was measured.</p>"
    xs, ys = [point[0] for point in points], [point[1] for point in points]
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    if section["identity"]:
        x_ticks = y_ticks = ticks(min(xs + ys), max(xs + ys))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return MARGIN + across * (WIDTH - MARGIN - 12), HEIGHT - MARGIN - up * (HEIGHT - MARGIN - 12)

    left, bottom = place(x_ticks[0], y_ticks[0])
    right, top = place(x_ticks[-1], y_ticks[-1])
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" aria-label="{_text(section["title"])}">']
    for tick in x_ticks:
        x, _ = place(tick, y_ticks[0])
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{bottom:.1f}" x2="{x:.1f}" y2="{top:.1f}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{tick:g}</text>')
    for tick in y_ticks:
        _, y = place(x_ticks[0], tick)
        parts.append(f'<line class="grid" x1="{left:.1f}" y1="{y:.1f}" x2="{right:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    if section["identity"]:
        parts.append(f'<line class="identity" x1="{left:.1f}" y1="{bottom:.1f}" x2="{right:.1f}" y2="{top:.1f}"/>')
    groups = list(dict.fromkeys(point[2] for point in points))
    for x, y, group, key in points:
        across, up = place(x, y)
        color = COLORS[groups.index(group) % len(COLORS)]
        title = _text(f"{key}: {x:.4g}, {y:.4g}")
        parts.append(
            f'<circle cx="{across:.1f}" cy="{up:.1f}" r="4" fill="{color}" fill-opacity="0.65"><title>{title}</title>'
            "</circle>"
        )
    middle = (left + right) / 2
    parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - 12}" text-anchor="middle">{_text(section["x"])}</text>')
    height = (top + bottom) / 2
    turned = f"rotate(-90 14 {height:.1f})"
    parts.append(
        f'<text x="14" y="{height:.1f}" text-anchor="middle" transform="{turned}">{_text(section["y"])}</text>'
    )
    legend = "".join(
        f'<span><i style="background:{COLORS[number % len(COLORS)]}"></i>{_text(group)}</span>'
        for number, group in enumerate(groups)
    )
    return "\n".join(parts) + f'\n</svg><p class="legend">{legend}</p>'


def ticks(low: float, high: float) -> list[float]:
    """Returns about five round numbers, the first at most `low`, the last at least `high`, and two at least."""
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5 * max(1.0, abs(low)), high + 0.5 * max(1.0, abs(high))
    raw = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, max(last, first + 1) + 1)]


def _text(value: object) -> str:
    return html.escape(str(value))
