"""The training reference of a model: what nights are held against."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as save_tensors

from pipelines.bundle import REFERENCE
from pipelines.features import FeatureShards
from pipelines.labels import Labels
from pipelines.store import Store
from spin import artifact
from spin.calibrate import Decision
from spin.classifier import SpinClassifier
from spin.drift import measure
from spin.extract import Features
from spin.profile import Profile
from spin.settings import Choice


def describe_reference(spin: SpinClassifier, features: FeatureShards, labels: Labels, texts: Sequence[str]) -> bytes:
    """The profile of each of the three classifiers over the test rows, without and with exits, as safetensors.

    What a model was fitted on it is too sure of, so other rows are a reference only where there are no test rows.
    """
    rows, _ = labels.part("test")
    if not len(rows):
        rows = np.arange(len(labels.ids))
    tokens = spin.backbone.tokenize([texts[row] for row in rows])
    read = Features({}, np.array([len(ids) for ids in tokens.ids], np.int32), np.array(tokens.unknown, np.int32), 0)
    found: dict[str, NDArray[Any]] = {}
    for choice, integration in spin.integrated.choices.items():
        values = features.read_selection(integration.selection, rows)
        decision = Decision.of(spin.task, spin.decision)
        for prefix, depth in ((choice, None), (f"{choice}.early", integration.leave(values, spin.task, decision))):
            profile = Profile.of(spin.task, integration, integration.answer(values, depth), values, read)
            found |= {f"{prefix}.{name}": tensor for name, tensor in vars(profile).items()}
    return bytes(save_tensors(found))


def drift_of(
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
    selection = artifact.load(model)[0].choices[choice].selection
    return [drift.describe() for drift in measure(reduce(add, found), reference, selection, allowed)]
