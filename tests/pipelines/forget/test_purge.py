"""A purge deletes what reveals the documents of a training, and the trained model goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.forget import purge
from pipelines.forget.purge import PurgePlan, plan_purge, run_purge
from pipelines.nightly.classify import run_classify
from pipelines.nightly.tables.night_history import read_predictions
from pipelines.registry.versions import Registry
from pipelines.service_errors import HeldError
from pipelines.storage import stage_plan
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.storage.stage_plan import finished_fingerprint
from pipelines.training.extract_features import load_features, run_extract
from pipelines.training.workflow import TrainingStage, run_stages, run_workflow
from spin.errors import UserError
from spin.settings import Settings, parse_settings
from tests.support import small_training, tiny
from tests.support.leases import expire_lease

pytestmark = pytest.mark.slow

DAY = timedelta(days=1)
STAGES = ("features", "kept", "probes", "model")
WORK = {
    "features": ("manifest.json", "plan.json", "a/parts/000000.features.parquet", "a/parts/000000.json"),
    "kept": ("b/manifest.json", "b/parts/000000.features.parquet", "b/plan.json"),
    "probes": ("c/ffn.01.mean.safetensors", "c/words.tfidf", "manifest.json", "plan.json"),
    "model": (
        "d/heads/all/config.json",
        "d/heads/all/model.safetensors",
        "d/heads/config.json",
        "d/heads/progress.json",
    ),
}
"""what is deleted of each stage"""
SPOOLED = ("spool/e/000000.parquet", "spool/e/000001.parquet")
DELETED = sorted([*(f"{stage}/{key}" for stage, keys in WORK.items() for key in keys), *SPOOLED, "suspects.parquet"])
MODEL = ("config.json", "d/registered/1.json", "held_out.safetensors", "manifest.json", "neurons.json", "plan.json")
"""what stays of the train stage once it has finished"""
LEFT = sorted([*(f"model/{key}" for key in MODEL), "backbones/e/model.safetensors", "mlflow.db", "report.json"])


@pytest.fixture
def store(store_uri: str) -> Store:
    """A store with what a finished training leaves, in a folder and on the S3 server."""
    return write_training(Store(store_uri))


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    """A folder with what a finished training leaves."""
    return write_training(Store(str(tmp_path / "store")))


def write_training(store: Store) -> Store:
    """Write objects of ten bytes, and in place of manifests what names a plan."""
    for key in (*DELETED, *LEFT):
        store.write(key, b'{"fingerprint": "f"}' if key.endswith("manifest.json") else bytes(10))
    return store


def make_settings(store: Store, **settings: Any) -> Settings:
    tree = {"backbone": {"model": "none"}, "data": {"train": "none"}, "store": {"uri": store.uri, **settings}}
    return parse_settings(tree)


def purge_now(store: Store) -> PurgePlan:
    """Delete everything, whatever its age."""
    return run_purge(make_settings(store), older_than=timedelta(0))


def keys(store: Store) -> list[str]:
    """The objects of a store, leases aside."""
    return [key for key in store.list() if "/_lease/" not in key]


def set_age(store: Store, days: float, prefix: str = "") -> None:
    """Make files look as if they had not changed for some days."""
    changed = (datetime.now(UTC) - timedelta(days=days)).timestamp()
    for key in store.list(prefix):
        os.utime(store.path(key), (changed, changed))


def names(plan: PurgePlan) -> tuple[list[str], list[str]]:
    """What is deleted and what is left, by name."""
    return [work.name for work in plan.delete], [work.name for work in plan.leave]


def test_what_reveals_documents_is_deleted_and_the_model_stays(store: Store) -> None:
    sizes = sum(item.size for item in store.list_objects() if item.key in DELETED)
    plan = purge_now(store)
    assert keys(store) == LEFT
    assert sorted(key for work in plan.delete for key in work.keys) == DELETED
    assert names(plan) == (["features", "spool", "kept", "probes", "model/*/heads", "suspects.parquet"], [])
    assert (plan.objects, plan.bytes) == (len(DELETED), sizes)
    assert names(purge_now(store)) == ([], []), "the second time there is nothing left"


def test_what_is_too_young_stays(store: Store) -> None:
    """The age is counted by the time at which the store says that an object changed."""
    now = datetime.now(UTC)
    everything = ["features", "spool", "kept", "probes", "model/*/heads", "suspects.parquet"]
    assert names(plan_purge(store, now=now + 29 * DAY, age=30 * DAY)) == ([], everything)
    assert names(plan_purge(store, now=now + 31 * DAY, age=30 * DAY)) == (everything, [])
    run_purge(make_settings(store), older_than=DAY)
    assert keys(store) == sorted([*DELETED, *LEFT])
    assert not [key for key in store.list() if "_lease" in key], "nothing is held where nothing is deleted"


def test_a_stage_is_as_old_as_its_newest_object(folder: Store) -> None:
    """One of another stage does not count, nor does a lease."""
    set_age(folder, 40)
    set_age(folder, 3, "probes/c/words.tfidf")
    set_age(folder, 3, "model/d/registered")
    with Lease(folder / "features"):
        pass
    plan = run_purge(make_settings(folder), older_than=30 * DAY)
    assert names(plan) == (["features", "spool", "kept", "suspects.parquet"], ["probes", "model/*/heads"])
    assert [round(work.age / DAY) for work in (*plan.delete, *plan.leave)] == [40, 40, 40, 40, 3, 3]
    assert not [key for key in keys(folder) if key.startswith(("features/", "kept/", "suspects"))]
    assert {*DELETED} & {*keys(folder)} == {f"{stage}/{key}" for stage in ("probes", "model") for key in WORK[stage]}


def test_a_dry_run_changes_nothing(folder: Store) -> None:
    before = folder.list()
    plan = run_purge(make_settings(folder), older_than=timedelta(0), dry_run=True)
    assert folder.list() == before
    assert plan.objects == len(DELETED)


def test_the_age_is_that_of_the_settings_unless_another_is_given(folder: Store) -> None:
    set_age(folder, 10)
    assert names(run_purge(make_settings(folder, retention=11), dry_run=True))[0] == []
    assert names(run_purge(make_settings(folder, retention=9), dry_run=True))[1] == []
    assert names(run_purge(make_settings(folder, retention=11), older_than=9 * DAY, dry_run=True))[1] == []
    assert names(run_purge(make_settings(folder, retention=9), older_than=11 * DAY, dry_run=True))[0] == []
    with pytest.raises(UserError, match="expected a number of days in store.retention or --older-than"):
        run_purge(make_settings(folder))


def test_an_empty_store_is_not_touched(tmp_path: Path) -> None:
    assert names(purge_now(Store(str(tmp_path / "none")))) == ([], [])
    assert not (tmp_path / "none").exists()


def test_a_training_that_has_not_finished_is_deleted_whole(folder: Store) -> None:
    """Files of a model that no manifest names are not those of a version."""
    folder.delete_many(["model/manifest.json"])
    plan = purge_now(folder)
    assert "model" in names(plan)[0]
    assert [key for key in keys(folder) if key.startswith("model/")] == []


def test_what_a_killed_write_has_left_behind_is_deleted(folder: Store) -> None:
    """It may hold features, and no listing of the store shows it."""
    left = [f"features/a/parts/.000001.parquet.{32 * '0'}", f"model/.neurons.json.{32 * 'f'}"]
    for name in left:
        Path(folder.path(name)).write_bytes(b"values")
    assert set(left) <= {key for work in purge_now(folder).delete for key in work.keys}
    assert keys(folder) == LEFT
    assert not [path for path in Path(folder.root).rglob(".*") if path.is_file()]


@pytest.mark.parametrize("stage", STAGES)
def test_a_purge_deletes_nothing_while_any_stage_is_at_work(folder: Store, stage: str) -> None:
    """Each stage reads what the others have stored. The error has status 3 and names the holder."""
    with Lease(folder / stage, ttl=3.0) as held:
        with pytest.raises(HeldError, match=f"/{stage} is held by .*; wait until it ends, or end it") as error:
            purge_now(folder)
        held.check()
    assert error.value.status == 3
    assert keys(folder) == sorted([*DELETED, *LEFT])
    assert purge_now(folder).objects == len(DELETED), "no other lease is kept"


def test_a_stage_that_has_changed_by_the_time_its_lease_is_held_stays(
    folder: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_age(folder, 40)

    class LateLease(Lease):
        def __enter__(self) -> Lease:
            if self.store.uri.endswith("/probes"):
                self.store.write("c/new.safetensors", b"of a stage that ended a moment ago")
            return super().__enter__()

    monkeypatch.setattr(purge, "Lease", LateLease)
    plan = run_purge(make_settings(folder), older_than=DAY)
    assert names(plan) == (["features", "spool", "kept", "model/*/heads", "suspects.parquet"], ["probes"])
    assert folder.exists("probes/c/new.safetensors")
    assert folder.exists("probes/manifest.json")


class Crash(BaseException):
    """Stands for the death of the process."""


def crash_after(count: int) -> Callable[[Store, Sequence[str]], None]:
    """Return a `Store.delete_many` that raises Crash once it has deleted some objects, leases not counted."""
    delete, remaining = Store.delete_many, [count]

    def delete_or_crash(store: Store, keys: Sequence[str]) -> None:
        for key in keys:
            if not key.startswith("_lease/"):
                if not remaining[0]:
                    raise Crash
                remaining[0] -= 1
            delete(store, [key])

    return delete_or_crash


@pytest.mark.parametrize("deletions", range(len(DELETED)))
def test_a_purge_that_dies_leaves_nothing_that_looks_finished(
    folder: Store, monkeypatch: pytest.MonkeyPatch, deletions: int
) -> None:
    """Neither a stage nor the heads of a search. The next purge goes on."""
    with monkeypatch.context() as patch:
        patch.setattr(Store, "delete_many", crash_after(deletions))
        with pytest.raises(Crash):
            purge_now(folder)
    left = set(keys(folder))
    assert len(left) == len(DELETED) + len(LEFT) - deletions
    for stage, prefix in (("features", ""), ("kept", "b/"), ("probes", "")):
        results = {f"{stage}/{key}" for key in WORK[stage] if not key.endswith(("manifest.json", "plan.json"))}
        if not results <= left:
            assert finished_fingerprint(folder / f"{stage}/{prefix}".rstrip("/")) is None
            assert not folder.exists(f"{stage}/{prefix}plan.json")
        if not folder.exists(f"{stage}/{prefix}plan.json"):
            assert not folder.exists(f"{stage}/{prefix}manifest.json")
    if not folder.exists("model/d/heads/all/model.safetensors"):
        assert not folder.exists("model/d/heads/all/config.json")
    purge_now(folder)
    assert keys(folder) == LEFT


def test_what_marks_heads_as_complete_is_deleted_before_the_heads(
    folder: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the order of their names."""
    folder.write("model/d/heads/all/a.safetensors", b"values")
    delete, deleted = Store.delete_many, list[str]()
    monkeypatch.setattr(Store, "delete_many", lambda store, keys: (deleted.extend(keys), delete(store, keys)))
    purge_now(folder)
    of_heads = [key for key in deleted if "/heads/" in key]
    assert of_heads[:2] == ["model/d/heads/all/config.json", "model/d/heads/config.json"]
    assert len(of_heads) == len(WORK["model"]) + 1


