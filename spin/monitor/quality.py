"""The quality of labels that nobody has checked, estimated from calibrated probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from operator import add
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats
from spin.fitted.decision import Decision
from spin.labels.label_space import LabelSpace, Targets

_PARTS = 20
"""parts of the test documents; each is left out once to estimate a standard error"""
_QUANTILE = 2.093
"""97.5 % quantile of Student's t with `_PARTS` - 1 degrees of freedom, for an interval of 95 %"""
LEAST_DOCUMENTS = 100
"""smallest number of test documents with a label for an estimate"""
_PRIOR = 10.0
"""number of documents of a class at which its correction is applied by half"""
_PRIOR_MIX, _MIX_STEPS = 100.0, 200
"""documents of the mix of classes among the test documents that are added to a night, and steps to find its mix"""


@dataclass(frozen=True)
class QualitySums:
    """Sums over labelled documents from which quality is estimated; the sums of parts of a set add up.

    Expected numbers are sums of calibrated probabilities, and variances those of the true numbers given these.
    """

    labelled: Floats
    """() documents with a label"""
    right: Floats
    """() expected number of right labels"""
    right_variance: Floats
    """() variance of the number of right labels"""
    predicted: Floats
    """(K,) documents that are labelled with each class"""
    hits: Floats
    """(K,) expected number of these that have the class"""
    hits_variance: Floats
    """(K,) variance of the number of hits"""
    support: Floats
    """(K,) expected number of documents that have each class"""
    support_variance: Floats
    """(K,) variance of the support"""

    @classmethod
    def of(cls, label_space: LabelSpace, given: Targets, probabilities: Floats) -> Self:
        """The sums of n documents, none of which is without a label, by their targets and probabilities (n, K)."""
        indicator, p = label_space.indicator(given), probabilities.astype(np.float64)
        # in a multi-label task a label is right if all of its classes are, taken as independent
        right = np.where(indicator, p, 1 - p).prod(1) if label_space.multilabel else (p * indicator).sum(1)
        return cls(
            labelled=np.array(float(len(p))),
            right=right.sum(),
            right_variance=(right * (1 - right)).sum(),
            predicted=indicator.sum(0).astype(np.float64),
            hits=(p * indicator).sum(0),
            hits_variance=(p * (1 - p) * indicator).sum(0),
            support=p.sum(0),
            support_variance=(p * (1 - p)).sum(0),
        )

    def __add__(self, other: QualitySums) -> QualitySums:
        return QualitySums(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def scaled(self, factor: float) -> QualitySums:
        """The sums of `factor` times as many documents of the same kind."""
        return QualitySums(*(factor * getattr(self, f.name) for f in fields(self)))

    def weighted(self, weight: float) -> QualitySums:
        """The sums of the same documents, each with a `weight`, whose square the variances grow with."""
        factors = {f.name: weight**2 if f.name.endswith("_variance") else weight for f in fields(self)}
        return QualitySums(*(factor * getattr(self, name) for name, factor in factors.items()))

    def to_tensors(self, prefix: str) -> dict[str, NDArray[Any]]:
        """The sums as arrays by name."""
        return {f"{prefix}{f.name}": np.asarray(getattr(self, f.name), np.float64) for f in fields(self)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[Any]], prefix: str) -> Self:
        """The sums that `to_tensors` returned. Raises KeyError if one is missing."""
        return cls(*(tensors[f"{prefix}{f.name}"] for f in fields(cls)))


@dataclass(frozen=True)
class Estimate:
    """A share, or a difference of shares, and an interval for the true one: of 95 % where nothing else is said."""

    value: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """The width of the interval."""
        return self.high - self.low


@dataclass(frozen=True)
class ClassQuality:
    """The estimated quality of one class."""

    name: str
    predicted: int
    """documents that are labelled with it"""
    precision: float
    recall: float
    f1: Estimate


@dataclass(frozen=True)
class QualityEstimate:
    """The estimated quality of the labels that were given; documents without a label do not count."""

    documents: int
    """documents with a label"""
    accuracy: Estimate
    macro_f1: Estimate
    """mean F1 over the classes that some test document has"""
    classes: tuple[ClassQuality, ...]
    """figures of each class, in the order of the model"""


