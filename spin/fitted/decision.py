"""Decisions: labels from probabilities, by thresholds per class and abstention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats
from spin.errors import UserError
from spin.labels.label_space import Label, LabelSpace, Targets

if TYPE_CHECKING:
    from spin.settings import DecisionSettings


@dataclass(frozen=True)
class Decision:
    """Turns probabilities into labels: one threshold per class, and a band around each in which no label is given."""

    label_space: LabelSpace
    thresholds: Floats
    """(K,) the probability from which a class counts"""
    abstain: float
    """smallest lead of the best class, or distance from a threshold, that gets a label; 0 never abstains"""

    @classmethod
    def of(
        cls, label_space: LabelSpace, settings: DecisionSettings, chosen: Mapping[str, float] | None = None
    ) -> Decision:
        """The decision that the settings describe; a class without a threshold of its own gets the default.

        `chosen` are the thresholds that training has chosen for every class, if any. In a multi-label task the default
        of a class is its chosen threshold, or 0.5. Otherwise the classes without a threshold share what the given ones
        leave below 1, in proportion to their chosen thresholds, or equally. Raises UserError for a threshold of an
        unknown class, if the given thresholds leave nothing for the others, or if all documents would abstain.
        """
        given: Mapping[str, float] = settings.thresholds
        unknown = sorted(set(given) - set(label_space.classes))
        if unknown:
            raise UserError(
                f"decision.thresholds: the model has no class '{unknown[0]}'; it has {', '.join(label_space.classes)}"
            )
        others = [name for name in label_space.classes if name not in given]
        defaults = {name: 0.5 if chosen is None else chosen[name] for name in others}
        if not label_space.multilabel:
            rest, whole = 1 - sum(given.values()), sum(defaults.values())
            if others and rest <= 0:
                raise UserError(
                    f"decision.thresholds: they sum to {sum(given.values()):g}; leave something below 1 for the others"
                )
            defaults = {name: rest * default / whole for name, default in defaults.items()}
        thresholds = defaults | dict(given)
        decision = cls(label_space, np.array([thresholds[name] for name in label_space.classes]), settings.abstain)
        farthest = np.maximum(decision.thresholds, 1 - decision.thresholds).min()
        if label_space.multilabel and settings.abstain >= farthest:
            raise UserError(
                f"decision.abstain: no document would get a label, since of some class no probability is "
                f"{settings.abstain:g} away from the threshold; expected less than {farthest:g} for the model's "
                "thresholds"
            )
        return decision

    def labels(self, probabilities: Floats) -> list[Label | None]:
        """The labels of n documents by their probabilities (n, K); None where the decision abstains."""
        return self.name_labels(*self.decide(probabilities))

    def name_labels(self, y: Targets, abstains: NDArray[np.bool_]) -> list[Label | None]:
        """The labels of n documents by what `decide` returns for them."""
        return [None if none else label for label, none in zip(self.label_space.names(y), abstains, strict=True)]

    def decide(self, probabilities: Floats) -> tuple[Targets, NDArray[np.bool_]]:
        """The targets of probabilities (n, K), and for which documents (n,) the decision abstains.

        Multi-label: a document gets each class whose probability reaches its threshold. The decision abstains if any
        probability is within `abstain` of its threshold. Multi-class: the probabilities are divided by the thresholds
        and the largest quotient wins. The decision abstains if its share of their sum leads the next one's by less than
        `abstain`. With two classes and thresholds 1 - t and t, the second is chosen above t.
        """
        y = apply_thresholds(self.label_space, probabilities, self.thresholds)
        if self.label_space.multilabel:
            return y, np.any(np.abs(probabilities - self.thresholds) < self.abstain, axis=1)
        return y, self.margins(probabilities) < self.abstain

    def margins(self, probabilities: Floats) -> Floats:
        """(n,) the lead of the best class over the next, by probabilities (n, K) over the thresholds.

        They are taken as shares of their sum. The task has one class per document.
        """
        odds = probabilities / self.thresholds
        odds = odds / odds.sum(1, keepdims=True)
        first = np.partition(odds, -2, axis=1)[:, -2:]
        return np.asarray(first[:, 1] - first[:, 0])

    def leading_class(self, logits: Floats) -> NDArray[np.int64]:
        """(n,) the likeliest of the classes that logits (n, K) predict, or of all classes where none is predicted.

        Abstention is not applied.
        """
        y, _ = self.decide(self.label_space.probabilities(logits))
        given = self.label_space.indicator(y)
        candidates = np.where(given | ~given.any(1, keepdims=True), logits, -np.inf)
        leading: NDArray[np.int64] = candidates.argmax(1)
        return leading


def apply_thresholds(label_space: LabelSpace, probabilities: Floats, thresholds: Floats) -> Targets:
    """The targets of probabilities (n, K) by thresholds (K,), without abstention; see `Decision.decide`."""
    if label_space.multilabel:
        return probabilities >= thresholds
    targets: Targets = (probabilities / thresholds).argmax(1)
    return targets