def test_a_purge_that_is_overtaken_deletes_nothing_of_its_successor(
    folder: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is suspended after its second deletion, while a stage begins anew."""
    monkeypatch.setattr(stage_plan, "_CONFIRMED_SECONDS", 0.0)
    monkeypatch.setattr(Lease, "_renew", lambda lease: None)
    delete, deleted, features = Store.delete_many, list[str](), folder / "features"

    def delete_and_sleep(store: Store, keys: Sequence[str]) -> None:
        delete(store, keys)
        deleted.extend(key for key in keys if key.startswith("features/"))
        if deleted == ["features/manifest.json", "features/plan.json"] and keys == deleted[-1:]:
            expire_lease(features)
            with Lease(features):
                features.write("a/parts/000000.json", b"new")

    monkeypatch.setattr(Store, "delete_many", delete_and_sleep)
    with pytest.raises(HeldError):
        purge_now(folder)
    assert features.read("a/parts/000000.json") == b"new"
    assert {f"{stage}/{key}" for stage in ("kept", "probes", "model") for key in WORK[stage]} <= set(keys(folder))


# With a real training

N, SAMPLED = 600, 300
CLASSES = ("good", "bad", "plain")
TEXTS = [row["text"] for row in tiny.make_documents(40, CLASSES, seed=9)]
SEARCH = {"documents": SAMPLED, "etas": [0.9], "strengths": [1], "network": "off"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus and a backbone."""
    corpus = tmp_path_factory.mktemp("purged")
    small_training.write_corpus(corpus, N, CLASSES)
    return corpus


def make_training(corpus: Path, store: Path, **changes: Any) -> Settings:
    """Settings of a training in two passes, in which words count."""
    quick = {"search": SEARCH, "extract": "two_pass", "train": {"baselines": False}, "sites": ["ffn.01", "resid.02"]}
    return small_training.make_settings(corpus, store, **{**quick, **changes})


@dataclass(frozen=True)
class Trained:
    """A training that has finished, and what it has stored."""

    settings: Settings
    registry: Registry
    store: Store
    stored: dict[str, bytes]
    """by key"""

    @classmethod
    def run(cls, settings: Settings) -> Trained:
        run_workflow(settings)
        store = Store.of(settings)
        return cls(settings, Registry(settings), store, store.read_many(keys(store)))


@pytest.fixture(scope="module")
def trained(corpus: Path) -> Trained:
    return Trained.run(make_training(corpus, corpus / "store"))


def test_a_purged_training_leaves_no_values_of_documents(trained: Trained) -> None:
    """All of its files that stay are those of the model, of its registration, and the report."""
    run_purge(trained.settings, older_than=timedelta(0))
    left = [key for key in keys(trained.store) if not key.startswith("mlflow/")]
    assert {key.split("/")[0] for key in trained.stored} >= {"features", "kept", "probes", "model", "suspects.parquet"}
    assert {key.split("/")[0] for key in left} == {"model", "report.json"}
    assert not [key for key in left if "heads" in key]
    model = [key for key in left if key.startswith("model/")]
    assert trained.store.read_many(model) == {key: trained.stored[key] for key in model}


def test_a_registered_version_classifies_after_a_purge(trained: Trained, tmp_path: Path) -> None:
    before = list(trained.registry.load("1").predict(TEXTS))
    run_purge(trained.settings, older_than=timedelta(0))
    assert list(Registry(trained.settings).load("1").predict(TEXTS)) == before
    documents = pa.table({"id": [f"n{i}" for i in range(len(TEXTS))], "text": TEXTS})
    pq.write_table(documents, tmp_path / "night.parquet")
    source, output = str(tmp_path / "night.parquet"), str(tmp_path / "nights")
    run_classify(trained.settings, trained.registry, source, output, model="models:/tiny/1", night="2026-03-01")
    assert [row["label"] for row in read_predictions(output)] == before


def test_a_stage_names_the_one_that_has_to_run_before_it(trained: Trained) -> None:
    run_purge(trained.settings, older_than=timedelta(0))
    stages: tuple[TrainingStage, ...] = ("probe", "train")
    for stage in stages:
        with pytest.raises(UserError, match=r"extract has not finished in .*; run `spin extract` first"):
            run_stages(trained.settings, [stage])


def test_a_later_run_extracts_and_probes_again_and_finds_the_model_finished(trained: Trained) -> None:
    """It registers no second version, and stores what the first run has stored."""
    run_purge(trained.settings, older_than=timedelta(0))
    events: list[tuple[str, bool]] = []
    report = run_workflow(trained.settings, on_stage=lambda event: events.append((event.stage, event.resumed)))
    assert events == [("extract", False), ("probe", False), ("train", True)]
    assert report.registered.version == "1"
    assert [version.number for version in trained.registry.versions()] == ["1"]
    probes = [key for key in keys(trained.store) if key.startswith("probes/")]
    assert probes == sorted(key for key in trained.stored if key.startswith("probes/"))
    manifest = trained.store.read_json("features/manifest.json")
    assert manifest["counts"] == json.loads(trained.stored["features/manifest.json"])["counts"]


def test_a_second_training_after_a_purge_registers_a_second_version(
    corpus: Path, tmp_path: Path, sqlite_uri: str
) -> None:
    """Without --restart the model of the first one is protected, as it is without a purge."""
    mlflow = {"model": "purged twice", "tracking_uri": sqlite_uri}
    first = Trained.run(make_training(corpus, tmp_path / "store", mlflow=mlflow))
    run_purge(first.settings, older_than=timedelta(0))
    other = make_training(corpus, tmp_path / "store", mlflow=mlflow, search={**SEARCH, "etas": [0.5]})
    with pytest.raises(UserError, match=r"train: .*search\.etas is \[0\.5\], was \[0\.9\].*--restart"):
        run_workflow(other)
    report = run_workflow(other, restart=True)
    assert report.registered.version == "2"
    assert {version.number for version in first.registry.versions()} == {"1", "2"}
    assert first.registry.load("2").predict(TEXTS)


@pytest.mark.parametrize("deletions", [1, 2, 5])
def test_an_extraction_that_was_deleted_in_part_is_done_again(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deletions: int
) -> None:
    """It is not finished, and none of the files that are left is taken for a result."""
    settings = make_training(corpus, tmp_path / "store", extract="all")
    run_extract(settings)
    features = load_features(settings)[2]
    column, rows = features.probed[0], np.arange(N)
    before = features.read_rows(column, rows)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "delete_many", crash_after(deletions))
        with pytest.raises(Crash):
            run_purge(settings, older_than=timedelta(0))
    with pytest.raises(UserError, match="extract has not finished"):
        load_features(settings)
    run_extract(settings)
    np.testing.assert_array_equal(load_features(settings)[2].read_rows(column, rows), before)
