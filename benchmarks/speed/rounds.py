"""Contenders against the clock: a batch size for each, then rounds in which all take turns."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import peaks

Precision = Literal["float32", "bfloat16", "int8"]
Answer = Callable[[Sequence[str], int], NDArray[np.integer]]
"""the class (n,) of each of n texts, read in batches of a size; tokenising and the head included"""


_UNTIMED = 2
"""passes of each contender over all texts before the rounds"""


@dataclass
class Contender:
    """A way to classify texts."""

    name: str
    precision: Precision
    load: Callable[[], Answer]
    """called once, before anything is timed"""
    batches: tuple[int, ...] = ()
    """documents a batch, of which the quickest is found; () where it batches by itself"""
    ours: bool = False
    calibrated: bool = False
    """a peer whose int8 is scaled by documents that its user has to bring"""
    max_loss: float | None = None
    """of the cascade, as a share of 1; None without a cascade"""
    compute: Callable[[], float] = lambda: 1.0
    """FLOPs that it spent as a share of the whole model's, known once it has answered"""

    @property
    def key(self) -> str:
        """How it is spoken of, and told from all others."""
        return key_of(self.name, self.precision, self.max_loss)


def key_of(name: str, precision: str, max_loss: float | None) -> str:
    """The name of a row with all that tells it from others."""
    return f"{name} {precision}" + ("" if max_loss is None else f", cascade at {100 * max_loss:g} points")


@dataclass
class Race:
    """What the rounds gave, by `Contender.key`."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    """of each round, for all texts"""
    answers: dict[str, NDArray[np.integer]] = field(default_factory=dict)
    """(n,) classes"""
    batch: dict[str, int] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    """GFLOP/s of matrix products by precision, the best of all rounds"""


def race(contenders: Sequence[Contender], texts: Sequence[str], rounds: int) -> Race:
    """Load each contender, find its batch size on a part of the texts, then time `rounds` rounds over all of them.

    Some whole passes over the texts come first and are not timed: kernels are made for each shape of batch, in each
    stream that meets it, of which the first pass leaves some to the second.
    The order of the contenders turns from round to round, so that none always follows the same one.
    """
    found, ready = Race(), {}
    for contender in contenders:
        answer = ready[contender.key] = contender.load()
        batch = found.batch[contender.key] = _quickest(answer, texts, contender.batches)
        for _ in range(_UNTIMED):
            found.answers[contender.key] = answer(texts, batch)
        found.seconds[contender.key] = []
        print(f"  {contender.key}: ready{f', batches of {batch}' if batch else ''}", flush=True)
    for number in range(rounds):
        for precision, peak in peaks().items():
            found.peaks[precision] = max(peak, found.peaks.get(precision, 0.0))
        for contender in contenders[:: -1 if number % 2 else 1]:
            taken = _seconds(ready[contender.key], texts, found.batch[contender.key])
            found.seconds[contender.key].append(taken)
        said = ", ".join(f"{key} {len(texts) / of[-1]:,.0f}" for key, of in found.seconds.items())
        print(f"  round {number + 1} of {rounds}, docs/s: {said}", flush=True)
    return found


def _quickest(answer: Answer, texts: Sequence[str], batches: Sequence[int]) -> int:
    """The batch size that takes least on every fifth text, each tried twice as the first one compiles; 0 of none."""
    if len(batches) < 2:
        answer(texts[::5], *batches or (0,))
        return batches[0] if batches else 0
    taken = {batch: min(_seconds(answer, texts[::5], batch) for _ in range(2)) for batch in batches}
    return min(taken, key=lambda batch: taken[batch])


def _seconds(answer: Answer, texts: Sequence[str], batch: int) -> float:
    gc.collect()
    start = time.perf_counter()
    answer(texts, batch)
    return time.perf_counter() - start
