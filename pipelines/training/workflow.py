"""The stages of a training, one after the other; a stage that has finished is not repeated."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from pipelines.data.training_labels import NOTHING_FROZEN, FrozenDocuments
from pipelines.registry.versions import Registry
from pipelines.storage.object_store import Store
from pipelines.storage.stage_plan import finished_fingerprint
from pipelines.telemetry.current_runs import CurrentRun, working_on
from pipelines.telemetry.observed_runs import add_results, observe_runs, observe_stage, observe_work
from pipelines.training.extract_features import ExtractManifest, ExtractResults, run_extract
from pipelines.training.fit_probes import ProbeManifest, ProbeResults, run_probe
from pipelines.training.observed_training import describe_stage, describe_training, training_name
from pipelines.training.train import TrainReport, run_train
from pipelines.workers.ray_cluster import shared_ray_session
from spin.heads.registry import other_heads
from spin.settings import Settings

TrainingStage = Literal["extract", "probe", "train"]
STAGES: dict[TrainingStage, str] = {"extract": "features", "probe": "probes", "train": "model"}
"""the stages in order, each with its folder in the store"""


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
    a near-identical text.
    """
    other_heads(settings.search.head)  # raises for an unknown one, before the backbone reads anything
    registry = Registry(settings) if set(stages) - {"extract"} else None
    evaluation_set = None if registry is None else registry.evaluation_set()
    frozen = NOTHING_FROZEN
    if evaluation_set is not None:
        frozen = FrozenDocuments.of(frozenset(evaluation_set.ids), evaluation_set.texts)
    outcome: ExtractManifest | ProbeManifest | TrainReport | None = None
    run = CurrentRun(training_name(settings), settings.mlflow.model)
    with shared_ray_session(), working_on([run]), observe_runs([describe_training(settings)]), observe_work():
        for stage in stages:
            start = time.perf_counter()
            before = finished_fingerprint(Store.of(settings) / STAGES[stage])
            with observe_stage(stage):
                if stage == "extract":
                    _, outcome = run_extract(settings, restart=restart)
                elif stage == "probe":
                    _, outcome = run_probe(settings, frozen=frozen, restart=restart)
                else:
                    assert registry is not None
                    outcome = run_train(settings, registry, frozen=frozen, restart=restart)
            add_results(run.name, describe_stage(settings, outcome))
            results = outcome if isinstance(outcome, TrainReport) else outcome.results
            on_stage(StageEvent(stage, results, time.perf_counter() - start, before == outcome.fingerprint))
    return outcome if isinstance(outcome, TrainReport) else None
