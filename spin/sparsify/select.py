"""Sparsify: rank the neurons by importance and keep the fewest that carry a share eta of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats
from spin.heads.selection import Rule, Selection
from spin.sites import FeatureColumn
from spin.sparsify.probe import Probe


@dataclass(frozen=True)
class Ranking:
    """The neurons of all feature columns by importance; `rule` says what measured it and what a share is a share of.

    `l1`: the probes' weights; each probe keeps a share of its own importance. `ridge`: a regression on all columns;
    one share holds for all neurons together.
    """

    rule: Rule
    shares: Mapping[FeatureColumn, NDArray[np.float64]]
    """(width,) each neuron's share of the importance; the columns are in order"""
    before: Mapping[FeatureColumn, NDArray[np.float64]]
    """(width,) the share of all neurons that are more important"""

    @classmethod
    def by_probes(cls, probes: Iterable[Probe]) -> Ranking:
        """Rank the neurons of each probe; a probe without a nonzero weight is left out."""
        importance = {p.column: p.importance for p in sorted(probes, key=lambda p: p.column) if p.importance.any()}
        shares = {column: values / values.sum() for column, values in importance.items()}
        return cls("l1", shares, {column: _more_important(share) for column, share in shares.items()})

    @classmethod
    def over_all(cls, importance: Mapping[FeatureColumn, Floats]) -> Ranking:
        """Rank all neurons together by the importance (width,) of each column's."""
        columns = sorted(importance)
        values = np.concatenate([importance[column] for column in columns]).astype(np.float64)
        share = values / max(values.sum(), 1e-300)
        borders = np.cumsum([len(importance[column]) for column in columns])[:-1]
        parts = [np.split(of_all, borders) for of_all in (share, _more_important(share))]
        return cls("ridge", *(dict(zip(columns, part, strict=True)) for part in parts))

    def __len__(self) -> int:
        """Number of neurons with any importance."""
        return sum(int((share > 0).sum()) for share in self.shares.values())

    def select(self, eta: float) -> Selection:
        """The smallest set of neurons whose importance reaches a share `eta`; nothing of a column without any."""
        neurons = {
            column: np.flatnonzero((self.before[column] < eta * (1 - 1e-12)) & (share > 0))
            for column, share in self.shares.items()
        }
        kept = {column: indices for column, indices in neurons.items() if len(indices)}
        return Selection(
            kept, {column: self.shares[column][indices] for column, indices in kept.items()}, eta, self.rule
        )

    def largest_eta(self, count: int) -> float:
        """The largest eta that selects at most `count` neurons, or the smallest that selects any."""
        reached = np.sort(np.concatenate([self.before[column][share > 0] for column, share in self.shares.items()]))
        return 1.0 if len(reached) <= count else float(max(reached[count], np.finfo(np.float32).eps))


def _more_important(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """(p,) the share of all neurons that are more important, by the share of each."""
    falling = np.argsort(-share, kind="stable")
    before = np.empty_like(share)
    before[falling] = np.cumsum(share[falling]) - share[falling]
    return before
