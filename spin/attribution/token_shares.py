"""The shares of tokens in pooled values: the one definition of what a token contributes under each pooling."""

from __future__ import annotations

import numpy as np

from spin.arrays import Floats
from spin.attribution.text_words import Ints


def share_mean(values: Floats, owners: Ints, totals: Floats) -> Floats:
    """The contributions (t, ...) of tokens under mean pooling, which add up to `totals` (n, ...) per text.

    `values` (t, ...) are linear in the activations of the tokens that are pooled, and `owners` (t,) are their texts. A
    token has an equal part of the total, plus the excess of its value over the mean of its text, divided by the number
    of tokens. This is its own activation, less an equal part of the training mean. An engine may round differently from
    a second forward pass; the totals are the engine's.
    """
    counts = np.bincount(owners, minlength=len(totals)).reshape(-1, *[1] * (values.ndim - 1))
    means = sum_by_text(values, owners, len(totals)) / np.maximum(counts, 1)
    shares: Floats = ((values - means[owners]) + totals[owners]) / counts[owners]
    return shares


def sum_by_text(values: Floats, owners: Ints, count: int) -> Floats:
    """The sums (n, ...) of values (t, ...) over the tokens of each of n texts, in float64."""
    if values.ndim == 1:
        return np.bincount(owners, values, count).astype(np.float64, copy=False)
    sums: Floats = np.zeros((count, *values.shape[1:]))
    np.add.at(sums, owners, values)
    return sums


def share_single(at: Ints, totals: Floats, count: int) -> Floats:
    """The contributions of `count` tokens under max, first and last pooling: token `at` (any shape) has all of a total.

    `totals` has the shape of `at`.
    """
    return np.bincount(at.ravel(), totals.ravel(), count).astype(np.float64, copy=False)
