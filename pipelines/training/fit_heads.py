"""Fit the heads: the workers of a Ray Train group share the documents; each reads only its own."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.data.feature_store import FeatureShards
from pipelines.data.training_labels import Labels
from pipelines.storage.object_store import Store
from pipelines.workers.train_group import GroupWork, run_group
from spin.heads import persistence
from spin.heads.fitted import TrainingResult
from spin.integrate.fit_words import WordFit
from spin.integrate.integrate import integrate
from spin.process_group import ProcessGroup
from spin.settings import Settings
from spin.sites import Site
from spin.sparsify.probe import Probe
from spin.sparsify.ridge import RidgeImportance

_PROGRESS = "progress.json"


@dataclass(frozen=True)
class HeadsJob:
    """The input of every worker of the group that fits the heads."""

    settings: Settings
    features: FeatureShards
    probes: tuple[Probe, ...]
    """one per feature column"""
    ridge: tuple[RidgeImportance, ...]
    """one per feature column"""
    words: WordFit | None
    labels: Labels
    compute: Mapping[Site, float]
    """compute up to each site, relative to the whole backbone"""
    store: Store
    """where the heads and the progress are written"""


def run_integrate(
    settings: Settings,
    features: FeatureShards,
    probes: Sequence[Probe],
    ridge: Sequence[RidgeImportance],
    words: WordFit | None,
    labels: Labels,
    compute: Mapping[Site, float],
    store: Store,
) -> TrainingResult:
    """Search and fit the heads; the result is written to `store`, and a later call reads it from there."""
    if not store.exists(persistence.CONFIG):
        job = HeadsJob(settings, features, tuple(probes), tuple(ridge), words, labels, dict(compute), store)
        run_group(
            "train",
            GroupWork(fit_heads, job, settings.ray.for_stage("train")),
            most_workers=max(1, len(labels.part("train")[0]) // 1000),
            total=_estimate_fits(settings, labels, probes),
            unit="fits",
            count_done=lambda: store.read_json(_PROGRESS) or 0,
        )
    with tempfile.TemporaryDirectory() as folder:
        for name in (persistence.CONFIG, persistence.TENSORS):
            (Path(folder) / name).write_bytes(store.read(name) or b"")
        return persistence.load_result(Path(folder))


def fit_heads(job: HeadsJob, device: str) -> None:
    """Run the search in one worker of the group, in step with the others; the first worker writes the result."""
    settings, labels, store, group = job.settings, job.labels, job.store, ProcessGroup.joined()
    fits = 0

    def progress(more: int) -> None:
        nonlocal fits
        fits += more
        if group.rank == 0:
            store.write_json(_PROGRESS, fits)

    training_result = integrate(
        job.probes,
        job.ridge,
        job.features.read_selection,
        labels.training_data(settings, device),
        settings=settings.search,
        cascade=settings.cascade,
        decision=settings.decision,
        compute=job.compute,
        words=job.words,
        group=group,
        progress=progress,
    )
    if group.rank == 0:
        files = persistence.save(training_result)
        store.write(persistence.TENSORS, files[persistence.TENSORS])
        store.write(persistence.CONFIG, files[persistence.CONFIG])  # last: it marks the result as complete


def _estimate_fits(settings: Settings, labels: Labels, probes: Sequence[Probe]) -> int:
    """The approximate number of fits that the search makes, for the progress bar."""
    depth = max(probe.column.site.layer for probe in probes)
    tried = len(settings.search.rules) * len(settings.search.etas)
    return (tried + 5 + depth) * len(labels.folds(settings.seed))
