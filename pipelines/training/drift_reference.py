"""The reference profile of a model, which nights are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as save_tensors

from pipelines.data.corpus import Corpus
from pipelines.data.feature_store import FeatureShards
from spin.activations.extract import count_tokens
from spin.arrays import Floats, Rows
from spin.classifier import TrainedClassifier
from spin.integrate.fit_words import WordFit
from spin.labels.cross_validation import Fold
from spin.monitor.profile import Profile


@dataclass(frozen=True)
class Reference:
    """The documents that nights are compared with."""

    rows: Rows
    """(m,) ascending"""
    words: Floats | None
    """(m, K) the logits of their words, None without words"""
    learned: bool
    """whether the heads were fitted on them, so that predictions for them are too certain"""


def choose_reference(test: Rows, test_words: Floats | None, words: WordFit | None, folds: Sequence[Fold]) -> Reference:
    """The test rows with their logits; in a corpus without test rows those that validate, with their held-out logits.

    The word regression knows by heart what it was fitted on.
    """
    if len(test):
        return Reference(test, test_words, learned=False)
    rows, first = np.unique(np.concatenate([fold.valid for fold in folds]), return_index=True)
    return Reference(rows, None if words is None else np.concatenate(words.held_out)[first], learned=True)


def describe_reference(spin: TrainedClassifier, features: FeatureShards, corpus: Corpus, reference: Reference) -> bytes:
    """The profile of each of the three classifiers over the reference, without and with exits, as safetensors.

    The documents of one shard are in memory at a time.
    """
    rows, words = reference.rows, reference.words
    lengths = [count_tokens(spin.backbone, texts) for texts in corpus.text_blocks(rows)]
    tensors: dict[str, NDArray[Any]] = {}
    for choice, fitted in spin.training_result.choices.items():
        decision = fitted.decision(spin.label_space, spin.decision)
        profiles: dict[str, Profile] = {}
        blocks = features.selection_blocks(fitted.selection, rows, words)
        done = 0
        for values, counted in zip(blocks, lengths, strict=True):
            of_words = None if words is None else words[done : done + len(values)]
            done += len(values)
            early = fitted.exit_depths(values, decision, of_words)
            for name, depth in {choice: None, f"{choice}.early": early}.items():
                logits = fitted.predict_logits(values, depth, of_words)
                read = replace(counted, depth=depth)
                profile = Profile.from_outputs(
                    spin.label_space, fitted, logits, values, read, learned=reference.learned
                )
                profiles[name] = profiles[name] + profile if name in profiles else profile
        for prefix, profile in profiles.items():
            tensors |= {f"{prefix}.{name}": tensor for name, tensor in profile.sums.items()}
    return bytes(save_tensors(tensors))
