"""The whole workflow, run → promote → classify, with Ray and the real S3 server.

tests/docs/test_tutorials.py follows the same workflow by command, in a folder.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data.feature_pool import FeaturePool
from pipelines.data.feature_store import FeaturePlan
from pipelines.data.files.shards import Piece, Shard
from pipelines.data.spool import read_texts
from pipelines.nightly.classify import run_classify
from pipelines.nightly.command_result import check_drift
from pipelines.nightly.tables.night_history import read_predictions
from pipelines.nightly.tables.night_tables import DEAD_LETTERS, NightTables, read_rows
from pipelines.registry.promotion import promote
from pipelines.registry.versions import CHALLENGER, CHAMPION, Registry
from pipelines.service_errors import DriftError
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import Attempt, ShardCounts, ShardOutcome, StepResult
from pipelines.storage.stage_plan import read_plan
from pipelines.training.evaluate import run_evaluate
from pipelines.training.extract_features import load_features, open_corpus
from pipelines.training.fit_probes import read_words, run_probe
from pipelines.training.train import run_train
from pipelines.training.workflow import run_stages, run_workflow
from pipelines.workers.map_shards import ShardWork, map_shards
from spin.errors import UserError
from spin.labels.split_groups import hash_text
from spin.settings import RaySettings, Settings, parse_settings
from tests.support import tiny
from tests.support.registry_databases import create_database

CLASSES = ("good", "bad", "plain")
WITHOUT_RAY = {"workers": 0, "shard_documents": 200}
SEARCH = {"etas": [0.5, 0.9], "max_share": 0.5, "strengths": [1, 10], "network": "off", "words": "off"}
"""words alone would be right on every document of these tests"""

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def project(s3_server: str, tmp_path_factory: pytest.TempPathFactory, all_folds: None) -> Project:
    """A project on S3 whose first version is trained and promoted, in as many folds here as in the workers of Ray."""
    folder = tmp_path_factory.mktemp("project")
    return Project(folder, f"{s3_server}/{folder.name}-{os.getpid()}")


class Project:
    """Trains and promotes version 1 of a tiny project; holds its settings, its registry and the events of the run."""

    def __init__(self, folder: Path, base: str) -> None:
        self.folder, self.base = folder, base
        self.backbone = tiny.save_bert(folder / "bert")
        self.documents = tiny.make_documents(1500, CLASSES)
        self.write("train.parquet", self.documents)
        self.settings = self.make_settings()
        self.without_ray = self.make_settings(ray=WITHOUT_RAY)
        """settings that run every stage in this process, for tests whose subject is not Ray"""
        self.registry = Registry(self.settings)
        self.events: list[tuple[str, bool]] = []
        """(stage, resumed) of each finished stage"""
        self.report = run_workflow(
            self.settings, on_stage=lambda event: self.events.append((event.stage, event.resumed))
        )
        promote.promote(self.registry, "1", "the first")

    def write(self, name: str, rows: list[dict[str, Any]]) -> str:
        """Write rows to a Parquet file in the project's store; returns its URI."""
        store = Store(self.base)
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=100)
        store.write(f"data/{name}", sink.getvalue().to_pybytes())
        return f"{self.base}/data/{name}"

    def make_settings(self, **changes: Any) -> Settings:
        """Settings of the project with some sections replaced."""
        tree = {
            "backbone": {"model": str(self.backbone), "dtype": "float32", "device": "cpu"},
            "data": {"train": f"{self.base}/data/train.parquet"},
            "store": f"{self.base}/store",
            "mlflow": {"model": "tiny", "tracking_uri": create_database(self.folder / "mlflow.db")},
            "ray": {"workers": 2, "shard_documents": 200},
            "probe": {"penalties": 5},
            "search": SEARCH,
        }
        return parse_settings({**tree, **changes})


def stage_results(settings: Settings, stage: str) -> Store:
    """The folder of a stage's results, which is named after its plan."""
    store = Store.of(settings) / stage
    plan = read_plan(store, dict[str, Any])
    assert plan is not None
    return store / plan.folder


