"""Traces, lineage and MLflow's record of the data of a training, each stage of which runs in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pyarrow.parquet as pq
import pytest

from pipelines.registry.mlflow_client import Tracking
from pipelines.service_errors import HeldError, UnavailableError
from pipelines.storage.object_store import Store
from pipelines.training import train
from pipelines.training.train import TrainReport
from pipelines.training.workflow import run_stages, run_workflow, training_name
from spin.settings import Settings
from tests.support import small_training
from tests.support.collectors import Receiver, receiving
from tests.support.fake_nights import before_call
from tests.support.leases import expire_lease

pytestmark = pytest.mark.slow

DOCUMENTS = 300
SEARCH = {"etas": [0.5], "strengths": [1], "network": "off", "words": "off"}


class Training:
    """A training that was interrupted before it registered its model, resumed, and overtaken later."""

    def __init__(self, folder: Path, receiver: Receiver) -> None:
        small_training.write_corpus(folder, DOCUMENTS, ("good", "bad"))
        self.folder, self.receiver = folder, receiver
        self.settings = self.make_settings("store")
        with before_call(train, "_register", fail), pytest.raises(UnavailableError):
            run_workflow(self.settings)
        self.report = run_workflow(self.settings)

    def make_settings(self, store: str) -> Settings:
        changes = {"search": SEARCH, "train": {"baselines": False}}
        return small_training.make_settings(self.folder, self.folder / store, **changes)


def fail() -> None:
    raise UnavailableError("the registry does not answer")


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Training]:
    with receiving() as receiver, pytest.MonkeyPatch.context() as patch:
        for variable in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OPENLINEAGE_URL"):
            patch.setenv(variable, receiver.url)
        yield Training(tmp_path_factory.mktemp("observed"), receiver)


def test_a_training_is_one_trace(training: Training) -> None:
    """Stages are below the root, and the shards of the extraction below its stage, which is there once."""
    first, second = training.receiver.named("training")
    assert (first.failed, first.message, first.attributes["spin.exit_status"]) == (
        True,
        "the registry does not answer",
        5,
    )
    assert (second.failed, second.attributes["spin.model_version"]) == (False, "1")
    assert {first.attributes["spin.run"], second.attributes["spin.run"]} == {training_name(training.settings)}
    assert (second.attributes["spin.input.rows"], second.attributes["spin.input.files"]) == (DOCUMENTS, 1)
    for root, shards in ((first, 3), (second, 0)):
        stages = [span for span in training.receiver.spans if span.parent == root.id]
        assert [span.name for span in stages] == ["extract", "probe", "train"]
        below = [span for span in training.receiver.spans if span.parent == stages[0].id]
        assert [span.name for span in below] == ["shard"] * shards


def test_a_resumed_training_is_linked_to_its_earlier_process(training: Training) -> None:
    """The store keeps the root span of each process in a folder of its own."""
    first, second = training.receiver.named("training")
    assert second.links == ((first.trace, first.id),)
    names = Store(training.settings.store.uri).list("traces")
    assert len(names) == 2


def test_a_training_completes_in_lineage(training: Training) -> None:
    """The corpus is read, and a version of the model is written; the two processes have the same parent."""
    states = [event["eventType"] for event in training.receiver.events]
    assert states[:4] == ["START", "FAIL", "START", "COMPLETE"]
    _, failed, _, complete = training.receiver.events[:4]
    assert complete["job"]["name"] == "training.tiny"
    [read], [written] = complete["inputs"], complete["outputs"]
    assert (read["namespace"], read["name"]) == ("file", str(training.folder / "train.parquet"))
    figures = read["inputFacets"]["inputStatistics"]
    size = (training.folder / "train.parquet").stat().st_size
    assert (figures["rowCount"], figures["fileCount"], figures["size"]) == (DOCUMENTS, 1, size)
    assert (written["namespace"], written["name"]) == ("mlflow", "tiny")
    assert written["facets"]["version"]["datasetVersion"] == "1"
    assert "nominalTime" not in complete["run"]["facets"]
    assert failed["run"]["facets"]["parent"]["run"] == complete["run"]["facets"]["parent"]["run"]


def test_an_overtaken_training_is_aborted(training: Training) -> None:
    """Another process takes the lease of the stage and finishes it; the trace of this one ends with its error."""
    settings, before = training.make_settings("overtaken"), len(training.receiver.events)

    def overtake() -> None:
        expire_lease(Store.of(settings) / "model")
        run_stages(settings, ["train"])

    with before_call(train, "_fit", overtake), pytest.raises(HeldError):
        run_workflow(settings)
    overtaken, successor = training.receiver.named("training")[-2:]
    assert (overtaken.failed, overtaken.attributes["error.type"]) == (True, "HeldError")
    assert (successor.failed, successor.links) == (False, ((overtaken.trace, overtaken.id),))
    events = [event["eventType"] for event in training.receiver.events[before:]]
    assert events == ["START", "START", "COMPLETE", "ABORT"]


def test_a_single_stage_is_traced_too(training: Training) -> None:
    settings = training.make_settings("single")
    run_stages(settings, ["extract"])
    root = training.receiver.named("training")[-1]
    assert [span.name for span in training.receiver.spans if span.parent == root.id] == ["extract"]


def logged(settings: Settings, report: TrainReport) -> Any:
    """The one input of the run of a training in MLflow."""
    tracking = Tracking(settings)
    with tracking.session():
        [input] = tracking.client.get_run(report.registered.run_id).inputs.dataset_inputs
        return input


def test_mlflow_names_the_data_of_a_training(training: Training) -> None:
    """Its source is one that MLflow can load, and its profile has documents, classes and splits."""
    input = logged(training.settings, training.report)
    dataset = input.dataset
    assert [(tag.key, tag.value) for tag in input.tags] == [("mlflow.data.context", "training")]
    assert dataset.name == "tiny"
    assert mlflow.data.get_source(dataset).uri == str(training.folder / "train.parquet")
    profile = json.loads(dataset.profile)
    assert sum(profile.pop("splits").values()) == DOCUMENTS
    size = (training.folder / "train.parquet").stat().st_size
    assert profile == {
        "documents": DOCUMENTS,
        "files": 1,
        "bytes": size,
        "classes": ["bad", "good"],
        "multilabel": False,
    }
    assert [column["name"] for column in json.loads(dataset.schema)["mlflow_colspec"]] == ["id", "text"]


def test_the_digest_changes_with_the_data(training: Training) -> None:
    """The same corpus, trained again, gives the same digest, and one with another label another digest."""
    corpus = training.folder / "train.parquet"
    again, changed = training.make_settings("again"), training.make_settings("changed")
    digests = [logged(training.settings, training.report).dataset.digest]
    digests.append(logged(again, run_workflow(again)).dataset.digest)
    table, before = pq.read_table(corpus), corpus.read_bytes()
    labels = table["label"].to_pylist()
    labels[0] = "bad" if labels[0] == "good" else "good"
    try:
        pq.write_table(table.set_column(table.column_names.index("label"), "label", [labels]), corpus)
        digests.append(logged(changed, run_workflow(changed)).dataset.digest)
    finally:
        corpus.write_bytes(before)
    assert digests[0] == digests[1]
    assert digests[1] != digests[2]
