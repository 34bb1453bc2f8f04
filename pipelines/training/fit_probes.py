"""The probe stage: rank the neurons by L1 probes and by a ridge regression, and fit the word regression.

The workers of a Ray Train group share the sites, and each reads only its own feature columns. The last one, whose sites
are the narrowest, reads the words.
"""

from __future__ import annotations

import time
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pipelines.data.corpus import Corpus
from pipelines.data.feature_store import FeatureShards
from pipelines.data.training_labels import NOTHING_FROZEN, FrozenDocuments, Labels, Sample
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.storage.stage_plan import (
    NothingDerived,
    StageManifest,
    find_manifest,
    load_finished,
    write_manifest,
    write_plan,
)
from pipelines.training.extract_features import ExtractPlan, load_features, open_corpus
from pipelines.workers.train_group import DOCUMENTS_PER_WORKER, GroupWork, run_group
from spin.errors import UserError
from spin.fit import fit_in_threads, group_by_site
from spin.integrate.fit_words import WordFit, fit_words
from spin.labels.training_data import TrainingData
from spin.process_group import ProcessGroup
from spin.settings import Settings
from spin.sites import FeatureColumn
from spin.sparsify.probe import Probe, ProbeSummary, fit_probes, warn_of_inexact_probes
from spin.sparsify.ridge import LeftOutPredictions, RidgeImportance, fit_ridge

FORMAT = 13
_PROBE = ".safetensors"
_WORDS = "words.tfidf"
"""key of the word regression; empty where no term is in enough documents"""
_LEFT_OUT = "left_out.ridge"
"""key of what the ridge regression predicts for each document from all others"""


@dataclass(frozen=True)
class ProbeResults:
    """The manifest of the probe stage."""

    seconds: float
    """that the last run of the stage took"""
    classes: tuple[str, ...]
    """names of the K classes"""
    probes: tuple[ProbeSummary, ...]
    """one per feature column"""


_OF_CORPUS = ("features", "labels")
"""parts of the metadata that another corpus changes: a training goes on with it"""
ProbeManifest = StageManifest[ProbeResults]


def run_probe(settings: Settings, *, frozen: FrozenDocuments = NOTHING_FROZEN, restart: bool = False) -> ProbeManifest:
    """Fit one probe per feature column, a ridge regression on all and the word regression; return the manifest.

    What is fitted already is kept. A probe is fitted on the training documents, and its penalty is chosen on the
    validation documents. `frozen` are the documents of a registered model's evaluation set, which no fit and no choice
    may see. Raises UserError if the extraction has not finished.
    """
    source, _, features = load_features(settings)
    labels = Labels.of(features, settings, frozen)
    store = Store.of(settings) / "probes"
    metadata = _plan_metadata(settings, source, labels)
    start = time.perf_counter()
    with Lease(store) as lease:
        new = NothingDerived, NothingDerived
        plan = write_plan(store, "probe", metadata, *new, lease=lease, restart=restart, may_change=_OF_CORPUS)
        manifest, fitted = find_manifest(store, plan, ProbeResults), store / plan.folder
        keys = {key for column in features.probed for key in (_key(column), _ridge_key(column))}
        keys |= {_LEFT_OUT, *([_WORDS] if _reads_words(settings) else [])}
        lacks = keys - set(fitted.list())
        if manifest and not lacks:  # words may be wanted later than probes, and files may be lost
            return manifest
        if lacks:
            _fit_all(settings, features, labels, open_corpus(settings, source), fitted, keys)
        lease.check()
        probes = [read_probe(fitted, column) for column in features.probed]
        seconds = round(time.perf_counter() - start, 1)
        summaries = tuple(probe.summary() for probe in probes)
        warn_of_inexact_probes(summaries)
        return write_manifest(store, plan, ProbeResults(seconds, tuple(labels.classes), summaries))


def load_probes(
    settings: Settings, source: ExtractPlan, labels: Labels
) -> tuple[ProbeManifest, list[Probe], list[RidgeImportance], WordFit | None, LeftOutPredictions]:
    """The manifest of the probe stage, its results for each column of these features, and those for the documents.

    The latter are the word regression and what the ridge regression predicts for each document from all others.

    Raises UserError if it has not finished, or finished with other settings or data.
    """
    store = Store.of(settings) / "probes"
    metadata = _plan_metadata(settings, source, labels)
    plan, manifest = load_finished(store, "probe", metadata, NothingDerived, ProbeResults)
    fitted = store / plan.folder
    columns = [FeatureColumn.parse(probe.column) for probe in manifest.results.probes]
    probes, ridge = [read_probe(fitted, c) for c in columns], [read_ridge(fitted, c) for c in columns]
    if _reads_words(settings) and not fitted.exists(_WORDS):
        raise UserError(
            f"search.words: {store.uri} holds probes of a run without words; run the probe stage again, which keeps "
            "them, or set search.words: off"
        )
    words = read_words(fitted) if _reads_words(settings) else None
    return manifest, probes, ridge, words, LeftOutPredictions.from_bytes(_read(fitted, _LEFT_OUT))


