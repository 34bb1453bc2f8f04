"""Features belong to texts: a training reads only what no training in its store has read before."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data.feature_pool import FEATURES, FeaturePool, make_key
from pipelines.data.forgotten_ids import ForgottenIds
from pipelines.forget.purge import FEATURES as FEATURES_FOLDER
from pipelines.forget.purge import plan_purge, run_purge
from pipelines.forget.training_store import forget_in_store
from pipelines.service_errors import HeldError
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.training import extract_features
from pipelines.training.extract_features import load_features, run_extract
from spin.errors import UserError
from spin.settings import Settings
from tests.support import small_training, tiny
from tests.support.leases import expire_lease

Rows = list[dict[str, Any]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a backbone."""
    tiny.save_bert(tmp_path / "bert")
    return tmp_path


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that the backbone has read, without those of checks."""
    texts: list[str] = []
    compute = extract_features.read_activations

    def record(engine: Any, batch: Sequence[str], **keys: Any) -> Any:
        texts.extend(batch if "progress" in keys else ())
        return compute(engine, batch, **keys)

    monkeypatch.setattr(extract_features, "read_activations", record)
    return texts


def make_rows(count: int, first: int = 0) -> Rows:
    rows = tiny.make_documents(first + count, ("good", "bad"))[first:]
    return [{**row, "text": f"{row['text']} {first + n}"} for n, row in enumerate(rows)]


def make_settings(folder: Path, rows: Rows, store: str = "store", **changes: Any) -> Settings:
    """Settings for a corpus that is written to the file of all corpora."""
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet", row_group_size=50)
    return small_training.make_settings(folder, folder / store, **changes)


def read_values(settings: Settings, rows: Sequence[int] | None = None) -> list[np.ndarray[Any, Any]]:
    features = load_features(settings)[2]
    numbers = np.arange(features.borders[-1]) if rows is None else np.array(rows)
    return [features.read_rows(column, numbers) for column in features.columns]


def check_values(settings: Settings, folder: Path, rows: Rows, **changes: Any) -> None:
    """The features are those of an extraction in a store of its own."""
    found = read_values(settings)
    alone = make_settings(folder, rows, f"alone-{len(list(folder.iterdir()))}", **changes)
    run_extract(alone)
    for own, expected in zip(found, read_values(alone), strict=True):
        np.testing.assert_allclose(own, expected, atol=1e-5, rtol=1e-3)  # float16


def test_only_new_texts_are_read(folder: Path, read: list[str]) -> None:
    rows, new = make_rows(300), make_rows(30, first=300)
    run_extract(make_settings(folder, rows))
    assert sorted(read) == sorted(row["text"] for row in rows)
    read.clear()
    settings = make_settings(folder, [*rows[:100], *new[:10], *rows[100:], *new[10:]])
    counts = run_extract(settings).results.counts
    assert sorted(read) == sorted(row["text"] for row in new)
    assert (counts.rows, counts.extracted) == (330, 30)
    check_values(settings, folder, [*rows[:100], *new[:10], *rows[100:], *new[10:]])


@pytest.mark.parametrize("change", ["order", "ids", "labels", "splits", "columns", "files", "fewer", "shards"])
def test_texts_are_found_again_whatever_else_changes(folder: Path, read: list[str], change: str) -> None:
    rows = make_rows(300)
    run_extract(make_settings(folder, rows))
    read.clear()
    draw, keys = np.random.default_rng(3), dict[str, Any]()
    if change == "order":
        rows = [rows[row] for row in draw.permutation(300)]
    elif change == "ids":
        rows = [{**row, "id": f"new-{n}"} for n, row in enumerate(rows)]
    elif change == "labels":
        rows = [{**row, "label": ("good", "bad", "other")[n % 3]} for n, row in enumerate(rows)]
    elif change == "splits":
        rows = [{**row, "split": ("train", "train", "valid", "test")[n % 4]} for n, row in enumerate(rows)]
        keys = {"data": {"train": str(folder / "train.parquet"), "split": "split"}}
    elif change == "columns":
        rows = [{"name": row["id"], "body": row["text"], "label": row["label"]} for row in rows]
        keys = {"data": {"train": str(folder / "train.parquet"), "id": "name", "text": "body"}}
    elif change == "fewer":
        rows = rows[40:260]
    elif change == "shards":
        keys = {"ray": {"workers": 0, "shard_documents": 64}}
    settings = make_settings(folder, rows, **keys)
    if change == "files":
        (folder / "train.parquet").rename(folder / "other.parquet")
        settings = small_training.make_settings(folder, folder / "store", data={"train": str(folder / "other.parquet")})
    counts = run_extract(settings).results.counts
    assert read == []
    assert (counts.rows, counts.extracted) == (len(rows), 0)
    check_values(settings, folder, rows, **{"data": keys["data"]} if "data" in keys else {})


def test_equal_texts_are_read_once(folder: Path, read: list[str]) -> None:
    rows = make_rows(300)
    twice = [*rows, *({**row, "id": f"{row['id']}-again"} for row in rows)]
    settings = make_settings(folder, twice)
    counts = run_extract(settings).results.counts
    assert len(read) == 300
    assert (counts.rows, counts.extracted) == (600, 300)
    for values in read_values(settings):
        np.testing.assert_array_equal(values[:300], values[300:])
    check_values(settings, folder, rows=twice)


def test_a_corpus_that_comes_back_is_not_read_again(folder: Path, read: list[str]) -> None:
    """Though the corpus between has none of its texts."""
    rows, others = make_rows(300), make_rows(300, first=300)
    run_extract(make_settings(folder, rows))
    run_extract(make_settings(folder, others))
    assert len(read) == 600
    settings = make_settings(folder, rows)
    run_extract(settings)
    assert len(read) == 600
    check_values(settings, folder, rows)


def test_two_backbones_share_nothing(folder: Path, read: list[str]) -> None:
    """Nor do two ways to pool over tokens; the features of the first are deleted."""
    rows = make_rows(300)
    run_extract(make_settings(folder, rows))
    tiny.save_bert(folder / "bert", seed=5)
    settings = make_settings(folder, rows)
    with pytest.raises(UserError, match=r"backbone\.digest is"):
        run_extract(settings)
    run_extract(settings, restart=True)
    settings = make_settings(folder, rows, poolings=["max"])
    run_extract(settings, restart=True)
    assert len(read) == 900
    [pool] = FeaturePool.list_all(Store.of(settings) / FEATURES_FOLDER)
    assert sum(outcome.counts.rows for outcome in pool.outcomes().values()) == 300
    check_values(settings, folder, rows, poolings=["max"])


def test_a_restart_with_other_data_keeps_the_features(folder: Path, read: list[str]) -> None:
    rows = make_rows(330)
    run_extract(make_settings(folder, rows[:300]))
    run_extract(make_settings(folder, rows), restart=True)
    assert len(read) == 330


def test_a_sample_does_not_depend_on_what_was_read_before(folder: Path, read: list[str]) -> None:
    """What it lacks is read. Other documents that have features take no part in choices, and need no second pass."""
    keys = {"extract": "two_pass", "search": {"documents": 150}}
    rows = make_rows(400)
    run_extract(make_settings(folder, rows[:300], **keys))
    assert len(read) == 150
    settings = make_settings(folder, rows, **keys)
    counts = run_extract(settings).results.counts
    features = load_features(settings)[2]
    alone = make_settings(folder, rows, "alone", **keys)
    assert 0 < counts.extracted < 150
    assert np.count_nonzero(features.places.files >= 0) == 150 + counts.extracted
    run_extract(alone)
    expected = load_features(alone)[2].extracted
    assert expected is not None
    assert features.extracted is not None
    assert features.extracted.tolist() == expected.tolist()


@pytest.mark.parametrize("rows", [[], make_rows(40)[::2]], ids=["no documents", "one class"])
def test_a_corpus_that_cannot_be_learned_from_leaves_the_last_one(folder: Path, read: list[str], rows: Rows) -> None:
    sound = make_rows(300)
    settings = make_settings(folder, sound)
    manifest = run_extract(settings)
    read.clear()
    with pytest.raises(UserError):
        run_extract(make_settings(folder, [{**row, "label": "good"} for row in rows] or [sound[0]]))
    assert read == []
    stored = Store.of(settings) / FEATURES_FOLDER
    assert stored.read_json("manifest.json")["fingerprint"] == manifest.fingerprint


class Died(BaseException):
    """The process has ended."""


@contextmanager
def dying(monkeypatch: pytest.MonkeyPatch, store: Path, operation: int) -> Iterator[list[str]]:
    """Let the process die at a change of the features in a store; yields the changes that were made."""
    done: list[str] = []

    def watch(name: str) -> Any:
        change = getattr(Store, name)

        def call(self: Store, keys: Any, *args: Any) -> Any:
            if self.uri.startswith(f"{store}/features") and "_lease" not in str(keys):
                if len(done) == operation:
                    raise Died
                done.append(f"{name} {keys}")
            return change(self, keys, *args)

        return call

    with monkeypatch.context() as patch:
        for name in ("write", "create", "delete_many"):
            patch.setattr(Store, name, watch(name))
        yield done


def test_an_append_that_dies_at_any_step_is_completed(
    folder: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the same training, and by one whose corpus has changed again; what was committed is not read again."""
    monkeypatch.setattr(extract_features, "even_size", lambda documents, most: 20)
    rows = make_rows(150)
    first = make_settings(folder, rows[:100])
    run_extract(first)
    values, steps = read_values(first), 0
    for operation in range(1000):
        for last in (140, 150):
            store = folder / f"store-{operation}-{last}"
            small = make_settings(folder, rows[:100], store.name)
            run_extract(small)
            read.clear()
            with dying(monkeypatch, store, operation) as done:
                try:
                    run_extract(make_settings(folder, rows[:140], store.name))
                except Died:
                    steps = operation
            committed = sum("parts" in change and change.endswith(".json") for change in done)
            assert len(read) <= 20 * (committed + 1)
            settings = make_settings(folder, rows[:last], store.name)
            run_extract(settings)
            assert len(read) <= last - 100 + 20
            assert set(read) == {row["text"] for row in rows[100:last]}
            for own, expected in zip(read_values(settings, range(100)), values, strict=True):
                np.testing.assert_allclose(own, expected, atol=1e-5, rtol=1e-3)  # float16
        if steps < operation:
            break
    assert steps > 10


