"""What the tokens of texts contribute to the logit of one class, from what a pass over the texts has read of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats
from spin.attribution.text_words import Ints
from spin.attribution.token_shares import share_mean, share_single
from spin.sites import FeatureColumn


@dataclass(frozen=True)
class TokenDirections:
    """The directions onto which the activations of tokens are projected.

    What a token contributes to any class under mean pooling follows from these projections, so that the activations
    themselves, of many neurons per token, stay where they were computed.
    """

    width: int
    """R, the number of directions"""
    by_column: Mapping[FeatureColumn, Floats]
    """(R, m) for each column that is pooled by mean, m being the number of its neurons"""
    means: Mapping[FeatureColumn, Floats]
    """(m,) training means of these neurons, which are subtracted so that projections are small and round well"""


@dataclass(frozen=True)
class TokenWeights:
    """How the tokens of n texts count for one class each."""

    classes: Ints
    """(n,) indices of the classes"""
    mixture: Floats
    """(n, R) the mixture of the directions that is the class's weight vector for each text"""
    contributions: Floats
    """(n, p) what each neuron contributes to the logit of the class"""
    words: Floats
    """(n, K) what a unit of each of the words' logits contributes to it; (n, 0) where words are no features"""


@dataclass(frozen=True)
class TokenReadings:
    """What a pass has read of the tokens of B texts, or of windows of texts."""

    projections: Floats
    """(B, T, R) of the tokens onto the directions of all exits that are still ahead, summed over the mean columns"""
    positions: NDArray[np.int64]
    """(B, m) the token with the largest value of each neuron that is pooled by max"""
    maxima: Floats
    """(B, m) these values"""

    def select(self, rows: Sequence[int] | Ints, width: int) -> TokenReadings:
        """Those of some texts, with the first `width` token positions."""
        return TokenReadings(self.projections[rows, :width], self.positions[rows], self.maxima[rows])

    def extend(self, deeper: TokenReadings) -> TokenReadings:
        """These and those of a deeper segment of blocks, at which fewer exits are ahead."""
        passed = self.projections.shape[2] - deeper.projections.shape[2]
        return TokenReadings(
            self.projections[:, :, passed:] + deeper.projections,
            np.concatenate([self.positions, deeper.positions], axis=1),
            np.concatenate([self.maxima, deeper.maxima], axis=1),
        )

    @classmethod
    def stack(cls, parts: Sequence[TokenReadings]) -> TokenReadings:
        """Those of several batches, padded on the right to the longest."""
        width = max(part.projections.shape[1] for part in parts)
        padded = [np.pad(part.projections, ((0, 0), (0, width - part.projections.shape[1]), (0, 0))) for part in parts]
        return cls(
            np.concatenate(padded),
            np.concatenate([part.positions for part in parts]),
            np.concatenate([part.maxima for part in parts]),
        )


@dataclass(frozen=True)
class TokenMasks:
    """Which tokens of w windows of n texts are pooled. A text that is read at once has one window."""

    owners: Ints
    """(w,) the position of each window's text, ascending"""
    read: NDArray[np.bool_]
    """(w, T) tokens, without padding"""
    own: NDArray[np.bool_]
    """(w, T) those of these that no window before has read"""
    content: NDArray[np.bool_]
    """(w, T) own tokens that mean and max pool; where a text has none, all own tokens of its first window"""

    @classmethod
    def of(
        cls, owners: Ints, read: NDArray[np.bool_], own: NDArray[np.bool_], content: NDArray[np.bool_]
    ) -> TokenMasks:
        """The masks of windows whose `content` may be empty."""
        first = np.flatnonzero(np.diff(owners, prepend=-1))
        empty = np.maximum.reduceat(content.any(1).astype(np.int8), first) == 0
        if empty.any():
            content = content.copy()
            content[first[empty]] = own[first[empty]]
        return cls(owners, read, own, content)


def sum_tokens(
    readings: TokenReadings, masks: TokenMasks, weights: TokenWeights, columns: Mapping[FeatureColumn, slice]
) -> Floats:
    """(w, T) what every token contributes to the logit of its text's class.

    `columns` says where the neurons of each column stand among those that `weights` has contributions of.
    """
    contributions, (windows, width) = weights.contributions, masks.read.shape
    projections = readings.projections[:, :, : weights.mixture.shape[1]]
    values = np.matmul(projections, weights.mixture[masks.owners][:, :, None])[:, :, 0]
    sums: Floats = np.zeros(windows * width)
    if total := _sum_columns(contributions, columns, "mean"):
        at = np.flatnonzero(masks.content)
        owners = masks.owners[at // width]
        sums[at] += share_mean(values.ravel()[at].astype(np.float64), owners, total[0])
    first = np.flatnonzero(np.diff(masks.owners, prepend=-1))
    of_max = [contributions[:, part] for column, part in columns.items() if column.pooling == "max"]
    if of_max:
        count = sum(each.shape[1] for each in of_max)
        window = _window_of_maximum(readings.maxima[:, :count], masks, first)
        at = window * width + np.take_along_axis(readings.positions[:, :count], window, 0)
        sums += share_single(at, np.concatenate(of_max, axis=1), len(sums))
    if total := _sum_columns(contributions, columns, "first"):
        sums += share_single(first * width + masks.read[first].argmax(1), total[0], len(sums))
    if total := _sum_columns(contributions, columns, "last"):
        last = np.append(first[1:], windows) - 1
        sums += share_single((last + 1) * width - 1 - masks.read[last, ::-1].argmax(1), total[0], len(sums))
    return sums.reshape(windows, width)


def _sum_columns(contributions: Floats, columns: Mapping[FeatureColumn, slice], pooling: str) -> list[Floats]:
    """The sum (n,) over the neurons of all columns under a pooling; empty where there is none."""
    parts = [contributions[:, part].sum(1, dtype=np.float64) for c, part in columns.items() if c.pooling == pooling]
    return [np.sum(parts, axis=0)] if parts else []


def _window_of_maximum(maxima: Floats, masks: TokenMasks, first: Ints) -> Ints:
    """The window (n, m) of each text that has the largest of the maxima (w, m), of those with content."""
    if len(first) == len(maxima):  # every text has one window
        return np.broadcast_to(np.arange(len(maxima))[:, None], maxima.shape)
    pools: NDArray[np.bool_] = np.any(masks.content, axis=1)
    seen = np.where(pools[:, None], maxima, -np.inf)
    is_largest = seen == np.maximum.reduceat(seen, first)[masks.owners]
    windows = np.where(is_largest, np.arange(len(maxima))[:, None], len(maxima))
    found: Ints = np.minimum.reduceat(windows, first)
    return found
