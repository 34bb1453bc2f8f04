"""Compare the documents of a nightly run with the reference profile of its model."""

from __future__ import annotations

from pathlib import Path

from pipelines.nightly.report.night_report import NightReport
from pipelines.nightly.steps.night_profile import NightProfile
from pipelines.registry.packaging import REFERENCE
from pipelines.service_errors import DriftError
from spin.heads import persistence
from spin.monitor.drift import Drift, measure
from spin.monitor.profile import Profile
from spin.settings import Choice


def measure_drift(
    profile: NightProfile | None, model: Path, choice: Choice, allowed: float, *, early: bool
) -> list[Drift]:
    """Return the drift of the profile of a night from the reference in the folder of a model.

    Where documents may exit `early`, the reference is that of documents with early exits, and neurons above the first
    exit, which not all documents reach, are not compared. Empty for a model that was saved without a reference, or
    where no document was predicted.
    """
    if profile is None or not (model / REFERENCE).exists():
        return []
    prefix = f"{choice}.early." if early else f"{choice}."
    reference = Profile.from_bytes((model / REFERENCE).read_bytes(), prefix)
    selection = persistence.load_result(model).choices[choice].selection
    return measure(profile.documents, reference, selection, allowed)


def check_drift(report: NightReport) -> None:
    """Raise DriftError, with the properties that have drifted, for the report of a published night."""
    moved = [f"{drift.name} ({drift.psi:.2f}, limit {drift.limit:.2f})" for drift in report.drift if drift.drifted]
    if moved:
        raise DriftError(
            f"the night of {report.date} is published, but it drifted from training: {', '.join(moved)}; see "
            f"{report.output}/_runs/{report.run}/report.html"
        )
