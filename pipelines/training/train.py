"""The train stage: fit the heads, evaluate them once on the test documents, log them and register a challenger."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipelines.data.arrow_strings import ArrowStrings
from pipelines.data.corpus import Corpus
from pipelines.data.feature_store import FeatureShards
from pipelines.data.training_labels import NOTHING_FROZEN, FrozenDocuments, Labels, Sample, SplitOverlap
from pipelines.registry.evaluation_set import EvaluationSet
from pipelines.registry.packaging import REFERENCE
from pipelines.registry.version_records import LoggedData, RegisteredVersion, TrainingRecord
from pipelines.registry.versions import Registry
from pipelines.service_errors import HeldError
from pipelines.storage.filesystem import normalize_uri
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.storage.parquet import to_parquet
from pipelines.storage.records import NullsWritten, from_json, to_json
from pipelines.storage.stage_plan import (
    StageManifest,
    StagePlan,
    find_manifest,
    fingerprint,
    read_plan,
    write_manifest,
    write_plan,
)
from pipelines.training.drift_reference import choose_reference, describe_reference
from pipelines.training.extract_features import ExtractManifest, ExtractPlan, as_planned, load_features, open_corpus
from pipelines.training.fit_heads import HeadsJob, RefitJob, has_heads, load_heads, run_integrate, run_refit
from pipelines.training.fit_probes import ProbeManifest, load_probes
from pipelines.training.held_out_logits import collect_test_logits, describe_promise, promise_error, write_test_logits
from pipelines.training.keep_neurons import run_keep
from pipelines.training.model_card_facts import build_card
from pipelines.training.neurons import NEURONS, describe_neurons, neurons_to_json
from pipelines.training.suspects import SUSPECTS, check_labels, note_unchecked
from pipelines.training.warm_start import HeadsDerived, WarmStart, delete_start
from pipelines.workers.progress import progress
from spin.arrays import Floats, Rows
from spin.backbone.flops import relative_flops
from spin.backbone.int8_scales import Int8Scales
from spin.backbone.loading import load_backbone
from spin.classifier import TrainedClassifier
from spin.errors import UserError
from spin.fitted import persistence
from spin.fitted.decision import Decision
from spin.fitted.fitted_classifier import TrainingResult, TrainingSummary
from spin.fitted.held_out import HELD_OUT
from spin.heads.calibration import calibration_error, calibration_error_limit
from spin.heads.selection import Selection
from spin.integrate.fit_words import WordFit
from spin.integrate.search import SearchStart
from spin.labels.metrics import class_figures
from spin.labels.splits import SPLITS
from spin.labels.training_data import TrainingData
from spin.pages.model_card import CARD, Comparison
from spin.settings import Choice, Settings
from spin.sites import FeatureColumn
from spin.sparsify.probe import Probe, best_probe
from spin.sparsify.ridge import LeftOutPredictions, RidgeImportance

_log = logging.getLogger(__name__)
FORMAT = 13
ARTIFACT = (persistence.CONFIG, persistence.TENSORS, NEURONS, CARD, REFERENCE, HELD_OUT)
"""names of the files of a registered version"""
_HEADS = "heads"
"""folder of the heads among the results of the stage"""


@dataclass(frozen=True)
class TrainSeconds:
    """Duration of the parts of the train stage."""

    integrate: float
    """search and fit of the heads"""
    evaluate: float
    """fit of the baselines, and evaluation"""


@dataclass(frozen=True, kw_only=True)
class TrainResults(Comparison, NullsWritten):
    """The manifest of the train stage."""

    choice: TrainingSummary
    """the search and the three classifiers that it chose"""
    classes: tuple[str, ...]
    """names of the K classes"""
    multilabel: bool
    """whether a document may have several classes, or none"""
    counts: Mapping[str, int]
    """number of documents per split"""
    suspects: int
    """documents in `suspects.parquet`: those that train or validate and whose label the others contradict"""
    overlap: SplitOverlap
    """documents that were left out for a near-identical text, and groups on both sides of a split"""
    seconds: TrainSeconds
    artifact: Mapping[str, str]
    """sha256 of its files by name, in hexadecimal digits"""


@dataclass(frozen=True)
class TrainReport:
    """The end of a training: what was fitted, and the version that it is registered as."""

    fingerprint: str
    """of the plan of the train stage"""
    results: TrainResults
    registered: RegisteredVersion
    choose: Choice
    """the classifier that the settings choose"""

    def to_json(self, extracted: ExtractManifest, probed: ProbeManifest) -> dict[str, object]:
        """The content of `report.json`, which also sums up the two stages before."""
        results = self.results
        return {
            "fingerprint": self.fingerprint,
            "fingerprints": {"extract": extracted.fingerprint, "probe": probed.fingerprint},
            "table": to_json(results.table),
            "notes": list(results.notes),
            "overlap": to_json(results.overlap),
            "suspects": results.suspects,
            "per_class": {name: to_json(figures) for name, figures in results.per_class.items()},
            "choice": results.choice.model_dump(mode="json"),
            "registered": to_json(self.registered),
            "stages": {
                "extract": {
                    "seconds": extracted.results.seconds,
                    **to_json(extracted.results.counts),
                    "precision_trial": to_json(extracted.results.precision_trial),
                },
                "probe": {"seconds": probed.results.seconds, "probes": len(probed.results.probes)},
                "train": {"seconds": to_json(results.seconds), **results.counts},
            },
        }


TrainPlan = StagePlan[HeadsDerived]
TrainManifest = StageManifest[TrainResults]


@dataclass(frozen=True)
class _Training:
    """The inputs of a training: its settings, the labelled documents, and the results of the stages before."""

    settings: Settings
    labels: Labels
    corpus: Corpus
    source: ExtractPlan
    """plan of the extraction"""
    extracted: ExtractManifest
    features: FeatureShards
    probed: ProbeManifest
    probes: Sequence[Probe]
    """one per feature column"""
    ridge: Sequence[RidgeImportance]
    """one per feature column"""
    words: WordFit | None
    """the word regression, None if there is none"""
    left_out: LeftOutPredictions
    """what the ridge regression predicts for each document from all others"""

    @classmethod
    def load(cls, settings: Settings, frozen: FrozenDocuments) -> _Training:
        """Read what the stages before have left. Raises UserError if one has not finished."""
        source, extracted, features = load_features(settings)
        settings = as_planned(settings, source)
        labels = Labels.of(features, settings, frozen)
        Decision.of(labels.label_space, settings.decision)  # refuses thresholds that do not fit the classes
        corpus = open_corpus(settings, source)
        return cls(settings, labels, corpus, source, extracted, features, *load_probes(settings, source, labels))


def run_train(
    settings: Settings,
    registry: Registry,
    *,
    frozen: FrozenDocuments = NOTHING_FROZEN,
    restart: bool = False,
) -> TrainReport:
    """Train the heads, compare them with the baselines, register them, and write report.json.

    What was fitted before a registry failed to answer is kept; a later run only registers. `train.baselines` is no part
    of the plan, so a training that ended while it fitted them can go on without. Raises UserError if the
    probe stage has not finished, UnavailableError if the registry does not answer, HeldError if another run has taken
    the store meanwhile.
    """
    training = _Training.load(settings, frozen)
    store = Store.of(settings) / "model"
    metadata = {
        "format": FORMAT,
        "probes": training.probed.fingerprint,
        "metric": settings.metric,
        "search": settings.search.model_dump(exclude_none=True),  # a cap that is not set changes nothing
        "cascade": settings.cascade.model_dump(),
        "thresholds": settings.decision.thresholds,  # under which the exits are chosen
        **({"keep_texts": True} if settings.train.keep_texts else {}),  # texts that are not kept change nothing
    }
    with Lease(store) as lease:
        plan = write_plan(
            store,
            "train",
            metadata,
            HeadsDerived,
            lambda: HeadsDerived() if restart else _find_start(store, training.probed.results.start),
            lease=lease,
            restart=restart,
            may_change=("probes",),
            keep=lambda derived: derived.folder,
        )
        manifest = find_manifest(store, plan, TrainResults)
        if manifest is None or _read_artifact(store, manifest) is None:
            manifest = _fit(training, store, plan, lease)
        lease.check()
        _check_frozen(training, registry, frozen)
        registered = _register_once(training, registry, store, plan, manifest)
        report = TrainReport(manifest.fingerprint, manifest.results, registered, settings.choose)
        lease.check()
        Store.of(settings).write_json("report.json", report.to_json(training.extracted, training.probed))
        _delete_spool(training.corpus)
        return report


def _find_start(store: Store, start: WarmStart | None) -> HeadsDerived:
    """The heads of the training that the probes have started from, if its search has ended."""
    before = None if start is None else read_plan(store, HeadsDerived)
    if start is None or before is None or not before.metadata["probes"].startswith(start.folder):
        return HeadsDerived()
    return HeadsDerived(before.folder if has_heads(store / before.folder / _HEADS) else None)


def _read_start(heads: Store) -> SearchStart | None:
    """The choices of the heads in a folder; None if they are gone, as when an artifact was lost after its stage."""
    return SearchStart.of(load_heads(heads)) if has_heads(heads) else None


def _check_frozen(training: _Training, registry: Registry, frozen: FrozenDocuments) -> None:
    """Raise UserError if another training has frozen documents meanwhile from which this one has learned."""
    evaluation_set = registry.evaluation_set()
    now = FrozenDocuments.of(evaluation_set.ids, evaluation_set.texts)
    added = not (now.ids <= frozen.ids and now.text_hashes <= frozen.text_hashes)
    if added and Labels.of(training.features, training.settings, now).digest != training.labels.digest:
        raise UserError(
            f"another training of {registry.name} has frozen its test documents meanwhile, and this one has learned "
            "from some of them; run it again with --restart"
        )


def _delete_spool(corpus: Corpus) -> None:
    """Delete the spool, unless an extraction of other features of the same corpus is using it."""
    spool = corpus.spool
    try:
        with Lease(spool.store / "features") as lease:
            spool.delete(lease)
    except HeldError as error:
        _log.info("the spool in %s is left to the extraction that uses it: %s", spool.parts.uri, error)


def _fit(training: _Training, store: Store, plan: TrainPlan, lease: Lease) -> TrainManifest:
    """Fit and evaluate the heads, and write the artifact and the manifest."""
    begun = time.perf_counter()
    settings, labels, corpus = training.settings, training.labels, training.corpus
    data = labels.training_data(settings)
    folder = plan.derived.folder
    start = None if folder is None else _read_start(store / folder / _HEADS)
    spin, features = _fit_classifiers(training, data, store / plan.folder / _HEADS, start)
    training = replace(training, features=features)
    integrated = round(time.perf_counter() - begun, 1)
    test_rows, _ = labels.part("test")
    test_words = _read_words(spin.training_result, corpus, test_rows)
    figures = _evaluate(training, data, spin, test_words)
    evaluated = round(time.perf_counter() - begun - integrated, 1)
    texts = corpus if settings.train.keep_texts else None
    suspects = check_labels(training.left_out, labels, texts)
    counts = {split: labels.splits.count(split) for split in SPLITS}
    test_logits = collect_test_logits(spin, features, labels, test_words)
    promise = promise_error(settings, spin, test_logits[settings.choose])
    figures = replace(figures, notes=(*labels.overlap.notes(counts["test"], settings.data), *figures.notes))
    fingerprint, held_out = training.probed.fingerprint, test_logits[settings.choose]
    card = build_card(
        settings,
        spin,
        labels,
        figures,
        held_out=held_out,
        promise=promise,
        fingerprint=fingerprint,
        precision_trial=training.extracted.results.precision_trial,
    )
    reference = choose_reference(test_rows, test_words, training.words, data.folds)
    artifact = {
        **spin.files(),
        NEURONS: neurons_to_json(describe_neurons(spin, features, labels, texts=texts)),
        CARD: card.encode(),
        REFERENCE: describe_reference(spin, features, corpus, reference),
        HELD_OUT: write_test_logits(test_logits),
    }
    notes = (*figures.notes, *describe_promise(promise), *note_unchecked(training.left_out, data))
    results = TrainResults(
        **vars(replace(figures, notes=notes)),
        choice=spin.training_result.summary(),
        classes=tuple(labels.classes),
        multilabel=labels.label_space.multilabel,
        counts=counts,
        suspects=len(suspects),
        overlap=labels.overlap,
        seconds=TrainSeconds(integrated, evaluated),
        artifact={name: hashlib.sha256(content).hexdigest() for name, content in artifact.items()},
    )
    lease.check()
    for name, content in artifact.items():
        store.write(name, content)
    Store.of(settings).write(SUSPECTS, to_parquet(suspects))
    delete_start(store, folder, lease)
    return write_manifest(store, plan, results)


def _fit_classifiers(
    training: _Training, data: TrainingData, store: Store, start: SearchStart | None
) -> tuple[TrainedClassifier, FeatureShards]:
    """The classifiers, chosen on a sample and fitted on all documents, and the features with those that this needed.

    The search goes on from the choices of a `start`. The heads and the progress are written to `store`.
    """
    from spin.audit.selection_attack import prepare_attack  # brings scikit-learn, as the baselines do

    settings, features, words, sample = training.settings, training.features, training.words, Sample.of(data)
    probes = tuple(training.probes)
    attack = prepare_attack(settings.search, lambda rows: training.corpus.read_texts(sample.rows[rows]), sample.data)
    # the backbone is not kept: workers load it for a second pass
    compute = relative_flops(load_backbone(settings.backbone))
    sampled = run_integrate(
        HeadsJob(settings, features, probes, tuple(training.ridge), words, sample, compute, store, attack, start)
    )
    whole = _columns_to_keep(sampled, probes, features)
    features = run_keep(settings, training.source, features, training.labels, *whole)
    job = RefitJob(settings, features, probes, words, data, sampled, store / "all")
    refitted = run_refit(job, lambda rows: _read_words(sampled, training.corpus, rows))
    return _assemble(settings, training.labels, refitted, training.source.derived.reading.int8_scales), features


def _assemble(
    settings: Settings, labels: Labels, result: TrainingResult, scales: Int8Scales | None
) -> TrainedClassifier:
    """The classifier of a training result; `scales` are those of its backbone in int8."""
    backbone = load_backbone(settings.backbone, scales=scales)
    return TrainedClassifier(
        settings.backbone,
        backbone.digest,
        labels.label_space,
        result,
        settings.metric,
        backbone=backbone,
        scales=scales,
        choose=settings.choose,
        decision=settings.decision.without_promise(),
    )


def _read_words(result: TrainingResult, corpus: Corpus, rows: Rows) -> Floats | None:
    """The words' logits (m, K) of some documents; None if no classifier reads words."""
    regression = result.words
    if regression is None:
        return None
    none = np.empty((0, len(regression.intercept)), np.float32)
    return np.concatenate([none, *(regression.logits(texts) for texts in corpus.text_blocks(rows))])