def test_a_run_trains_and_registers_a_challenger_and_writes_its_report(project: Project) -> None:
    """Every stage runs. report.json holds the table of contenders, the fingerprint and the counts."""
    assert project.events == [("extract", False), ("probe", False), ("train", False)]
    report = Store(project.settings.store.uri).read_json("report.json")
    rows = {row["name"]: row for row in report["table"]}
    assert list(rows)[:4] == ["tfidf", "last_layer", "best_site", "spin"]
    scores = {"accuracy", "accuracy_interval", "macro_f1", "macro_f1_interval", "documents"}
    fields = {"name", *scores, "neurons", "neurons_of", "words", "depth", "depth_of", "docs_per_s"}
    assert all(set(row) == fields for row in rows.values())
    assert rows["spin"]["macro_f1"] > 0.8
    assert rows["spin"]["neurons"] < rows["spin"]["neurons_of"] == 2 * (4 * 16 + 3 * 24)
    assert report["fingerprint"] == project.report.fingerprint
    assert report["stages"]["extract"]["rows"] == 1500
    assert CHALLENGER in project.registry.versions()[-1].aliases


def test_words_that_are_wanted_later_leave_the_probes_as_they_are(project: Project) -> None:
    """They are fitted once, beside the probes and the ridge regression of a training without words."""
    store = stage_results(project.settings, "probes")
    before = {key: store.read(key) for key in store.list() if key.endswith((".safetensors", ".ridge"))}
    assert before
    assert not store.exists("words.tfidf")
    wanted = project.make_settings(search={**SEARCH, "words": "auto"}, ray=WITHOUT_RAY)
    with pytest.raises(UserError, match="run the probe stage again, which keeps them, or set search.words: off"):
        run_train(wanted, project.registry)
    manifest = run_probe(wanted)
    assert {key: store.read(key) for key in before} == before
    words = read_words(store)
    assert words is not None
    assert [len(logits) for logits in words.held_out]
    assert run_probe(wanted) == manifest
    store.delete_many(["words.tfidf"])


