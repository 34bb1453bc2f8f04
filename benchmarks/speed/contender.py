"""A contender: how it classifies texts, and its role.

It is one of our settings, a peer that runs the same transformer, or a peer that reads words alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats
from spin.settings import CascadeSettings, Choice

Precision = Literal["float32", "bfloat16", "int8"]
SHIPPED = CascadeSettings().max_loss
"""loss of the metric that early exits may cost by default"""
LOSSES = (SHIPPED, 0.002, 0.005, 0.02)
"""losses of the metric to choose from"""
REASONS = 3
"""words, and neurons, per prediction of the rows that give reasons"""


@dataclass(frozen=True)
class TransformerPeer:
    """Another way to run the same transformer, with a linear head."""

    name: str
    precision: Precision

    @property
    def key(self) -> str:
        return f"{self.name} {self.precision}"


@dataclass(frozen=True)
class WordPeer:
    """A classifier that runs no transformer."""

    name: str
    cores: int | None = None
    """cores that it uses; None for all"""
    precision: Precision = "float32"

    @property
    def key(self) -> str:
        return self.name


@dataclass(frozen=True)
class OurSetting:
    """One of the settings of SPIN."""

    engine: str
    """torch or openvino"""
    precision: Precision
    choose: Choice = "accuracy"
    max_loss: float | None = None
    """loss of the metric that early exits may cost, from 0 to 1; None without exits"""
    default: bool = False
    """whether it is what the default settings give on this machine"""
    windows: bool = False
    """whether long texts are read in windows, not cut"""
    reasons: int = 0
    """number of words, and of neurons, that come with every prediction"""

    @property
    def name(self) -> str:
        windows = ", windows" if self.windows else ""
        choose = "" if self.choose == "accuracy" else f", {self.choose}"
        exits = "" if self.max_loss is None else f", max_loss {self.max_loss:g}"
        reasons = f", {self.reasons} reasons" if self.reasons else ""
        return f"SPIN, {self.engine}{windows}{choose}{exits}{reasons}{' (as shipped)' if self.default else ''}"

    @property
    def key(self) -> str:
        return f"{self.name} {self.precision}"

    @property
    def full(self) -> OurSetting:
        """The same choice in the same engine and precision at full depth."""
        return replace(self, max_loss=None, default=False)

    @property
    def with_reasons(self) -> OurSetting:
        """The same setting with reasons for every prediction."""
        return replace(self, reasons=REASONS, default=False)


Role = OurSetting | TransformerPeer | WordPeer


@dataclass(frozen=True)
class Answers:
    """What a contender predicts for n texts."""

    classes: NDArray[np.integer]
    """(n,)"""
    compute: Floats | None = None
    """(n,) the share of the backbone's FLOPs that each text took; None for all of it"""


Classify = Callable[[Sequence[str], int], Answers]
"""predicts the classes of texts, for a batch size in documents; tokenising and the head included"""


@dataclass(frozen=True)
class Contender:
    """A way to classify texts."""

    role: Role
    load: Callable[[], Classify]
    """loads the classifier; called before anything is timed"""
    batches: tuple[int, ...] = ()
    """batch sizes in documents, of which the fastest is used; () for a contender that forms its batches itself"""

    @property
    def key(self) -> str:
        """The name that identifies it in output and results."""
        return self.role.key
