"""Choose thresholds per class on held-out documents, by the metric of the training."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats, Rows
from spin.fitted.decision import apply_thresholds
from spin.labels.cross_validation import JACKKNIFE_PARTS, jackknife_rows
from spin.labels.label_space import LabelSpace, Targets
from spin.labels.metrics import score

_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""how much of the classes' prior log odds the thresholds take, from the most probable class to equally frequent ones"""


def choose_class_thresholds(
    logits: Floats,
    y: Targets,
    label_space: LabelSpace,
    *,
    metric: str,
    class_weights: str,
    documents: NDArray[np.generic] | None = None,
) -> Floats | None:
    """The thresholds (K,) with the best metric on held-out documents; None for the most probable class, or one half.

    `logits` (n, K) are calibrated ones of held-out documents. The thresholds that are tried are `shared_thresholds`
    for g from 0 to 1. With g = 0 the most probable class wins. With g = 1 it is the class whose probability is largest
    compared with its share, which is the best decision for balanced accuracy. For macro-F1 in a multi-label task half
    of each class's best expected F1 is tried too (Lipton, Elkan & Naryanaswamy 2014).

    The labels by which the search judged its candidates stand (g = 0, under balanced `class_weights` g = 1) unless
    others are better. The difference is estimated without bias: thresholds that are chosen on all documents but one of
    twenty parts label this part. `documents` (n,) identify rows that must share a part: predictions of one document by
    repeated cross-validation, or near-identical documents.
    """
    probabilities = label_space.probabilities(logits.astype(np.float64))
    tried = [shared_thresholds(y, label_space, share) for share in _SHARES]
    if label_space.multilabel and metric == "macro_f1":
        tried.append(_half_best_f1(probabilities))
    stays = len(_SHARES) - 1 if class_weights == "balanced" else 0
    labels = [apply_thresholds(label_space, probabilities, thresholds) for thresholds in tried]

    def best(rows: Rows) -> int:
        """The index of the best thresholds on some rows; of equals those that stay, then the smallest share."""
        scores = [score(metric, y[rows], given[rows]) for given in labels]
        return max(range(len(tried)), key=lambda index: (scores[index], index == stays, -index))

    index = best(np.arange(len(y)))
    if index != stays and not _is_better(labels, stays, best, y, metric, list(jackknife_rows(len(y), documents))):
        index = stays
    return None if index == 0 else tried[index]


def shared_thresholds(y: Targets, label_space: LabelSpace, share: float) -> Floats:
    """(K,) softmax(g d) for a share g of the classes' log shares d; multi-label: sigmoid(g d) with their log odds d."""
    shares = (label_space.indicator(y).sum(0) + 0.5) / (len(y) + 1)
    log_odds = np.log(shares) - np.log1p(-shares) * label_space.multilabel
    thresholds: Floats = label_space.probabilities(share * log_odds[None])[0]
    return thresholds


def _half_best_f1(probabilities: Floats) -> Floats:
    """(K,) half of the largest F1 that each class's probabilities (n, K) expect of any threshold."""
    falling = -np.sort(-probabilities, axis=0)
    given = np.arange(1, len(falling) + 1)[:, None]
    expected = 2 * falling.cumsum(0) / (falling.sum(0) + given)
    best: Floats = expected.max(0) / 2
    return best


def _is_better(
    labels: list[Targets], stays: int, best: Callable[[Rows], int], y: Targets, metric: str, without: list[Rows]
) -> bool:
    """Whether labels by thresholds that other parts choose beat those that stay.

    `without` are the rows without each part. Too few documents to fill all parts show nothing.
    """
    if len(without) < JACKKNIFE_PARTS:
        return False
    crossed = labels[stays].copy()
    for others in without:
        own = np.setdiff1d(np.arange(len(y)), others)
        crossed[own] = labels[best(others)][own]
    return score(metric, y, crossed) > score(metric, y, labels[stays])