class _Part(NamedTuple):
    """Test documents by what their probabilities lead to expect, and by what they are."""

    expected: QualitySums
    observed: QualitySums

    def __add__(self, other: _Part) -> _Part:  # type: ignore[override]
        return _Part(self.expected + other.expected, self.observed + other.observed)

    def weighted(self, weight: float) -> _Part:
        """The sums of the same documents, each with a weight."""
        return _Part(self.expected.weighted(weight), self.observed.weighted(weight))


Parts = Sequence[Sequence[_Part]]
"""parts of the test documents, and within each the documents of each class; in a multi-label task all as one"""


def estimate_quality(now: QualitySums, probabilities: Floats, y: Targets, decision: Decision) -> QualityEstimate | None:
    """The quality of labels by their sums, corrected by test documents with probabilities (m, K) and targets `y`.

    Accuracy is the mean probability of the labels that were given, and F1 that of the expected counts (confidence-based
    performance estimation). Both are corrected by the difference between observed and expected figures on the test
    documents (Guillory et al., Predicting with Confidence on Unseen Distributions, 2021). In a task of one class per
    document the test documents of a class count as often as it is more frequent in the night, see `_weigh_classes`.

    The interval adds up two variances: that of the correction, and that of the true labels given their probabilities.
    The first is found by a grouped jackknife over the test documents (Efron & Tibshirani 1993, chapter 11). It is at
    least the variance of the test documents' own labels given their probabilities. The jackknife finds too little where
    hardly any of them is wrong. The interval holds where probabilities are as calibrated as on the test documents.

    None without a label, or with fewer than 100 test documents that would get one.
    """
    parts = _divide(probabilities, y, decision)
    if not now.labelled or sum(of_class.expected.labelled for part in parts for of_class in part) < LEAST_DOCUMENTS:
        return None
    test = _total(now, parts)
    whole = _figures(now, test)
    without = np.stack([_figures(now, _total(now, parts[:at] + parts[at + 1 :])) for at in range(len(parts))])
    # the jackknife's (g - 1) / g times the sum of squares over g parts
    of_correction = np.maximum((len(parts) - 1) * without.var(0), _label_variance(test.expected, test))
    variance = of_correction + _label_variance(now, test)
    low, high = (np.clip(whole + sign * _QUANTILE * np.sqrt(variance), 0, 1) for sign in (-1, 1))
    ends = zip(np.clip(whole, 0, 1), low, high, strict=True)  # the correction may carry a figure beyond them
    estimates = [Estimate(*(round(float(v), 4) for v in each)) for each in ends]
    count, names = len(now.predicted), decision.label_space.classes
    hits, support = _corrected(now, test)
    precision, recall = hits / np.maximum(now.predicted, 1e-12), np.minimum(hits / np.maximum(support, 1e-12), 1)
    classes = tuple(
        ClassQuality(names[k], int(now.predicted[k]), round(precision[k], 4), round(recall[k], 4), estimates[2 + k])
        for k in range(count)
    )
    return QualityEstimate(int(now.labelled), estimates[0], estimates[1], classes)


def expect_quality(probabilities: Floats, y: Targets, decision: Decision, documents: int) -> QualityEstimate | None:
    """The estimate to expect for a night of some documents that are like the test documents.

    `probabilities` (m, K) and targets `y` are those of the test documents; the labels of the night are in their shares.
    None where `estimate_quality` returns none.
    """
    given, abstains = decision.decide(probabilities)
    labelled = QualitySums.of(decision.label_space, given[~abstains], probabilities[~abstains])
    night = labelled.scaled(documents / max(1, len(probabilities)))
    return estimate_quality(night, probabilities, y, decision)


