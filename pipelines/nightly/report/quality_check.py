"""Estimate the quality of a night's labels, as far as drift allows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spin.classifier import TrainedClassifier
from spin.heads.held_out import HeldOutLogits
from spin.monitor.drift import Drift
from spin.monitor.drift_statistics import list_breaking
from spin.monitor.quality import QualityEstimate, QualitySums, estimate_quality


@dataclass(frozen=True)
class NightQuality:
    """The quality of a night's labels, estimated without checking any."""

    estimate: QualityEstimate | None
    """None where the model has no test documents, no document got a label, or drift withdraws it"""
    withdrawn: tuple[str, ...] = ()
    """properties that have drifted from training, so that probabilities may not be calibrated any more"""


def estimate_labels(
    sums: QualitySums, spin: TrainedClassifier, held_out: HeldOutLogits | None, drift: Sequence[Drift]
) -> NightQuality:
    """The estimated quality of the labels of a night by their sums and the test documents of its model."""
    if held_out is None:
        return NightQuality(None)
    withdrawn = tuple(each.name for each in drift if each.drifted and each.name in list_breaking())
    if withdrawn:
        return NightQuality(None, withdrawn)
    probabilities = held_out.probabilities(spin.fitted.exits if spin.early else (), spin.decision_rule)
    return NightQuality(estimate_quality(sums, probabilities, held_out.y, spin.decision_rule))
