"""Compare the documents of a nightly run with the reference profile of its model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add
from pathlib import Path

from pipelines.nightly.run_records import RunManifest
from pipelines.registry.packaging import REFERENCE
from pipelines.service_errors import DriftError
from pipelines.storage.object_store import Store
from spin.heads import persistence
from spin.monitor.drift import Drift, measure
from spin.monitor.profile import Profile
from spin.settings import Choice


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
    profiles = (Profile.from_bytes(store.read(key) or b"") for key in keys)
    selection = persistence.load_result(model).choices[choice].selection
    return measure(reduce(add, profiles), reference, selection, allowed)


def check_drift(manifest: RunManifest) -> None:
    """Raise DriftError, with the properties that have drifted, for the manifest of a published nightly run."""
    moved = [f"{drift.name} ({drift.psi:.2f}, limit {drift.limit:.2f})" for drift in manifest.drift if drift.drifted]
    if moved:
        raise DriftError(
            f"the night of {manifest.date} is published, but it drifted from training: {', '.join(moved)}; see "
            f"{manifest.output}/_runs/{manifest.run}/report.html"
        )
