"""Probes to a registered classifier: integrate, evaluate once on the test rows, log, register as challenger."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.data.feature_store import FeatureShards
from pipelines.data.training_labels import Corpus, Labels
from pipelines.registry.evaluation_set import EvaluationRow, EvaluationSet
from pipelines.registry.packaging import REFERENCE
from pipelines.registry.versions import RegisteredVersion, Registry, TrainingRecord
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.storage.stage_plan import (
    NothingDerived,
    StageManifest,
    StagePlan,
    find_manifest,
    write_manifest,
    write_plan,
)
from pipelines.training import baselines
from pipelines.training.drift_reference import describe_reference
from pipelines.training.extract_features import ExtractPlan, load_features
from pipelines.training.fit_heads import run_integrate
from pipelines.training.fit_probes import ProbePlan, load_probes
from pipelines.training.model_card_facts import describe_artifact
from pipelines.training.neurons import NEURONS
from pipelines.workers.progress import progress
from spin.backbone.flops import relative_flops
from spin.backbone.loading import load_backbone
from spin.classifier import SpinClassifier
from spin.errors import UserError
from spin.heads import persistence
from spin.heads.calibration import calibration_error
from spin.heads.decision import Decision
from spin.labels.metrics import class_figures
from spin.labels.splits import SPLITS
from spin.pages.model_card import CARD
from spin.settings import Choice, Settings
from spin.sparsify.probe import Probe

FORMAT = 3
TrainPlan = StagePlan[NothingDerived]
ARTIFACT = (persistence.CONFIG, persistence.TENSORS, NEURONS, CARD, REFERENCE)


def run_train(
    settings: Settings, registry: Registry, *, frozen: frozenset[str] = frozenset(), restart: bool = False
) -> tuple[TrainPlan, dict[str, Any]]:
    """Train the integrated heads, compare them with the baselines, register them, and write report.json.

    What was fitted before a registry failed to answer is kept; a later run only registers. Raises UserError when
    probes are not there, UnavailableError when the registry does not answer.
    """
    extracted, features = load_features(settings)
    labels = Labels.of(features, settings, frozen)
    Decision.of(labels.label_space, settings.decision)
    probed, probes = load_probes(settings, extracted, labels)
    corpus = Corpus(extracted.derived.shards, settings.data)
    store = Store(settings.store) / "model"
    metadata = {
        "format": FORMAT,
        "probes": probed.fingerprint,
        "metric": settings.metric,
        "search": settings.search.model_dump(),
        "cascade": settings.cascade.model_dump(),
    }
    with Lease(store) as lease:
        plan = write_plan(store, "train", metadata, NothingDerived, NothingDerived, restart=restart)
        finished = find_manifest(store, plan, dict[str, Any])
        if finished is None:
            finished = _fit(settings, features, probes, labels, corpus, store, plan, lease)
        manifest = finished.to_json()
        key = f"registered/{registry.key}.json"
        registered = store.read_json(key)
        if registered is None:
            registered = asdict(_register(settings, registry, labels, corpus, store, manifest))
            store.write_json(key, registered)
        manifest = {**manifest, "registered": registered, "choose": settings.choose}
        _report(settings, extracted, probed, manifest)
        return plan, manifest


def _fit(
    settings: Settings,
    features: FeatureShards,
    probes: Sequence[Probe],
    labels: Labels,
    corpus: Corpus,
    store: Store,
    plan: TrainPlan,
    lease: Lease,
) -> StageManifest[dict[str, Any]]:
    start = time.perf_counter()
    backbone = load_backbone(settings.backbone)
    flops = relative_flops(backbone)
    training_result = run_integrate(settings, features, probes, labels, flops, store / "heads")
    spin = SpinClassifier.assemble(
        settings.backbone,
        backbone.digest,
        labels.label_space,
        training_result,
        settings.metric,
        backbone=backbone,
        choose=settings.choose,
        decision=settings.decision,
    )
    seconds = {"integrate": round(time.perf_counter() - start, 1)}
    found = _evaluate(settings, features, probes, labels, corpus.texts, spin)
    seconds["evaluate"] = round(time.perf_counter() - start - seconds["integrate"], 1)
    manifest = {
        "choice": training_result.describe(),
        "classes": labels.classes,
        "multilabel": labels.label_space.multilabel,
        **found,
        "counts": {split: len(labels.part(split)[0]) for split in SPLITS},
        "seconds": seconds,
    }
    described = describe_artifact(settings, spin, features, labels, manifest, plan.metadata["probes"])
    described[REFERENCE] = describe_reference(spin, features, labels, corpus.texts)
    for name, data in (spin.files() | described).items():
        store.write(name, data)
    lease.check()
    return write_manifest(store, plan, manifest)


def _evaluate(
    settings: Settings,
    features: FeatureShards,
    probes: Sequence[Probe],
    labels: Labels,
    texts: Sequence[str],
    spin: SpinClassifier,
) -> dict[str, Any]:
    """On the test rows the table, and SPIN's figures per class and calibration; all empty without test rows."""
    rows, y = labels.part("test")
    if not len(rows):
        return {"table": [], "per_class": {}, "test_ece": None}
    distinct: dict[int, Choice] = {
        id(part): name for name, part in reversed(list(spin.training_result.choices.items()))
    }
    makers: list[Callable[[], baselines.Contender]] = [
        lambda: baselines.words(texts, labels, settings.metric),
        lambda: baselines.last_layer(features, spin.backbone, labels, settings.metric),
        lambda: baselines.best_site(features, spin.backbone, probes, labels),
        *(partial(baselines.spin_row, features, spin, labels, name) for name in reversed(distinct.values())),
    ]
    with progress("evaluate", len(makers) + 1, "steps") as advance:
        contenders = []
        for make in makers:
            contenders.append(make())
            advance(1)
        table = baselines.tabulate(contenders, features, spin.backbone.depth, labels, texts)
        advance(1)
    logits = contenders[len(makers) - len(distinct)].logits
    assert logits is not None
    return {
        "table": table,
        "per_class": {
            name: figures.model_dump()
            for name, figures in class_figures(y, labels.label_space.predict(logits), labels.classes).items()
        },
        "test_ece": round(calibration_error(labels.label_space.probabilities(logits), y, labels.label_space), 4),
    }


