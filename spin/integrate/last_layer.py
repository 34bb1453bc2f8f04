"""The last layer beside selected neurons: with very few labels, two heads whose mistakes differ are right more often.

A head on all neurons of the residual stream at the deepest block that is read needs no selection, which so few labels
make at random. Its logits are averaged with those of the head on selected neurons. Both heads are linear, so the
average is one linear head on the neurons of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from spin.arrays import Floats
from spin.fitted.recipe import LastLayerRecipe
from spin.heads.linear_head import LinearHead
from spin.heads.selection import Selection
from spin.integrate.feature_matrix import Probes
from spin.labels.training_data import TrainingData
from spin.settings import SearchSettings
from spin.sites import FeatureColumn

LAST_LAYER_BELOW = 150
"""number of labelled documents below which the last layer counts: on tweets it gains 2.7 points of macro-F1 with 48
labels and 1.8 with 96, and loses half a point with 192"""
_POOLINGS = ("mean", "last")
"""poolings of the last layer, the preferred one first; without them the first of all"""


@dataclass(frozen=True)
class HeldOut:
    """Predictions by the heads of a candidate, one per fold, for rows that they have not seen."""

    logits: tuple[Floats, ...]
    """(m, K) logits of each fold's validation rows"""
    heads: tuple[LinearHead, ...]
    """the head of each fold"""
    selections: tuple[Selection, ...]
    """the neurons of each fold's head"""
    last_layer: LastLayerRecipe | None = None
    """how the last layer was joined to the selected neurons; None if it was not"""


def find_last_columns(
    columns: Sequence[FeatureColumn], data: TrainingData, settings: SearchSettings
) -> dict[int, FeatureColumn]:
    """The feature column of the last layer by depth, where labels are so few that it counts beside selected neurons.

    It is one of the residual stream. Under a cap on leakage there is none: all neurons of a layer reveal more words
    than any few.
    """
    if len(data.all_rows) >= LAST_LAYER_BELOW or settings.max_leakage is not None:
        return {}
    found: dict[int, FeatureColumn] = {}
    for column in columns:
        depth = column.site.layer
        if column.site.kind == "resid" and (depth not in found or _order(column) < _order(found[depth])):
            found[depth] = column
    return found


def _order(column: FeatureColumn) -> int:
    return _POOLINGS.index(column.pooling) if column.pooling in _POOLINGS else len(_POOLINGS)


def select_all(column: FeatureColumn, probes: Probes) -> Selection:
    """All neurons of a column."""
    width = len(probes[column].standardizer)
    return Selection({column: np.arange(width)}, {column: np.zeros(width)}, 1.0)


def join_last_layer(
    selection: Selection, head: LinearHead, last: Selection, last_head: LinearHead, weights: tuple[float, float]
) -> tuple[Selection, LinearHead]:
    """The weighted sum of a head on selected neurons and one on the last layer, as one head on the neurons of both."""
    joined = selection.join(last)
    coef = np.zeros((len(head.coef), len(joined)), np.float32)
    intercept = np.zeros(len(head.coef), np.float32)
    for part, of_part, weight in ((selection, head, weights[0]), (last, last_head, weights[1])):
        coef[:, part.positions_in(joined)] += np.float32(weight) * of_part.coef
        intercept += np.float32(weight) * of_part.intercept
    return joined, replace(head, coef=coef, intercept=intercept)