def _columns_to_keep(
    result: TrainingResult, probes: Sequence[Probe], features: FeatureShards
) -> tuple[Selection, list[FeatureColumn]]:
    """The values needed of documents outside the sample: neurons of all, and whole columns of those that test.

    The columns are those of the baselines, whether `train.baselines` asks for them or not: it may be changed when a
    training is resumed.
    """
    selection = Selection.merge(fitted.selection for fitted in result.choices.values())
    return selection, [*(c for c in features.columns if c.site.kind == "final"), best_probe(probes).column]


def _evaluate(
    training: _Training, data: TrainingData, spin: TrainedClassifier, test_words: Floats | None
) -> Comparison:
    """Compare the classifiers and the baselines on the test documents, whose words' logits are `test_words` (m, K)."""
    from pipelines.training import baselines  # brings scikit-learn, which a stage that has finished does not need

    settings, features = training.settings, training.features
    labels, corpus = training.labels, training.corpus
    rows, y = labels.part("test")
    if not len(rows):
        return Comparison((), {}, None)
    distinct: dict[int, Choice] = {
        id(part): name for name, part in reversed(list(spin.training_result.choices.items()))
    }
    simpler: dict[str, Callable[[], baselines.Contender]] = {
        "tfidf": lambda: baselines.words(corpus, labels, data),
        "last_layer": lambda: baselines.last_layer(features, spin.backbone, labels, data),
        "best_site": lambda: baselines.best_site(features, spin.backbone, training.probes, labels, data),
    }
    contenders: list[baselines.Contender] = []
    notes: list[str] = []
    with progress("evaluate", len(simpler) + len(distinct) + 1, "steps") as advance:
        for name, make in simpler.items():
            if settings.train.baselines:
                contenders += baselines.attempt(name, make, notes)
            advance(1)
        for choice in reversed(distinct.values()):
            contenders.append(baselines.spin_row(features, spin.choosing(choice), labels, test_words))
            advance(1)
        table = baselines.tabulate(contenders, features, spin.backbone.depth, labels, corpus, notes, settings.seed)
        advance(1)
    [best] = [contender for contender in contenders if contender.name == "spin"]
    assert best.logits is not None
    space, groups = labels.label_space, labels.groups[rows]
    probabilities = space.probabilities(best.logits)
    return Comparison(
        table=tuple(table),
        per_class=class_figures(y, best.predicted, labels.classes),
        test_ece=round(calibration_error(probabilities, y, space), 4),
        test_ece_limit=round(calibration_error_limit(probabilities, space, y=y, groups=groups), 4),
        notes=tuple(notes),
    )


