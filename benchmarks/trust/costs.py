"""Is the cost that `spin roi` predicts from one half of the documents the cost of the other half?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.section_page import Part, table
from benchmarks.trust.champion import Champion
from pipelines.planning.operations import measure_operations
from spin.arrays import Rows
from spin.labels.label_space import LabelSpace, Targets
from spin.roi.error_costs import ErrorCosts
from spin.roi.operating_points import Operation, Prices, weigh_points, with_interval

SPLITS, LEAST_INSIDE = 100, 88
_TERMS = ((0.40, 0.25), (0.40, 0.05), (5.0, 0.5))
"""pairs of prices: of an error and of a review"""


@dataclass(frozen=True)
class Coverage:
    """How often an interval held the cost of the documents that it was not made from."""

    cost_error: float
    cost_review: float
    inside: int
    """of `SPLITS`"""
    width: float
    """mean width of the interval, as a share of the cost"""
    gap: float
    """mean of realised minus predicted cost, as a share of the predicted one"""


def measure(champion: Champion, *, quick: bool = False) -> list[Coverage]:
    """Split the evaluation set in random halves; choose the best point on one and compare it with the other."""
    limit = 400 if quick else None
    texts, labels = list(champion.evaluation_set.texts[:limit]), champion.evaluation_set.labels[:limit]
    operations = list(measure_operations(champion.settings, champion.registry, champion.number, texts))
    label_space = champion.classifier(exits=False).label_space
    y = label_space.index(labels)
    return [_cover(operations, label_space, y, *terms) for terms in _TERMS]


def section(coverages: Sequence[Coverage]) -> Part:
    """The page's section: a row per pair of prices."""
    rows = [
        [f"{c.cost_error:g} / {c.cost_review:g}", f"{c.inside}", f"{100 * c.width:.0f} %", f"{100 * c.gap:+.1f} %"]
        for c in coverages
    ]
    text = (
        f"{SPLITS} random halves of the quickstart's evaluation set. On one half the operating point with the least "
        "expected cost is chosen among all classifiers, exits and abstention bands, and its 95 % prediction interval "
        "is made for as many documents as the other half has. Inside: how often the realised cost of the other half "
        "lies in it. Gap: realised minus predicted cost.\n\n"
        + table(["error / review", "inside", "width", "gap"], rows)
    )
    least = min(c.inside for c in coverages)
    return text, [
        (least >= LEAST_INSIDE, f"the realised cost lies inside in {least} of {SPLITS} splits, expected {LEAST_INSIDE}")
    ]


def _cover(
    operations: Sequence[Operation], label_space: LabelSpace, y: Targets, cost_error: float, cost_review: float
) -> Coverage:
    prices, draw = Prices(ErrorCosts.of(label_space, cost_error), cost_review, cpu_hour=0.05), np.random.default_rng(0)
    inside, widths, gaps = 0, [], []
    for split in range(SPLITS):
        rows = draw.permutation(len(y))
        known, unknown = rows[: len(y) // 2], rows[len(y) // 2 :]
        candidates = [
            (point, operation)
            for operation in operations
            for point in weigh_points(_take(operation, known), y[known], prices)
        ]
        best, operation = min(candidates, key=lambda pair: (pair[0].expected_total, pair[0].reviewed))
        interval = with_interval(
            best, _take(operation, known), y[known], prices, volume=len(unknown), seed=split
        ).interval
        assert interval is not None
        others = weigh_points(_take(operation, unknown), y[unknown], prices)
        realised = next(point.total for point in others if point.abstain == best.abstain)
        inside += realised in interval
        widths.append((interval.high - interval.low) / best.total)
        gaps.append(realised / best.total - 1)
    return Coverage(cost_error, cost_review, inside, float(np.mean(widths)), float(np.mean(gaps)))


def _take(operation: Operation, rows: Rows) -> Operation:
    """The operation on some of the documents."""
    outcomes = (
        replace(of, given=of.given[rows], abstains=of.abstains[rows], probabilities=of.probabilities[rows])
        for of in operation.outcomes
    )
    return replace(operation, outcomes=tuple(outcomes))
