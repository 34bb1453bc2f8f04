"""OpenLineage events of runs: their jobs, facets and datasets."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import attr
from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
from openlineage.client.facet_v2 import (
    RunFacet,
    dataset_type_dataset,
    dataset_version_dataset,
    documentation_job,
    error_message_run,
    input_statistics_input_dataset,
    job_type_job,
    nominal_time_run,
    output_statistics_output_dataset,
    parent_run,
    processing_engine_run,
    storage_dataset,
)

from pipelines.telemetry.dataset_names import name_dataset
from pipelines.telemetry.run_events import DataUse, RunEnd, RunStart, WorkError, update_uses

PRODUCER = "https://pypi.org/project/spin-neurons"
"""identifies SPIN in events"""
_NAMESPACE = "OPENLINEAGE_NAMESPACE"
_DESCRIPTIONS = {
    "night": "Classifies a batch of documents and publishes it as the night of a date: `spin classify`.",
    "training": "Trains a model on labelled documents and registers a version of it: `spin run`.",
}
_DATASET_TYPES = {"files": "FILE", "table": "TABLE", "model": "MODEL"}


@attr.define
class SpinRunFacet(RunFacet):
    """The run of SPIN that a process works on."""

    run: str
    """name of the run"""
    model: str
    """name of the registered model"""
    process: int
    """number of this process among those of the run: a later one has a larger number"""
    modelVersion: str | None = None
    """of the model that classifies a night"""
    night: str | None = None
    """date of the night"""

    @staticmethod
    def _get_schema() -> str:
        return f"{PRODUCER}#SpinRunFacet-1-0-0"


def start_event(start: RunStart, id: str) -> RunEvent:
    """The event that a process begins to work on a run."""
    return _event(RunState.START, start, id, start.inputs, start.outputs, None)


def end_event(start: RunStart, end: RunEnd, id: str) -> RunEvent:
    """The event that its work has ended: complete, failed, or broken off by a signal or by another process."""
    state = RunState.COMPLETE
    if end.error is not None:
        state = RunState.ABORT if end.error.aborted else RunState.FAIL
    inputs = update_uses(start.inputs, end.results.inputs)
    outputs = update_uses(start.outputs, end.results.outputs)
    return _event(state, start, id, inputs, outputs, end.error)


def _event(
    state: RunState,
    start: RunStart,
    id: str,
    inputs: Sequence[DataUse],
    outputs: Sequence[DataUse],
    error: WorkError | None,
) -> RunEvent:
    kind = job_type_job.JobTypeJobFacet(
        processingType="BATCH", integration="SPIN", jobType=start.kind.upper(), producer=PRODUCER
    )
    description = documentation_job.DocumentationJobFacet(_DESCRIPTIONS[start.kind], producer=PRODUCER)
    job = Job(_namespace(), f"{start.kind}.{start.run.model}", {"jobType": kind, "documentation": description})
    return RunEvent(
        eventType=state,
        eventTime=datetime.now(UTC).isoformat(timespec="milliseconds"),
        run=Run(id, _run_facets(start, error)),
        job=job,
        inputs=[_input(use) for use in inputs],
        outputs=[_output(use) for use in outputs],
        producer=PRODUCER,
    )


def _run_facets(start: RunStart, error: WorkError | None) -> dict[str, RunFacet]:
    version = importlib.metadata.version("spin-neurons")
    facets: dict[str, RunFacet] = {
        "spin_run": SpinRunFacet(
            run=start.run.name,
            model=start.run.model,
            process=start.number,
            modelVersion=start.model_version,
            night=start.date,
        ),
        "processing_engine": processing_engine_run.ProcessingEngineRunFacet(version=version, name="spin"),
        # all processes of a run have this parent, so that those which resumed it are seen to belong together
        "parent": parent_run.ParentRunFacet(
            run=parent_run.Run(runId=str(uuid5(NAMESPACE_URL, f"{start.home}#{start.run.name}"))),
            job=parent_run.Job(namespace=_namespace(), name=f"{start.kind}.{start.run.model}.run"),
        ),
    }
    if start.date is not None:
        facets["nominalTime"] = nominal_time_run.NominalTimeRunFacet(nominalStartTime=f"{start.date}T00:00:00Z")
    if error is not None:
        facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(
            message=f"{error.kind}: {error.message} (exit status {error.status})", programmingLanguage="PYTHON"
        )
    for facet in facets.values():
        facet._producer = PRODUCER
    return facets


def _input(use: DataUse) -> InputDataset:
    name, kind = name_dataset(use), input_statistics_input_dataset.InputStatisticsInputDatasetFacet
    statistics = {"inputStatistics": kind(**_statistics(use))} if _is_counted(use) else {}
    return InputDataset(name.namespace, name.name, facets=_dataset_facets(use), inputFacets=statistics)


def _output(use: DataUse) -> OutputDataset:
    name, kind = name_dataset(use), output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet
    statistics = {"outputStatistics": kind(**_statistics(use))} if _is_counted(use) else {}
    return OutputDataset(name.namespace, name.name, facets=_dataset_facets(use), outputFacets=statistics)


def _is_counted(use: DataUse) -> bool:
    return (use.rows, use.files, use.bytes) != (None, None, None)


def _statistics(use: DataUse) -> dict[str, Any]:
    """The fields that the statistics of inputs and outputs have in common."""
    return {"rowCount": use.rows, "size": use.bytes, "fileCount": use.files, "producer": PRODUCER}


def _dataset_facets(use: DataUse) -> dict[str, object]:
    facets: dict[str, object] = {
        "datasetType": dataset_type_dataset.DatasetTypeDatasetFacet(
            datasetType=_DATASET_TYPES[use.kind], producer=PRODUCER
        )
    }
    if use.kind == "table":
        facets["storage"] = storage_dataset.StorageDatasetFacet(
            storageLayer="delta", fileFormat="parquet", producer=PRODUCER
        )
    if use.version is not None:
        facets["version"] = dataset_version_dataset.DatasetVersionDatasetFacet(
            datasetVersion=use.version, producer=PRODUCER
        )
    return facets


def _namespace() -> str:
    """The namespace of SPIN's jobs: OPENLINEAGE_NAMESPACE, as in other integrations, or `spin`."""
    return os.environ.get(_NAMESPACE) or "spin"