def _register(
    settings: Settings,
    registry: Registry,
    labels: Labels,
    corpus: Corpus,
    store: Store,
    manifest: dict[str, Any],
) -> RegisteredVersion:
    """Log and register what the store holds; the test rows become the model's frozen evaluation set once."""
    texts = corpus.texts
    rows, y = labels.part("test")
    evaluation_set = EvaluationSet(
        tuple(
            EvaluationRow(labels.ids[row], texts[row], label)
            for row, label in zip(rows, labels.label_space.names(y), strict=True)
        )
    )
    figures: dict[str, float] = next((row for row in manifest["table"] if row["name"] == "spin"), {})
    best = manifest["choice"]["choices"]["accuracy"]
    with tempfile.TemporaryDirectory() as folder:
        for name in ARTIFACT:
            data = store.read(name)
            if data is None:
                raise UserError(f"{store.uri} lacks {name}; start over with --restart")
            (Path(folder) / name).write_bytes(data)
        record = TrainingRecord(
            params={**_scalars(best), "metric": settings.metric, "backbone": settings.backbone.model},
            metrics={
                "valid_score": best["valid_score"],
                "valid_ece": best["valid_ece"],
                **{f"test_{k}": figures[k] for k in ("accuracy", "macro_f1") if k in figures},
            },
            report=json.dumps(manifest, indent=2),
            example=texts[:2],
            evaluation_set=evaluation_set,
            fingerprint=manifest["fingerprint"],
        )
        return registry.register(Path(folder), record)


def _scalars(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if not isinstance(value, (list, dict))}


def _report(settings: Settings, extracted: ExtractPlan, probed: ProbePlan, manifest: dict[str, Any]) -> None:
    store = Store(settings.store)
    shards = store.read_json("features/manifest.json")
    probes = store.read_json("probes/manifest.json")
    store.write_json(
        "report.json",
        {
            "fingerprint": manifest["fingerprint"],
            "fingerprints": {"extract": extracted.fingerprint, "probe": probed.fingerprint},
            "table": manifest["table"],
            "per_class": manifest["per_class"],
            "choice": manifest["choice"],
            "registered": manifest["registered"],
            "stages": {
                "extract": {"seconds": shards.get("seconds"), **shards["counts"]},
                "probe": {"seconds": probes.get("seconds"), "probes": len(probes["probes"])},
                "train": {"seconds": manifest["seconds"], **manifest["counts"]},
            },
        },
    )
