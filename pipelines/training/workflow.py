"""The stages of a training, one after the other; a stage that has finished is not repeated."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pipelines.data.training_labels import NOTHING_FROZEN, FrozenDocuments
from pipelines.registry import signatures
from pipelines.registry.versions import Registry
from pipelines.storage.filesystem import normalize_uri
from pipelines.storage.object_store import Store
from pipelines.storage.stage_plan import finished_fingerprint
from pipelines.telemetry.current_runs import CurrentRun, working_on
from pipelines.telemetry.observed_runs import observe_runs, observe_stage, observe_work, update_run
from pipelines.telemetry.run_record import DataUse, RunRecord
from pipelines.training.extract_features import ExtractManifest, ExtractResults, run_extract
from pipelines.training.fit_probes import ProbeManifest, ProbeResults, run_probe
from pipelines.training.train import TrainReport, run_train
from pipelines.workers.ray_cluster import shared_ray_session
from spin.settings import Settings

TrainingStage = Literal["extract", "probe", "train"]
STAGES: dict[TrainingStage, str] = {"extract": "features", "probe": "probes", "train": "model"}
"""the stages in order, each with its folder in the store"""
_RECORDS = "traces"
"""folder in the store with the records of observers, such as traces"""


@dataclass(frozen=True)
class StageEvent:
    """The end of a stage."""

    stage: TrainingStage
    results: ExtractResults | ProbeResults | TrainReport
    seconds: float
    """that the stage took in this run"""
    resumed: bool
    """whether the stage had finished in an earlier run"""


OnStage = Callable[[StageEvent], None]
"""called at the end of each stage"""


def run_workflow(
    settings: Settings, *, first: TrainingStage = "extract", restart: bool = False, on_stage: OnStage = lambda _: None
) -> TrainReport:
    """Run extract, probe and train, beginning with the stage `first`, register the model and return the report."""
    names = list(STAGES)
    report = run_stages(settings, names[names.index(first) :], restart=restart, on_stage=on_stage)
    assert report is not None
    return report


def run_stages(
    settings: Settings,
    stages: Sequence[TrainingStage],
    *,
    restart: bool = False,
    on_stage: OnStage = lambda _: None,
) -> TrainReport | None:
    """Run the named stages in order; return the report of the training, None if train is not among them.

    The frozen evaluation set is read from the registry before any fit, so that none of its documents is trained on, nor
    a near-identical text. Raises UserError before any stage where the key in `registry.sign` cannot be used.
    """
    if "train" in stages and settings.registry.sign is not None:
        signatures.require_keys(settings.registry.sign, settings.registry.verify)
    registry = Registry(settings) if set(stages) - {"extract"} else None
    frozen = NOTHING_FROZEN
    if registry is not None:
        evaluation_set = registry.evaluation_set()
        frozen = FrozenDocuments.of(evaluation_set.ids, evaluation_set.texts)
    outcome: ExtractManifest | ProbeManifest | TrainReport | None = None
    training = _describe_training(settings)
    with shared_ray_session(), working_on([training.run]), observe_runs([training]), observe_work():
        for stage in stages:
            start = time.perf_counter()
            before = finished_fingerprint(Store.of(settings) / STAGES[stage])
            with observe_stage(stage):
                if stage == "extract":
                    outcome = run_extract(settings, restart=restart)
                elif stage == "probe":
                    outcome = run_probe(settings, frozen=frozen, restart=restart)
                else:
                    assert registry is not None
                    outcome = run_train(settings, registry, frozen=frozen, restart=restart)
            training = _add_stage(training, outcome)
            update_run(training)
            results = outcome if isinstance(outcome, TrainReport) else outcome.results
            on_stage(StageEvent(stage, results, time.perf_counter() - start, before == outcome.fingerprint))
    return outcome if isinstance(outcome, TrainReport) else None


def training_name(settings: Settings) -> str:
    """The name of the training run of a store: the commands that resume it have the same one."""
    digest = hashlib.sha256(Store.of(settings).uri.encode()).hexdigest()
    return f"training-{settings.mlflow.name}-{digest[:8]}"


def _describe_training(settings: Settings) -> RunRecord:
    """The training as this process begins to work on it.

    The stages have a lease each and the training none, so processes are numbered by the time, in milliseconds.
    """
    store = Store.of(settings)
    return RunRecord(
        run=CurrentRun(training_name(settings), settings.mlflow.name),
        kind="training",
        number=time.time_ns() // 1_000_000,
        home=store.uri,
        records=store / _RECORDS,
        inputs=(DataUse(uri=normalize_uri(settings.data.train), kind="files"),),
        outputs=(DataUse(uri=settings.mlflow.name, kind="model"),),
    )


def _add_stage(training: RunRecord, end: ExtractManifest | ProbeManifest | TrainReport) -> RunRecord:
    """The training with the numbers of what a stage has read, and with the version that it has registered."""
    [read], [made] = training.inputs, training.outputs
    if isinstance(end, TrainReport):
        read = replace(read, rows=sum(end.results.counts.values()))
        return replace(training, inputs=(read,), outputs=(replace(made, version=end.registered.version),))
    if isinstance(end.results, ProbeResults):
        return training
    files = end.results.inputs
    size = sum(file.size for file in files)
    return replace(training, inputs=(replace(read, rows=end.results.counts.rows, files=len(files), bytes=size),))
