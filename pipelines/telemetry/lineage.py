"""OpenLineage events of runs, sent by the client of OpenLineage to what its own variables and files name.

A thread of its own sends them, so that no night waits for an endpoint.
"""

from __future__ import annotations

import glob
import importlib.metadata
import logging
import os
import queue
import threading
from datetime import UTC, datetime
from itertools import takewhile
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import NAMESPACE_URL, uuid5

from openlineage.client import OpenLineageClient
from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
from openlineage.client.facet_v2 import (
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
from openlineage.client.uuid import generate_new_uuid

from pipelines.telemetry.run_record import DataUse, Observer, RunRecord
from spin.errors import shorten_message
from spin.settings import mask_credentials

_log = logging.getLogger(__name__)
PRODUCER = "https://pypi.org/project/spin-neurons"
"""identifies SPIN in events"""
MODELS = "mlflow"
"""namespace of registered models, for which OpenLineage's naming spec has none"""
_NAMESPACE = "OPENLINEAGE_NAMESPACE"
_DESCRIPTIONS = {
    "night": "Classifies a batch of documents and publishes it as the night of a date: `spin classify`.",
    "training": "Trains a model on labelled documents and registers a version of it: `spin run`.",
}
_DATASET_TYPES = {"files": "FILE", "table": "TABLE", "model": "MODEL"}


class Lineage(Observer):
    """Sends an event when the work of this process on a run begins, and another one when it ends."""

    def __init__(self) -> None:
        self._client = _create_client()
        self._ids: dict[str, str] = {}
        self._waiting: queue.Queue[RunEvent | None] = queue.Queue()
        self._queued = self._sent = 0
        self._warned = self._given_up = False
        # a daemon, since a thread that waits for an endpoint must not keep the process from ending
        self._sender = threading.Thread(target=self._send_all, daemon=True, name="lineage")
        self._sender.start()

    def run_started(self, run: RunRecord) -> None:
        self._ids[run.run.name] = str(generate_new_uuid())
        self._queue(RunState.START, run)

    def run_ended(self, run: RunRecord) -> None:
        state = RunState.COMPLETE
        if run.error is not None:
            state = RunState.ABORT if run.error.aborted else RunState.FAIL
        self._queue(state, run)

    def close(self) -> None:
        self._waiting.put(None)
        self._sender.join()

    def give_up(self) -> None:
        self._given_up = True
        lost = self._queued - self._sent
        if lost:
            _log.warning("lineage: %d of %d events were not delivered", lost, self._queued)

    def _queue(self, state: RunState, run: RunRecord) -> None:
        self._queued += 1
        self._waiting.put(_make_event(state, run, self._ids[run.run.name]))

    def _send_all(self) -> None:
        while (event := self._waiting.get()) is not None and not self._given_up:
            try:
                self._client.emit(event)
                self._sent += 1
            except Exception as error:
                if not self._warned and not self._given_up:
                    self._warned = True
                    _log.warning(
                        "lineage: an event is not accepted (%s: %s). The work goes on; reported once",
                        type(error).__name__,
                        shorten_message(mask_credentials(str(error))),
                    )
                _log.debug("an event of OpenLineage could not be sent", exc_info=True)
        self._client.close(0)


def _create_client() -> OpenLineageClient:
    """The client, without the variables that it adds to the environment: a later client would take their values."""
    before = set(os.environ)
    client = OpenLineageClient()
    for name in set(os.environ) - before:
        del os.environ[name]
    return client


def _make_event(state: RunState, run: RunRecord, id: str) -> RunEvent:
    """The event that a process, which `id` names, has begun or ended its work on a run."""
    kind = job_type_job.JobTypeJobFacet(
        processingType="BATCH", integration="SPIN", jobType=run.kind.upper(), producer=PRODUCER
    )
    description = documentation_job.DocumentationJobFacet(_DESCRIPTIONS[run.kind], producer=PRODUCER)
    job = Job(_namespace(), f"{run.kind}.{run.run.model}", {"jobType": kind, "documentation": description})
    inputs = [
        InputDataset(*name_dataset(use), facets=_dataset_facets(use), inputFacets=_statistics(use, written=False))
        for use in run.inputs
    ]
    outputs = [
        OutputDataset(*name_dataset(use), facets=_dataset_facets(use), outputFacets=_statistics(use, written=True))
        for use in run.outputs
    ]
    return RunEvent(
        eventType=state,
        eventTime=datetime.now(UTC).isoformat(timespec="milliseconds"),
        run=Run(id, _run_facets(run)),
        job=job,
        inputs=inputs,
        outputs=outputs,
        producer=PRODUCER,
    )


def _run_facets(run: RunRecord) -> dict[str, Any]:
    facets: dict[str, Any] = {
        # SPIN's own, for which the client has no class
        "spin_run": {
            "_producer": PRODUCER,
            "_schemaURL": f"{PRODUCER}#SpinRunFacet-1-0-0",
            "run": run.run.name,
            "model": run.run.model,
            "process": run.number,
            "modelVersion": run.model_version,
            "night": run.date,
        },
        "processing_engine": processing_engine_run.ProcessingEngineRunFacet(
            version=importlib.metadata.version("spin-neurons"), name="spin", producer=PRODUCER
        ),
        # all processes of a run have this parent, so that those which resumed it are seen to belong together
        "parent": parent_run.ParentRunFacet(
            run=parent_run.Run(runId=str(uuid5(NAMESPACE_URL, f"{run.home}#{run.run.name}"))),
            job=parent_run.Job(namespace=_namespace(), name=f"{run.kind}.{run.run.model}.run"),
            producer=PRODUCER,
        ),
    }
    if run.date is not None:
        facets["nominalTime"] = nominal_time_run.NominalTimeRunFacet(f"{run.date}T00:00:00Z", producer=PRODUCER)
    if run.error is not None:
        message = f"{run.error.kind}: {run.error.message} (exit status {run.error.status})"
        facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(message, "PYTHON", producer=PRODUCER)
    return facets


def _dataset_facets(use: DataUse) -> dict[str, Any]:
    kind = dataset_type_dataset.DatasetTypeDatasetFacet(_DATASET_TYPES[use.kind], producer=PRODUCER)
    facets: dict[str, Any] = {"datasetType": kind}
    if use.kind == "table":
        facets["storage"] = storage_dataset.StorageDatasetFacet("delta", "parquet", producer=PRODUCER)
    if use.version is not None:
        facets["version"] = dataset_version_dataset.DatasetVersionDatasetFacet(use.version, producer=PRODUCER)
    return facets


def _statistics(use: DataUse, *, written: bool) -> dict[str, Any]:
    """The facet with the numbers of an input, or of what was written; none where no number is known."""
    if (use.rows, use.files, use.bytes) == (None, None, None):
        return {}
    numbers: dict[str, Any] = {"rowCount": use.rows, "size": use.bytes, "fileCount": use.files, "producer": PRODUCER}
    if written:
        facet = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(**numbers)
        return {"outputStatistics": facet}
    return {"inputStatistics": input_statistics_input_dataset.InputStatisticsInputDatasetFacet(**numbers)}


def _namespace() -> str:
    """The namespace of SPIN's jobs: OPENLINEAGE_NAMESPACE, as in other integrations, or `spin`."""
    return os.environ.get(_NAMESPACE) or "spin"


def name_dataset(use: DataUse) -> tuple[str, str]:
    """The namespace and the name of a run's data, as OpenLineage's naming spec says, without credentials.

    A glob is named by the folder below which it matches.

    >>> name_dataset(DataUse(uri="s3://bucket/in/2026-*/*.jsonl", kind="files"))
    ('s3://bucket', 'in')
    >>> name_dataset(DataUse(uri="/srv/out/predictions", kind="table"))
    ('file', '/srv/out/predictions')
    """
    if use.kind == "model":
        return MODELS, use.uri
    if "://" not in use.uri:
        return "file", _folder_of(use.uri) or "/"
    parts = urlsplit(use.uri.replace("?", "%3F").replace("#", "%23"))  # in an object's key they are plain characters
    path = unquote(parts.path) if "%3F" in parts.path or "%23" in parts.path else parts.path
    if parts.scheme == "file":
        return "file", _folder_of(path) or "/"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", _folder_of(path).strip("/") or "/"


def _folder_of(path: str) -> str:
    """The part of a path before the first folder or file name that is a pattern."""
    return "/".join(takewhile(lambda part: not glob.has_magic(part), path.rstrip("/").split("/")))
