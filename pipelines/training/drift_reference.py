"""The reference profile of a model, which nights are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as save_tensors

from pipelines.data.feature_store import FeatureShards
from pipelines.data.training_labels import Labels
from spin.activations.extract import Features
from spin.classifier import SpinClassifier
from spin.monitor.profile import Profile


def describe_reference(spin: SpinClassifier, features: FeatureShards, labels: Labels, texts: Sequence[str]) -> bytes:
    """The profile of each of the three classifiers over the test rows, without and with exits, as safetensors.

    A model is overconfident on the documents that it was fitted on, so all documents serve only if there are no test
    documents.
    """
    rows, _ = labels.part("test")
    if not len(rows):
        rows = np.arange(len(labels.ids))
    tested = [texts[row] for row in rows]
    tokens, word_regression = spin.backbone.tokenize(tested), spin.training_result.words
    words = None if word_regression is None else word_regression.logits(tested)
    read = Features({}, np.array([len(ids) for ids in tokens.ids], np.int32), np.array(tokens.unknown, np.int32), 0)
    tensors: dict[str, NDArray[Any]] = {}
    for choice, fitted in spin.training_result.choices.items():
        values = features.read_selection(fitted.selection, rows, words)
        decision = fitted.decision(spin.label_space, spin.decision)
        for prefix, depth in (
            (choice, None),
            (f"{choice}.early", fitted.exit_depths(values, spin.label_space, decision)),
        ):
            logits = fitted.predict_logits(values, depth)
            profile = Profile.from_outputs(spin.label_space, fitted, logits, values, read)
            tensors |= {f"{prefix}.{name}": tensor for name, tensor in vars(profile).items()}
    return bytes(save_tensors(tensors))
