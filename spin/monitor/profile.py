"""The profile of a set of documents, from which drift is measured: counts and sums that add up over shards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from spin.activations.features import Features
from spin.arrays import Floats
from spin.errors import UserError
from spin.fitted.decision import Decision
from spin.fitted.early_exit import EarlyExit
from spin.fitted.fitted_classifier import FittedClassifier
from spin.fitted.held_out import HeldOutLogits
from spin.heads.selection import Selection
from spin.labels.label_space import LabelSpace
from spin.monitor import drift_statistics
from spin.monitor.drift import Drift
from spin.monitor.drift_statistics import Outcomes, ReadDocuments, Sums
from spin.sites import BY_WORDS

_DOCUMENTS = "documents"


@dataclass(frozen=True)
class Profile:
    """The sums of all statistics of drift over some documents.

    The sum of the profiles of the parts of a set is the profile of the set.
    """

    sums: Sums

    @classmethod
    def from_outputs(
        cls,
        label_space: LabelSpace,
        fitted: FittedClassifier,
        logits: Floats,
        activations: Floats,
        features: Features,
        *,
        learned: bool = False,
    ) -> Profile:
        """The profile of n documents, given their logits (n, K), raw activations (n, p) and token counts.

        Of documents that the heads have `learned`, nothing is kept that follows from the logits: these are too certain.
        Documents whose depth says that their words decided them count for labels, scores and exits alone. The backbone
        has not read them, or where a reference is measured at full depth it need not have.
        """
        standardised = fitted.standardizer.transform(activations).astype(np.float64)
        depth = np.full(len(logits), fitted.selection.depth) if features.depth is None else features.depth
        read, of_words = depth != BY_WORDS, fitted.selection.word_logits
        standardised[~read, of_words:] = 0
        stops = np.searchsorted([exit.depth for exit in fitted.exits], depth)
        outcomes = Outcomes(label_space, logits, stops, len(fitted.exits))
        documents = ReadDocuments(
            standardised,
            np.where(np.arange(standardised.shape[1]) < of_words, len(read), read.sum()),
            features.n_tokens[read],
            features.n_unknown[read],
        )
        of_outcomes = {_DOCUMENTS: np.array(len(logits))} if learned else _sum_outcomes(outcomes)
        return cls(of_outcomes | _merge(s.sum_documents(documents) for s in drift_statistics.STATISTICS))

    def under(self, held_out: HeldOutLogits, exits: Sequence[EarlyExit], decision: Decision) -> Profile:
        """The profile of a reference under another decision, by its documents' logits at all `exits`.

        A document within the abstention band goes on to a later exit: its exit, its label and its largest probability
        follow from the decision. What the backbone reads is taken as it is.
        """
        stops = held_out.stops(exits, decision)
        logits = held_out.logits[stops, np.arange(len(held_out))]
        return Profile({**self.sums, **_sum_outcomes(Outcomes(decision.label_space, logits, stops, len(exits)))})

    def drift_from(self, then: Profile, selection: Selection, allowed: float) -> list[Drift]:
        """The drift of every property from a reference; `allowed` is the PSI that is no drift.

        Empty where there are no documents to compare. Exits are compared where documents may take one, and what the
        tokenizer counts only over documents that the backbone read. A statistic that one of both lacks is left out.
        """
        if not self.documents or not then.documents:
            return []
        common = self.sums.keys() & then.sums.keys()
        measured = (s for s in drift_statistics.STATISTICS if common.issuperset(s.sums))
        drifts = (statistic.compare(self.sums, then.sums, selection, allowed) for statistic in measured)
        return [drift for drift in drifts if drift is not None]

    def __add__(self, other: Profile) -> Profile:
        both = self.sums.keys() & other.sums.keys()
        return Profile({name: np.asarray(self.sums[name] + other.sums[name]) for name in both})

    @property
    def documents(self) -> int:
        """The number of documents."""
        return int(self.sums[_DOCUMENTS])

    @classmethod
    def from_bytes(cls, data: bytes, prefix: str = "") -> Profile:
        """The profile of arrays that were written as safetensors, their names with a `prefix` in front.

        Raises UserError for other data.
        """
        names = [name for statistic in drift_statistics.STATISTICS for name in statistic.sums]
        try:
            tensors = load_tensors(data)
            known = {name: tensors[prefix + name] for name in names if prefix + name in tensors}
            return cls({_DOCUMENTS: tensors[prefix + _DOCUMENTS], **known})
        except (KeyError, ValueError, SafetensorError) as error:
            raise UserError(
                f"this is not a profile of documents: {error}; expected a file that spin train or spin classify wrote"
            ) from None


def _sum_outcomes(outcomes: Outcomes) -> dict[str, NDArray[Any]]:
    return {
        _DOCUMENTS: np.array(len(outcomes.logits)),
        **_merge(statistic.sum_outcomes(outcomes) for statistic in drift_statistics.STATISTICS),
    }


def _merge(sums: Iterable[Sums]) -> dict[str, NDArray[Any]]:
    return {name: array for each in sums for name, array in each.items()}