def _divide(probabilities: Floats, y: Targets, decision: Decision) -> list[list[_Part]]:
    """The test documents that a decision labels, in parts, and within each by class."""
    given, abstains = decision.decide(probabilities)
    rows, space = np.flatnonzero(~abstains), decision.label_space
    truth = space.indicator(y).astype(np.float64)
    count = min(_PARTS, len(rows))
    strata = [0] if space.multilabel else range(len(space))
    return [
        [
            _Part(*(QualitySums.of(space, given[own], each[own]) for each in (probabilities, truth)))
            for k in strata
            for own in [part if space.multilabel else part[y[part] == k]]
        ]
        for part in (rows[start::count] for start in range(count))
    ]


def _total(now: QualitySums, parts: Parts) -> _Part:
    """The sums of the test documents, those of each class counted by its weight in the night."""
    of_classes = [reduce(add, of_class) for of_class in zip(*parts, strict=True)]
    weights = _weigh_classes(now, of_classes) if len(of_classes) > 1 else [1.0]
    return reduce(add, [part.weighted(weight) for part, weight in zip(of_classes, weights, strict=True)])


def _weigh_classes(now: QualitySums, of_classes: Sequence[_Part]) -> list[float]:
    """How many times as frequent each class is in the night as among the test documents.

    Where only the mix of classes has changed, the mean probabilities of the night are a mixture of those of each class
    among the test documents. Its shares are found by expectation maximisation (Saerens et al. 2002), which needs
    probabilities that are calibrated with a bias per class, as those of a stack are (Alexandari et al. 2020). The mix
    of the test documents counts as a hundred further documents, so that a short night does not change it much. A class
    without test documents has the weight 1.
    """
    counts = np.array([float(part.expected.labelled) for part in of_classes])
    means = np.stack([part.expected.support for part in of_classes]) / np.maximum(counts, 1)[:, None]
    before = counts / counts.sum()
    found, mix = now.support / now.labelled, before
    for _ in range(_MIX_STEPS):
        responsible = mix[:, None] * means / np.maximum(mix @ means, 1e-12)
        mix = (now.labelled * (responsible @ found) + _PRIOR_MIX * before) / (now.labelled + _PRIOR_MIX)
    weights: list[float] = np.where(counts > 0, mix / np.maximum(before, 1e-12), 1.0).tolist()
    return weights


def _figures(now: QualitySums, test: _Part) -> Floats:
    """(2 + K,) accuracy, macro-F1 and the F1 of each class, corrected by the test documents."""
    expected, observed = test
    accuracy = now.right / now.labelled + (observed.right - expected.right) / observed.labelled
    hits, support = _corrected(now, test)
    f1 = 2 * hits / np.maximum(now.predicted + support, 1e-12)
    occurs = observed.support > 0
    return np.array([accuracy, f1[occurs].mean() if occurs.any() else 0.0, *f1])


def _corrected(now: QualitySums, test: _Part) -> tuple[Floats, Floats]:
    """The expected hits and support of each class, corrected as far as its test documents go.

    Hits are corrected by the difference per labelled document. Support is corrected by the ratio, so that it stays in
    proportion where a class has become more frequent.
    """
    # `_PRIOR` documents without any error are added, so that a class with few test documents is corrected little
    expected, observed = test
    per_label = (observed.hits - expected.hits) / (expected.predicted + _PRIOR)
    hits = np.clip(now.hits + now.predicted * per_label, 0, now.predicted)
    support = now.support * (observed.support + _PRIOR) / (expected.support + _PRIOR)
    return hits, np.maximum(support, hits)


def _label_variance(now: QualitySums, test: _Part) -> Floats:
    """(2 + K,) the variance of the true figures given the probabilities, by the delta method.

    Classes count as independent.
    """
    hits, support = _corrected(now, test)
    total = np.maximum(now.predicted + support, 1e-12)
    # derivatives of F1 = 2 hits / (predicted + support); that by the support is negative
    by_hits, by_support = 2 / total, 2 * hits / total**2
    # a hit is part of the support: its covariance with it is its variance
    of_f1 = by_hits**2 * now.hits_variance + by_support**2 * now.support_variance
    of_f1 = np.maximum(of_f1 - 2 * by_hits * by_support * now.hits_variance, 0)
    occurs = test.observed.support > 0
    macro = of_f1[occurs].sum() / max(1, occurs.sum()) ** 2
    return np.array([now.right_variance / now.labelled**2, macro, *of_f1])
