"""From probes to one classifier: the search over eta, head strength and depth, on validation rows only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from spin.errors import UserError
from spin.head import LinearHead, fit_head
from spin.metric import score
from spin.probe import Probe
from spin.select import Selection, scaler_of, select
from spin.settings import SearchSettings
from spin.sites import Column

Floats = NDArray[np.floating]
Read = Callable[[Selection], Floats]
Progress = Callable[[int], None]
Rows = tuple[NDArray[np.int64], NDArray[np.int64]]
"""row numbers and class indices"""


@dataclass(frozen=True)
class Candidate:
    """A point of the frontier: the best that was found with so many blocks."""

    depth: int
    eta: float
    strength: float
    neurons: int
    valid_score: float


@dataclass(frozen=True)
class Integration:
    """The chosen neurons, how they are aligned and the head that joins them."""

    selection: Selection
    mean: Floats
    """(p,) over the training rows"""
    scale: Floats
    """(p,) over the training rows"""
    head: LinearHead
    valid_score: float
    frontier: tuple[Candidate, ...]
    """the best candidate of every depth that was tried, shallow first"""

    def standardise(self, activations: Floats) -> Floats:
        """Raw activations (n, p) of the selected neurons, aligned across layers."""
        return (activations.astype(np.float32) - self.mean) / self.scale

    def describe(self) -> dict[str, object]:
        """What a report says of the choice."""
        return {
            "eta": self.selection.eta,
            "depth": self.selection.depth,
            "neurons": len(self.selection),
            "strength": self.head.strength,
            "valid_score": self.valid_score,
            "frontier": [asdict(candidate) for candidate in self.frontier],
        }


def integrate(
    probes: Iterable[Probe],
    read: Read,
    train: Rows,
    valid: Rows,
    *,
    metric: str,
    settings: SearchSettings,
    progress: Progress = lambda fits: None,
) -> Integration:
    """Choose eta and head strength at full depth, then depth with the strengths around, all by the validation metric.

    `read` gives the raw activations (n, p) of a selection for all rows; `train` and `valid` are (row numbers,
    class indices). Features of different layers meet standardised on the training rows. A tie goes to fewer
    neurons. `progress` is told every head that was fitted. Raises UserError when no probe kept a neuron.
    """
    by_column = {probe.column: probe for probe in probes}
    largest = select(by_column.values(), max(settings.etas))
    if not len(largest):
        raise UserError(
            "data: no probe kept a neuron, because no neuron varies over the training documents; "
            "check that their texts differ"
        )
    search = _Search(largest, by_column, read, train, valid, metric, progress)
    etas = sorted(settings.etas)
    full = [
        found for eta in etas for found in search.strengths(select(by_column.values(), eta), sorted(settings.strengths))
    ]
    best = _best(full)
    around = _neighbours(sorted(settings.strengths), best.head.strength)
    chosen = select(by_column.values(), best.selection.eta)
    frontier = [_best(search.strengths(part, around)) for part in _shallower(chosen)]
    frontier.append(best)
    winner = _best(frontier)
    points = tuple(
        Candidate(f.selection.depth, f.selection.eta, f.head.strength, len(f.selection), f.valid_score)
        for f in frontier
    )
    mean, scale = scaler_of(winner.selection, by_column)
    return Integration(winner.selection, mean, scale, winner.head, winner.valid_score, points)


def search_size(settings: SearchSettings, depth: int) -> int:
    """Heads that `integrate` fits at most on a backbone of `depth` blocks."""
    return len(settings.etas) * len(settings.strengths) + min(3, len(settings.strengths)) * depth


@dataclass(frozen=True, eq=False)
class _Found:
    selection: Selection
    head: LinearHead
    valid_score: float


class _Search:
    """Fits heads on parts of one selection whose activations were read once."""

    def __init__(
        self,
        largest: Selection,
        by_column: Mapping[Column, Probe],
        read: Read,
        train: Rows,
        valid: Rows,
        metric: str,
        progress: Progress,
    ) -> None:
        mean, scale = scaler_of(largest, by_column)
        activations = read(largest)
        self.largest, self.metric, self.progress = largest, metric, progress
        (train_rows, self.train_y), (valid_rows, self.valid_y) = train, valid
        self.train_X = (activations[train_rows].astype(np.float32) - mean) / scale
        self.valid_X = (activations[valid_rows].astype(np.float32) - mean) / scale

    def strengths(self, selection: Selection, strengths: Sequence[float]) -> list[_Found]:
        """One fit a strength, rising, each started from the last, until two in a row have not improved the best."""
        where = selection.within(self.largest)
        train_X, valid_X = self.train_X[:, where], self.valid_X[:, where]
        found: list[_Found] = []
        for strength in strengths:
            head = fit_head(train_X, self.train_y, strength, start=found[-1].head if found else None)
            found.append(_Found(selection, head, score(self.metric, self.valid_y, head.predict(valid_X))))
            self.progress(1)
            if len(found) >= 3 and _best(found) not in found[-2:]:
                break
        return found


def _best(found: Sequence[_Found]) -> _Found:
    """The best validation score; among equals fewer neurons, then the stronger regularisation."""
    return max(found, key=lambda f: (f.valid_score, -len(f.selection), -f.head.strength))


def _shallower(selection: Selection) -> list[Selection]:
    """The selection cut to each depth below its own at which it has neurons."""
    depths = sorted({column.site.layer for column in selection.neurons})
    return [selection.upto(depth) for depth in depths[:-1]]


def _neighbours(grid: Sequence[float], value: float) -> Sequence[float]:
    at = grid.index(value)
    return grid[max(0, at - 1) : at + 2]
