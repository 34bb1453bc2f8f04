"""A fitted classifier over the selected neurons, and everything that training returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats
from spin.heads.candidate import Candidate
from spin.heads.decision import Decision
from spin.heads.early_exit import EarlyExit, should_exit
from spin.heads.linear_head import LinearHead
from spin.heads.mlp_head import MlpHead
from spin.heads.selection import Selection
from spin.labels.label_space import LabelSpace
from spin.settings import Choice


@dataclass(frozen=True)
class FittedClassifier:
    """The chosen neurons, how they are aligned and the head that joins them."""

    selection: Selection
    mean: Floats
    """(p,) over the training rows"""
    scale: Floats
    """(p,) over the training rows"""
    head: LinearHead | MlpHead
    """calibrated: its logits are already over the temperature"""
    facts: dict[str, Any]
    """what a report says of the choice: depth, compute, eta, neurons, scores, temperature, calibration errors"""
    exits: tuple[EarlyExit, ...] = ()
    """where a document may leave before, shallow first"""

    def standardise(self, activations: Floats) -> Floats:
        """Raw activations (n, p) of the selected neurons, aligned across layers."""
        return (activations.astype(np.float32) - self.mean) / self.scale

    def logits(self, activations: Floats) -> Floats:
        """(n, K) of raw activations (n, p)."""
        return self.head.logits(self.standardise(activations))

    def answer(self, activations: Floats, depth: NDArray[np.int32] | None) -> Floats:
        """(n, K) of raw activations (n, p), by the exit after which `depth` (n,) blocks had run; None: all of them."""
        if depth is None:
            return self.logits(activations)
        logits = np.empty((len(activations), len(self.head.bias)), np.float32)
        for index, stop in enumerate([*(taken.depth for taken in self.exits), self.selection.depth]):
            part, rows = self.at(index), depth == stop
            logits[rows] = part.logits(activations[rows, : len(part.selection)])
        return logits

    def exit_depths(self, activations: Floats, label_space: LabelSpace, decision: Decision) -> NDArray[np.int32]:
        """(n,) the depth at which each document would leave, of raw activations (n, p) at full depth."""
        depth = np.full(len(activations), self.selection.depth, np.int32)
        for index in reversed(range(len(self.exits))):
            part, taken = self.at(index), self.exits[index]
            logits = part.logits(activations[:, : len(part.selection)])
            depth[should_exit(label_space, decision, taken.threshold, logits)] = taken.depth
        return depth

    def at(self, index: int) -> FittedClassifier:
        """The classifier of an exit, by its index; of the number of exits this one."""
        if index == len(self.exits):
            return self
        taken = self.exits[index]
        selection = self.selection.part(taken.depth)
        p = len(selection)
        return FittedClassifier(selection, self.mean[:p], self.scale[:p], taken.head, self.facts)


@dataclass(frozen=True)
class TrainingResult:
    """Everything that the search gives: the classifiers that can be chosen, and what accuracy costs."""

    choices: dict[Choice, FittedClassifier]
    """`accuracy`, `balanced` and `cheapest`; one Integration may stand under several names"""
    frontier: tuple[Candidate, ...]
    """the best candidate of every depth, shallow first"""
    tried: int
    """candidates that were judged"""

    def describe(self) -> dict[str, Any]:
        """What a report says of the search."""
        return {
            "choices": {name: fitted.facts for name, fitted in self.choices.items()},
            "frontier": [candidate.describe() for candidate in self.frontier],
            "tried": self.tried,
        }