def _read_artifact(store: Store, manifest: TrainManifest) -> dict[str, bytes] | None:
    """The files of the artifact by name; None unless all are there and none is of another training."""
    files = {name: store.read(name) or b"" for name in ARTIFACT}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    # guarded by test_an_artifact_that_another_training_wrote_is_not_registered; broken by:
    #   return files
    return files if digests == manifest.results.artifact else None


def _register_once(
    training: _Training, registry: Registry, store: Store, plan: TrainPlan, manifest: TrainManifest
) -> RegisteredVersion:
    """The version that the artifact in the store is registered as.

    It is registered now if that was not done yet, or the version is gone, or unsigned where the settings sign.
    """
    key = f"{plan.folder}/registered/{registry.key}.json"
    stored = store.read_json(key)
    if stored is not None:
        known = from_json(RegisteredVersion, stored)
        if registry.holds(known.version, manifest.fingerprint):
            return known
    registered = _register(training, registry, store, manifest)
    store.write_json(key, to_json(registered))
    return registered


def _describe_data(training: _Training, manifest: TrainManifest) -> LoggedData:
    """The corpus as an input of the MLflow run. Its digest changes with its files, ids, labels and splits."""
    settings, labels, files = training.settings, training.labels, training.extracted.results.inputs
    return LoggedData(
        name=settings.mlflow.name,
        source=normalize_uri(settings.data.train),
        digest=fingerprint({"files": to_json(files), "labels": labels.digest}),
        profile={
            "documents": training.extracted.results.counts.rows,
            "files": len(files),
            "bytes": sum(file.size for file in files),
            "classes": list(labels.classes),
            "multilabel": labels.label_space.multilabel,
            "splits": dict(manifest.results.counts),
        },
        columns={settings.data.id: "string", settings.data.text: "string"},
    )


