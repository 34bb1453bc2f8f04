"""Logits of test documents, which no classifier was fitted on: promises and estimates of quality rest on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from spin.arrays import Floats
from spin.errors import UserError
from spin.fitted.decision import Decision
from spin.fitted.early_exit import EarlyExit, find_stops
from spin.labels.label_space import Targets
from spin.settings import Choice

HELD_OUT = "held_out.safetensors"
"""file of an artifact with the logits of its test documents"""


@dataclass(frozen=True)
class HeldOutLogits:
    """The calibrated logits of m test documents at every place where they may stop, and their classes."""

    logits: Floats
    """(E + 1, m, K) logits at each of E early exits, shallow first, and at full depth"""
    y: Targets
    """(m,) class indices, or in a multi-label task booleans (m, K)"""

    def __len__(self) -> int:
        """The number of documents."""
        return len(self.y)

    def stops(self, exits: Sequence[EarlyExit], decision: Decision) -> NDArray[np.int64]:
        """(m,) the index of the exit at which each document stops under a decision; the last one for full depth.

        `exits` are all of the classifier, or none where documents always run to full depth.
        """
        stops = find_stops(self.logits, [exit.threshold for exit in exits], decision, len(self))
        return np.where(stops == len(exits), len(self.logits) - 1, stops)

    def probabilities(self, exits: Sequence[EarlyExit], decision: Decision) -> Floats:
        """(m, K) where each document stops, see `stops`."""
        return decision.label_space.probabilities(self.logits[self.stops(exits, decision), np.arange(len(self))])

    def to_tensors(self, choice: Choice) -> dict[str, NDArray[Any]]:
        """The arrays by name, those of one of the three classifiers; the classes are the same for all."""
        return {f"{choice}.logits": np.ascontiguousarray(self.logits, np.float32), "y": np.ascontiguousarray(self.y)}

    @classmethod
    def read_all(cls, folder: Path) -> dict[Choice, Self]:
        """The logits of each of the three classifiers of an artifact; none in one without test documents.

        Raises UserError for a file that is not whole.
        """
        path = folder / HELD_OUT
        if not path.exists():
            return {}
        try:
            tensors = load_tensors(path.read_bytes())
            y = tensors["y"]
        except (KeyError, ValueError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read: {error}; expected a file that spin train wrote") from None
        names = {choice: f"{choice}.logits" for choice in get_args(Choice)} if len(y) else {}
        return {choice: cls(tensors[name], y) for choice, name in names.items() if name in tensors}
