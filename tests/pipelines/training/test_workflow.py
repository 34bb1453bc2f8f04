"""The whole road, run → promote → classify, on a folder and on the real S3 server, with Ray."""

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

from pipelines.data import readers
from pipelines.data.readers import Shard
from pipelines.nightly.classify import run_classify
from pipelines.nightly.drift_check import check_drift
from pipelines.nightly.publish import read_predictions
from pipelines.registry import promote
from pipelines.registry.versions import CHALLENGER, CHAMPION, Registry
from pipelines.service_errors import BadRowsError, DriftError, UnavailableError
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import Attempt, ShardCounts, ShardOutcome, StepResult
from pipelines.training.evaluate import run_evaluate
from pipelines.training.workflow import run_stages, run_workflow
from pipelines.workers.map_shards import map_shards
from spin.errors import UserError
from spin.settings import RaySettings, Settings, parse_settings
from tests.support import tiny

CLASSES = ("good", "bad", "plain")

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module", params=["folder", pytest.param("s3", marks=pytest.mark.s3)])
def road(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path) -> Road:
    """A project that has been run and promoted, on a folder and on S3."""
    folder = tmp_path_factory.mktemp("road")
    base = str(folder)
    if request.param == "s3":
        base = f"{request.getfixturevalue('s3_server')}/{folder.name}-{os.getpid()}"
    return Road(folder, base, backbone_folder)


class Road:
    """Settings, registry and what the first run said."""

    def __init__(self, folder: Path, base: str, backbone: Path) -> None:
        self.folder, self.base = folder, base
        self.documents = tiny.documents(1500, CLASSES)
        self.write("train.parquet", self.documents)
        self.settings = self.with_settings()
        self.registry = Registry(self.settings)
        self.said: list[tuple[str, bool]] = []
        self.report = run_workflow(self.settings, on_stage=lambda event: self.said.append((event.stage, event.resumed)))
        promote.promote(self.registry, "1", "the first")

    def write(self, name: str, rows: list[dict[str, Any]]) -> str:
        store = Store(self.base)
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=100)
        store.write(f"data/{name}", sink.getvalue().to_pybytes())
        return f"{self.base}/data/{name}"

    def with_settings(self, **changes: Any) -> Settings:
        tree = {
            "backbone": {"model": str(self.backbone()), "dtype": "float32", "device": "cpu"},
            "data": {"train": f"{self.base}/data/train.parquet"},
            "store": f"{self.base}/store",
            "mlflow": {"model": "tiny", "tracking_uri": f"sqlite:///{self.folder}/mlflow.db"},
            "ray": {"workers": 2, "shard_documents": 200},
            "probe": {"penalties": 5},
            "search": {"etas": [0.5, 0.9], "max_share": 0.5, "strengths": [1, 10], "head": "linear"},
        }
        return parse_settings({**tree, **changes})

    def backbone(self) -> Path:
        folder = self.folder / "bert"
        return folder if folder.exists() else tiny.bert(folder)


def test_it_learns_registers_and_reports(road: Road) -> None:
    """Every stage ran, the challenger is registered, report.json holds the table and says what a person asks."""
    assert road.said == [("extract", False), ("probe", False), ("train", False)]
    report = Store(road.settings.store).read_json("report.json")
    rows = {row["name"]: row for row in report["table"]}
    assert list(rows)[:4] == ["tfidf", "last_layer", "best_site", "spin"]
    fields = {"name", "accuracy", "macro_f1", "neurons", "neurons_of", "depth", "depth_of", "docs_per_s"}
    assert all(set(row) == fields for row in rows.values())
    assert rows["spin"]["macro_f1"] > 0.8
    assert rows["spin"]["neurons"] < rows["spin"]["neurons_of"] == 2 * (4 * 16 + 3 * 24)
    assert report["fingerprint"] == road.report.fingerprint
    assert report["stages"]["extract"]["rows"] == 1500
    assert CHALLENGER in road.registry.versions()[-1].aliases


