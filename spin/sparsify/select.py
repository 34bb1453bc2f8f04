"""Sparsify: rank the neurons by importance and keep the fewest that carry a share eta of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats
from spin.heads.selection import Selection
from spin.sites import FeatureColumn
from spin.sparsify.probe import Probe


@dataclass(frozen=True)
class Ranking:
    """The neurons of all feature columns by importance."""

    shares: Mapping[FeatureColumn, NDArray[np.float64]]
    """(width,) each neuron's share of the importance of all neurons; the columns are in order"""
    before: Mapping[FeatureColumn, NDArray[np.float64]]
    """(width,) the share of all neurons that are more important"""

    @classmethod
    def of(cls, probes: Mapping[FeatureColumn, Probe], ridge: Mapping[FeatureColumn, Floats]) -> Ranking:
        """Rank all neurons by the mean of two shares of importance.

        One is the share of a neuron in the squared weights of its sparse probe, where every probe with a nonzero weight
        counts the same; it knows which few neurons of a site tell the classes apart. The other is the share in those of
        a ridge regression on all columns, by the `ridge` importance (width,) of each; it knows what other sites add,
        and does not drop neurons by chance where labels are few.
        """
        columns = sorted(ridge)
        by_probe = np.concatenate([_normalise(probes[column].importance) for column in columns])
        by_ridge = np.concatenate([ridge[column] for column in columns])
        share = _normalise(_normalise(by_probe) + _normalise(by_ridge))
        borders = np.cumsum([len(ridge[column]) for column in columns])[:-1]
        parts = [np.split(of_all, borders) for of_all in (share, _more_important(share))]
        return cls(*(dict(zip(columns, part, strict=True)) for part in parts))

    def select(self, eta: float) -> Selection:
        """The smallest set of neurons whose importance reaches a share `eta`; nothing of a column without any."""
        neurons = {
            column: np.flatnonzero((self.before[column] < eta * (1 - 1e-12)) & (share > 0))
            for column, share in self.shares.items()
        }
        kept = {column: indices for column, indices in neurons.items() if len(indices)}
        return Selection(kept, {column: self.shares[column][indices] for column, indices in kept.items()}, eta)

    def eta_for(self, count: int) -> float:
        """The largest eta that selects at most `count` neurons, or the smallest that selects any."""
        reached = np.sort(np.concatenate([self.before[column][share > 0] for column, share in self.shares.items()]))
        return 1.0 if len(reached) <= count else float(max(reached[count], np.finfo(np.float32).eps))


def _normalise(importance: Floats | NDArray[np.float64]) -> NDArray[np.float64]:
    """(p,) shares that sum to 1; zeros where nothing has any importance."""
    shares: NDArray[np.float64] = importance / (importance.sum(dtype=np.float64) or 1.0)
    return shares


def _more_important(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """(p,) the share of all neurons that are more important, by the share of each."""
    falling = np.argsort(-share, kind="stable")
    before = np.empty_like(share)
    before[falling] = np.cumsum(share[falling]) - share[falling]
    return before
