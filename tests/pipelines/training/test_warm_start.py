"""A training of nearly the same documents goes on from the last one, and reaches what a training from scratch does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.training_labels import Labels, share_of_changes
from pipelines.registry.versions import Registry
from pipelines.storage.object_store import Store
from pipelines.storage.stage_plan import read_plan
from pipelines.training import fit_probes, warm_start
from pipelines.training.extract_features import load_features, run_extract
from pipelines.training.fit_probes import ProbeManifest, run_probe
from pipelines.training.train import TrainReport, run_train
from pipelines.training.warm_start import HeadsDerived
from spin.errors import UserError
from spin.settings import Settings
from tests.support import small_training, tiny

Rows = list[dict[str, Any]]
CLASSES = ("good", "bad", "plain")

pytestmark = pytest.mark.usefixtures("single_fold")


@pytest.fixture
def single_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few documents are enough to do without cross-validation."""
    for module in ("splits", "cross_validation"):
        monkeypatch.setattr(f"spin.labels.{module}.CROSS_VALIDATION_BELOW", 100)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a backbone."""
    tiny.save_bert(tmp_path / "bert")
    return tmp_path


def make_rows(count: int, first: int = 0, classes: tuple[str, ...] = CLASSES) -> Rows:
    rows = tiny.make_documents(first + count, classes)[first:]
    return [{**row, "text": f"{row['text']} {first + n}"} for n, row in enumerate(rows)]


def correct_labels(rows: Rows, count: int, label: str = "bad") -> Rows:
    """The rows with another label for so many."""
    return [{**row, "label": label} if n % 7 == 3 and n < 7 * count else row for n, row in enumerate(rows)]


def probe(folder: Path, rows: Rows, store: str = "store", *, restart: bool = False, **changes: Any) -> ProbeManifest:
    """The probes of documents."""
    settings = make_settings(folder, rows, store, **changes)
    run_extract(settings)
    return run_probe(settings, restart=restart)


def make_settings(folder: Path, rows: Rows, store: str = "store", **changes: Any) -> Settings:
    """Settings for a corpus; its file stays as it is where it holds the same documents."""
    file, corpus = folder / "train.parquet", pa.Table.from_pylist(rows)
    if not file.exists() or not pq.read_table(file).equals(corpus):
        pq.write_table(corpus, file, row_group_size=100)
    return small_training.make_settings(folder, folder / store, **changes)


def train(settings: Settings, *, restart: bool = False) -> TrainReport:
    return run_train(settings, Registry(settings), restart=restart)


def test_a_training_of_nearly_the_same_documents_goes_on_from_the_last_one(folder: Path) -> None:
    """Its probes are as exact, at penalties next to those before, and its search tries little."""
    rows = make_rows(600)
    assert probe(folder, rows).results.start is None
    first = train(make_settings(folder, rows))
    changed = [*correct_labels(rows, 8), *make_rows(20, first=600)]
    manifest = probe(folder, changed)
    start = manifest.results.start
    assert start is not None
    corrected = sum(now["label"] != before["label"] for now, before in zip(changed, rows, strict=False))
    assert start.changed == pytest.approx((20 + 2 * corrected) / (620 + corrected), abs=1e-6)
    second = train(make_settings(folder, changed))
    assert second.results.choice.tried < first.results.choice.tried / 2
    anew = probe(folder, changed, "other").results
    assert anew.start is None
    for warm, cold in zip(manifest.results.probes, anew.probes, strict=True):
        assert warm.kkt <= 2 * 1e-3
        if warm.lam == pytest.approx(cold.lam):
            assert warm.valid_score == pytest.approx(cold.valid_score, abs=0.02)


def test_small_changes_add_up_until_everything_is_chosen_anew(folder: Path) -> None:
    changed, rows = list[float | None](), make_rows(400)
    for week in range(5):
        start = probe(folder, [*rows, *make_rows(16 * week, first=400)]).results.start
        changed.append(None if start is None else start.changed)
    assert changed[0] is None
    assert changed[3] is None or changed[4] is None
    growing = [share for share in changed[:3] if share is not None]
    assert growing == sorted(growing)
    assert len(growing) == 2
    assert max(share for share in changed if share is not None) <= warm_start.MOST_CHANGED


@pytest.mark.parametrize("change", ["labels", "splits", "documents", "restart", "backbone"])
def test_a_training_of_other_documents_starts_anew(folder: Path, change: str) -> None:
    rows = make_rows(400)
    probe(folder, rows)
    keys, restart = dict[str, Any](), False
    if change == "labels":
        rows = correct_labels(rows, 50)
    elif change == "splits":
        rows = [{**row, "split": ("train", "train", "valid", "test")[n % 4]} for n, row in enumerate(rows)]
        keys = {"data": {"train": str(folder / "train.parquet"), "split": "split"}}
    elif change == "documents":
        rows = make_rows(400, first=60)
    elif change == "restart":
        rows, restart = [*rows, *make_rows(4, first=400)], True
    elif change == "backbone":
        tiny.save_bert(folder / "bert", seed=7)
        run_extract(make_settings(folder, rows), restart=True)
    assert probe(folder, rows, restart=restart, **keys).results.start is None


@pytest.mark.parametrize("change", ["order", "ids", "files"])
def test_what_does_not_belong_to_the_documents_changes_nothing(folder: Path, change: str) -> None:
    rows, keys = make_rows(400), dict[str, Any]()
    probe(folder, rows)
    if change == "order":
        rows = [rows[row] for row in np.random.default_rng(0).permutation(400)]
    elif change == "ids":
        rows = [{**row, "id": f"{row['id']}-new"} for row in rows]
    else:
        keys = {"ray": {"workers": 0, "shard_documents": 50}}
    start = probe(folder, rows, **keys).results.start
    assert start is not None or change == "files"  # other shards of the same documents are the same features
    assert start is None or start.changed == 0


def test_a_class_that_comes_or_goes_keeps_the_others_probes(folder: Path) -> None:
    """Probes start from the coefficients of their class by its name, whatever its place."""
    rows = make_rows(600)
    probe(folder, rows)
    more = [*rows, *({**row, "label": "all new"} for row in make_rows(30, first=600))]
    manifest = probe(folder, more)
    assert manifest.results.classes == ("all new", "bad", "good", "plain")
    assert manifest.results.start is not None
    assert manifest.results.start.classes == ("bad", "good", "plain")
    assert all(of.kkt <= 2 * 1e-3 for of in manifest.results.probes)
    assert probe(folder, rows).results.start is not None


def test_what_a_training_has_started_from_is_deleted_when_it_ends(folder: Path) -> None:
    """It follows from documents that the corpus may not hold any more. What is lost later is fitted without it."""
    rows = make_rows(400)
    probe(folder, rows)
    train(make_settings(folder, rows))
    rows = [*rows[5:], *make_rows(5, first=400)]
    probe(folder, rows)
    settings = make_settings(folder, rows)
    train(settings)
    for stage in ("probes", "model"):
        store = Store.of(settings) / stage
        plan = read_plan(store, dict[str, Any])
        assert plan is not None
        folders = {key.partition("/")[0] for key in store.list() if "/" in key}
        assert folders == {"_lease", plan.folder}
    store, plan = Store.of(settings) / "probes", read_plan(Store.of(settings) / "probes", dict[str, Any])
    assert plan is not None
    key = next(key for key in store.list(plan.folder) if key.endswith("mean.safetensors"))
    store.delete_many(["manifest.json", key])
    assert run_probe(settings).results.start is not None
    assert store.exists(key)


def test_a_training_that_died_while_it_probed_goes_on_from_the_same_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows(400)
    probe(folder, rows)
    settings, fit = make_settings(folder, [*rows, *make_rows(10, first=400)]), fit_probes.fit_probes
    run_extract(settings)
    fits = list[bool]()

    def die(*args: Any) -> Any:
        fits.append(args[3] is not None)
        if len(fits) == 3:
            raise KeyboardInterrupt
        return fit(*args)

    monkeypatch.setattr(fit_probes, "fit_probes", die)
    with pytest.raises(KeyboardInterrupt):
        run_probe(settings)
    monkeypatch.setattr(fit_probes, "fit_probes", lambda *args: fits.append(args[3] is not None) or fit(*args))
    died = len(fits)
    manifest = run_probe(settings)
    assert all(fits)
    assert len(fits) - died < len({of.column.rpartition(".")[0] for of in manifest.results.probes})
    assert manifest.results.start is not None


def test_a_search_that_died_leaves_none_to_go_on_from(folder: Path) -> None:
    """Only heads of the training that the probes have started from count."""
    rows = make_rows(400)
    probe(folder, rows)
    train(make_settings(folder, rows))
    for week in (1, 2):
        rows = [*rows, *make_rows(4, first=400 + 4 * week)]
        probe(folder, rows)
    settings = make_settings(folder, rows)
    train(settings)
    plan = read_plan(Store.of(settings) / "model", HeadsDerived)
    assert plan is not None
    assert plan.derived.folder is None


def test_a_restart_searches_in_full(folder: Path) -> None:
    rows = make_rows(400)
    probe(folder, rows)
    full = train(make_settings(folder, rows)).results.choice.tried
    rows = [*rows, *make_rows(8, first=400)]
    probe(folder, rows)
    assert train(make_settings(folder, rows), restart=True).results.choice.tried > full / 2


def test_other_settings_are_still_refused(folder: Path) -> None:
    rows = make_rows(400)
    probe(folder, rows)
    with pytest.raises(UserError, match=r"probe\.penalties is 5, was 4"):
        probe(folder, [*rows, *make_rows(8, first=400)], probe={"penalties": 5})


@given(st.sets(st.integers(0, 10_000), max_size=300), st.sets(st.integers(0, 10_000), max_size=300))
def test_changes_are_counted_exactly_among_few_documents(ours: set[int], theirs: set[int]) -> None:
    together = ours | theirs
    expected = len(ours ^ theirs) / len(together) if together else 0.0
    digests = (np.array(sorted(each), np.uint64) for each in (ours, theirs))
    assert share_of_changes(*digests) == pytest.approx(expected)


def test_changes_among_many_documents_are_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.data.training_labels._DIGESTS", 5_000)
    draw = np.random.default_rng(0)
    hashes = np.unique(draw.integers(0, 2**64, 60_000, np.uint64))
    ours, theirs = (np.sort(part)[:5_000] for part in (hashes[:], draw.permutation(hashes)[: int(0.9 * len(hashes))]))
    assert share_of_changes(ours, theirs) == pytest.approx(0.1, abs=0.02)


def test_digests_tell_labels_and_splits_apart_but_not_ids(folder: Path) -> None:
    rows = make_rows(300)

    def digest(changed: Rows) -> Labels:
        settings = make_settings(folder, changed, f"store-{len(list(folder.iterdir()))}")
        run_extract(settings)
        return Labels.of(load_features(settings)[2], settings)

    first = digest(rows)
    assert len(first.digests) == 300
    renamed = digest([{**row, "id": f"{n}-{row['id']}"} for n, row in enumerate(rows)])
    np.testing.assert_array_equal(first.digests, renamed.digests)
    corrected = digest(correct_labels(rows, 10, "plain"))
    assert len(np.setdiff1d(first.digests, corrected.digests)) in range(5, 11)
