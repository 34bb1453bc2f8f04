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
from spin.arrays import Floats
from spin.classifier import SpinClassifier
from spin.integrate.fit_words import WordFit
from spin.labels.cross_validation import Fold
from spin.monitor.profile import Profile


def describe_reference(
    spin: SpinClassifier,
    features: FeatureShards,
    labels: Labels,
    texts: Sequence[str],
    words: WordFit | None,
    folds: Sequence[Fold],
) -> bytes:
    """The profile of each of the three classifiers over the test rows, without and with exits, as safetensors.

    A model is overconfident on the documents that it was fitted on, so those that validate serve only if there are no
    test documents, with the words' held-out logits: the word regression knows its own documents by heart.
    """
    rows, _ = labels.part("test")
    word_logits: Floats | None = None
    if len(rows):
        regression = spin.training_result.words
        word_logits = None if regression is None else regression.logits([texts[row] for row in rows])
    else:
        validated = np.concatenate([fold.valid for fold in folds])
        rows, first = np.unique(validated, return_index=True)
        word_logits = None if words is None else np.concatenate(words.held_out)[first]
    tokens = spin.backbone.tokenize([texts[row] for row in rows])
    read = Features({}, np.array([len(ids) for ids in tokens.ids], np.int32), np.array(tokens.unknown, np.int32), 0)
    tensors: dict[str, NDArray[Any]] = {}
    for choice, fitted in spin.training_result.choices.items():
        values = features.read_selection(fitted.selection, rows, word_logits)
        decision = fitted.decision(spin.label_space, spin.decision)
        for prefix, depth in (
            (choice, None),
            (f"{choice}.early", fitted.exit_depths(values, spin.label_space, decision)),
        ):
            logits = fitted.predict_logits(values, depth)
            profile = Profile.from_outputs(spin.label_space, fitted, logits, values, read)
            tensors |= {f"{prefix}.{name}": tensor for name, tensor in vars(profile).items()}
    return bytes(save_tensors(tensors))
