"""The statistics of drift: a class for each sums up one property of documents, and compares two sums.

Another statistic is a subclass of `Distribution`, or else of `DriftStatistic`, and a place in `STATISTICS`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from spin.arrays import Floats
from spin.heads.selection import Selection
from spin.labels.label_space import LabelSpace
from spin.monitor.drift import SIGNIFICANCE, Drift, NeuronShift, stability, stability_limit

Counts = NDArray[np.int64]
Sums = Mapping[str, NDArray[Any]]
"""arrays by name that add up over documents; `documents` () is their number"""

SCORES = np.linspace(0, 1, 21)[1:-1]
"""bin borders of the largest probability per document"""
LENGTHS = 2 ** np.arange(2, 12.5, 0.5)
"""bin borders of the tokens per document"""
UNKNOWN = np.array([0, 0.01, 0.05, 0.2])
"""bin borders of the share of unknown tokens per document; the first bin holds documents without any"""
_LISTED_NEURONS = 10
_SD_FLOOR = 0.5
"""least standard deviation by which a neuron's shift is divided, as a share of that over the training rows"""


@dataclass(frozen=True)
class Outcomes:
    """The decisions on n documents, for one of K classes each or for several."""

    label_space: LabelSpace
    logits: Floats
    """(n, K)"""
    stops: NDArray[np.int64]
    """(n,) index of the exit at which each document stopped, shallow first; the last for full depth"""
    exits: int
    """number of early exits"""


@dataclass(frozen=True)
class ReadDocuments:
    """The values read of n documents, of which m got to the backbone: the others were decided by their words."""

    values: Floats
    """(n, p) standardised features, 0 where they were not read"""
    read: NDArray[np.int64]
    """(p,) documents of which each feature was read"""
    n_tokens: NDArray[np.int32]
    """(m,) tokens that the backbone read"""
    n_unknown: NDArray[np.int32]
    """(m,) tokens of these that the tokenizer does not know"""


class DriftStatistic(ABC):
    """A property of documents by which a night is compared with the training."""

    name: ClassVar[str]
    description: ClassVar[str]
    """the property, for a reader of the report"""
    breaks_estimate: ClassVar[bool] = False
    """whether its drift says that probabilities may no longer be calibrated"""

    @property
    def sums(self) -> tuple[str, ...]:
        """The names of its sums."""
        return (self.name,)

    def sum_outcomes(self, outcomes: Outcomes) -> Sums:
        """Its sums as far as they follow from outcomes alone: those of a reference follow the decision of a night."""
        return {}

    def sum_documents(self, documents: ReadDocuments) -> Sums:
        """Its other sums."""
        return {}

    @abstractmethod
    def compare(self, now: Sums, then: Sums, selection: Selection, allowed: float) -> Drift | None:
        """The drift of documents from a reference by the sums of both; None where it cannot be measured.

        `selection` names the features, and `allowed` is the population stability index that is no drift.
        """


class Distribution(DriftStatistic):
    """A property whose sum is the number of documents per bin, (B,), under the name of the statistic."""

    least_bins: ClassVar[int] = 1
    """bins with documents that a comparison needs"""

    def draws(self, sums: Sums) -> int:
        """The number of independent draws among the bins."""
        return int(sums[self.name].sum())

    def compare(self, now: Sums, then: Sums, selection: Selection, allowed: float) -> Drift | None:
        counts, reference = now[self.name], then[self.name]
        n, m = self.draws(now), self.draws(then)
        bins = (counts > 0) | (reference > 0)
        if not n or not m or bins.sum() < self.least_bins:
            return None
        psi, limit = stability(counts[bins], reference[bins]), stability_limit(int(bins.sum()), n, m, allowed)
        return Drift(
            name=self.name,
            psi=psi,
            limit=limit,
            now=tuple(counts.tolist()),
            then=tuple(reference.tolist()),
            moved=(),
            drifted=psi > limit,
        )


class Labels(Distribution):
    """(K + 1,) documents per predicted class, before thresholds, and documents without any."""

    name, description, breaks_estimate = "labels", "distribution of the labels", True

    def sum_outcomes(self, outcomes: Outcomes) -> Sums:
        indicator = outcomes.label_space.indicator(outcomes.label_space.predict(outcomes.logits))
        return {self.name: np.array([*indicator.sum(0), (~indicator.any(1)).sum()], np.int64)}

    def draws(self, sums: Sums) -> int:
        """A multi-label document counts for several labels, which are no independent draws."""
        return int(sums["documents"])


class Exits(Distribution):
    """(E + 1,) documents per exit, shallow first, and documents that ran to full depth."""

    name, description, least_bins = "exits", "documents per early exit", 2

    def sum_outcomes(self, outcomes: Outcomes) -> Sums:
        return {self.name: np.bincount(outcomes.stops, minlength=outcomes.exits + 1)}


class Scores(Distribution):
    """(20,) documents per bin of their largest probability, between `SCORES`."""

    name, description, breaks_estimate = "scores", "largest probability per document", True

    def sum_outcomes(self, outcomes: Outcomes) -> Sums:
        largest = outcomes.label_space.probabilities(outcomes.logits).max(1, initial=0.0)
        return {self.name: histogram(largest, SCORES)}


