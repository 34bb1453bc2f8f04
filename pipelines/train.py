"""Probes to a registered classifier: integrate, evaluate once on the test rows, log, register as challenger."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import precision_recall_fscore_support

from pipelines import baselines, corpus
from pipelines.bundle import REFERENCE
from pipelines.card import describe_artifact
from pipelines.documents import Shard
from pipelines.extract import load_features
from pipelines.features import FeatureShards
from pipelines.integrate import run_integrate
from pipelines.labels import Labels
from pipelines.lease import Lease
from pipelines.manifest import Plan, finish, finished, freeze
from pipelines.neurons import NEURONS
from pipelines.probe import load_probes
from pipelines.progress import progress
from pipelines.reference import describe_reference
from pipelines.registry import Registry
from pipelines.store import Store
from spin import artifact
from spin.backbone import load_backbone
from spin.calibrate import Decision, calibration_error
from spin.card import CARD
from spin.classifier import SpinClassifier
from spin.errors import UserError
from spin.flops import relative_compute
from spin.probe import Probe
from spin.settings import Choice, Settings
from spin.split import SPLITS

FORMAT = 3
ARTIFACT = (artifact.CONFIG, artifact.TENSORS, NEURONS, CARD, REFERENCE)


def run_train(
    settings: Settings, registry: Registry, *, frozen: frozenset[str] = frozenset(), restart: bool = False
) -> tuple[Plan, dict[str, Any]]:
    """Train the integrated heads, compare them with the baselines, register them, and write report.json.

    What was fitted before a registry failed to answer is kept; a later run only registers. Raises UserError when
    probes are not there, UnavailableError when the registry does not answer.
    """
    extracted, features = load_features(settings)
    labels = Labels.of(features, settings, frozen)
    Decision.of(labels.task, settings.decision)
    probed, probes = load_probes(settings, extracted, labels)
    store = Store(settings.store) / "model"
    facts = {
        "format": FORMAT,
        "probes": probed.fingerprint,
        "metric": settings.metric,
        "search": settings.search.model_dump(),
        "cascade": settings.cascade.model_dump(),
    }
    with Lease(store) as lease:
        plan = freeze(store, "train", facts, dict, restart=restart)
        manifest = finished(store, plan)
        if manifest is None:
            manifest = _fit(settings, features, probes, labels, store, plan, lease)
        key = f"registered/{registry.key}.json"
        registered = store.read_json(key)
        if registered is None:
            registered = _register(settings, registry, features, labels, store, manifest)
            store.write_json(key, registered)
        manifest = {**manifest, "registered": registered, "choose": settings.choose}
        _report(settings, extracted, probed, manifest)
        return plan, manifest


def _fit(
    settings: Settings,
    features: FeatureShards,
    probes: Sequence[Probe],
    labels: Labels,
    store: Store,
    plan: Plan,
    lease: Lease,
) -> dict[str, Any]:
    start = time.perf_counter()
    backbone = load_backbone(settings.backbone)
    flops = relative_compute(backbone)
    integrated = run_integrate(settings, features, probes, labels, flops, store / "heads")
    spin = SpinClassifier.assemble(
        settings.backbone,
        backbone.digest,
        labels.task,
        integrated,
        settings.metric,
        backbone=backbone,
        choose=settings.choose,
        decision=settings.decision,
    )
    seconds = {"integrate": round(time.perf_counter() - start, 1)}
    found = _evaluate(settings, features, probes, labels, spin)
    seconds["evaluate"] = round(time.perf_counter() - start - seconds["integrate"], 1)
    manifest = {
        "choice": integrated.describe(),
        "classes": labels.classes,
        "multilabel": labels.task.multilabel,
        **found,
        "counts": {split: len(labels.part(split)[0]) for split in SPLITS},
        "seconds": seconds,
    }
    described = describe_artifact(settings, spin, features, labels, manifest, plan.facts["probes"])
    described[REFERENCE] = describe_reference(spin, features, labels, read_texts(settings, features))
    for name, data in (spin.files() | described).items():
        store.write(name, data)
    lease.check()
    return finish(store, plan, **manifest)


def _evaluate(
    settings: Settings, features: FeatureShards, probes: Sequence[Probe], labels: Labels, spin: SpinClassifier
) -> dict[str, Any]:
    """On the test rows the table, and SPIN's figures per class and calibration; all empty without test rows."""
    rows, y = labels.part("test")
    if not len(rows):
        return {"table": [], "per_class": {}, "test_ece": None}
    texts = read_texts(settings, features)
    distinct: dict[int, Choice] = {id(part): name for name, part in reversed(spin.integrated.choices.items())}
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
        "per_class": per_class_figures(y, labels.task.predict(logits), labels.classes),
        "test_ece": round(calibration_error(labels.task.probabilities(logits), y, labels.task), 4),
    }


def per_class_figures(y: Any, predicted: Any, classes: Sequence[str]) -> dict[str, Any]:
    """Precision, recall, F1 and rows of every class."""
    figures = precision_recall_fscore_support(y, predicted, labels=np.arange(len(classes)), zero_division=0.0)
    names = ("precision", "recall", "f1", "support")
    return {
        name: {figure: float(values[k]) for figure, values in zip(names, figures, strict=True)}
        for k, name in enumerate(classes)
    }


def read_texts(settings: Settings, features: FeatureShards) -> list[str]:
    """The texts of the feature store's rows, in its order, from the corpus that it was made of."""
    plan = Plan.kept(features.store)
    assert plan is not None
    texts: list[str] = []
    for shard in plan.detail["shards"]:
        texts += corpus.read_shard(Shard(**shard), settings.data).texts
    return texts


def _register(
    settings: Settings,
    registry: Registry,
    features: FeatureShards,
    labels: Labels,
    store: Store,
    manifest: dict[str, Any],
) -> dict[str, Any]:
    """Log and register what the store holds; the test rows become the model's frozen evaluation set once."""
    texts = read_texts(settings, features)
    rows, y = labels.part("test")
    evaluation = [
        {"id": labels.ids[row], "text": texts[row], "label": label}
        for row, label in zip(rows, labels.task.names(y), strict=True)
    ]
    figures: dict[str, float] = next((row for row in manifest["table"] if row["name"] == "spin"), {})
    best = manifest["choice"]["choices"]["accuracy"]
    with tempfile.TemporaryDirectory() as folder:
        for name in ARTIFACT:
            data = store.read(name)
            if data is None:
                raise UserError(f"{store.uri} lacks {name}; start over with --restart")
            (Path(folder) / name).write_bytes(data)
        return registry.register(
            Path(folder),
            params={**_scalars(best), "metric": settings.metric, "backbone": settings.backbone.model},
            metrics={
                "valid_score": best["valid_score"],
                "valid_ece": best["valid_ece"],
                **{f"test_{k}": figures[k] for k in ("accuracy", "macro_f1") if k in figures},
            },
            facts=manifest,
            example=texts[: min(2, len(texts))],
            evaluation=evaluation,
            fingerprint=manifest["fingerprint"],
        )


def _scalars(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if not isinstance(value, (list, dict))}


def _report(settings: Settings, extracted: Plan, probed: Plan, manifest: dict[str, Any]) -> None:
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
