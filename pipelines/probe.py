"""Feature shards to probes: the workers of a Ray Train group share the columns, each reads only its own."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Collection
from typing import Any

from pipelines.cluster import cluster, ray_errors, worker_count
from pipelines.extract import load_features
from pipelines.features import FeatureShards
from pipelines.labels import Labels
from pipelines.lease import Lease
from pipelines.manifest import Plan, finish, finished, freeze, require
from pipelines.progress import progress
from pipelines.store import Store
from spin.errors import UserError
from spin.probe import Probe, describe, fit_probe
from spin.settings import ProbeSettings, RaySettings, Settings
from spin.sites import Column

FORMAT = 1


def run_probe(
    settings: Settings, *, frozen: Collection[str] = (), restart: bool = False
) -> tuple[Plan, dict[str, Any]]:
    """Fit one probe a site.pooling on the training rows, its penalty chosen on the validation rows.

    `frozen` are ids of a registered model's evaluation set, which no fit and no choice may see. Raises UserError
    when the features are not there.
    """
    source, features = load_features(settings)
    labels = Labels.of(features, settings, frozen)
    store = Store(settings.store) / "probes"
    facts = _facts(settings, source, labels)
    start = time.perf_counter()
    with Lease(store) as lease:
        plan = freeze(store, "probe", facts, dict, restart=restart)
        if manifest := finished(store, plan):
            return plan, manifest
        waiting = [c for c in _costly_first(features) if not store.exists(_key(c))]
        if waiting:
            config = {
                "features": features,
                "store": store,
                "columns": waiting,
                "train": labels.part("train"),
                "valid": labels.part("valid"),
                "classes": len(labels.classes),
                "metric": settings.metric,
                "settings": settings.probe,
            }
            _train_group(config, settings.ray, done=len(features.probed) - len(waiting))
        lease.check()
        probes = [read_probe(store, column) for column in features.probed]
        seconds = round(time.perf_counter() - start, 1)
        return plan, finish(
            store, plan, seconds=seconds, classes=labels.classes, probes=[describe(probe) for probe in probes]
        )


def load_probes(settings: Settings, source: Plan, labels: Labels) -> tuple[Plan, list[Probe]]:
    """What `run_probe` fitted on these features and labels. Raises UserError when it has not ended, or on others."""
    store = Store(settings.store) / "probes"
    plan, manifest = require(store, "probe", _facts(settings, source, labels))
    return plan, [read_probe(store, Column.parse(probe["column"])) for probe in manifest["probes"]]


def _facts(settings: Settings, source: Plan, labels: Labels) -> dict[str, Any]:
    """What changes the probes."""
    return {
        "format": FORMAT,
        "features": source.fingerprint,
        "labels": labels.digest,
        "metric": settings.metric,
        "probe": settings.probe.model_dump(),
    }


def read_probe(store: Store, column: Column) -> Probe:
    data = store.read(_key(column))
    if data is None:
        raise UserError(f"{store.uri} lacks the probe of {column}; start over with --restart")
    return Probe.from_bytes(data)


def fit_columns(config: dict[str, Any]) -> None:
    """What one worker of the group does: its share of the columns, each straight to the store.

    Skips what is there, because the death of any worker starts the whole group again.
    """
    from ray.train import get_context

    context = get_context()
    features, store, settings = config["features"], config["store"], config["settings"]
    for column in config["columns"][context.get_world_rank() :: context.get_world_size()]:
        if not store.exists(_key(column)):
            store.write(_key(column), _fit(features, column, config, settings).to_bytes())


def _fit(features: FeatureShards, column: Column, config: dict[str, Any], settings: ProbeSettings) -> Probe:
    values = features.read(column)
    (train_rows, train_y), (valid_rows, valid_y) = config["train"], config["valid"]
    return fit_probe(
        column,
        (values[train_rows], train_y),
        (values[valid_rows], valid_y),
        config["classes"],
        metric=config["metric"],
        settings=settings,
    )


def _train_group(config: dict[str, Any], settings: RaySettings, *, done: int) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    store, columns = config["store"], config["columns"]
    total = done + len(columns)
    with (
        cluster(settings),
        tempfile.TemporaryDirectory() as scratch,
        progress("probe", total, "probes", done=done) as bar,
    ):
        trainer = TorchTrainer(
            fit_columns,
            train_loop_config=config,
            scaling_config=ScalingConfig(
                num_workers=worker_count(settings, len(columns)),
                resources_per_worker={"CPU": settings.cpus_per_worker},
            ),
            run_config=RunConfig(storage_path=scratch, name="probes", failure_config=FailureConfig(max_failures=3)),
        )
        ended = threading.Event()
        watcher = threading.Thread(target=_watch, args=(store, done, bar, ended), daemon=True)
        watcher.start()
        try:
            with ray_errors("probe"):
                trainer.fit()
        finally:
            ended.set()
            watcher.join()


def _watch(store: Store, seen: int, advance: Any, ended: threading.Event) -> None:
    """Tell the bar of probes as they appear in the store, the only place that knows of all of them."""
    while not ended.wait(0.5):
        there = sum(key.endswith(".safetensors") for key in store.list())
        advance(there - seen)
        seen = there


def _costly_first(features: FeatureShards) -> list[Column]:
    """Wide columns first, so that the workers end together."""
    return sorted(features.probed, key=lambda column: (-features.columns[column], column))


def _key(column: Column) -> str:
    return f"{column}.safetensors"
