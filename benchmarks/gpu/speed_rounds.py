"""SPIN against plain transformers on one model and one distribution of lengths, in rounds in which they take turns."""

from __future__ import annotations

import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu.documents import Documents, Workload
from benchmarks.gpu.operations import count_operations
from benchmarks.gpu.plain_pass import FIXED_BATCH, PlainPass
from benchmarks.gpu.spin_pass import SpinPass, TopicHeads
from benchmarks.gpu.timer import Times, time_once
from spin.backbone.model import Backbone

SPIN, SAME_SPIN, EXITS, FROM_TEXT, ALL_NEURONS = "SPIN", "SPIN again", "SPIN, exits", "SPIN, from text", "all neurons"
SORTED, IN_ORDER = "transformers, sorted", "transformers, in order"
_ROOT = Path(__file__).resolve().parents[2]
_IN_ORDER_BATCHES, _EXTRACTED_BATCHES = 64, 2
"""batches that the slow contenders are timed on"""


@dataclass(frozen=True)
class Contender:
    """What is timed, and on how many tokens."""

    tokens: int
    """without padding"""
    run: Callable[[], object]


@dataclass(frozen=True)
class Speed:
    """The times of one contender."""

    tokens: int
    """of the documents in one pass, without padding"""
    times: Times

    @property
    def rate(self) -> float:
        """Tokens per second, by the median time."""
        return self.tokens / self.times.median


@dataclass(frozen=True)
class WorkloadSpeed:
    """What was measured on one model and one distribution of lengths."""

    shape: str
    workload: str
    documents: int
    tokens: int
    padded_tokens: int
    """tokens of SPIN's batches with padding"""
    batches: int
    """number of SPIN's batches"""
    operations: int
    """floating-point operations of the blocks on these documents, without padding"""
    speeds: Mapping[str, Speed]
    """by contender"""
    exit_share: float
    """share of the documents that exited after a third of the blocks"""
    waits: Mapping[str, int]
    """calls for whose result the processor waited in one pass of SPIN, by file and line; empty on a processor"""
    peak_memory: int
    """bytes of the device that tensors occupied at most"""

    @property
    def rate(self) -> float:
        """Operations per second of SPIN's pass."""
        return self.operations / self.speeds[SPIN].times.median

    def ratio(self, name: str, to: str) -> float:
        """The tokens per second of a contender by those of another in the same round, in the median round."""
        one, other = self.speeds[name], self.speeds[to]
        pairs = zip(one.times.seconds, other.times.seconds, strict=True)
        return statistics.median((one.tokens / a) / (other.tokens / b) for a, b in pairs)


@dataclass(frozen=True)
class Rivals:
    """All that classifies, on the same model."""

    shape: str
    spin: SpinPass
    heads: TopicHeads
    plain: PlainPass
    from_text: SpinPass
    """the same as `spin` with a tokenizer"""

    @property
    def backbone(self) -> Backbone:
        """The backbone that all of them read."""
        return self.spin.backbone


def measure_speed(
    rivals: Rivals, workload: Workload, documents: Documents, *, rounds: int, seconds: float, all_neurons: bool
) -> WorkloadSpeed:
    """Time the contenders in `rounds` rounds, fewer if they take more than `seconds`, but at least two."""
    backbone, device = rivals.backbone, rivals.backbone.device
    contenders = list_contenders(rivals, documents, all_neurons)
    for contender in contenders.values():
        contender.run()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    start = time.perf_counter()
    for number in range(rounds):
        for name in list(contenders)[:: 1 if number % 2 == 0 else -1]:
            times[name].append(time_once(device, contenders[name].run))
        if number > 0 and time.perf_counter() - start > seconds:
            break
    batches, padded = rivals.spin.count_batches(documents.texts)
    return WorkloadSpeed(
        rivals.shape,
        workload.name,
        len(documents.texts),
        documents.tokens,
        padded,
        batches,
        count_operations(backbone, documents.lengths),
        {name: Speed(contenders[name].tokens, Times(tuple(seconds))) for name, seconds in times.items()},
        rivals.spin.label_with_exits(documents.texts, rivals.heads)[1],
        find_waits(device, contenders[SPIN].run),
        measure_peak(device, contenders[SPIN].run),
    )


def list_contenders(rivals: Rivals, documents: Documents, all_neurons: bool) -> dict[str, Contender]:
    """What is timed, by name."""
    spin, plain, heads, texts = rivals.spin, rivals.plain, rivals.heads, documents.texts
    few = documents.head(FIXED_BATCH * _IN_ORDER_BATCHES * documents.tokens // len(texts))
    contenders = {
        SPIN: Contender(documents.tokens, lambda: spin.label(texts, heads)),
        SORTED: Contender(documents.tokens, lambda: plain.label_sorted(documents)),
        IN_ORDER: Contender(few.tokens, lambda: plain.label_in_order(few)),
        EXITS: Contender(documents.tokens, lambda: spin.label_with_exits(texts, heads)),
        FROM_TEXT: Contender(documents.tokens, lambda: rivals.from_text.label(texts, heads)),
        SAME_SPIN: Contender(documents.tokens, lambda: spin.label(texts, heads)),
    }
    if all_neurons:
        part = documents.head(_EXTRACTED_BATCHES * spin.backbone.batch_tokens)
        contenders[ALL_NEURONS] = Contender(part.tokens, lambda: spin.extract(part.texts))
    return contenders


def measure_peak(device: torch.device, work: Callable[[], object]) -> int:
    """The most bytes of a GPU that tensors hold during some work, 0 on a processor."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return int(torch.cuda.max_memory_allocated(device))


def find_waits(device: torch.device, work: Callable[[], object]) -> dict[str, int]:
    """The calls for whose result the processor waits for the device during some work, by file and line."""
    if device.type != "cuda":
        return {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    lines = (f"{_short(w.filename)}:{w.lineno}" for w in caught if "called a synchronizing" in str(w.message))
    return dict(Counter(lines).most_common())


def _short(file: str) -> str:
    """The name of a file within its package's folder."""
    return file.rpartition("site-packages/")[2].removeprefix(f"{_ROOT}/")
