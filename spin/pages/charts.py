"""SVG charts: bars on an axis with a zero, shares of one, columns over time, and lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

_WIDTH = 1000
"""width of the drawing area of a bar, which CSS stretches"""
_LEAST = 2.0
"""width of a bar that would be too small to see"""


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    name: str
    points: Sequence[tuple[float, float]]
    """x and y, ascending in x; neither is negative"""


def bar(start: float, end: float, low: float, high: float) -> Markup:
    """A bar from `start` to `end` on an axis from `low` to `high`, with a line at zero."""
    scale = _WIDTH / (high - low or 1.0)
    left, right, zero = (round((x - low) * scale, 2) for x in (min(start, end), max(start, end), 0.0))
    rect = _rect(x=left, width=max(round(right - left, 2), _LEAST))
    line = Markup('<line x1="{0}" x2="{0}" y1="0" y2="10"/>').format(zero)
    return _bar_svg(rect + line, "for" if end >= start else "against")


def share_bar(share: float, kind: str = "", least: float = _LEAST) -> Markup:
    """A bar for a share of one, of the CSS class `kind`, at least `least` thousandths wide."""
    return _bar_svg(_rect(x=0, width=max(round(_WIDTH * share, 2), least)), kind)


def column_chart(values: Sequence[float], label: str) -> Markup:
    """A column per value, the largest over the full height; `label` describes the chart to a screen reader."""
    top = max(values, default=0.0) or 1.0
    heights = [round(100 * value / top, 2) for value in values]
    columns = [_rect(x=10 * i, width=9, y=round(100 - height, 2), height=height) for i, height in enumerate(heights)]
    svg = Markup('<svg viewBox="0 0 {} 100" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>')
    return svg.format(10 * len(values), label, Markup().join(columns))


def line_chart(lines: Sequence[Line], label: str) -> Markup:
    """Lines over one pair of axes from 0 to the largest x and y, of the CSS classes `line-0`, `line-1`, …

    `label` describes the chart to a screen reader.
    """
    right = max((x for line in lines for x, _ in line.points), default=0.0) or 1.0
    top = max((y for line in lines for _, y in line.points), default=0.0) or 1.0
    drawn = []
    for number, line in enumerate(lines):
        places = " ".join(f"{_WIDTH * x / right:.1f},{100 - 100 * y / top:.2f}" for x, y in line.points)
        drawn.append(Markup('<polyline class="line-{}" points="{}"/>').format(number, places))
    svg = Markup('<svg viewBox="0 0 {} 100" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>')
    return svg.format(_WIDTH, label, Markup().join(drawn))


def _rect(*, x: float, width: float, y: float = 0, height: float = 10) -> Markup:
    return Markup('<rect x="{}" y="{}" width="{}" height="{}"/>').format(x, y, width, height)


def _bar_svg(content: Markup, kind: str) -> Markup:
    svg = Markup('<svg class="{}" viewBox="0 0 {} 10" preserveAspectRatio="none" aria-hidden="true">{}</svg>')
    return svg.format(f"bar {kind}".rstrip(), _WIDTH, content)
