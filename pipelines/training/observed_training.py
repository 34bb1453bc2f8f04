"""The record of a training for observers, such as traces and lineage: its inputs and the version that it makes."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace

from pipelines.storage.filesystem import normalize_uri
from pipelines.storage.object_store import Store
from pipelines.telemetry.current_runs import CurrentRun
from pipelines.telemetry.run_record import DataUse, RunRecord
from pipelines.training.extract_features import ExtractManifest
from pipelines.training.fit_probes import ProbeManifest, ProbeResults
from pipelines.training.train import TrainReport
from spin.settings import Settings

_RECORDS = "traces"
"""folder in the store"""


def training_name(settings: Settings) -> str:
    """The name of the training run of a store: the commands that resume it have the same one."""
    digest = hashlib.sha256(Store.of(settings).uri.encode()).hexdigest()
    return f"training-{settings.mlflow.model}-{digest[:8]}"


def describe_training(settings: Settings) -> RunRecord:
    """The training as this process begins to work on it.

    The stages have a lease each and the training none, so processes are numbered by the time, in milliseconds.
    """
    store = Store.of(settings)
    return RunRecord(
        run=CurrentRun(training_name(settings), settings.mlflow.model),
        kind="training",
        number=time.time_ns() // 1_000_000,
        home=store.uri,
        records=store / _RECORDS,
        inputs=(DataUse(uri=normalize_uri(settings.data.train), kind="files"),),
        outputs=(DataUse(uri=settings.mlflow.model, kind="model"),),
    )


def describe_stage(settings: Settings, end: ExtractManifest | ProbeManifest | TrainReport) -> RunRecord:
    """The training with the numbers of what a stage has read, and with the version that it has registered."""
    training = describe_training(settings)
    [read], [made] = training.inputs, training.outputs
    if isinstance(end, TrainReport):
        read = replace(read, rows=sum(end.results.counts.values()))
        return replace(training, inputs=(read,), outputs=(replace(made, version=end.registered.version),))
    if isinstance(end.results, ProbeResults):
        return training
    files = end.results.inputs
    size = sum(file.size for file in files)
    return replace(training, inputs=(replace(read, rows=end.results.counts.rows, files=len(files), bytes=size),))
