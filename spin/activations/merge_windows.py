"""Merge the pooled values of the windows of texts into those of the texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spin.activations.engines.encoder import pools_content
from spin.arrays import Floats
from spin.attribution.token_sums import first_windows
from spin.poolings.registry import find_pooling
from spin.sites import FeatureColumn


@dataclass(frozen=True)
class WindowShares:
    """The share of each of w windows in the pooled values of its text. A text's windows are consecutive, in order."""

    owners: NDArray[np.int64]
    """(w,) the position of each window's text, ascending"""
    of_all: NDArray[np.float64]
    """(w,) the window's share of all tokens of its text; the shares of a text add up to 1"""
    of_content: NDArray[np.float64]
    """(w,) its share of the content; where a text has none, its first window has all"""

    @classmethod
    def from_counts(cls, owners: NDArray[np.int64], own: NDArray[np.int64], content: NDArray[np.int64]) -> WindowShares:
        """The shares by the numbers (w,) of a window's own tokens and of the content among them, which may be 0.

        The owners number the texts from 0 on, without gaps.
        """
        starts = first_windows(owners)
        content = content.copy()
        content[starts[np.add.reduceat(content, starts) == 0]] = 1
        return cls(owners, *(counts / np.add.reduceat(counts, starts)[owners] for counts in (own, content)))

    def select(self, windows: NDArray[np.int64]) -> WindowShares:
        """The shares of some windows, ascending: all those of some texts."""
        return WindowShares(self.owners[windows], self.of_all[windows], self.of_content[windows])

    @property
    def texts(self) -> NDArray[np.int64]:
        """The positions of the n texts, ascending."""
        return self.owners[first_windows(self.owners)]

    def merge(self, values: NDArray[np.floating], columns: Sequence[tuple[FeatureColumn, slice]]) -> Floats:
        """The values (n, p) of the texts, from those of their windows (w, p), and where these hold which column."""
        starts = first_windows(self.owners)
        merged: Floats = np.empty((len(starts), values.shape[1]), np.float32)
        alike: dict[tuple[str, bool], list[slice]] = {}  # merged together: each text is a call
        for column, part in columns:
            alike.setdefault((column.pooling, pools_content(column)), []).append(part)
        for (pooling, of_content), parts in alike.items():
            neurons, share = np.r_[*parts], self.of_content if of_content else self.of_all
            merged[:, neurons] = find_pooling(pooling).merge_texts(values[:, neurons], share[:, None], starts)
        return merged