def _plan_metadata(settings: Settings, source: ExtractPlan, labels: Labels) -> dict[str, Any]:
    """Everything that changes the probes."""
    return {
        "format": FORMAT,
        "features": source.fingerprint,
        "labels": labels.digest,
        "metric": settings.metric,
        "seed": settings.seed,
        "probe": settings.probe.model_dump(),
        "documents": settings.search.documents,
    }


def _reads_words(settings: Settings) -> bool:
    return settings.search.words != "off"


def read_probe(store: Store, column: FeatureColumn) -> Probe:
    """The probe of a feature column. Raises UserError if the store does not hold it."""
    return Probe.from_bytes(column, _read(store, _key(column)))


def read_ridge(store: Store, column: FeatureColumn) -> RidgeImportance:
    """The ridge importance of a feature column's neurons. Raises UserError if the store does not hold it."""
    return RidgeImportance.from_bytes(column, _read(store, _ridge_key(column)))


def read_words(store: Store) -> WordFit | None:
    """The word regression; None if no term is in enough documents. Raises UserError if the store does not hold it."""
    data = _read(store, _WORDS)
    return WordFit.from_bytes(data) if data else None


def _read(store: Store, key: str) -> bytes:
    data = store.read(key)
    if data is None:
        raise UserError(f"{store.uri} lacks {key}; run the probe stage again")
    return data


@dataclass(frozen=True)
class ProbesJob:
    """The input of every worker of the group that fits the probes."""

    settings: Settings
    features: FeatureShards
    sample: Sample
    sites: tuple[tuple[FeatureColumn, ...], ...]
    """all columns, site by site"""
    corpus: Corpus
    """whose words are read"""
    store: Store
    """where probes are written"""


def fit_columns(job: ProbesJob, device: str) -> None:
    """Fit one worker's share of the sites and write the results to the store.

    Sites whose probes the store holds are skipped, because the death of any worker starts the whole group again. The
    ridge regression takes all members, so each of them computes its part anew unless the store holds all of it. Only
    the sampled documents are read, and those of one site per thread are in memory at a time.
    """
    group, store = ProcessGroup.joined(), job.store
    rows, data = job.sample.rows, replace(job.sample.data, device=device)
    own = job.sites[group.rank :: group.size]

    def fit_site(columns: Sequence[FeatureColumn]) -> None:
        if not all(store.exists(_key(column)) for column in columns):
            # all columns of the site, since one that improves lengthens the paths of the others
            activations = {column: job.features.read_rows(column, rows) for column in columns}
            for probe in fit_probes(activations, data, job.settings.probe):
                store.write(_key(probe.column), probe.to_bytes())

    words = [partial(_fit_words, job, data)] if group.rank == group.size - 1 else []
    fit_in_threads([*words, *(partial(fit_site, columns) for columns in own)], device)
    keys = [_LEFT_OUT, *(_ridge_key(column) for columns in job.sites for column in columns)]
    if not group.broadcast_object(all(map(store.exists, keys))):  # all members compute it, or none
        columns_read = [column for columns in own for column in columns]
        importances, left_out = fit_ridge(
            lambda column, some: job.features.read_rows(column, rows[some]), columns_read, data, group
        )
        for importance in importances:
            store.write(_ridge_key(importance.column), importance.to_bytes())
        if group.rank == 0:
            store.write(_LEFT_OUT, replace(left_out, rows=rows[left_out.rows]).to_bytes())


def _fit_words(job: ProbesJob, data: TrainingData) -> None:
    """Fit the word regression, unless the settings do without words or the store holds it."""
    if _reads_words(job.settings) and not job.store.exists(_WORDS):
        words = fit_words(lambda some: job.corpus.read_texts(job.sample.rows[some]), data)
        job.store.write(_WORDS, words.to_bytes() if words else b"")


def _fit_all(
    settings: Settings, features: FeatureShards, labels: Labels, corpus: Corpus, store: Store, keys: Set[str]
) -> None:
    """Fit what is missing of the keys of the store: probes, ridge regressions and the word regression."""
    by_site = map(tuple, group_by_site(features.probed).values())
    # wide sites first, so that the workers end together
    sites = tuple(sorted(by_site, key=lambda columns: (-features.columns[columns[0]], columns)))
    sample = Sample.of(labels.training_data(settings))
    run_group(
        "probe",
        GroupWork(
            fit_columns,
            ProbesJob(settings, features, sample, sites, corpus, store),
            settings.ray.for_stage("probe"),
        ),
        most_workers=len(sites) if len(sample.rows) >= DOCUMENTS_PER_WORKER else 1,
        total=len(keys),
        unit="fits",
        count_done=lambda: len(keys & set(store.list())),
    )


def _key(column: FeatureColumn) -> str:
    return f"{column}{_PROBE}"


def _ridge_key(column: FeatureColumn) -> str:
    return f"{column}.ridge"