def test_a_second_run_resumes_and_computes_nothing(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished stages start no cluster, load no backbone and register no version."""

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished stage did work")

    functions = (
        "extract_features.map_shards",
        "extract_features.load_backbone",
        "fit_probes.run_group",
        "fit_heads.run_group",
        "train._fit",
        "train._register",
    )
    for function in functions:
        monkeypatch.setattr(f"pipelines.training.{function}", fail)
    events: list[tuple[str, bool]] = []
    run_workflow(project.settings, on_stage=lambda event: events.append((event.stage, event.resumed)))
    assert events == [("extract", True), ("probe", True), ("train", True)]
    assert len(project.registry.versions()) == 1


def test_lost_shards_and_probes_are_computed_again_with_the_same_bytes(project: Project) -> None:
    """A store that has lost a shard, a probe and its manifests, as after a crash, is restored by a second run."""
    store = Store(project.settings.store.uri)
    extract, probes = store / "features", stage_results(project.settings, "probes")
    plan = read_plan(extract, FeaturePlan)
    assert plan is not None
    features = extract / FeaturePool(extract, plan.derived.form).folder
    other, lost = (shard.name for shard in plan.derived.unread[:2])

    def read_files() -> dict[str, bytes | None]:
        """The probe, and the files of the shard, whose names have the number of the run in them."""
        keys = sorted(key for key in features.list("parts") if key.startswith(f"parts/{lost}-"))
        files = {key.partition(".")[2]: features.read(key) for key in keys}
        return {**files, "probe": probes.read("ffn.02.max.safetensors")}

    before, other_shard = read_files(), features.read_json(f"parts/{other}.json")
    assert list(before) == ["features.parquet", "texts.parquet", "probe"]
    assert other_shard is not None
    for key in features.list("parts"):
        if key.startswith(f"parts/{lost}"):
            features.delete_many([key])
    probes.delete_many(["ffn.02.max.safetensors"])
    for key in ("features/manifest.json", "probes/manifest.json"):
        store.delete_many([key])
    run_workflow(project.without_ray)
    assert read_files() == before
    assert features.read_json(f"parts/{other}.json") == other_shard
    probes.delete_many(["ffn.02.max.safetensors"])  # although the stage has finished
    run_stages(project.without_ray, ["probe"])
    assert read_files() == before


def test_changed_settings_are_refused_with_both_values(project: Project) -> None:
    """A stage names the setting that changed since it ran. The number of workers may change."""
    changed = project.make_settings(metric="accuracy")
    with pytest.raises(UserError, match=r"probe: .*metric is \"accuracy\", was \"macro_f1\".*--restart"):
        run_stages(changed, ["probe"])
    with pytest.raises(UserError, match=r"probe: .*probe\.penalties is 4, was 5"):
        run_stages(project.make_settings(probe={"penalties": 4}), ["train"])
    backbone = {**project.settings.backbone.model_dump(), "max_tokens": 32}
    with pytest.raises(UserError, match=r"extract: .*backbone\.max_tokens is 32, was 256"):
        run_stages(project.make_settings(backbone=backbone), ["train"])
    with pytest.raises(UserError, match=r"extract: .*backbone.max_tokens is 32, was 256"):
        run_stages(project.make_settings(backbone=backbone), ["extract"])
    run_stages(project.make_settings(ray={"workers": 1, "shard_documents": 200}), ["extract", "probe"])


def test_every_row_of_a_night_is_predicted_or_a_dead_letter(project: Project) -> None:
    """Valid rows get the labels that the classifier gives; the others are dead letters with their reasons."""
    batch = tiny.make_documents(170, CLASSES, seed=9)
    rejected: list[dict[str, Any]] = [
        {"id": None, "text": "a fine day"},
        {"id": "n1", "text": None},
        {"id": "n2", "text": "   "},
        {"id": batch[3]["id"], "text": "the crew was late"},
    ]
    source = project.write("night.parquet", [*({k: row[k] for k in ("id", "text")} for row in batch), *rejected])
    output = f"{project.base}/nights"
    report = run_classify(project.settings, project.registry, source, output, night="2026-01-31")
    counts = report.counts
    assert (counts.rows, counts.predicted, counts.dead) == (174, 170, 4)
    assert counts.reasons == {"null_id": 1, "null_text": 1, "empty_text": 1, "repeated_id": 1}
    rows = read_predictions(output)
    assert [row["id"] for row in rows] == [row["id"] for row in batch]
    spin = project.registry.load("1")
    assert [row["label"] for row in rows] == list(spin.predict([row["text"] for row in batch]))
    assert {row["model_version"] for row in rows} == {"1"}
    np.testing.assert_allclose([sum(row["scores"].values()) for row in rows], 1, atol=1e-5)
    out = Store(output)
    assert out.read_json("report.json")["counts"] == asdict(counts)
    dead = read_rows(NightTables(out).open(DEAD_LETTERS), {"date": "2026-01-31"}).to_pylist()
    assert [letter["reason"] for letter in dead] == ["null_id", "null_text", "empty_text", "repeated_id"]
    again = run_classify(project.settings, project.registry, source, output, night="2026-01-31")
    assert again == report
    [logged] = search_mlflow_runs(project, "2026-01-31")
    assert logged.data.metrics["rows"] == 174
    assert logged.data.metrics["dead_rate"] == pytest.approx(4 / 174)
    assert logged.data.metrics["documents_per_s"] > 0
    assert logged.data.tags["spin.version"] == "1"
    assert logged.data.metrics["psi_labels"] == report.drift[0].psi < report.drift[0].limit
    assert "174 documents" in (out.read("report.html") or b"").decode().replace("</b>", "")


def test_a_drifted_night_is_published_and_reported(project: Project) -> None:
    """Documents of a single class, their texts three times as long, drift in labels and lengths."""
    batch = [row for row in tiny.make_documents(240, CLASSES, seed=9) if row["label"] == CLASSES[0]]
    source = project.write("drifted.parquet", [{"id": row["id"], "text": 3 * f"{row['text']} "} for row in batch])
    output = f"{project.base}/drifted"
    usual = project.write("usual.parquet", [{k: row[k] for k in ("id", "text")} for row in project.documents[:99]])
    run_classify(project.without_ray, project.registry, usual, output, night="2026-01-01")
    report = run_classify(project.without_ray, project.registry, source, output, night="2026-01-02")
    drifted = {drift.name for drift in report.drift if drift.drifted}
    assert {"labels", "lengths"} <= drifted
    labels = report.drift[0]
    assert sum(labels.now) == len(batch)
    assert sum(labels.then) == project.report.results.counts["test"]
    assert report.before is not None
    assert report.before.date == "2026-01-01"
    assert sum(report.before.counts.labels.values()) == 99
    with pytest.raises(DriftError, match=r"is published, but it drifted from training: labels .*report\.html") as error:
        check_drift(report)
    assert error.value.status == 7
    assert len(read_predictions(output)) == len(batch)


def search_mlflow_runs(project: Project, night: str) -> list[Any]:
    """Return the MLflow runs of a night."""
    from mlflow import MlflowClient

    client = MlflowClient(project.registry.tracking.uri)
    [experiment] = [candidate for candidate in client.search_experiments() if candidate.name == "tiny"]
    return list(client.search_runs([experiment.experiment_id], f"tags.`spin.night` = '{night}'"))


def test_no_credential_is_written(project: Project) -> None:
    """The keys of the store are neither in its features, models and nights nor in MLflow's database and artifacts."""
    names = ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID")
    secrets = [os.environ[name].encode() for name in names if name in os.environ]
    store = Store(project.base)
    written = [store.read(key) or b"" for key in store.list()]
    written += [path.read_bytes() for path in project.folder.rglob("*") if path.is_file()]
    assert len(written) > 40
    assert not [secret for secret in secrets for data in written if secret in data]


def test_evaluate_agrees_with_the_predictions(project: Project) -> None:
    """Accuracy and per-class counts follow from the classifier's predictions. An unknown label is refused."""
    rows = tiny.make_documents(60, CLASSES, seed=4)
    source = project.write("check.parquet", rows)
    evaluation = run_evaluate(project.settings, project.registry, source)
    predicted = project.registry.load("1").predict([row["text"] for row in rows])
    correct = [label == row["label"] for label, row in zip(predicted, rows, strict=True)]
    assert evaluation.metrics["accuracy"] == np.mean(correct)
    assert evaluation.intervals["accuracy"][0] < evaluation.metrics["accuracy"] <= evaluation.intervals["accuracy"][1]
    assert {name: figures.support for name, figures in evaluation.per_class.items()} == dict.fromkeys(CLASSES, 20)
    unknown = project.write("unknown.parquet", [{**rows[0], "label": "other"}])
    with pytest.raises(UserError, match="label 'other' is not one of the model's: bad, good, plain"):
        run_evaluate(project.settings, project.registry, unknown)


def test_choose_and_decision_change_a_night_without_training(project: Project) -> None:
    """The cheapest classifier reads fewer blocks; documents whose two highest scores are close get no label."""
    source = project.write("choice.parquet", [{k: row[k] for k in ("id", "text")} for row in project.documents[:50]])
    cheapest = project.make_settings(choose="cheapest", decision={"abstain": 0.6}, ray=WITHOUT_RAY)
    output = f"{project.base}/choice"
    counts = run_classify(cheapest, project.registry, source, output, night="2026-02-03").counts
    rows = read_predictions(output)
    spin = Registry(cheapest).load("1")
    assert {row["depth"] for row in rows} == {spin.training_result.choices["cheapest"].selection.depth}
    margins = [np.diff(np.sort(list(row["scores"].values()))[-2:])[0] for row in rows]
    assert [row["label"] is None for row in rows] == [margin < 0.6 for margin in margins]
    assert 0 < counts.abstained == sum(row["label"] is None for row in rows) < 50


@pytest.mark.usefixtures("gate_in_process")
def test_a_multilabel_corpus_is_trained_promoted_evaluated_and_classified(
    tmp_path: Path, backbone_folder: Path
) -> None:
    """A small corpus whose labels are lists, trained by cross-validation."""
    rows: list[dict[str, Any]] = tiny.make_documents(160, CLASSES)
    for number, row in enumerate(rows):
        row["label"] = [[row["label"]], [], sorted({row["label"], "extra"})][number // 3 % 3]
        row["text"] += " !" * ("extra" in row["label"])
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    settings = parse_settings(
        {
            "backbone": {"model": str(backbone_folder), "dtype": "float32", "device": "cpu"},
            "data": {"train": str(tmp_path / "train.parquet")},
            "store": str(tmp_path / "store"),
            "mlflow": {"model": "tiny"},
            "ray": {"workers": 0},
            "probe": {"penalties": 3, "max_extra": 0, "class_weights": "balanced"},
            "search": {"etas": [0.9], "max_share": 0.5, "strengths": [3], "network": "off"},
            "promote": {"max_ece": 0.3},
        }
    )
    registry = Registry(settings)
    results = run_workflow(settings).results
    assert results.classes == ("bad", "extra", "good", "plain")
    assert results.multilabel
    promote.promote(registry, "1", "lists")
    evaluation = run_evaluate(settings, registry, settings.data.train)
    assert evaluation.per_class["extra"].f1 > 0.7  # 0 for a model that has learned nothing
    night = run_classify(settings, registry, settings.data.train, str(tmp_path / "out"))
    predicted: dict[str, Any] = {row["id"]: row["labels"] for row in read_predictions(str(tmp_path / "out"))}
    assert all(isinstance(label, list) for label in predicted.values())
    accuracy = np.mean([("extra" in predicted[row["id"]]) == ("extra" in row["label"]) for row in rows])
    assert accuracy > 0.75
    assert night.counts.labels["extra"] == sum("extra" in label for label in predicted.values())


def test_the_registered_model_loads_in_mlflow(project: Project) -> None:
    """`mlflow.pyfunc.load_model` alone gives the same labels. The model has a signature and an input example."""
    import mlflow
    import pandas as pd

    with project.registry.tracking.session():
        model = mlflow.pyfunc.load_model(f"models:/tiny@{CHAMPION}")
    texts = [row["text"] for row in project.documents[:7]]
    predictions = model.predict(pd.DataFrame({"text": texts}))
    assert list(predictions["label"]) == list(project.registry.load("1").predict(texts))
    assert model.metadata.signature.inputs.input_names() == ["text"]
    assert model.metadata.saved_input_example_info is not None


@pytest.mark.usefixtures("gate_in_process")
def test_the_second_version_is_judged_on_the_evaluation_set_of_the_first(project: Project) -> None:
    """The documents of the evaluation set never serve for training; a version below a limit is refused."""
    evaluation_set = project.registry.evaluation_set()
    assert evaluation_set.ids
    assert list(evaluation_set.groups) == [f"{hash_text(text):016x}" for text in evaluation_set.texts]
    second = project.make_settings(store=f"{project.base}/second", seed=7, ray=WITHOUT_RAY)
    run_workflow(second)
    counts = Store(second.store.uri).read_json("model/manifest.json")["counts"]
    assert counts["test"] >= len(evaluation_set.ids)
    assert project.registry.evaluation_set() == evaluation_set
    strict = Registry(project.make_settings(promote={"min_score": 1.0}))
    with pytest.raises(UserError, match=r"version 2 of tiny is not promoted: .*score: .* expected at least 100\.0"):
        promote.promote(strict, "2", "worse")
    assert project.registry.champion() == "1"


class KilledOnce:
    """A step that kills its worker on shard 2, the first time only."""

    def __init__(self, marker: str) -> None:
        self.marker = Path(marker)

    def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[ShardCounts]:
        if shard.index == 2 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return StepResult({"txt": shard.name.encode()}, ShardCounts(rows=1))


class Failing:
    """A step that raises an error on shard 3."""

    def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[ShardCounts]:
        if shard.index == 3:
            raise UserError("shard 3 holds nonsense; mend it")
        return StepResult({"txt": b"ok"}, ShardCounts(rows=1))


def run_step(make: Callable[..., Any], args: tuple[Any, ...], store: Store) -> list[ShardOutcome[ShardCounts]]:
    """Run a step on six shards with two workers."""
    shards = [Shard(n, (Piece("nowhere", "jsonl", n, n + 1),)) for n in range(6)]
    with Lease(store) as lease:
        work = ShardWork(make, args, ShardCounts, store, RaySettings(workers=2), stage="trial", claim=lease.number)
        return map_shards(work, shards, lease, documents=6)


def test_a_killed_worker_does_not_change_the_result(tmp_path: Path) -> None:
    """A worker is killed with SIGKILL in the middle of a shard; all shards are committed."""
    store = Store(str(tmp_path / "store"))
    outcomes = run_step(KilledOnce, (str(tmp_path / "marker"),), store)
    assert (tmp_path / "marker").exists()
    assert len(outcomes) == 6
    assert [store.read(key) for outcome in outcomes for key in outcome.files] == [f"{n:06d}".encode() for n in range(6)]


def test_an_error_in_a_worker_reaches_the_driver_and_keeps_finished_shards(tmp_path: Path) -> None:
    """The driver raises the error with the worker's message; shards that were committed before stay."""
    store = Store(str(tmp_path / "store"))
    with pytest.raises(UserError, match=r"^shard 3 holds nonsense; mend it$"):
        run_step(Failing, (), store)
    assert store.exists("parts/000000.json")


def test_shards_are_smaller_where_features_are_wide(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The features of a shard stay below a number of bytes, whatever `ray.shard_documents` is."""
    monkeypatch.setattr("pipelines.training.extract_features.MAX_SHARD_BYTES", 100 * (2 * 136 + 16) * 2)
    settings = project.make_settings(store=f"{project.base}/small_shards", ray=WITHOUT_RAY)
    run_stages(settings, ["extract"])
    plan, _, _ = load_features(settings)
    shards = open_corpus(settings, plan).shards
    assert max(shard.documents for shard in shards) <= 100
    assert sum(len(read_texts(shard)) for shard in shards) == 1500