def test_a_second_run_resumes_and_computes_nothing(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished stages say so without a cluster, a backbone or a new version."""

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished stage did work")

    work = (
        "extract_features.map_shards",
        "extract_features.load_backbone",
        "fit_probes.run_group",
        "fit_heads.run_group",
        "train._fit",
        "train._register",
    )
    for name in work:
        monkeypatch.setattr(f"pipelines.training.{name}", never)
    said: list[tuple[str, bool]] = []
    run_workflow(road.settings, on_stage=lambda event: said.append((event.stage, event.resumed)))
    assert said == [("extract", True), ("probe", True), ("train", True)]
    assert len(road.registry.versions()) == 1


def test_lost_shards_and_probes_are_made_again_alike(road: Road) -> None:
    """A store that lost its manifest, a shard and a probe, as after a crash, gives the same bytes when run again."""
    store = Store(road.settings.store)
    lost = ["features/parts/000002.parquet", "features/parts/000002.json", "probes/ffn.02.max.safetensors"]
    before = {key: store.read(key) for key in lost[::2]}
    kept = store.read_json("features/parts/000001.json")
    for key in [*lost, "features/manifest.json", "probes/manifest.json"]:
        store.delete(key)
    run_workflow(road.settings)
    assert {key: store.read(key) for key in lost[::2]} == before
    assert store.read_json("features/parts/000001.json") == kept


def test_other_settings_are_refused_by_name(road: Road) -> None:
    """A changed setting is named with both values; worker counts do not matter."""
    changed = road.with_settings(metric="accuracy")
    with pytest.raises(UserError, match=r"probe: .*metric is \"accuracy\", was \"macro_f1\".*--restart"):
        run_stages(changed, ["probe"])
    with pytest.raises(UserError, match=r"probe: .*probe\.penalties is 4, was 5"):
        run_stages(road.with_settings(probe={"penalties": 4}), ["train"])
    backbone = {**road.settings.backbone.model_dump(), "max_tokens": 32}
    with pytest.raises(UserError, match=r"extract: .*backbone\.max_tokens is 32, was 256"):
        run_stages(road.with_settings(backbone=backbone), ["train"])
    with pytest.raises(UserError, match=r"extract: .*backbone.max_tokens is 32, was 256"):
        run_stages(road.with_settings(backbone=backbone), ["extract"])
    run_stages(road.with_settings(ray={"workers": 1, "shard_documents": 200}), ["extract", "probe"])


def test_a_night_has_every_row_once(road: Road) -> None:
    """Good rows are predicted as the classifier predicts them, the others are dead letters with their reasons."""
    batch = tiny.documents(170, CLASSES, seed=9)
    bad = [
        {"id": None, "text": "a fine day"},
        {"id": "n1", "text": None},
        {"id": "n2", "text": "   "},
        {"id": batch[3]["id"], "text": "the crew was late"},
    ]
    source = road.write("night.parquet", [{k: row[k] for k in ("id", "text")} for row in batch] + bad)
    output = f"{road.base}/nights"
    manifest = run_classify(road.settings, road.registry, source, output, night="2026-01-31")
    counts = manifest.counts
    assert (counts.rows, counts.predicted, counts.dead) == (174, 170, 4)
    assert counts.reasons == {"null_id": 1, "null_text": 1, "empty_text": 1, "repeated_id": 1}
    rows = read_predictions(output)
    assert [row["id"] for row in rows] == [row["id"] for row in batch]
    spin = road.registry.load("1")
    assert [row["label"] for row in rows] == list(spin.predict([row["text"] for row in batch]))
    assert {row["model_version"] for row in rows} == {"1"}
    np.testing.assert_allclose([sum(row["scores"]) for row in rows], 1, atol=1e-5)
    out = Store(output)
    assert out.read_json("report.json")["counts"] == asdict(counts)
    [letters] = out.list("dead_letters/date=2026-01-31")
    found = pq.read_table(pa.BufferReader(out.read(letters))).to_pylist()
    assert [letter["reason"] for letter in found] == ["null_id", "null_text", "empty_text", "repeated_id"]
    again = run_classify(road.settings, road.registry, source, output, night="2026-01-31")
    assert again == manifest
    [logged] = mlflow_runs(road, "2026-01-31")
    assert logged.data.metrics["rows"] == 174
    assert logged.data.metrics["dead_rate"] == pytest.approx(4 / 174)
    assert logged.data.metrics["documents_per_s"] > 0
    assert logged.data.tags["spin.version"] == "1"
    assert logged.data.metrics["psi_labels"] == manifest.drift[0].psi < manifest.drift[0].limit
    assert "174 documents" in (out.read("report.html") or b"").decode().replace("</b>", "")


def test_drift_is_told(road: Road) -> None:
    """Documents of one class, each said three times over: published whole all the same."""
    said = [row for row in tiny.documents(240, CLASSES, seed=9) if row["label"] == CLASSES[0]]
    source = road.write("odd.parquet", [{"id": row["id"], "text": 3 * f"{row['text']} "} for row in said])
    output = f"{road.base}/drifted"
    usual = road.write("usual.parquet", [{k: row[k] for k in ("id", "text")} for row in road.documents[:99]])
    run_classify(road.settings, road.registry, usual, output, night="2026-01-01")
    manifest = run_classify(road.settings, road.registry, source, output, night="2026-01-02")
    drifted = {drift.name for drift in manifest.drift if drift.drifted}
    assert {"labels", "lengths"} <= drifted
    labels = manifest.drift[0]
    assert sum(labels.now) == len(said)
    assert sum(labels.then) == road.report.results.counts["test"]
    assert manifest.before.date == "2026-01-01"
    assert sum(manifest.before.counts.labels.values()) == 99
    with pytest.raises(DriftError, match=r"is published, but it drifted from training: labels .*report\.html") as error:
        check_drift(manifest)
    assert error.value.status == 7
    assert len(read_predictions(output)) == len(said)


def mlflow_runs(road: Road, night: str) -> list[Any]:
    """The runs that MLflow has of a night."""
    from mlflow import MlflowClient

    client = MlflowClient(road.registry.tracking.uri)
    [experiment] = [found for found in client.search_experiments() if found.name == "tiny"]
    return list(client.search_runs([experiment.experiment_id], f"tags.`spin.night` = '{night}'"))


def test_no_credential_is_written(road: Road) -> None:
    """Not in features, probes, models, nights, MLflow's database or its artifacts."""
    names = ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID")
    secrets = [os.environ[name].encode() for name in names if name in os.environ]
    store = Store(road.base)
    written = [store.read(key) or b"" for key in store.list()]
    written += [path.read_bytes() for path in road.folder.rglob("*") if path.is_file()]
    assert len(written) > 40
    assert not [secret for secret in secrets for data in written if secret in data]


def test_too_many_dead_letters_publish_nothing(road: Road) -> None:
    """Status 4, with nothing where readers look; raising the limit publishes what was computed."""
    source = road.write("empty.parquet", [{"id": str(n), "text": "fine" if n else ""} for n in range(4)])
    output = f"{road.base}/strict"
    with pytest.raises(BadRowsError, match=r"1 of 4 rows cannot be classified .1 empty_text."):
        run_classify(road.settings, road.registry, source, output, night="2026-01-31")
    assert not [key for key in Store(output).list() if not key.startswith(("_lease/", "_runs/"))]
    loose = road.with_settings(classify={"max_dead_fraction": 0.5})
    assert run_classify(loose, road.registry, source, output, night="2026-01-31").counts.predicted == 3


def test_a_night_keeps_to_its_batch(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same night of other files is another run: refused with what differs until it is started over.

    Where that ends while parts are being published, readers see no night; a further run publishes what is there.
    """

    def full(*_: Any) -> None:
        raise UnavailableError("no space")

    source = road.write("night.parquet", [{k: row[k] for k in ("id", "text")} for row in road.documents[:20]])
    output = f"{road.base}/versions"
    run_classify(road.settings, road.registry, source, output, night="2026-02-01")
    more = road.write("night.parquet", [{k: row[k] for k in ("id", "text")} for row in road.documents[:30]])
    with pytest.raises(UserError, match=r"classify: .*files\.0\.size.*--restart"):
        run_classify(road.settings, road.registry, more, output, night="2026-02-01")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "move", full)
        with pytest.raises(UnavailableError, match="no space"):
            run_classify(road.settings, road.registry, more, output, night="2026-02-01", restart=True)
    with pytest.raises(UserError, match="has no finished night"):
        read_predictions(output)
    run_classify(road.settings, road.registry, more, output, night="2026-02-01")
    assert len(read_predictions(output)) == 30


def test_evaluate_agrees_with_the_predictions(road: Road) -> None:
    """Per-class figures on labelled rows equal what the predictions give, and an unknown label is named."""
    rows = tiny.documents(60, CLASSES, seed=4)
    source = road.write("check.parquet", rows)
    found = run_evaluate(road.settings, road.registry, source)
    predicted = road.registry.load("1").predict([row["text"] for row in rows])
    right = [label == row["label"] for label, row in zip(predicted, rows, strict=True)]
    assert found.metrics["accuracy"] == np.mean(right)
    assert {name: figures.support for name, figures in found.per_class.items()} == dict.fromkeys(CLASSES, 20)
    odd = road.write("odd.parquet", [{**rows[0], "label": "other"}])
    with pytest.raises(UserError, match="label 'other' is not one of the model's: bad, good, plain"):
        run_evaluate(road.settings, road.registry, odd)


def test_a_night_takes_another_classifier_and_abstains(road: Road) -> None:
    """`choose` and `decision` need no training: the cheapest runs fewer blocks, and near a border there is no label."""
    source = road.write("choice.parquet", [{k: row[k] for k in ("id", "text")} for row in road.documents[:50]])
    cheap = road.with_settings(choose="cheapest", decision={"abstain": 0.6})
    output = f"{road.base}/choice"
    counts = run_classify(cheap, road.registry, source, output, night="2026-02-03").counts
    rows = read_predictions(output)
    spin = Registry(cheap).load("1")
    assert {row["depth"] for row in rows} == {spin.training_result.choices["cheapest"].selection.depth}
    lead = [np.diff(np.sort(row["scores"])[-2:])[0] for row in rows]
    assert [row["label"] is None for row in rows] == [margin < 0.6 for margin in lead]
    assert 0 < counts.abstained == sum(row["label"] is None for row in rows) < 50


@pytest.mark.usefixtures("ray_session")
def test_a_multilabel_corpus_goes_the_whole_road(tmp_path: Path, backbone_folder: Path) -> None:
    """Few documents with lists of labels: trained by cross-validation, gated, classified and evaluated."""
    rows: list[dict[str, Any]] = tiny.documents(160, CLASSES)
    for number, row in enumerate(rows):
        row["label"] = [[row["label"]], [], sorted({row["label"], "extra"})][number // 3 % 3]
        row["text"] += " !" * ("extra" in row["label"])
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    settings = parse_settings(
        {
            "backbone": {"model": str(backbone_folder), "dtype": "float32", "device": "cpu"},
            "data": {"train": str(tmp_path / "train.parquet")},
            "store": str(tmp_path / "store"),
            "ray": {"workers": 2},
            "probe": {"penalties": 3, "max_extra": 0, "class_weights": "balanced"},
            "search": {"etas": [0.9], "max_share": 0.5, "strengths": [3], "l1": [], "head": "linear"},
            "promote": {"max_ece": 0.3},
        }
    )
    registry = Registry(settings)
    results = run_workflow(settings).results
    assert results.classes == ("bad", "extra", "good", "plain")
    assert results.multilabel
    promote.promote(registry, "1", "lists")
    found = run_evaluate(settings, registry, settings.data.train)
    assert found.per_class["extra"].f1 > 0.7  # 0 for a model that has learned nothing
    night = run_classify(settings, registry, settings.data.train, str(tmp_path / "out"))
    predicted = {row["id"]: row["label"] for row in read_predictions(str(tmp_path / "out"))}
    assert all(isinstance(label, list) for label in predicted.values())
    right = np.mean([("extra" in predicted[row["id"]]) == ("extra" in row["label"]) for row in rows])
    assert right > 0.75
    assert night.counts.labels["extra"] == sum("extra" in label for label in predicted.values())


def test_the_registered_model_loads_in_mlflow(road: Road) -> None:
    """A stranger's `mlflow.pyfunc.load_model` gives the same labels; signature and input example are there."""
    import mlflow
    import pandas as pd

    with road.registry.tracking.session():
        model = mlflow.pyfunc.load_model(f"models:/tiny@{CHAMPION}")
    texts = [row["text"] for row in road.documents[:7]]
    answer = model.predict(pd.DataFrame({"text": texts}))
    assert list(answer["label"]) == list(road.registry.load("1").predict(texts))
    assert model.metadata.signature.inputs.input_names() == ["text"]
    assert model.metadata.saved_input_example_info is not None


def test_promotion_rollback_and_the_frozen_set(road: Road) -> None:
    """A poor version is refused, a good one promoted, rollback goes back, history tells; frozen ids never train."""
    first = road.registry.evaluation_set()
    assert first is not None
    frozen = first.ids
    assert frozen
    other = road.with_settings(store=f"{road.base}/second", seed=7)
    run_workflow(other)
    labels = Store(other.store).read_json("model/manifest.json")["counts"]
    assert labels["test"] >= len(frozen)
    assert road.registry.evaluation_set() == first
    strict = Registry(road.with_settings(promote={"min_score": 1.0}))
    with pytest.raises(UserError, match=r"version 2 of tiny is not promoted: .*score: .* expected at least 100\.0"):
        promote.promote(strict, "2", "worse")
    assert road.registry.champion() == "1"
    loose = Registry(road.with_settings(promote={"max_regression": 0.5, "max_ece": 0.5}))
    assert promote.promote(loose, "2", "as good").forced == ()
    assert road.registry.champion() == "2"
    promote.rollback(road.registry, "a complaint")
    assert road.registry.champion() == "1"
    moves = [(event.from_version, event.to_version, event.why) for event in promote.history(road.registry)]
    assert moves == [(None, "1", "the first"), ("1", "2", "as good"), ("2", "1", "a complaint")]
    assert all(event.who and event.when for event in promote.history(road.registry))


def test_a_version_that_does_not_load_is_refused(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate loads what is registered for real: an empty folder is not promoted."""
    monkeypatch.setattr(Registry, "champion", lambda _: None)
    monkeypatch.setattr(Registry, "download_model", lambda _self, _number, folder: folder)
    with pytest.raises(UserError, match="version 1 of tiny is not promoted: loads: .*MLmodel.*; correct what it names"):
        promote.promote(road.registry, "1", "")


class KilledOnce:
    """A step whose worker is killed on one shard, once."""

    def __init__(self, marker: str) -> None:
        self.marker = Path(marker)

    def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[ShardCounts]:
        if shard.index == 2 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return StepResult({"txt": shard.name.encode()}, ShardCounts(rows=1))


class Failing:
    """A step that finds something wrong with one shard."""

    def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[ShardCounts]:
        if shard.index == 3:
            raise UserError("shard 3 holds nonsense; mend it")
        return StepResult({"txt": b"ok"}, ShardCounts(rows=1))


def run_step(make: Callable[..., Any], args: tuple[Any, ...], store: Store) -> list[ShardOutcome[ShardCounts]]:
    shards = [Shard(n, "nowhere", "jsonl", n, n + 1) for n in range(6)]
    with Lease(store) as lease:
        return map_shards(
            make,
            args,
            shards,
            store,
            RaySettings(workers=2),
            counts_type=ShardCounts,
            stage="trial",
            documents=6,
            lease=lease,
        )


def test_a_killed_worker_does_not_change_the_result(tmp_path: Path) -> None:
    """SIGKILL in the middle of a shard: all shards are published all the same."""
    store = Store(str(tmp_path / "store"))
    outcomes = run_step(KilledOnce, (str(tmp_path / "marker"),), store)
    assert (tmp_path / "marker").exists()
    assert len(outcomes) == 6
    assert [store.read(f"parts/{n:06d}.txt") for n in range(6)] == [f"{n:06d}".encode() for n in range(6)]


def test_an_error_in_a_worker_keeps_its_words_and_what_was_done(tmp_path: Path) -> None:
    """The driver raises the worker's own error; shards that were committed before are kept."""
    store = Store(str(tmp_path / "store"))
    with pytest.raises(UserError, match=r"^shard 3 holds nonsense; mend it$"):
        run_step(Failing, (), store)
    assert store.exists("parts/000000.json")


def test_shards_hold_at_most_their_share_of_memory(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where features are wide, a shard holds fewer documents than the settings ask for."""
    monkeypatch.setattr("pipelines.training.extract_features.MAX_SHARD_BYTES", 100 * (2 * 136 + 16) * 2)
    narrow = road.with_settings(store=f"{road.base}/narrow")
    run_stages(narrow, ["extract"])
    plan = Store(narrow.store).read_json("features/plan.json")
    shards = [Shard(**shard) for shard in plan["detail"]["shards"]]
    assert max(shard.stop - shard.start for shard in shards) <= 100
    assert sum(len(readers.read_shard(shard, narrow.data)) for shard in shards) == 1500
