"""Contributions of the features of a fitted classifier to the logit of one class, and the weights of tokens in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats
from spin.attribution.token_sums import TokenDirections, TokenWeights
from spin.fitted.fitted_classifier import FittedClassifier
from spin.poolings.registry import find_pooling
from spin.sites import FeatureColumn


def token_weights(fitted: FittedClassifier, features: Floats, classes: NDArray[np.int64]) -> TokenWeights:
    """The weights of the tokens and words of n documents in the logit of one class each, from raw features (n, p).

    What the features contribute, plus the head's bias, is that logit. Under a network they are integrated gradients.
    """
    values = fitted.standardizer.transform(features)
    slopes, words = fitted.head.slopes_of(values, classes), fitted.selection.word_logits
    return TokenWeights(
        classes,
        fitted.head.mix(values, classes),
        values[:, words:] * slopes[:, words:],
        slopes[:, :words] / fitted.standardizer.scale[:words],
    )


def token_directions(
    stops: Sequence[FittedClassifier], columns: Mapping[FeatureColumn, NDArray[np.int64] | None]
) -> TokenDirections:
    """The directions of some columns in the heads of a segment: those at which its documents can still stop.

    `stops` are the classifiers of these exits, the first one first. The columns are among those of their selections.
    """
    scaled = [fitted.head.directions[:, fitted.selection.word_logits :] for fitted in stops]
    scaled = [
        directions / fitted.standardizer.scale[fitted.selection.word_logits :]
        for directions, fitted in zip(scaled, stops, strict=True)
    ]
    by_column: dict[FeatureColumn, Floats] = {}
    means: dict[FeatureColumn, Floats] = {}
    for column in columns:
        if find_pooling(column.pooling).shares != "every token":
            continue
        parts = [fitted.selection.slices[column] for fitted in stops]
        by_column[column] = np.concatenate([each[:, part] for each, part in zip(scaled, parts, strict=True)])
        means[column] = stops[0].standardizer.mean[stops[0].selection.word_logits :][parts[0]]
    return TokenDirections(sum(map(len, scaled)), by_column, means)
