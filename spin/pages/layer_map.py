"""The contributions of an explanation by kind, pooling and layer: a table of layers and the sum to the logit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spin.pages.explanation import Explanation
from spin.poolings import registry

_KINDS = {"resid": "residual stream", "ffn": "inner neurons of the FFN", "final": "after the final norm"}


@dataclass(frozen=True)
class LayerCell:
    """The contribution of the neurons of one feature column."""

    contribution: float
    """contribution to the logit, summed over the neurons"""
    neurons: int
    """number of selected neurons"""


@dataclass(frozen=True)
class LayerRow:
    """The cells of one kind of site under one pooling."""

    kind: str
    """`resid`, `ffn` or `final`"""
    pooling: str
    """the name of a pooling"""
    cells: dict[int, LayerCell]
    """cells by layer, of the layers with a selected neuron"""

    @property
    def description(self) -> str:
        """The kind and the pooling in words."""
        return f"{_KINDS[self.kind]}, {registry.find_pooling(self.pooling).description}"

    @property
    def total(self) -> float:
        """The contribution over all layers."""
        return sum(cell.contribution for cell in self.cells.values())


@dataclass(frozen=True)
class LayerMap:
    """Contributions to the logit of one class, by kind, pooling and layer."""

    rows: tuple[LayerRow, ...]
    """rows in the order of `_KINDS` and `POOLINGS`"""

    @property
    def layers(self) -> range:
        """All layers from the first to the last with a selected neuron."""
        layers = {layer for row in self.rows for layer in row.cells}
        return range(min(layers), max(layers) + 1) if layers else range(0)

    @property
    def largest(self) -> float:
        """The largest absolute contribution of a cell."""
        return max((abs(cell.contribution) for row in self.rows for cell in row.cells.values()), default=0.0)

    def layer_total(self, layer: int) -> float:
        """The contribution of one layer over all rows."""
        return sum(row.cells[layer].contribution for row in self.rows if layer in row.cells)


@dataclass(frozen=True)
class WaterfallStep:
    """One step of the sum from the bias to the logit."""

    name: str
    description: str
    start: float
    """rounded to two digits, as is `end`"""
    end: float


def layer_map(explanation: Explanation, k: int) -> LayerMap:
    """The contributions to class k by kind, pooling and layer."""
    cells: dict[tuple[str, str], dict[int, LayerCell]] = {}
    for (column, _), value in zip(explanation.neurons, explanation.contributions[:, k], strict=True):
        row = cells.setdefault((column.site.kind, column.pooling), {})
        cell = row.get(column.site.layer, LayerCell(0.0, 0))
        row[column.site.layer] = LayerCell(cell.contribution + float(value), cell.neurons + 1)
    kinds, poolings = list(_KINDS), [pooling.name for pooling in registry.POOLINGS]
    rows = [LayerRow(kind, pooling, by_layer) for (kind, pooling), by_layer in cells.items()]
    return LayerMap(tuple(sorted(rows, key=lambda row: (kinds.index(row.kind), poolings.index(row.pooling)))))


def waterfall(
    rows: Sequence[LayerRow], bias: float, logit: float, terms: float | None = None
) -> tuple[WaterfallStep, ...]:
    """The steps from zero to the bias, and over the terms if there are any and every row to the logit."""
    of_terms = [] if terms is None else [terms]
    ends = rounded_levels([bias, *of_terms, *(row.total for row in rows)], logit)
    names = [("bias", "logit of a text without terms whose neurons are all at their training mean")]
    names += [("terms", "words, word pairs and strings of characters in the text") for _ in of_terms]
    names += [(f"{row.kind} {row.pooling}", row.description) for row in rows]
    return tuple(
        WaterfallStep(name, description, start, end)
        for (name, description), start, end in zip(names, [0.0, *ends[:-1]], ends, strict=True)
    )


def rounded_levels(steps: Sequence[float], total: float) -> list[float]:
    """The ends of the steps, rounded to two digits, so that the differences as shown add up to the total as shown."""
    return [round(float(level), 2) for level in (*np.cumsum(steps)[:-1], total)]
