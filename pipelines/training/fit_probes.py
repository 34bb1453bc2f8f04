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
    StageManifest,
    find_manifest,
    load_finished,
    read_plan,
    write_manifest,
    write_plan,
)
from pipelines.training.extract_features import ExtractPlan, load_features, open_corpus
from pipelines.training.warm_start import ProbeDerived, WarmStart, delete_start, note_documents
from pipelines.workers.train_group import DOCUMENTS_PER_WORKER, GroupWork, run_group
from spin.errors import UserError
from spin.fit import fit_in_threads, group_by_site
from spin.integrate.fit_words import STRENGTHS, WordFit, fit_words
from spin.labels.training_data import TrainingData
from spin.process_group import ProcessGroup
from spin.settings import Settings
from spin.sites import FeatureColumn
from spin.sparsify.probe import Probe, ProbeStart, ProbeSummary, fit_probes, warn_of_inexact_probes
from spin.sparsify.ridge import LeftOutPredictions, RidgeImportance, fit_ridge

FORMAT = 14
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
    start: WarmStart | None = None
    """the results that these went on from; None if all choices were made anew"""


_OF_CORPUS = ("features", "labels")
"""parts of the metadata that another corpus changes: a training goes on with it"""
ProbeManifest = StageManifest[ProbeResults]


def run_probe(settings: Settings, *, frozen: FrozenDocuments = NOTHING_FROZEN, restart: bool = False) -> ProbeManifest:
    """Fit one probe per feature column, a ridge regression on all and the word regression; return the manifest.

    What is fitted already is kept. A probe is fitted on the training documents, and its penalty is chosen on the
    validation documents. Where few documents have changed since the last training in the store, probes start from its
    own, and only penalties next to theirs are tried; with `restart` everything is chosen anew. `frozen` are the
    documents of a registered model's evaluation set, which no fit and no choice may see. Raises UserError if the
    extraction has not finished.
    """
    source, _, features = load_features(settings)
    labels = Labels.of(features, settings, frozen)
    store, form = Store.of(settings) / "probes", source.derived.form
    metadata = _plan_metadata(settings, source, labels)
    begun = time.perf_counter()
    with Lease(store) as lease:
        plan = write_plan(
            store,
            "probe",
            metadata,
            ProbeDerived,
            lambda: ProbeDerived(form, None if restart else _find_start(store, form, labels)),
            lease=lease,
            restart=restart,
            may_change=_OF_CORPUS,
            keep=lambda planned: None if planned.start is None else planned.start.folder,
        )
        manifest, fitted = find_manifest(store, plan, ProbeResults), store / plan.folder
        keys = {key for column in features.probed for key in (_key(column), _ridge_key(column))}
        keys |= {_LEFT_OUT, *([_WORDS] if _reads_words(settings) else [])}
        lacks = keys - set(fitted.list())
        if manifest and not lacks:  # words may be wanted later than probes, and files may be lost
            return manifest
        if lacks:
            start = plan.derived.start
            previous = None if start is None else PreviousProbes(store / start.folder, start.classes)
            _fit_all(settings, features, labels, open_corpus(settings, source), fitted, keys, previous)
        note_documents(fitted, labels.digests)
        delete_start(store, None if plan.derived.start is None else plan.derived.start.folder, lease)
        probes = [read_probe(fitted, column) for column in features.probed]
        seconds = round(time.perf_counter() - begun, 1)
        summaries = tuple(probe.summary() for probe in probes)
        warn_of_inexact_probes(summaries)
        results = ProbeResults(seconds, tuple(labels.classes), summaries, plan.derived.start)
        return write_manifest(store, plan, results)


def _find_start(store: Store, form: str, labels: Labels) -> WarmStart | None:
    """The start that the finished probes in the store give to those of other documents, if there are such probes."""
    before = read_plan(store, ProbeDerived)
    manifest = None if before is None else find_manifest(store, before, ProbeResults)
    if before is None or manifest is None or before.derived.form != form:
        return None
    return before.derived.for_next(store, before.folder, manifest.results.classes, labels.digests)


def load_probes(
    settings: Settings, source: ExtractPlan, labels: Labels
) -> tuple[ProbeManifest, list[Probe], list[RidgeImportance], WordFit | None, LeftOutPredictions]:
    """The manifest of the probe stage, its results for each column of these features, and those for the documents.

    The latter are the word regression and what the ridge regression predicts for each document from all others.

    Raises UserError if it has not finished, or finished with other settings or data.
    """
    store = Store.of(settings) / "probes"
    metadata = _plan_metadata(settings, source, labels)
    plan, manifest = load_finished(store, "probe", metadata, ProbeDerived, ProbeResults)
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
class PreviousProbes:
    """The results of an earlier training that probes and words start from."""

    store: Store
    """which holds them"""
    classes: tuple[str, ...]
    """of the coefficients of the probes"""

    def find(self, columns: Sequence[FeatureColumn]) -> dict[FeatureColumn, ProbeStart] | None:
        """The starts of columns; None if one is missing, as when a probe is lost after its stage has ended."""
        if not all(self.store.exists(_key(column)) for column in columns):
            return None
        return {column: ProbeStart(read_probe(self.store, column), self.classes) for column in columns}

    @property
    def word_strengths(self) -> tuple[float, ...]:
        """The strength of the word regression, or all that may be tried if there was none."""
        words = read_words(self.store) if self.store.exists(_WORDS) else None
        return STRENGTHS if words is None else (words.strength,)


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
    previous: PreviousProbes | None
    """None: probes start anew"""


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
            starts = None if job.previous is None else job.previous.find(columns)
            for probe in fit_probes(activations, data, job.settings.probe, starts):
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
        strengths = STRENGTHS if job.previous is None else job.previous.word_strengths
        words = fit_words(lambda some: job.corpus.read_texts(job.sample.rows[some]), data, strengths)
        job.store.write(_WORDS, words.to_bytes() if words else b"")


def _fit_all(
    settings: Settings,
    features: FeatureShards,
    labels: Labels,
    corpus: Corpus,
    store: Store,
    keys: Set[str],
    previous: PreviousProbes | None,
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
            ProbesJob(settings, features, sample, sites, corpus, store, previous),
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