def _register(training: _Training, registry: Registry, store: Store, manifest: TrainManifest) -> RegisteredVersion:
    """Log and register the artifact in the store; the first version's test documents become the evaluation set."""
    settings, labels, corpus = training.settings, training.labels, training.corpus
    rows, y = labels.part("test")
    ids = ArrowStrings.of(labels.ids[row] for row in rows.tolist())
    texts = ArrowStrings.of(text for block in corpus.text_blocks(rows) for text in block)
    groups = ArrowStrings.of(f"{group:016x}" for group in labels.groups[rows].tolist())
    evaluation_set = EvaluationSet(ids, texts, labels.label_space.names(y), groups)
    best = manifest.results.choice.choices["accuracy"]
    metrics = {"valid_score": best.valid_score, "valid_ece": best.valid_ece}
    for row in manifest.results.table:
        if row.name == "spin":
            metrics |= {"test_accuracy": row.accuracy, "test_macro_f1": row.macro_f1}
    artifact = _read_artifact(store, manifest)
    if artifact is None:
        raise UserError(f"{store.uri}: another training has written files of its own meanwhile; run the command again")
    with tempfile.TemporaryDirectory() as folder:
        for name, content in artifact.items():
            (Path(folder) / name).write_bytes(content)
        record = TrainingRecord(
            params={
                **best.model_dump(exclude={"part", "exits", "thresholds", "shares"}),
                "metric": settings.metric,
                "backbone": settings.backbone.model,
            },
            metrics=metrics,
            report=json.dumps(manifest.to_json(), indent=2),
            evaluation_set=evaluation_set,
            fingerprint=manifest.fingerprint,
            data=_describe_data(training, manifest),
        )
        return registry.register(Path(folder), record)
