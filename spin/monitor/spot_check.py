"""The accuracy of many labels by those that people have checked, of documents drawn with known probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats
from spin.monitor.quality import Estimate

_QUANTILE = 1.96
"""quantile of the normal distribution, for an interval of 95 %"""
LEAST_DOUBT, MOST_DOUBT = 0.15, 0.5
"""of a label that is right for certain by its score, and of one as probable as not. With a smaller least doubt, a few
wrong labels with high scores would make an estimate less precise than that of a uniform sample"""
_MOST_DEVIATIONS = 4
"""relative standard deviations by which the documents that a sample stands for may differ from those of the night"""


def measure_doubt(chances: Floats) -> Floats:
    """(n,) the doubt about labels, in proportion to which documents are drawn, by the chances that they are right.

    It is the standard deviation sqrt(p (1 - p)) of whether a label is right, but at least `LEAST_DOUBT`. Where the
    chances are right, an estimate has the least variance so (Zrnic & Candès, Active Statistical Inference, 2024).
    """
    return np.maximum(np.sqrt(chances * (1 - chances)), LEAST_DOUBT)


@dataclass(frozen=True)
class CheckedSample:
    """Documents of one draw that were checked: all, or as many as people came to."""

    drawn: int
    """documents of the draw, checked or not"""
    probabilities: Floats
    """(n,) the probability with which each was drawn"""
    chances: Floats
    """(n,) the chance that its label is right, by its score"""
    right: NDArray[np.bool_]
    """(n,) whether its label is right"""

    @property
    def checked(self) -> Floats:
        """(n,) the probability with which each was drawn and checked: those that were not count as left at random."""
        return self.probabilities * len(self.right) / self.drawn

    def stands_for(self, documents: int) -> bool:
        """Whether these may be the checked documents of a draw from so many.

        Each stands for as many documents as the inverse of its probability says. If their number is far off, some were
        left out by what they are, or it is a draw from others.
        """
        found, variance = (1 / self.checked).sum(), ((1 - self.checked) / self.checked**2).sum()
        return abs(math.log(found / documents)) <= _MOST_DEVIATIONS * math.sqrt(variance) / found + 1e-9


def estimate_accuracy(documents: int, expected: float, samples: Sequence[CheckedSample]) -> Estimate | None:
    """The share of right labels among all documents of a night; None if no sample stands for them.

    `expected` is the mean chance over all documents. It is corrected by the mean difference between what was found and
    the chance, in which documents count by the inverse of their probability: the difference estimator (Särndal et al.
    1992, chapter 6; Angelopoulos et al., Prediction-Powered Inference, 2023). So it is right on average whatever the
    scores are. Chances are taken by a part between 0 and 1, with which the variance is least: it is 1 where they are
    right, and 0 where they say nothing (Angelopoulos, Duchi & Zrnic, PPI++, 2023). Independent samples count by their
    checked documents.

    The variance is that of one more document, half of it right, so that it is not 0 where all checked labels are right.
    The interval is that of Wilson (1927) for a simple sample of the size that would have this variance (Korn & Graubard
    1998). It holds near 100 % too.
    """
    usable = [sample for sample in samples if len(sample.right) and sample.stands_for(documents)]
    count = sum(len(sample.right) for sample in usable)
    if not count:
        return None
    right, chances, drawn = (
        np.concatenate([np.asarray(getattr(sample, name), np.float64) for sample in usable])
        for name in ("right", "chances", "checked")
    )
    inverse = [1 / sample.checked for sample in usable]
    weights = np.concatenate([len(each) / count * each / each.sum() for each in inverse])
    of_each = (1 - drawn) * weights**2 * count / max(1, count - 1)
    part = _fit_part(right - weights @ right, chances - weights @ chances, of_each)
    differences = right - part * chances
    correction = float(weights @ differences)
    value = min(1.0, max(0.0, part * expected + correction))
    variance = float(of_each @ (differences - correction) ** 2)
    variance += float(of_each.mean()) * (value**2 + (1 - value) ** 2) / 2
    smoothed = (value * count + 0.5) / (count + 1)
    low, high = _wilson(value, smoothed * (1 - smoothed) / variance) if variance else (value, value)
    return Estimate(round(value, 4), round(low, 4), round(high, 4))


def _fit_part(right: Floats, chances: Floats, weights: Floats) -> float:
    """The part of the chances, from 0 to 1, of which the labels found right differ least; both are centred."""
    squares = float(weights @ chances**2)
    return min(1.0, max(0.0, float(weights @ (right * chances)) / squares)) if squares else 1.0


def _wilson(share: float, size: float) -> tuple[float, float]:
    """The interval of 95 % for a share that was found in a simple sample."""
    scale = 1 + _QUANTILE**2 / size
    centre = (share + _QUANTILE**2 / (2 * size)) / scale
    half = _QUANTILE * math.sqrt(share * (1 - share) / size + _QUANTILE**2 / (4 * size**2)) / scale
    return max(0.0, centre - half), min(1.0, centre + half)
