"""Estimate the quality of a night's labels, as far as drift allows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.nightly.steps.night_profile import NightProfile
from spin.classifier import SpinClassifier
from spin.heads.held_out import HeldOutLogits
from spin.monitor.drift import Drift
from spin.monitor.quality import BREAKS_ESTIMATE, QualityEstimate, estimate_quality
from spin.settings import Settings


@dataclass(frozen=True)
class NightQuality:
    """What is known of the quality of a night's labels without checking any."""

    estimate: QualityEstimate | None
    """None where the model has no test documents, no document got a label, or drift withdraws it"""
    withdrawn: tuple[str, ...] = ()
    """properties that have drifted from training, so that probabilities may not be calibrated any more"""


def estimate_night(
    profile: NightProfile | None, model: Path, settings: Settings, drift: Sequence[Drift]
) -> NightQuality:
    """The estimated quality of the labels of a night by its profile, with the artifact in the folder of its model."""
    held_out = HeldOutLogits.read(model, settings.choose)
    if profile is None or profile.quality is None or held_out is None:
        return NightQuality(None)
    withdrawn = tuple(each.name for each in drift if each.drifted and each.name in BREAKS_ESTIMATE)
    if withdrawn:
        return NightQuality(None, withdrawn)
    spin = SpinClassifier.open(model, settings)
    probabilities = held_out.probabilities(spin.fitted.exits if spin.early else (), spin.decision_rule)
    return NightQuality(estimate_quality(profile.quality, probabilities, held_out.y, spin.decision_rule))
