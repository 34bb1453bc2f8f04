"""Conflict among layers: how much of what the layers say speaks against the class that they predict together."""

from __future__ import annotations

import numpy as np

from spin.arrays import Floats
from spin.fitted.fitted_classifier import FittedClassifier

WORDS = -1
"""the place of the words' logits, which count as one more layer"""


def layer_conflict(fitted: FittedClassifier, features: Floats) -> Floats:
    """(n,) the share, from 0 to 1, of the layers' sums that speaks against the predicted class of n documents.

    `features` (n, p) are raw, of documents that ran to full depth. The margin of the best class over the second best is
    the bias plus a sum per layer of what its neurons contribute; with s the sums of the layers, the conflict is
    sum(max(-s, 0)) / sum(|s|). Under a network head the contributions are integrated gradients.
    """
    values = fitted.standardizer.transform(features)
    second, first = np.argsort(fitted.head.logits(values), axis=1)[:, -2:].T
    slopes = fitted.head.slopes_of(values, first) - fitted.head.slopes_of(values, second)
    layers = _layers(fitted)
    sums = np.stack([(values * slopes)[:, layers == layer].sum(axis=1) for layer in np.unique(layers)], axis=1)
    against = np.maximum(-sums, 0).sum(axis=1)
    conflict: Floats = against / np.maximum(np.abs(sums).sum(axis=1), 1e-12)
    return conflict


def _layers(fitted: FittedClassifier) -> Floats:
    """(p,) the layer of every feature."""
    columns = fitted.selection.neurons.items()
    counts = [fitted.selection.word_logits, *(len(neurons) for _, neurons in columns)]
    return np.repeat([WORDS, *(column.site.layer for column, _ in columns)], counts)
