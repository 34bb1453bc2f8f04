"""The pictures on a page: signed figures, bars, a scale of shades, the map of layers and the sum to a logit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from spin.pages.explanation import Explanation
from spin.pages.html import Html, tag, together
from spin.pages.stylesheet import STEPS, shade

Place = tuple[str, str]
"""kind and pooling: a row of the map"""

_KINDS = {"resid": "residual stream", "ffn": "inner neurons of the FFN", "final": "after the final norm"}
_POOLINGS = {
    "mean": "mean over the tokens",
    "max": "largest of the tokens",
    "first": "first token",
    "last": "last token",
}


def signed(value: float, digits: int = 2) -> str:
    """`+0.25`, `−0.25` with a true minus, `0.00` for what rounds to nothing."""
    written = f"{value:+.{digits}f}"
    return written.replace("-", "\u2212") if float(written) else written[1:]


def figure(value: float, digits: int = 2, name: str = "span") -> Html:
    """A signed number in the colour of its sign."""
    written = signed(value, digits)
    sign = {"+": " plus", "\u2212": " minus"}.get(written[0], "")
    return tag(name, written, class_=f"number{sign}")


def bar(start: float, end: float, low: float, high: float) -> Html:
    """From `start` to `end` on an axis from `low` to `high` with a line at zero."""
    wide = high - low or 1.0
    left, right, zero = (round(1000 * (at - low) / wide, 2) for at in (min(start, end), max(start, end), 0.0))
    return tag(
        "svg",
        tag("rect", x=left, y=0, width=max(round(right - left, 2), 2.0), height=10),
        tag("line", x1=zero, x2=zero, y1=0, y2=10),
        class_=f"bar {'for' if end >= start else 'against'}",
        viewBox="0 0 1000 10",
        preserveAspectRatio="none",
        aria_hidden="true",
    )


def share_bar(share: float) -> Html:
    """A part of one."""
    filled = tag("rect", x=0, y=0, width=max(round(1000 * share, 2), 2.0), height=10)
    return tag("svg", filled, class_="bar", viewBox="0 0 1000 10", preserveAspectRatio="none", aria_hidden="true")


def scale(largest: float) -> Html:
    """Which shade stands for how much."""
    steps = [shade(step, STEPS) for step in range(-STEPS, STEPS + 1)]
    ramp = tag("span", *(tag("i", class_=name) for name in steps), class_="ramp", aria_hidden="true")
    ends = (f"against {signed(-largest)}", f"{signed(largest)} for")
    return tag("p", tag("span", ends[0]), ramp, tag("span", ends[1]), class_="scale")


def sums(found: Explanation, k: int) -> dict[Place, dict[int, tuple[float, int]]]:
    """What each kind and pooling adds to class k at each layer, and by how many neurons; rows in order."""
    cells: dict[Place, dict[int, tuple[float, int]]] = {}
    for (column, _), value in zip(found.neurons, found.contributions[:, k], strict=True):
        row = cells.setdefault((column.site.kind, column.pooling), {})
        total, count = row.get(column.site.layer, (0.0, 0))
        row[column.site.layer] = total + float(value), count + 1
    kinds, poolings = list(_KINDS), list(_POOLINGS)
    return dict(sorted(cells.items(), key=lambda item: (kinds.index(item[0][0]), _rank(poolings, item[0][1]))))


def layer_map(cells: Mapping[Place, Mapping[int, tuple[float, int]]]) -> Html:
    """Kinds and poolings by layers, each cell shaded by what its neurons add."""
    layers = sorted({layer for row in cells.values() for layer in row})
    span = range(layers[0], layers[-1] + 1) if layers else range(0)
    largest = max((abs(total) for row in cells.values() for total, _ in row.values()), default=0.0)
    head = tag("tr", tag("th", "layer", scope="row"), *(tag("th", str(layer), scope="col") for layer in span))
    rows = [
        tag("tr", _name(place), *(_cell(place, row, layer, largest) for layer in span)) for place, row in cells.items()
    ]
    by_layer = [sum(row.get(layer, (0.0, 0))[0] for row in cells.values()) for layer in span]
    foot = tag("tr", tag("th", "all", scope="row"), *(figure(total, name="td") for total in by_layer), class_="sums")
    table = tag("table", tag("thead", head), tag("tbody", *rows), tag("tfoot", foot), class_="map")
    label = "Contribution by layer and site"
    return together([tag("div", table, class_="scroll", tabindex=0, role="region", aria_label=label), scale(largest)])


def waterfall(cells: Mapping[Place, Mapping[int, tuple[float, int]]], bias: float, logit: float) -> Html:
    """From the bias over every row of the map to the logit."""
    steps = [bias, *(sum(total for total, _ in row.values()) for row in cells.values())]
    ends = levels(steps, logit)
    low, high = min(0.0, *ends), max(0.0, *ends)
    names = [tag("th", "bias", scope="row"), *map(_name, cells)]
    rows = [
        tag("tr", name, tag("td", bar(start, end, low, high), class_="track"), figure(end - start, name="td"))
        for name, start, end in zip(names, [0.0, *ends], ends, strict=False)
    ]
    total = tag("td", bar(0, ends[-1], low, high), class_="track"), tag("td", signed(ends[-1]), class_="number")
    rows.append(tag("tr", tag("th", "logit", scope="row"), *total, class_="total"))
    return tag("table", tag("tbody", *rows), class_="falls")


def levels(steps: Sequence[float], total: float, digits: int = 2) -> list[float]:
    """Where each step ends, rounded: the differences of these add up to the total as they are shown."""
    return [round(float(level), digits) for level in (*np.cumsum(steps)[:-1], total)]


def _cell(place: Place, row: Mapping[int, tuple[float, int]], layer: int, largest: float) -> Html:
    if layer not in row:
        return tag("td", "·", class_="empty", title="no neuron was selected here")
    total, count = row[layer]
    title = f"{place[0]}.{layer:02d}.{place[1]}: {count:,} {'neuron' if count == 1 else 'neurons'}, {signed(total, 3)}"
    return tag("td", signed(total), class_=f"cell {shade(total, largest)}", title=title)


def _name(place: Place) -> Html:
    kind, pooling = place
    return tag("th", f"{kind} {pooling}", scope="row", title=f"{_KINDS[kind]}, {_POOLINGS.get(pooling, pooling)}")


def _rank(names: Sequence[str], name: str) -> tuple[int, str]:
    return names.index(name) if name in names else len(names), name