class Lengths(Distribution):
    """(22,) documents that the backbone read per bin of their number of tokens, between `LENGTHS`."""

    name, description = "lengths", "tokens per document"

    def sum_documents(self, documents: ReadDocuments) -> Sums:
        return {self.name: histogram(documents.n_tokens, LENGTHS)}


class UnknownTokens(Distribution):
    """(5,) documents that the backbone read per bin of their share of unknown tokens, between `UNKNOWN`."""

    name, description = "unknown", "share of unknown tokens per document"

    def sum_documents(self, documents: ReadDocuments) -> Sums:
        return {self.name: histogram(documents.n_unknown / np.maximum(documents.n_tokens, 1), UNKNOWN)}


class NeuronMeans(DriftStatistic):
    """The means of the neurons, and of the words' logits.

    Of each of p features it sums the documents of which it was read, its standardised values, and their squares.

    The index of two normals d standard deviations apart is d².

    A shift is divided by the neuron's standard deviation in the reference, or by one half where that is less. One half
    is half of the deviation over the training rows, as activations are standardised. A neuron that fires on few
    documents may be silent in all of the reference, which are fewer than the training rows. Its deviation there says
    that the sample was too small, not that it is 0, and any activation at all would be an infinite shift. Of a neuron
    that fires often, half lies far below what the deviation can be by chance, so its shifts stay in units of the
    reference. And a shift below the floor's allowance is small for the head, which reads standardised activations.

    What chance adds to a mean is judged by the spread of either sample, as in Welch's test (Biometrika 34, 1947). The
    night's own counts where it is larger: the few documents of a night on which such a neuron fires move its mean and
    widen its spread alike.
    """

    name, description, breaks_estimate = "neurons", "means of the selected neurons", True

    @property
    def sums(self) -> tuple[str, ...]:
        return ("read", "sums", "squares")

    def sum_documents(self, documents: ReadDocuments) -> Sums:
        values = documents.values
        return {"read": documents.read, "sums": values.sum(0), "squares": np.square(values).sum(0)}

    def compare(self, now: Sums, then: Sums, selection: Selection, allowed: float) -> Drift:
        names = feature_names(selection)
        # a neuron above the first exit after a block has no value for documents that exit early
        with np.errstate(invalid="ignore", divide="ignore"):
            unit = np.maximum(self.deviations(then), _SD_FLOOR)
            shifts = (self.means(now) - self.means(then)) / unit
            noise = np.sqrt(np.square(np.maximum(self.deviations(now) / unit, 1)) / now["read"] + 1 / then["read"])
        # Bonferroni correction: no more than SIGNIFICANCE that any of p neurons exceeds its limit by chance.
        limits = math.sqrt(allowed) + float(-ndtri(SIGNIFICANCE / (2 * max(1, len(shifts))))) * noise
        compared = np.isfinite(shifts) & np.isfinite(limits)
        shifts, limits = np.where(compared, shifts, 0.0), np.where(compared, limits, 1.0)
        excess = np.abs(shifts) / limits
        listed: Sequence[int] = np.argsort(-excess, kind="stable")[:_LISTED_NEURONS].tolist()
        moved = int((excess > 1).sum())
        psi, limit = (float(np.square(values[listed[0]])) if listed else 0.0 for values in (shifts, limits))
        return Drift(
            name=self.name,
            psi=psi,
            limit=limit,
            now=(moved, int(compared.sum()) - moved),
            then=(),
            moved=tuple(NeuronShift(*names[i], shift=round(float(shifts[i]), 3)) for i in listed),
            drifted=moved > 0,
        )

    def means(self, sums: Sums) -> Floats:
        """(p,) means of the standardised features, over the documents of which they were read."""
        means: Floats = sums["sums"] / np.maximum(1, sums["read"])
        return means

    def deviations(self, sums: Sums) -> Floats:
        """(p,) standard deviations of the standardised features; 0 for a neuron that is silent on all documents."""
        variance = sums["squares"] / np.maximum(1, sums["read"]) - np.square(self.means(sums))
        return np.sqrt(np.maximum(variance, 0))  # rounding may give a negative variance


STATISTICS: tuple[DriftStatistic, ...] = (Labels(), Exits(), Scores(), Lengths(), UnknownTokens(), NeuronMeans())
"""in the order of the report"""


def list_breaking() -> tuple[str, ...]:
    """The names of the statistics whose drift withdraws the estimate of quality."""
    return tuple(statistic.name for statistic in STATISTICS if statistic.breaks_estimate)


def feature_names(selection: Selection) -> list[tuple[str, int]]:
    """The column and the neuron of every feature, in order; a word's logit is of the column `words`."""
    words = [("words", k) for k in range(selection.word_logits)]
    return words + [(str(column), neuron) for column, neuron, _ in selection.rows()]


def histogram(values: NDArray[np.number], borders: Floats) -> Counts:
    """The number of values per bin (len(borders) + 1,); a bin includes its upper border."""
    return np.bincount(np.searchsorted(borders, values), minlength=len(borders) + 1)
