"""Compare the documents of a nightly run with the reference profile of its model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add
from pathlib import Path

from pipelines.nightly.report.night_report import NightReport
from pipelines.registry.packaging import REFERENCE
from pipelines.service_errors import DriftError
from pipelines.storage.object_store import Store
from spin.heads import persistence
from spin.monitor.drift import Drift, measure
from spin.monitor.profile import Profile
from spin.settings import Choice

_READ_AT_ONCE = 256
"""profiles in memory at a time"""


def measure_drift(
    store: Store, keys: Sequence[str], model: Path, choice: Choice, allowed: float, *, early: bool
) -> list[Drift]:
    """Return the drift of the profiles under `keys` from the reference in the folder of a model.

    Where documents may exit `early`, the reference is that of documents with early exits, and neurons above the first
    exit, which not all documents reach, are not compared. Empty for a model that was saved without a reference, or
    where no document was predicted.
    """
    if not keys or not (model / REFERENCE).exists():
        return []
    prefix = f"{choice}.early." if early else f"{choice}."
    reference = Profile.from_bytes((model / REFERENCE).read_bytes(), prefix)
    profiles = (
        Profile.from_bytes(data)
        for start in range(0, len(keys), _READ_AT_ONCE)
        for data in store.read_many(keys[start : start + _READ_AT_ONCE]).values()
    )
    selection = persistence.load_result(model).choices[choice].selection
    return measure(reduce(add, profiles), reference, selection, allowed)


def check_drift(report: NightReport) -> None:
    """Raise DriftError, with the properties that have drifted, for the report of a published night."""
    moved = [f"{drift.name} ({drift.psi:.2f}, limit {drift.limit:.2f})" for drift in report.drift if drift.drifted]
    if moved:
        raise DriftError(
            f"the night of {report.date} is published, but it drifted from training: {', '.join(moved)}; see "
            f"{report.output}/_runs/{report.run}/report.html"
        )
