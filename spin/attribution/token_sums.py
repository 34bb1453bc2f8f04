"""Contributions of the tokens of texts to the logit of one class, from the values that were read of them.

Reasons read it in a pass over many texts, and the explanation of one text for each class.
"""

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

    The contribution of a token to any class under mean pooling follows from these projections. So the activations
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
    """The weights of the tokens of n texts in the logit of one class each."""

    classes: Ints
    """(n,) indices of the classes"""
    mixture: Floats
    """(n, R) the mixture of the directions that is the class's weight vector for each text"""
    contributions: Floats
    """(n, p) what each neuron contributes to the logit of the class"""
    words: Floats
    """(n, K) what a unit of each of the words' logits contributes to it; (n, 0) where words are no features"""


@dataclass(frozen=True)
class TokenMasks:
    """Masks of the tokens of w windows of n texts that are pooled. A text that is read at once has one window."""

    owners: Ints
    """(w,) the position of each window's text, ascending"""
    read: NDArray[np.bool_]
    """(w, T) tokens, without padding"""
    own: NDArray[np.bool_]
    """(w, T) read tokens that no window before has read"""
    content: NDArray[np.bool_]
    """(w, T) own tokens that mean and max pool; where a text has none, all own tokens of its first window"""

    @classmethod
    def of(
        cls, owners: Ints, read: NDArray[np.bool_], own: NDArray[np.bool_], content: NDArray[np.bool_]
    ) -> TokenMasks:
        """The masks of windows whose `content` may be empty."""
        first = _first_windows(owners)
        empty = np.maximum.reduceat(content.any(1).astype(np.int8), first) == 0
        if empty.any():
            content = content.copy()
            content[first[empty]] = own[first[empty]]
        return cls(owners, read, own, content)

    @property
    def first_windows(self) -> Ints:
        """(n,) the first window of each text."""
        return _first_windows(self.owners)


@dataclass(frozen=True)
class TokenReadings:
    """Values that a pass has read of the tokens of B texts, or of B windows of texts."""

    projections: Floats
    """(B, T, R) projections of tokens onto the directions of all exits still ahead, summed over the mean columns"""
    positions: NDArray[np.int64]
    """(B, m) the token with the largest value of each neuron that is pooled by max"""
    maxima: Floats
    """(B, m) the largest value of each of these neurons"""

    def select(self, rows: Sequence[int] | Ints, width: int) -> TokenReadings:
        """The readings of some texts, with the first `width` token positions."""
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
    def of_values(
        cls, values: Mapping[FeatureColumn, Floats], directions: TokenDirections, masks: TokenMasks
    ) -> TokenReadings:
        """The readings of windows from their activations (B, T, m) by column, as an engine computes them.

        Of several tokens with the same largest value the first one counts.
        """
        projections = np.zeros((*masks.read.shape, directions.width), np.float32)
        for column, of_column in directions.by_column.items():
            projections += (values[column] - directions.means[column]) @ of_column.T
        under_max = [of_column for column, of_column in values.items() if column.pooling == "max"]
        outside = np.where(masks.content, np.float32(0), np.float32(-np.inf))[:, :, None]
        seen = np.concatenate([np.empty((*masks.read.shape, 0), np.float32), *under_max], axis=2) + outside
        return cls(projections, seen.argmax(1), seen.max(1))

    @classmethod
    def stack(cls, parts: Sequence[TokenReadings]) -> TokenReadings:
        """The readings of several batches, padded on the right to the longest."""
        width = max(part.projections.shape[1] for part in parts)
        padded = [np.pad(part.projections, ((0, 0), (0, width - part.projections.shape[1]), (0, 0))) for part in parts]
        return cls(
            np.concatenate(padded),
            np.concatenate([part.positions for part in parts]),
            np.concatenate([part.maxima for part in parts]),
        )


def sum_tokens(
    readings: TokenReadings, masks: TokenMasks, weights: TokenWeights, columns: Mapping[FeatureColumn, slice]
) -> Floats:
    """(w, T) what every token contributes to the logit of its text's class.

    `columns` says, in order, where the neurons of each column stand among those that `weights` has contributions of.
    """
    contributions, (windows, width) = weights.contributions, masks.read.shape
    projections = readings.projections[:, :, : weights.mixture.shape[1]]
    values = np.matmul(projections, weights.mixture[masks.owners][:, :, None])[:, :, 0]
    at, has_all = find_single_tokens(readings, masks, columns)
    sums = share_single(at, contributions[:, has_all], windows * width)
    if not has_all.all():
        content = np.flatnonzero(masks.content)
        totals = contributions[:, ~has_all].sum(1, dtype=np.float64)
        of_content = values.ravel()[content].astype(np.float64)
        sums[content] += share_mean(of_content, masks.owners[content // width], totals)
    return sums.reshape(windows, width)


def find_single_tokens(
    readings: TokenReadings, masks: TokenMasks, columns: Mapping[FeatureColumn, slice]
) -> tuple[Ints, NDArray[np.bool_]]:
    """The token (n, m) that has all of what a neuron contributes, and which neurons (p,) these m are.

    They are the neurons under max, first and last pooling. Tokens are counted through all windows: token t of window w
    is w T + t.
    """
    first, width = masks.first_windows, masks.read.shape[1]
    last = np.append(first[1:], len(masks.read)) - 1
    window = _window_of_maximum(readings.maxima, masks, first)
    widths = [part.stop - part.start for part in columns.values()]
    poolings = np.repeat(np.array([column.pooling for column in columns], str), widths)
    has_all: NDArray[np.bool_] = poolings != "mean"
    pooling = poolings[has_all]
    at = np.empty((len(first), len(pooling)), np.int64)
    at[:, pooling == "max"] = window * width + np.take_along_axis(readings.positions, window, 0)
    at[:, pooling == "first"] = (first * width + masks.read[first].argmax(1))[:, None]
    at[:, pooling == "last"] = ((last + 1) * width - 1 - masks.read[last, ::-1].argmax(1))[:, None]
    return at, has_all


def find_loudest_tokens(
    values: Mapping[FeatureColumn, Floats],
    readings: TokenReadings,
    masks: TokenMasks,
    totals: Floats,
    columns: Mapping[FeatureColumn, slice],
) -> Ints:
    """The token (p,) of one text with the largest share of what each neuron contributes, counted through all windows.

    `values` (w, T, m) are the activations that `readings` are of. `totals` (p,) are the pooled ones less their training
    means. `columns` gives the positions of each column's neurons among these.
    """
    at, has_all = find_single_tokens(readings, masks, columns)
    loudest = np.empty(len(totals), np.int64)
    loudest[has_all] = at[0]
    content = np.flatnonzero(masks.content)
    for column, part in columns.items():
        if column.pooling == "mean":
            tokens = values[column].reshape(masks.read.size, -1)[content].astype(np.float64)
            shares = share_mean(tokens, np.zeros(len(content), np.int64), totals[None, part])
            loudest[part] = content[np.abs(shares).argmax(0)]
    return loudest


def _first_windows(owners: Ints) -> Ints:
    return np.flatnonzero(np.diff(owners, prepend=-1))


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
