"""Compare the documents of a nightly run with the reference profile of its model."""

from __future__ import annotations

from pathlib import Path

from pipelines.nightly.report.night_report import NightReport
from pipelines.nightly.steps.night_profile import NightProfile
from pipelines.registry.packaging import REFERENCE
from pipelines.service_errors import DriftError
from spin.classifier import TrainedClassifier
from spin.heads.held_out import HeldOutLogits
from spin.monitor.drift import Drift
from spin.monitor.profile import Profile


def measure_drift(
    profile: NightProfile, model: Path, spin: TrainedClassifier, held_out: HeldOutLogits | None, allowed: float
) -> list[Drift]:
    """The drift of the profile of a night from the reference in the folder of a model, opened as `spin`.

    Where documents may exit early, the reference is that of documents with early exits, under the decision of the night
    if the model carries the logits of its test documents; neurons above the first exit, which not all documents reach,
    are not compared. Empty for a model that was saved without a reference, or where no document was predicted.
    """
    if not (model / REFERENCE).exists():
        return []
    prefix = f"{spin.choose}.early." if spin.early else f"{spin.choose}."
    reference = Profile.from_bytes((model / REFERENCE).read_bytes(), prefix)
    if held_out is not None and spin.exits_early:
        reference = reference.under(held_out, spin.fitted.exits, spin.decision_rule)
    return profile.documents.drift_from(reference, spin.fitted.selection, allowed)


def check_drift(report: NightReport) -> None:
    """Raise DriftError, with the properties that have drifted, for the report of a published night."""
    moved = [f"{drift.name} ({drift.psi:.2f}, limit {drift.limit:.2f})" for drift in report.drift if drift.drifted]
    if moved:
        raise DriftError(
            f"the night of {report.date} is published, but it drifted from training: {', '.join(moved)}; see "
            f"{report.output}/_runs/{report.run}/report.html"
        )
