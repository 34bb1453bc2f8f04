"""Timing: choose a batch size for each contender, then time all of them in rounds."""

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
"""returns the class (n,) of each of n texts, for a batch size; tokenising and the head included"""


_UNTIMED = 2
"""passes of each contender over all texts before the rounds"""


@dataclass
class Contender:
    """A way to classify texts."""

    name: str
    precision: Precision
    load: Callable[[], Answer]
    """loads the classifier; called once, before anything is timed"""
    batches: tuple[int, ...] = ()
    """batch sizes in documents, of which the fastest is used; () for a contender that forms its batches itself"""
    spin: bool = False
    """whether it is one of SPIN's rows, not a peer"""
    calibrated: bool = False
    """whether its int8 is calibrated on documents that the user must supply"""
    max_loss: float | None = None
    """loss of the metric that its cascade may cost, from 0 to 1; None without a cascade"""
    compute: Callable[[], float] = lambda: 1.0
    """share of the whole model's FLOPs that it spent, known once it has classified"""

    @property
    def key(self) -> str:
        """The name that identifies it in output and results."""
        return key_of(self.name, self.precision, self.max_loss)


def key_of(name: str, precision: str, max_loss: float | None) -> str:
    """The name of a row with its precision and its cascade, unique among the rows."""
    return f"{name} {precision}" + ("" if max_loss is None else f", cascade at {100 * max_loss:g} points")


@dataclass
class Race:
    """The results of the rounds, by `Contender.key`."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    """per round, for all texts"""
    answers: dict[str, NDArray[np.integer]] = field(default_factory=dict)
    """predicted classes (n,)"""
    batch: dict[str, int] = field(default_factory=dict)
    """batch size in documents; 0 for a contender that forms its batches itself"""
    peaks: dict[str, float] = field(default_factory=dict)
    """GFLOP/s of matrix products by precision, the best of all rounds"""


def race(contenders: Sequence[Contender], texts: Sequence[str], rounds: int) -> Race:
    """Load each contender, choose its batch size on a part of the texts, then time `rounds` rounds over all texts.

    Each contender first makes passes over all texts that are not timed: engines compile kernels for each batch shape
    in each stream, and the first pass does not reach all of them. The order of the contenders is reversed from round
    to round, so that none always follows the same one.
    """
    results, ready = Race(), {}
    for contender in contenders:
        answer = ready[contender.key] = contender.load()
        batch = results.batch[contender.key] = _fastest_batch(answer, texts, contender.batches)
        for _ in range(_UNTIMED):
            results.answers[contender.key] = answer(texts, batch)
        results.seconds[contender.key] = []
        print(f"  {contender.key}: ready{f', batches of {batch}' if batch else ''}", flush=True)
    for number in range(rounds):
        for precision, peak in peaks().items():
            results.peaks[precision] = max(peak, results.peaks.get(precision, 0.0))
        for contender in contenders[:: -1 if number % 2 else 1]:
            seconds = _seconds(ready[contender.key], texts, results.batch[contender.key])
            results.seconds[contender.key].append(seconds)
        speeds = ", ".join(f"{key} {len(texts) / times[-1]:,.0f}" for key, times in results.seconds.items())
        print(f"  round {number + 1} of {rounds}, documents per second: {speeds}", flush=True)
    return results


def _fastest_batch(answer: Answer, texts: Sequence[str], batches: Sequence[int]) -> int:
    """The fastest batch size on every fifth text, each tried twice since the first try compiles; 0 without sizes."""
    if len(batches) < 2:
        answer(texts[::5], *batches or (0,))
        return batches[0] if batches else 0
    seconds = {batch: min(_seconds(answer, texts[::5], batch) for _ in range(2)) for batch in batches}
    return min(seconds, key=lambda batch: seconds[batch])


def _seconds(answer: Answer, texts: Sequence[str], batch: int) -> float:
    gc.collect()
    start = time.perf_counter()
    answer(texts, batch)
    return time.perf_counter() - start
