"""One forward pass for two classifiers that read the same backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from spin.activations.engine import open_engine
from spin.activations.extract import Features, read_activations, single_segment
from spin.classifier import SpinClassifier
from spin.sites import FeatureColumn

Neurons = Mapping[FeatureColumn, NDArray[np.int64]]


class SharedPass:
    """Reads the activations of two classifiers, in a single forward pass where both can share one.

    Each classifier's backbone is loaded. Where both use the same weights and settings they share one backbone,
    truncated at the larger depth.
    """

    one_pass: bool
    """whether a single pass serves both: torch computes, both read the same backbone and its neurons, and neither exits
    early"""

    def __init__(self, first: SpinClassifier, second: SpinClassifier) -> None:
        self.first, self.second = first, second
        same_backbone = (first.backbone_digest, first.settings) == (second.backbone_digest, second.settings)
        if same_backbone:
            shallow, deep = sorted((first, second), key=lambda spin: spin.depth)
            shallow.share_backbone(deep)
        # in OpenVINO a value's last bits depend on what else its graph outputs
        same_rounding = same_backbone and first.backbone.engine == "torch"
        both_read = bool(first.fitted.selection.neurons and second.fitted.selection.neurons)
        self.one_pass = same_rounding and both_read and not (first.exits_early or second.exits_early)
        self.one_pass = self.one_pass and not (first.reasons or second.reasons)  # tokens are weighed for one model
        if self.one_pass:
            self._union = _unite(first.fitted.selection.neurons, second.fitted.selection.neurons)
            self._engine = open_engine(first.backbone, [single_segment(self._union, self._union)])
        else:
            first.prepare()
            second.prepare()

    def features(self, texts: Sequence[str]) -> tuple[Features, Features]:
        """The same values as `SpinClassifier.features` of each classifier.

        A single pass reads the union of the neurons. Batches depend on the texts alone, and no block depends on the
        blocks above it, so every value is the same as in a pass of its own.
        """
        if not self.one_pass:
            return self.first.features(texts), self.second.features(texts)
        features = read_activations(self._engine, texts)
        return _pick(features, self._union, self.first, texts), _pick(features, self._union, self.second, texts)


def _unite(first: Neurons, second: Neurons) -> dict[FeatureColumn, NDArray[np.int64]]:
    """The neurons of each feature column that either selection reads, ascending."""
    return {
        column: np.unique(np.concatenate([neurons[column] for neurons in (first, second) if column in neurons]))
        for column in sorted({*first, *second})
    }


def _pick(features: Features, union: Neurons, spin: SpinClassifier, texts: Sequence[str]) -> Features:
    """The features of one classifier, in its order: its neurons, and the logits of its own word regression.

    `take` lays the values out row by row, as `extract` does. Indexing would not, and the last bits of a matrix product
    depend on the layout.
    """
    wanted = spin.fitted.selection.neurons
    columns = {c: features.columns[c].take(np.searchsorted(union[c], n), axis=1) for c, n in wanted.items()}
    return replace(features, columns=columns, words=spin.word_logits(texts))
