"""Probes to a registered classifier: integrate, evaluate once on the test rows, log, register as challenger."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import precision_recall_fscore_support

from pipelines import baselines, corpus
from pipelines.documents import Shard
from pipelines.extract import load_features
from pipelines.features import FeatureShards
from pipelines.labels import Labels
from pipelines.lease import Lease
from pipelines.manifest import Plan, finish, finished, freeze
from pipelines.probe import load_probes
from pipelines.progress import progress
from pipelines.registry import Registry
from pipelines.store import Store
from spin.backbone import load_backbone
from spin.classifier import SpinClassifier
from spin.errors import UserError
from spin.integrate import integrate, search_size
from spin.settings import Settings

FORMAT = 1
ARTIFACT = ("config.json", "model.safetensors")


def run_train(
    settings: Settings, registry: Registry, *, frozen: frozenset[str] = frozenset(), restart: bool = False
) -> tuple[Plan, dict[str, Any]]:
    """Train the integrated head, compare it with the baselines, register it, and write report.json.

    What was fitted before a registry failed to answer is kept; a later run only registers. Raises UserError when
    probes are not there, UnavailableError when the registry does not answer.
    """
    extracted, features = load_features(settings)
    labels = Labels.of(features, settings, frozen)
    probed, probes = load_probes(settings, extracted, labels)
    store = Store(settings.store) / "model"
    facts = {
        "format": FORMAT,
        "probes": probed.fingerprint,
        "metric": settings.metric,
        "search": settings.search.model_dump(),
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
        manifest = {**manifest, "registered": registered}
        _report(settings, extracted, probed, manifest)
        return plan, manifest


def _fit(
    settings: Settings,
    features: FeatureShards,
    probes: Sequence[Any],
    labels: Labels,
    store: Store,
    plan: Plan,
    lease: Lease,
) -> dict[str, Any]:
    start = time.perf_counter()
    backbone = load_backbone(settings.backbone)
    with progress("train", search_size(settings.search, backbone.depth), "heads") as advance:
        integration = integrate(
            probes,
            features.read_selection,
            labels.part("train"),
            labels.part("valid"),
            metric=settings.metric,
            settings=settings.search,
            progress=advance,
        )
    spin = SpinClassifier.assemble(
        settings.backbone, backbone.digest, labels.classes, integration, settings.metric, backbone
    )
    seconds = {"integrate": round(time.perf_counter() - start, 1)}
    table, per_class = _evaluate(settings, features, probes, labels, spin)
    seconds["evaluate"] = round(time.perf_counter() - start - seconds["integrate"], 1)
    with tempfile.TemporaryDirectory() as folder:
        spin.save(folder)
        for name in ARTIFACT:
            store.write(name, (Path(folder) / name).read_bytes())
    lease.check()
    return finish(
        store,
        plan,
        choice=integration.describe(),
        classes=labels.classes,
        table=table,
        per_class=per_class,
        counts={split: len(labels.part(split)[0]) for split in ("train", "valid", "test")},
        seconds=seconds,
    )


def _evaluate(
    settings: Settings, features: FeatureShards, probes: Sequence[Any], labels: Labels, spin: SpinClassifier
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The table over the test rows, and SPIN's figures per class; both empty without test rows."""
    rows, y = labels.part("test")
    if not len(rows):
        return [], {}
    texts = read_texts(settings, features)
    with progress("evaluate", 5, "steps") as advance:
        contenders = []
        for make in (
            lambda: baselines.words(texts, labels, settings.metric),
            lambda: baselines.last_layer(features, spin.backbone, labels, settings.metric),
            lambda: baselines.best_site(features, spin.backbone, probes, labels),
            lambda: baselines.spin_row(features, spin, labels),
        ):
            contenders.append(make())
            advance(1)
        table = baselines.tabulate(contenders, features, spin.backbone.depth, labels, texts)
        advance(1)
    return table, per_class_figures(y, contenders[-1].predicted, labels.classes)


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
        {"id": labels.ids[row], "text": texts[row], "label": labels.classes[k]} for row, k in zip(rows, y, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name in ARTIFACT:
            data = store.read(name)
            if data is None:
                raise UserError(f"{store.uri} lacks {name}; start over with --restart")
            (Path(folder) / name).write_bytes(data)
        spin_figures: dict[str, float] = next((row for row in manifest["table"] if row["name"] == "spin"), {})
        return registry.register(
            Path(folder),
            params={
                **_scalars(manifest["choice"]),
                "metric": settings.metric,
                "backbone": settings.backbone.model,
            },
            metrics={
                "valid_score": manifest["choice"]["valid_score"],
                **{f"test_{k}": spin_figures[k] for k in ("accuracy", "macro_f1") if k in spin_figures},
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
