"""Operating points: which classifier, with or without early exits, and which documents go to people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats, Hashes
from spin.labels.label_space import Targets, differ
from spin.roi.cost_interval import Interval, predict_interval
from spin.roi.error_costs import ErrorCosts
from spin.settings import Choice

BANDS = tuple(float(band) for band in np.round(np.arange(0, 1, 0.05), 2))
"""abstention bands that are tried, as in `decision.abstain`"""
THOUSAND = 1000


@dataclass(frozen=True)
class Outcome:
    """The labels of a classifier for n labelled documents under one abstention band."""

    abstain: float
    """the band; a document within it does not exit early, and gets no label"""
    given: Targets
    """the targets without the band"""
    abstains: NDArray[np.bool_]
    """(n,) which documents lie within the band"""
    probabilities: Floats
    """(n, K) calibrated, by which the expected cost is counted: of full depth, also where documents exit before"""
    seconds: float
    """seconds per document, with the threads of the operation"""


@dataclass(frozen=True)
class Operation:
    """One classifier, with or without early exits."""

    choose: Choice
    exits: bool
    """whether documents exit early"""
    threads: int
    """threads that its speed was measured with"""
    outcomes: tuple[Outcome, ...]
    """one outcome per abstention band"""

    def outcome(self, abstain: float) -> Outcome:
        """The outcome at one of the bands."""
        return next(outcome for outcome in self.outcomes if outcome.abstain == abstain)


@dataclass(frozen=True)
class Prices:
    """Prices of computing, reviews and errors, in the currency of the user."""

    errors: ErrorCosts
    review: float
    """price of a document that people label; they are taken to make no errors"""
    cpu_hour: float
    """price of an hour of one core"""


@dataclass(frozen=True)
class OperatingPoint:
    """The costs of one way to run a classifier; all costs are per thousand documents."""

    choose: Choice
    exits: bool
    abstain: float
    """the abstention band: documents within it are reviewed"""
    reviewed: float
    """share of the documents that people label, from 0 to 1"""
    errors: float
    """share of the documents that get a wrong label"""
    compute: float
    review: float
    expected: float
    """cost of errors, by the calibrated probabilities of full depth"""
    realised: float
    """cost of errors, by the labels"""
    interval: Interval | None = None
    """95 % prediction interval of the total of the documents to come; of the best point of a classifier"""

    @property
    def expected_total(self) -> float:
        """The figure by which points are compared: by the probabilities alone, so that the best is not best by luck."""
        return self.compute + self.review + self.expected

    @property
    def total(self) -> float:
        """The sum of the costs, with those of errors by the labels."""
        return self.compute + self.review + self.realised


def mix_factors(y: Targets, mix: Floats) -> Floats:
    """(K,) the factors by which classes occur more often in the mix (K,) than in single labels y (n,)."""
    counts = np.bincount(y, minlength=len(mix))
    return np.divide(mix * len(y), counts, out=np.zeros(len(mix)), where=counts > 0)


def weigh_points(operation: Operation, y: Targets, prices: Prices, mix: Floats | None = None) -> list[OperatingPoint]:
    """The costs of an operation on n documents with true targets `y`, at every abstention band.

    `mix` (K,) are the shares of the classes among the documents to come, if they differ from those of `y`. The
    documents of a class are then weighted by their labels. The probabilities are weighted by Bayes' rule for a change
    of the classes' shares (Saerens, Latinne & Decaestecker 2002).
    """
    return [_weigh(operation, outcome, y, prices, mix) for outcome in operation.outcomes]


def best_point(points: Sequence[OperatingPoint]) -> OperatingPoint:
    """The point with the least expected cost; of equals the one with fewer reviews."""
    return min(points, key=rank_cost)


def rank_cost(point: OperatingPoint) -> tuple[float, float]:
    """The key by which points are in order, that with the least expected cost first."""
    return point.expected_total, point.reviewed


def with_interval(
    point: OperatingPoint,
    operation: Operation,
    y: Targets,
    prices: Prices,
    *,
    volume: float,
    mix: Floats | None = None,
    seed: int = 0,
    groups: Hashes | None = None,
) -> OperatingPoint:
    """The point with the interval in which the cost of `volume` documents to come will lie.

    `groups` (n,) are those of the documents; None if each stands for itself.
    """
    outcome = operation.outcome(point.abstain)
    costs = np.where(outcome.abstains, prices.review, prices.errors.realised(y, outcome.given))
    weights, largest = _row_weights(y, mix), prices.errors.largest
    mean = predict_interval(costs, weights, volume, seed, largest=largest, groups=groups)
    return replace(point, interval=Interval(*(end * THOUSAND + point.compute for end in (mean.low, mean.high))))


def _weigh(operation: Operation, outcome: Outcome, y: Targets, prices: Prices, mix: Floats | None) -> OperatingPoint:
    weights = _row_weights(y, mix)
    decided = ~outcome.abstains
    probabilities, future = _shifted(outcome.probabilities, y, mix)
    expected = decided * prices.errors.expected(probabilities, outcome.given)
    realised = decided * prices.errors.realised(y, outcome.given)
    reviewed = float(np.average(outcome.abstains, weights=weights))
    core_hours = operation.threads * outcome.seconds / 3600
    return OperatingPoint(
        choose=operation.choose,
        exits=operation.exits,
        abstain=outcome.abstain,
        reviewed=reviewed,
        errors=float(np.average(decided & differ(y, outcome.given), weights=weights)),
        compute=THOUSAND * core_hours * prices.cpu_hour,
        review=THOUSAND * reviewed * prices.review,
        expected=THOUSAND * float(np.average(expected, weights=future)),
        realised=THOUSAND * float(np.average(realised, weights=weights)),
    )


def _row_weights(y: Targets, mix: Floats | None) -> Floats:
    return np.ones(len(y)) if mix is None else mix_factors(y, mix)[y]


def _shifted(probabilities: Floats, y: Targets, mix: Floats | None) -> tuple[Floats, Floats]:
    """The probabilities (n, K) under another mix of classes, and the weights (n,) of the documents by them."""
    if mix is None:
        return probabilities, np.ones(len(probabilities))
    joint = probabilities * mix_factors(y, mix)
    weights = joint.sum(axis=1)
    return joint / np.maximum(weights, 1e-12)[:, None], weights
