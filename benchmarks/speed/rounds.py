"""Timing: make contenders ready, judge them on the validation documents, and time them in rounds on the test ones."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.machine import peaks
from benchmarks.method.corpora import METRIC
from benchmarks.speed.choice import Validation
from benchmarks.speed.contender import Answers, Classify, Contender, OurSetting, TransformerPeer
from spin.labels.label_space import Targets
from spin.labels.metrics import score

_SETTLED = 2
"""rounds after which a slow contender is timed no more"""
_SLOW = 2.0
"""slow is who takes so many times the seconds of the fastest contender of the same kind"""
_SLOW_AT_FIRST = 3.0
"""likewise in the first pass, in which kernels are compiled"""


@dataclass(frozen=True)
class Ready:
    """A contender that is loaded."""

    contender: Contender
    classify: Classify
    batch: int
    """batch size in documents; 0 for a contender that forms its batches itself"""

    @property
    def key(self) -> str:
        return self.contender.key


@dataclass
class Race:
    """The results of the rounds, by `Contender.key`."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    """per round, for all texts"""
    answers: dict[str, Answers] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    """GFLOP/s of matrix products by precision, the best of all rounds"""


def make_ready(contender: Contender, texts: Sequence[str]) -> Ready:
    """Load a contender and choose its batch size on a part of the validation texts.

    After the choice it is loaded anew: engines keep the memory of the largest batch that they have seen, and with long
    texts that of all contenders together is more than a machine has.
    """
    classify = contender.load()
    batch = _fastest_batch(classify, texts, contender.batches)
    if len(contender.batches) > 1:
        del classify
        gc.collect()
        classify = contender.load()
    return Ready(contender, classify, batch)


def validate(ready: Ready, texts: Sequence[str], y: Targets) -> Validation:
    """Score and seconds on the validation texts; of our settings, whose seconds choose, in the second of two passes."""
    if isinstance(ready.contender.role, OurSetting):
        ready.classify(texts, ready.batch)
    start = time.perf_counter()
    classes = ready.classify(texts, ready.batch).classes
    validation = Validation(score(METRIC, y, classes), time.perf_counter() - start)
    print(
        f"  {ready.key}: validation {100 * validation.score:.1f}, {len(texts) / validation.seconds:,.0f} documents/s"
        f"{f', batches of {ready.batch}' if ready.batch else ''}",
        flush=True,
    )
    return validation


def race(contenders: Sequence[Ready], texts: Sequence[str], rounds: int) -> Race:
    """Time `rounds` rounds over all texts.

    Each contender first makes passes over all texts that do not count: engines compile kernels for each batch shape
    in each stream, and the first pass does not reach all of them. Those that are slow already in the first pass make no
    second one. The order of the contenders is reversed from round to round, so that
    none always follows the same one. After two rounds the slow ones are timed no more.
    """
    results = Race(seconds={ready.key: [] for ready in contenders})
    first: dict[str, list[float]] = {}
    for ready in contenders:
        start = time.perf_counter()
        results.answers[ready.key] = ready.classify(texts, ready.batch)
        first[ready.key] = [time.perf_counter() - start]
        print(f"  {ready.key}: {first[ready.key][0]:.1f} s in the first pass", flush=True)
    for ready in _without_slow(contenders, first, _SLOW_AT_FIRST):
        ready.classify(texts, ready.batch)
    for number in range(rounds):
        for precision, peak in peaks().items():
            results.peaks[precision] = max(peak, results.peaks.get(precision, 0.0))
        timed = contenders if number < _SETTLED else _without_slow(contenders, results.seconds)
        for ready in timed[:: -1 if number % 2 else 1]:
            results.seconds[ready.key].append(seconds_of(ready.classify, texts, ready.batch))
        speeds = ", ".join(f"{ready.key} {len(texts) / results.seconds[ready.key][-1]:,.0f}" for ready in timed)
        print(f"  round {number + 1} of {rounds}, documents per second: {speeds}", flush=True)
    return results


def _without_slow(
    contenders: Sequence[Ready], timed: Mapping[str, Sequence[float]], slow: float = _SLOW
) -> list[Ready]:
    """The contenders but for those that are far from the fastest of their kind in the first seconds that were `timed`.

    Peers in 16 bits are a kind of their own, and so are we at full depth, with windows or with reasons: these are
    compared.
    """

    def kind(ready: Ready) -> tuple[object, ...]:
        role = ready.contender.role
        if isinstance(role, OurSetting):
            full = role.max_loss is None and role.choose == "accuracy"
            return OurSetting, full, role.default, role.windows, role.reasons
        return type(role), isinstance(role, TransformerPeer) and role.precision == "bfloat16"

    seconds = {ready.key: float(np.median(timed[ready.key][:_SETTLED])) for ready in contenders}
    best = {kind(r): min(seconds[other.key] for other in contenders if kind(other) == kind(r)) for r in contenders}
    return [ready for ready in contenders if seconds[ready.key] <= slow * best[kind(ready)]]


def _fastest_batch(classify: Classify, texts: Sequence[str], batches: Sequence[int]) -> int:
    """The fastest batch size on every tenth text, each tried twice since the first try compiles; 0 without sizes."""
    if len(batches) < 2:
        return batches[0] if batches else 0
    seconds = {batch: min(seconds_of(classify, texts[::10], batch) for _ in range(2)) for batch in batches}
    return min(seconds, key=lambda batch: seconds[batch])


def seconds_of(call: Callable[..., object], *arguments: object) -> float:
    """Seconds of a call, without the garbage of those before."""
    gc.collect()
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start
