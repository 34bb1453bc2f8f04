"""Fit the heads: the workers of a Ray Train group share the documents; each reads only its own.

A sample of the documents makes all choices. The heads that were chosen are then fitted again, on all documents but for
those that calibrate them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from pipelines.data.feature_store import FeatureShards
from pipelines.data.training_labels import Sample
from pipelines.storage.object_store import Store
from pipelines.workers.train_group import DOCUMENTS_PER_WORKER, GroupWork, run_group
from spin.arrays import Floats, Rows
from spin.fitted import persistence
from spin.fitted.fitted_classifier import TrainingResult
from spin.integrate.fit_words import WordFit
from spin.integrate.head_fitter import HeldBack, refit
from spin.integrate.integrate import integrate
from spin.integrate.leakage import LeakageAttack
from spin.integrate.search import SearchStart, most_fits
from spin.labels.training_data import TrainingData
from spin.process_group import ProcessGroup
from spin.settings import Settings
from spin.sites import Site
from spin.sparsify.probe import Probe
from spin.sparsify.ridge import RidgeImportance

_PROGRESS = "progress.json"


@dataclass(frozen=True)
class HeadsJob:
    """The input of every worker of the group that searches and fits the heads."""

    settings: Settings
    features: FeatureShards
    probes: tuple[Probe, ...]
    """one per feature column"""
    ridge: tuple[RidgeImportance, ...]
    """one per feature column"""
    words: WordFit | None
    sample: Sample
    compute: Mapping[Site, float]
    """compute up to each site, relative to the whole backbone"""
    store: Store
    """where the heads and the progress are written"""
    attack: LeakageAttack | None = None
    """on documents of the sample, for `search.max_leakage`"""
    start: SearchStart | None = None
    """the choices of an earlier training, next to which is searched; None: the search is made in full"""


@dataclass(frozen=True)
class RefitJob:
    """The input of every worker of the group that fits the chosen heads again, on more documents than the sample."""

    settings: Settings
    features: FeatureShards
    probes: tuple[Probe, ...]
    """one per feature column"""
    words: WordFit | None
    data: TrainingData
    """of all documents"""
    result: TrainingResult
    """of the search"""
    store: Store
    """where the heads and the progress are written"""
    held_back: HeldBack | None = None
    """documents that no head is fitted on, which calibrate the heads; `run_refit` takes them from `data`"""


J = TypeVar("J", HeadsJob, RefitJob)


def run_integrate(job: HeadsJob) -> TrainingResult:
    """Search and fit the heads; the result is written to the job's store, and a later call reads it from there."""
    if not has_heads(job.store):
        columns = [probe.column for probe in job.probes]
        total = most_fits(job.settings.search, columns, len(job.sample.data.folds), job.start)
        _run_group(fit_heads, job, len(job.sample.rows), total=total, unit="fits")
    return load_heads(job.store)


def run_refit(job: RefitJob, read_words: Callable[[Rows], Floats | None]) -> TrainingResult:
    """Fit the heads of the job's result again; a later call reads what this one wrote.

    Some of the documents outside the sample calibrate them; `read_words` returns their logits (n, K) by the word
    regression, or None if no head reads words. If the search has seen all labelled documents, the result is returned as
    it is.
    """
    if job.data.not_sampled is None:
        return job.result
    if not has_heads(job.store):
        data, rows = job.data.hold_back()
        held_back = HeldBack(rows, read_words(rows)) if len(rows) else None
        # the search has chosen thresholds, for which groups serve
        job = replace(job, data=replace(data, groups=None), held_back=held_back)
        _run_group(refit_heads, job, len(job.data.all_rows), total=1, unit="classifiers")
    return load_heads(job.store)


def _run_group(run: Callable[[J, str], None], job: J, documents: int, *, total: int, unit: str) -> None:
    run_group(
        "train",
        GroupWork(run, job, job.settings.ray.for_stage("train")),
        most_workers=max(1, documents // DOCUMENTS_PER_WORKER),
        total=total,
        unit=unit,
        count_done=lambda: job.store.read_json(_PROGRESS) or 0,
    )


def has_heads(store: Store) -> bool:
    """Whether a store holds a whole result."""
    return store.exists(persistence.CONFIG)


def load_heads(store: Store) -> TrainingResult:
    """The result that was written to a store."""
    with tempfile.TemporaryDirectory() as folder:
        for name in (persistence.CONFIG, persistence.TENSORS):
            (Path(folder) / name).write_bytes(store.read(name) or b"")
        return persistence.load_result(Path(folder))


def fit_heads(job: HeadsJob, device: str) -> None:
    """Run the search in one worker of the group, in step with the others; the first worker writes the result."""
    settings, sample, store, group = job.settings, job.sample, job.store, ProcessGroup.joined()
    fits = 0

    def progress(more: int) -> None:
        nonlocal fits
        fits += more
        if group.rank == 0:
            store.write_json(_PROGRESS, fits)

    training_result = integrate(
        job.probes,
        job.ridge,
        lambda selection, rows: job.features.selection_blocks(selection, sample.rows[rows]),
        replace(sample.data, device=device),
        settings=settings.search,
        cascade=settings.cascade,
        decision=settings.decision,
        compute=job.compute,
        words=job.words,
        attack=job.attack,
        group=group,
        progress=progress,
        start=job.start,
    )
    if group.rank == 0:
        _save(store, training_result)


def refit_heads(job: RefitJob, device: str) -> None:
    """Fit the heads of the job's result on its documents, in step with the group; the first worker writes them."""
    group, data = ProcessGroup.joined(), replace(job.data, device=device)
    refitted = refit(job.result, job.probes, job.features.selection_blocks, data, job.words, group, job.held_back)
    if group.rank == 0:
        job.store.write_json(_PROGRESS, 1)
        _save(job.store, refitted)


def _save(store: Store, training_result: TrainingResult) -> None:
    files = persistence.save(training_result)
    store.write(persistence.TENSORS, files[persistence.TENSORS])
    store.write(persistence.CONFIG, files[persistence.CONFIG])  # last: it marks the result as complete
