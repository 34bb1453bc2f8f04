"""Compare the documents of a night with the reference of its model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

from pipelines.registry.packaging import REFERENCE
from pipelines.service_errors import DriftError
from pipelines.storage.object_store import Store
from spin.heads import persistence
from spin.monitor.drift import measure
from spin.monitor.profile import Profile
from spin.settings import Choice


def measure_drift(
    store: Store, keys: Sequence[str], model: Path, choice: Choice, allowed: float, *, early: bool
) -> list[dict[str, Any]]:
    """What a report says of the profiles under `keys` against the reference in a model's folder.

    Where documents left `early`, it is the reference of documents that did, and neurons above the first exit, which
    not all of them reach, are not compared.

    Empty for a model that was saved without one, or where no document was predicted.
    """
    if not keys or not (model / REFERENCE).exists():
        return []
    prefix = f"{choice}.early." if early else f"{choice}."
    reference = Profile.from_bytes((model / REFERENCE).read_bytes(), prefix)
    found = (Profile.from_bytes(store.read(key) or b"") for key in keys)
    selection = persistence.load(model)[0].choices[choice].selection
    return [drift.describe() for drift in measure(reduce(add, found), reference, selection, allowed)]


def check_drift(manifest: dict[str, Any]) -> None:
    """Raise DriftError, naming what has drifted in a night that is published."""
    moved = [f"{r['name']} ({r['psi']:.2f}, limit {r['limit']:.2f})" for r in manifest["drift"] if r["drifted"]]
    if moved:
        raise DriftError(
            f"the night of {manifest['date']} is published, but it drifted from training: {', '.join(moved)}; see "
            f"{manifest['output']}/_runs/{manifest['run']}/report.html"
        )
