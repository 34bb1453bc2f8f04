"""Profiles of a night's documents: drift against training and label quality are estimated from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Self

import numpy as np
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from pipelines.storage.object_store import Store
from spin.activations.features import Features
from spin.classifier import TrainedClassifier
from spin.errors import UserError
from spin.monitor.profile import Profile
from spin.monitor.quality import QualitySums
from spin.predictions import Predictions

_READ_AT_ONCE = 256
"""profiles in memory at a time"""
_QUALITY = "quality."
"""prefix of the sums' names in a file"""


@dataclass(frozen=True)
class NightProfile:
    """Sums over the predicted documents of a shard or of a whole night."""

    documents: Profile
    """for drift"""
    quality: QualitySums
    """for the quality of the labels"""

    @classmethod
    def of(cls, spin: TrainedClassifier, predictions: Predictions, features: Features) -> Self:
        """The sums of documents by their features and what a classifier predicts from these."""
        space = spin.label_space
        given, abstains = spin.decision_rule.decide(predictions.probabilities)
        documents = Profile.from_outputs(space, spin.fitted, predictions.logits, features.values, features)
        return cls(documents, QualitySums.of(space, given[~abstains], predictions.probabilities[~abstains]))

    def __add__(self, other: NightProfile) -> NightProfile:
        return NightProfile(self.documents + other.documents, self.quality + other.quality)

    def to_bytes(self) -> bytes:
        """The sums as safetensors."""
        tensors = {**self.documents.sums, **self.quality.to_tensors(_QUALITY)}
        return bytes(save_tensors({name: np.array(tensor, order="C") for name, tensor in tensors.items()}))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The sums that `to_bytes` wrote. Raises UserError for other data."""
        documents = Profile.from_bytes(data)
        try:
            return cls(documents, QualitySums.from_tensors(load_tensors(data), _QUALITY))
        except KeyError as error:
            raise UserError(
                f"this is not a profile of a night: it has no {error}; expected a file that spin classify wrote"
            ) from None


def sum_profiles(store: Store, keys: Sequence[str]) -> NightProfile | None:
    """The sum of the profiles under `keys`; None if there are no keys. Raises UserError if a profile is missing."""
    profiles = (
        NightProfile.from_bytes(data)
        for start in range(0, len(keys), _READ_AT_ONCE)
        for data in _read_all(store, keys[start : start + _READ_AT_ONCE])
    )
    return reduce(add, profiles) if keys else None


def _read_all(store: Store, keys: Sequence[str]) -> Iterable[bytes]:
    """The objects under `keys`. Raises UserError for the first that is missing."""
    stored = store.read_many(keys)
    missing = next((key for key in keys if key not in stored), None)
    if missing is not None:
        raise UserError(f"{store.uri}/{missing} is missing, so the run cannot go on; start over with --restart")
    return stored.values()
