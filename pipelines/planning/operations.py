"""Run the classifiers of a version on labelled documents: with and without early exits, at every abstention band."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from pipelines.planning.night_worker import as_night_worker
from pipelines.registry.versions import Registry
from pipelines.workers.progress import progress
from spin.arrays import Floats
from spin.classifier import TrainedClassifier
from spin.fitted.decision import Decision
from spin.roi.operating_points import BANDS, Operation, Outcome
from spin.settings import Choice, Settings

_TIMED = 2000
"""documents whose classification is timed, at most"""


def measure_operations(settings: Settings, registry: Registry, number: str, texts: list[str]) -> Iterator[Operation]:
    """The distinct classifiers of a version, each without exits and, if it has any, with them.

    The backbone reads every text to full depth once per classifier; where documents would exit follows from the
    values, for every band. Speed is measured at full depth, and with exits without a band; with a band, fewer documents
    exit, and the seconds grow with the blocks that run. Runs as one worker of a night does.
    """
    threads = settings.ray.for_stage("classify").cpus_per_worker
    known: list[object] = []
    with tempfile.TemporaryDirectory() as folder, as_night_worker(settings) as of_worker:
        registry.download(number, Path(folder))
        with progress("roi", len(get_args(Choice)), "classifiers") as advance:
            for choose in get_args(Choice):
                choices = [_with_choice(of_worker, choose, exits) for exits in (False, True)]
                full, early = (TrainedClassifier.open(Path(folder), c) for c in choices)
                if full.fitted.summary not in known:
                    known.append(full.fitted.summary)
                    yield from _operate(full, early, choose, texts, threads)
                advance(1)


def _with_choice(settings: Settings, choose: Choice, exits: bool) -> Settings:
    classify = settings.classify.model_copy(update={"cascade": exits, "reasons": 0})
    decision = settings.decision.without_promise().model_copy(update={"abstain": 0.0})
    return settings.model_copy(update={"choose": choose, "classify": classify, "decision": decision})


def _operate(
    full: TrainedClassifier, early: TrainedClassifier, choose: Choice, texts: list[str], threads: int
) -> Iterator[Operation]:
    """The operations of one classifier, which is opened without exits and with them.

    The labels of both are judged by the probabilities of full depth, which knows most: by its own, an exit that is too
    sure of itself would seem cheaper than full depth.
    """
    values, words = _read(full, texts)
    probabilities = full.label_space.probabilities(full.fitted.logits(values))
    seconds = _measure_seconds(full, texts)
    outcomes = [Outcome(band, *_decision(full, band).decide(probabilities), probabilities, seconds) for band in BANDS]
    yield Operation(choose, False, threads, tuple(outcomes))
    if not full.fitted.exits:
        return
    depths = [full.fitted.exit_depths(values, _decision(full, band), words) for band in BANDS]
    shared = _seconds_by_depth(depths, full.depth, seconds, _measure_seconds(early, texts))
    outcomes = []
    for band, depth, of_band in zip(BANDS, depths, shared, strict=True):
        at_exits = full.label_space.probabilities(full.fitted.predict_logits(values, depth, words))
        outcomes.append(Outcome(band, *_decision(full, band).decide(at_exits), probabilities, of_band))
    yield Operation(choose, True, threads, tuple(outcomes))


def _read(spin: TrainedClassifier, texts: list[str]) -> tuple[Floats, Floats | None]:
    """(n, p) the values of the features at full depth, and (n, K) the words' logits, if there is a word regression."""
    values = spin.features(texts).values
    regression = spin.training_result.words
    return values, None if regression is None else regression.logits(texts)


def _decision(spin: TrainedClassifier, band: float) -> Decision:
    return replace(spin.decision_rule, abstain=band)


def _measure_seconds(spin: TrainedClassifier, texts: list[str]) -> float:
    """Seconds per document from text to label, in the second pass: in the first, engines compile."""
    timed = texts[:_TIMED]
    spin.predict_all(timed)
    start = time.perf_counter()
    spin.predict_all(timed)
    return (time.perf_counter() - start) / len(timed)


def _seconds_by_depth(
    depths: list[NDArray[np.int32]], full_depth: int, full_seconds: float, early_seconds: float
) -> list[float]:
    """Seconds per document for the depths (n,) of every band, between those of the first band and of full depth.

    In proportion to the blocks that run.
    """
    blocks = [float(np.maximum(depth, 0).mean()) for depth in depths]
    saved = full_depth - blocks[0]
    shares = [(full_depth - ran) / saved if saved > 0 else 1.0 for ran in blocks]
    return [full_seconds + share * (early_seconds - full_seconds) for share in shares]