def test_what_an_overtaken_append_writes_is_right(
    folder: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sleeps over a shard while its successor reads another corpus, and ends without a manifest of its own."""
    monkeypatch.setattr(Lease, "_renew", lambda lease: None)
    monkeypatch.setattr(extract_features, "even_size", lambda documents, most: 20)
    rows = make_rows(200)
    run_extract(make_settings(folder, rows[:100]))
    settings, compute = make_settings(folder, rows[:160]), extract_features.ExtractStep.__call__
    ended: list[Settings] = []

    def be_overtaken(step: Any, shard: Any, attempt: Any) -> Any:
        result = compute(step, shard, attempt)
        if shard.index == 1 and not ended:
            ended.append(make_settings(folder, rows[:200]))
            expire_lease(Store.of(settings) / FEATURES_FOLDER)
            run_extract(ended[0])
        return result

    monkeypatch.setattr(extract_features.ExtractStep, "__call__", be_overtaken)
    with pytest.raises(HeldError):
        run_extract(settings)
    check_values(ended[0], folder, rows[:200])
    before = len(read)
    changed = make_settings(folder, rows[50:200])
    run_extract(changed)
    assert len(read) == before
    check_values(changed, folder, rows[50:200])


def find_texts(settings: Settings) -> set[bytes]:
    """The keys of all texts in the pools of a store."""
    pools = FeaturePool.list_all(Store.of(settings) / FEATURES_FOLDER)
    return {key for pool in pools for key in pool.read_texts().keys.to_pylist()}


def test_forgetting_deletes_rows(folder: Path, read: list[str]) -> None:
    """All other texts keep their features, and the next training reads none of them again."""
    rows = make_rows(300)
    settings = make_settings(folder, rows)
    run_extract(settings)
    gone = [rows[row] for row in (0, 77, 150, 299)]
    done = forget_in_store(settings, [row["id"] for row in gone])
    assert (done.emptied, done.texts) == (True, 4)
    assert find_texts(settings) == {make_key(row["text"]) for row in rows} - {make_key(row["text"]) for row in gone}
    with pytest.raises(UserError, match="run `spin extract` first"):
        load_features(settings)
    read.clear()
    left = [row for row in rows if row not in gone]
    settings = make_settings(folder, left)
    run_extract(settings)
    assert read == []
    check_values(settings, folder, left)
    more = [*left, *make_rows(20, first=300)]
    settings = make_settings(folder, more)
    read.clear()
    run_extract(settings)
    assert len(read) == 20
    check_values(settings, folder, more)
    assert not forget_in_store(settings, [row["id"] for row in gone]).emptied


def test_a_text_stays_while_another_document_has_it(folder: Path, read: list[str]) -> None:
    """Whether both came with one corpus or not; it goes with the last of them."""
    rows = make_rows(300)
    run_extract(make_settings(folder, [*rows, {**rows[5], "id": "twin"}]))
    settings = make_settings(folder, [*rows, {**rows[9], "id": "later"}])
    run_extract(settings)
    keys = [make_key(rows[row]["text"]) for row in (5, 9)]
    assert forget_in_store(settings, [rows[5]["id"], rows[9]["id"]]).texts == 0
    assert find_texts(settings) >= set(keys)
    assert forget_in_store(settings, ["later"]).texts == 1
    assert forget_in_store(settings, ["twin"]).texts == 1
    assert not find_texts(settings) & set(keys)
    read.clear()
    run_extract(make_settings(folder, [row for n, row in enumerate(rows) if n not in (5, 9)]))
    assert read == []


def test_a_document_of_an_earlier_corpus_is_forgotten(folder: Path) -> None:
    rows = make_rows(330)
    run_extract(make_settings(folder, rows[:300]))
    settings = make_settings(folder, rows[30:])
    run_extract(settings)
    assert forget_in_store(settings, [rows[0]["id"]]).texts == 1
    assert make_key(rows[0]["text"]) not in find_texts(settings)
    run_extract(settings)
    check_values(settings, folder, rows[30:])


def test_a_forget_that_dies_at_any_step_is_completed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, steps = make_rows(60), 0
    for operation in range(1000):
        store = folder / f"store-{operation}"
        settings = make_settings(folder, rows, store.name)
        run_extract(settings)
        with dying(monkeypatch, store, operation):
            try:
                forget_in_store(settings, [rows[7]["id"]])
            except Died:
                steps = operation
        forget_in_store(settings, [rows[7]["id"]])
        [pool] = FeaturePool.list_all(Store.of(settings) / FEATURES_FOLDER)
        assert not pool.holds(ForgottenIds.of([rows[7]["id"]]))
        assert find_texts(settings) == {make_key(row["text"]) for n, row in enumerate(rows) if n != 7}
        if steps < operation:
            break
    assert steps > 4


def test_files_that_no_shard_names_are_deleted_with_a_document(folder: Path) -> None:
    """As of a process that was killed before it committed a shard: they may hold the document."""
    rows = make_rows(300)
    settings = make_settings(folder, rows)
    run_extract(settings)
    [pool] = FeaturePool.list_all(Store.of(settings) / FEATURES_FOLDER)
    left = [f"{pool.folder}/parts/0-000001-1.{FEATURES}", f"{pool.folder}/ids/.0.parquet.{32 * '0'}"]
    for key in left:
        pool.store.write(key, b"values")
    assert forget_in_store(settings, ["nobody"]).texts == 0
    assert not any(Path(pool.store.path(key)).exists() for key in left)
    assert len(find_texts(settings)) == 300


def test_a_worker_that_slept_brings_no_forgotten_document_back(folder: Path) -> None:
    """It commits its shard after the document was forgotten."""
    rows = make_rows(300)
    settings = make_settings(folder, rows)
    run_extract(settings)
    store = folder / "store" / "features"
    shutil.copytree(store, folder / "slept")
    forget_in_store(settings, [rows[3]["id"]])
    shutil.rmtree(store)
    shutil.copytree(folder / "slept", store)
    settings = make_settings(folder, [row for n, row in enumerate(rows) if n != 3])
    run_extract(settings)
    assert make_key(rows[3]["text"]) not in find_texts(settings)


def test_a_purge_deletes_texts_by_their_last_use(folder: Path, read: list[str]) -> None:
    """Those of an earlier corpus go before those of the last one, and a training reads again what it lacks."""
    rows = make_rows(400)
    settings = make_settings(folder, rows[:200])
    run_extract(settings)
    for path in (folder / "store").rglob("*"):  # ten days ago
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 864_000))
    run_extract(make_settings(folder, rows[200:]))
    plan = plan_purge(Store.of(settings), now=datetime.now(UTC), age=timedelta(days=5))
    assert [work.name for work in plan.delete] == ["features/pool/*/parts"]
    run_purge(settings, older_than=timedelta(days=5))
    assert find_texts(settings) == {make_key(row["text"]) for row in rows[200:]}
    settings = make_settings(folder, rows[200:])
    read.clear()
    run_extract(settings)
    assert read == []
    check_values(settings, folder, rows[200:])
    settings = make_settings(folder, rows)
    read.clear()
    run_extract(settings)
    assert len(read) == 200
    check_values(settings, folder, rows)
