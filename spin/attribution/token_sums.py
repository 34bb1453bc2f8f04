"""Contributions of the tokens of texts to the logit of one class, from the values that were read of them.

Reasons read it in a pass over many texts, and the explanation of one text for each class.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from spin.arrays import Floats
from spin.attribution.text_words import Ints, sum_by_text
from spin.poolings.pooling import Pooling
from spin.poolings.registry import find_pooling
from spin.sites import FeatureColumn

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenDirections:
    """The directions onto which the activations of tokens are projected.

    The contribution of a token to any class, under a pooling in which every token has a share, follows from these
    projections. So the activations themselves, of many neurons per token, stay where they were computed.
    """

    width: int
    """R, the number of directions"""
    by_column: Mapping[FeatureColumn, Floats]
    """(R, m) for each column in which every token has a share, m being the number of its neurons"""
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
    """(w, T) own tokens that are content; where a text has none, all own tokens of its first window"""

    @classmethod
    def of(
        cls, owners: Ints, read: NDArray[np.bool_], own: NDArray[np.bool_], content: NDArray[np.bool_]
    ) -> TokenMasks:
        """The masks of windows whose `content` may be empty."""
        first = first_windows(owners)
        empty = np.maximum.reduceat(content.any(1).astype(np.int8), first) == 0
        if empty.any():
            content = content.copy()
            content[first[empty]] = own[first[empty]]
        return cls(owners, read, own, content)

    def pooled_by(self, pooling: Pooling) -> NDArray[np.bool_]:
        """(w, T) the tokens that count under a pooling."""
        return self.content if pooling.content_only else self.read


@dataclass(frozen=True)
class TokenReadings:
    """Values that a pass has read of the tokens of B texts, or of B windows of texts."""

    projections: Floats
    """(B, T, R) projections of tokens onto the directions of all exits still ahead, summed over the columns"""
    positions: NDArray[np.int64]
    """(B, m) the token whose value is pooled, of each neuron for which it is found by value"""
    values: Floats
    """(B, m) the value of each of these neurons"""

    def select(self, rows: Sequence[int] | Ints, width: int) -> TokenReadings:
        """The readings of some texts, with the first `width` token positions."""
        return TokenReadings(self.projections[rows, :width], self.positions[rows], self.values[rows])

    def extend(self, deeper: TokenReadings) -> TokenReadings:
        """These and those of a deeper segment of blocks, at which fewer exits are ahead."""
        passed = self.projections.shape[2] - deeper.projections.shape[2]
        return TokenReadings(
            self.projections[:, :, passed:] + deeper.projections,
            np.concatenate([self.positions, deeper.positions], axis=1),
            np.concatenate([self.values, deeper.values], axis=1),
        )

    @classmethod
    def of_values(
        cls, values: Mapping[FeatureColumn, Floats], directions: TokenDirections, masks: TokenMasks
    ) -> TokenReadings:
        """The readings of windows from their activations (B, T, m) by column, as an engine computes them."""
        projections = np.zeros((*masks.read.shape, directions.width), np.float32)
        for column, of_column in directions.by_column.items():
            projections += (values[column] - directions.means[column]) @ of_column.T
        none = np.empty((len(masks.read), 0), np.float32)
        pooled, positions = [none], [none.astype(np.int64)]
        for column, of_column in values.items():
            pooling = find_pooling(column.pooling)
            if pooling.shares == "one by value":
                located = pooling.locate(torch.from_numpy(of_column), torch.from_numpy(masks.pooled_by(pooling)))
                pooled.append(located[0].numpy())
                positions.append(located[1].numpy())
        return cls(projections, np.concatenate(positions, axis=1), np.concatenate(pooled, axis=1))

    @classmethod
    def stack(cls, parts: Sequence[TokenReadings]) -> TokenReadings:
        """The readings of several batches, padded on the right to the longest."""
        width = max(part.projections.shape[1] for part in parts)
        padded = [np.pad(part.projections, ((0, 0), (0, width - part.projections.shape[1]), (0, 0))) for part in parts]
        return cls(
            np.concatenate(padded),
            np.concatenate([part.positions for part in parts]),
            np.concatenate([part.values for part in parts]),
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
    sums = sum_by_text(contributions[:, has_all].ravel(), at.ravel(), windows * width)
    is_divided = np.isin(_pooling_names(columns), [p.name for p in _poolings(columns) if p.shares == "every token"])
    if is_divided.any():
        content = np.flatnonzero(masks.content)
        totals = contributions[:, is_divided].sum(1, dtype=np.float64)
        of_content = values.ravel()[content].astype(np.float64)
        sums[content] += share_mean(of_content, masks.owners[content // width], totals)
    return sums.reshape(windows, width)


def find_single_tokens(
    readings: TokenReadings, masks: TokenMasks, columns: Mapping[FeatureColumn, slice]
) -> tuple[Ints, NDArray[np.bool_]]:
    """The token (n, m) that has all of what a neuron contributes, and which neurons (p,) these m are.

    They are those whose pooling takes the value of one token. Tokens are counted through all windows: token t of window
    w is w T + t.
    """
    first, width, names = first_windows(masks.owners), masks.read.shape[1], _pooling_names(columns)
    taking = [pooling for pooling in _poolings(columns) if pooling.takes_one_value]
    has_all = np.isin(names, [pooling.name for pooling in taking])
    located = names[np.isin(names, [pooling.name for pooling in taking if pooling.shares == "one by value"])]
    at = np.empty((len(first), int(has_all.sum())), np.int64)
    for pooling in taking:
        tokens = masks.pooled_by(pooling)
        pools = np.asarray(tokens.any(1), np.float64)[:, None]
        if pooling.shares == "one by value":
            mine = located == pooling.name
            window = _window_of_value(pooling, readings.values[:, mine], pools, masks.owners)
            place = np.take_along_axis(readings.positions[:, mine], window, 0)
        else:
            window = np.arange(len(tokens))[:, None]
            if len(first) < len(window):  # else every text has one window
                window = pooling.merge_texts(window.astype(np.float64), pools, first).astype(np.int64)
            place = pooling.find_place(torch.from_numpy(tokens)).numpy()[window]
        at[:, names[has_all] == pooling.name] = window * width + place
    return at, has_all


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


def find_loudest_tokens(
    values: Mapping[FeatureColumn, Floats],
    readings: TokenReadings,
    masks: TokenMasks,
    totals: Floats,
    columns: Mapping[FeatureColumn, slice],
) -> Ints:
    """The token (p,) of one text with the largest share of what each neuron contributes, counted through all windows.

    It is -1 for a neuron of which no token has a share. `values` (w, T, m) are the activations that `readings` are of.
    `totals` (p,) are the pooled ones less their training means. `columns` gives the positions of each column's neurons
    among these.
    """
    at, has_all = find_single_tokens(readings, masks, columns)
    loudest = np.full(len(totals), -1)
    loudest[has_all] = at[0]
    content = np.flatnonzero(masks.content)
    for column, part in columns.items():
        if find_pooling(column.pooling).shares == "every token":
            tokens = values[column].reshape(masks.read.size, -1)[content].astype(np.float64)
            shares = share_mean(tokens, np.zeros(len(content), np.int64), totals[None, part])
            loudest[part] = content[np.abs(shares).argmax(0)]
    return loudest


def warn_of_missing_shares(columns: Iterable[FeatureColumn]) -> None:
    """Log the poolings of the columns in which no token has a share, since words are named without them."""
    for pooling in _poolings(columns):
        if pooling.shares == "none":
            _log.warning(
                "pooling %s: no token has a share in its value, so what its neurons contribute counts for no word",
                pooling.name,
            )


def first_windows(owners: Ints) -> Ints:
    """(n,) the first window of each text, by the position of each window's text, ascending."""
    return np.flatnonzero(np.diff(owners, prepend=-1))


def _poolings(columns: Iterable[FeatureColumn]) -> list[Pooling]:
    return [find_pooling(name) for name in sorted({column.pooling for column in columns})]


def _pooling_names(columns: Mapping[FeatureColumn, slice]) -> NDArray[np.str_]:
    """(p,) the pooling of each neuron."""
    widths = [part.stop - part.start for part in columns.values()]
    return np.repeat(np.array([column.pooling for column in columns], str), widths)


def _window_of_value(pooling: Pooling, values: Floats, shares: Floats, owners: Ints) -> Ints:
    """The first window (n, m) of each text whose value the text has, from values (w, m) and shares (w, 1)."""
    numbers, starts = np.arange(len(values))[:, None], first_windows(owners)
    if len(starts) == len(values):  # every text has one window
        return np.broadcast_to(numbers, values.shape)
    is_taken = (shares > 0) & (values == pooling.merge_texts(values, shares, starts)[owners])
    found: Ints = np.minimum.reduceat(np.where(is_taken, numbers, len(numbers)), starts)
    return found
