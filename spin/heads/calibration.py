"""Log loss, temperature scaling, and the expected calibration error."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_expit, log_softmax

from spin.arrays import Floats, Hashes
from spin.labels.label_space import LabelSpace, Targets

_BINS = 15
_DRAWS, _BLOCKS = 10_000, 10


def log_loss(logits: Floats, y: Targets, label_space: LabelSpace) -> float:
    """Mean negative log-likelihood per document of logits (n, K), summed over the classes of a multi-label task."""
    return float(log_losses(logits, y, label_space).mean())


def log_losses(logits: Floats, y: Targets, label_space: LabelSpace) -> Floats:
    """The negative log-likelihood (n,) of each document, which `log_loss` averages."""
    has = label_space.indicator(y)
    if label_space.multilabel:
        return np.asarray(-log_expit(np.where(has, logits, -logits)).sum(1))
    return np.asarray(-log_softmax(logits, axis=1)[has])


def fit_temperature(logits: Floats, y: Targets, label_space: LabelSpace, repeats: float = 1) -> float:
    """The temperature T, between 1/20 and 20, for which logits / T have the least log loss (Guo et al. 2017).

    The targets are smoothed: without it, held-out documents that happen to be all right would make the probabilities of
    all others certain. `repeats` says how often each document stands among them.
    """
    logits, targets = logits.astype(np.float64), smooth_targets(y, label_space, repeats)

    def loss(log_temperature: float) -> float:
        return smoothed_loss(logits / np.exp(log_temperature), targets, label_space) / len(logits)

    # over log T, in which a factor counts the same in both directions; exp(3) is 20
    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def smooth_targets(y: Targets, label_space: LabelSpace, repeats: float = 1) -> Floats:
    """(n, K) targets from 0 to 1, as if one document more were wrong (after Platt 1999).

    Each gives a share 1 / (n + 2) of itself to all K classes alike, in a multi-label task to both sides. If each stands
    there `repeats` times, n is the number of different ones.
    """
    smoothing, sides = 1 / (len(y) / repeats + 2), 2 if label_space.multilabel else len(label_space)
    smoothed: Floats = (1 - smoothing) * label_space.indicator(y) + smoothing / sides
    return smoothed


def smoothed_loss(logits: Floats, targets: Floats, label_space: LabelSpace) -> float:
    """The sum of the log losses of logits (n, K) under smoothed targets (n, K)."""
    if label_space.multilabel:
        return float(-(targets * log_expit(logits) + (1 - targets) * log_expit(-logits)).sum())
    return float(-(targets * log_softmax(logits, axis=1)).sum())


def calibration_error(probabilities: Floats, y: Targets, label_space: LabelSpace) -> float:
    """Expected calibration error (Naeini et al. 2015) of probabilities (n, K) over 15 bins of equal width.

    It is the mean distance, weighted by labels, between a bin's accuracy and its mean confidence. Labels are the
    predicted class of each document, or in a multi-label task every predicted class. The classes that a document
    clearly does not have, which are nearly all of many, would hide the error of those that it is given.
    """
    given = _predicted(probabilities, label_space)
    return _binned_gap(probabilities[given], label_space.indicator(y)[given])


def calibration_error_limit(
    probabilities: Floats,
    label_space: LabelSpace,
    significance: float = 0.05,
    *,
    y: Targets | None = None,
    groups: Hashes | None = None,
) -> float:
    """The calibration error that perfectly calibrated probabilities (n, K) exceed with probability `significance`.

    A small sample shows an error even if its probabilities are exact. The outcomes are drawn 10,000 times from the
    probabilities themselves (consistency resampling, Bröcker & Smith 2007), always the same, so that no seed decides.
    Documents of a group may be right or wrong together. Where `groups` (n,) are given, and with them the true targets
    `y`, the limit is at least that of the wild cluster bootstrap (Cameron, Gelbach & Miller 2008): the residuals, right
    or wrong minus confidence, of a whole group change their sign at random.
    """
    draw, given = np.random.default_rng(0), _predicted(probabilities, label_space)
    confidences = probabilities[given]
    errors = [_binned_gap(confidences, draw.random(len(confidences)) < confidences) for _ in range(_DRAWS)]
    limit = np.quantile(errors, 1 - significance)
    if groups is not None and y is not None and len(confidences):
        _, group_of = np.unique(groups, return_inverse=True)
        right = label_space.indicator(y)[given]
        sums = np.zeros((group_of.max() + 1, _BINS))
        np.add.at(sums, (group_of[np.nonzero(given)[0]], _bins(confidences)), right - confidences)
        signs = (draw.choice([-1.0, 1.0], size=(_DRAWS // _BLOCKS, len(sums))) for _ in range(_BLOCKS))
        gaps = np.concatenate([np.abs(block @ sums).sum(1) for block in signs])
        limit = max(limit, np.quantile(gaps / len(confidences), 1 - significance))
    return float(limit)


def _predicted(probabilities: Floats, label_space: LabelSpace) -> NDArray[np.bool_]:
    """(n, K) the classes that each document is given without thresholds."""
    return probabilities >= 0.5 if label_space.multilabel else label_space.indicator(probabilities.argmax(1))


def _binned_gap(confidences: Floats, right: NDArray[np.bool_]) -> float:
    # |accuracy - mean confidence| of a bin, times its share of the labels, is |sum of (right - confidence)| / labels
    gaps = np.bincount(_bins(confidences), right.astype(float) - confidences, _BINS)
    return float(np.abs(gaps).sum() / max(len(confidences), 1))


def _bins(confidences: Floats) -> NDArray[np.int64]:
    return np.minimum((confidences * _BINS).astype(np.int64), _BINS - 1)
