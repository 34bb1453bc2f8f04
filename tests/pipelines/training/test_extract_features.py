"""The corpus of an extraction is checked first, and neither its labels nor its spool stay longer than needed."""

from __future__ import annotations

import errno
import gc
import weakref
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data.labelled_corpus import LabelledCorpus
from pipelines.registry.versions import Registry
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.training import extract_features
from pipelines.training.extract_features import run_extract
from pipelines.training.train import run_train
from pipelines.training.workflow import run_stages
from spin.errors import UserError
from spin.settings import Settings
from tests.support import small_training, tiny
from tests.support.broken_folders import break_listing
from tests.support.fake_nights import before_call


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of 300 documents and a backbone."""
    folder = tmp_path_factory.mktemp("extracted")
    small_training.write_corpus(folder, 300, ("good", "bad"))
    return folder


def make_settings(folder: Path, store: Path, **changes: Any) -> Settings:
    return small_training.make_settings(folder, store, **{"sites": ["ffn.01"], **changes})


def write_rows(path: Path, *changed: dict[str, Any]) -> dict[str, Any]:
    """Write documents, the last of which are changed, and return the section of the settings that names them."""
    rows = tiny.make_documents(300, ("good", "bad"))
    for row, change in zip(reversed(rows), changed, strict=False):
        row |= change
    pq.write_table(pa.Table.from_pylist(rows), path)
    return {"data": {"train": str(path)}}


def crash() -> None:
    raise SystemError("the process ends here")


@pytest.mark.slow
def test_the_labels_and_the_backbone_of_the_plan_are_not_in_memory_while_shards_are_computed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    references, map_shards = list[weakref.ref[Any]](), extract_features.map_shards

    def note(function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            result = function(*args, **options)
            references.append(weakref.ref(result))
            return result

        return call

    def check_and_map(*args: Any, **options: Any) -> Any:
        gc.collect()
        assert [type(reference()) for reference in references] == 2 * [type(None)]
        return map_shards(*args, **options)

    monkeypatch.setattr(extract_features, "load_backbone", note(extract_features.load_backbone))
    monkeypatch.setattr(extract_features, "read_labelled", note(extract_features.read_labelled))
    monkeypatch.setattr(extract_features, "map_shards", check_and_map)
    manifest = run_extract(make_settings(folder, tmp_path / "store"))
    assert manifest.results.counts.rows == 300


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ([{"text": " "}], "the text .* is empty"),
        (300 * [{"label": "good"}], "found one class"),
    ],
    ids=["a bad row", "one class"],
)
def test_a_corpus_that_is_refused_leaves_no_spool_and_is_refused_before_the_backbone_is_loaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: list[dict[str, Any]], message: str
) -> None:
    monkeypatch.setattr(extract_features, "load_backbone", lambda *_: pytest.fail("it is loaded"))
    settings = make_settings(folder, tmp_path / "store", **write_rows(tmp_path / "refused.parquet", *changed))
    with pytest.raises(UserError, match=message):
        run_extract(settings)
    assert Store.of(settings).list("spool") == []


def test_an_extraction_deletes_the_spools_that_killed_ones_with_other_corpora_have_left(
    folder: Path, tmp_path: Path
) -> None:
    """Also if it has finished itself, and what killed writes have left."""
    settings = make_settings(folder, tmp_path / "store")
    run_extract(settings)
    store = Store.of(settings)
    spooled = store.list("spool")
    assert len(spooled) == 3
    other = make_settings(folder, tmp_path / "store", **write_rows(tmp_path / "other.parquet", {"text": "another"}))
    with before_call(LabelledCorpus, "__len__", action=crash), pytest.raises(SystemError):
        run_extract(other, restart=True)
    left = next(key for key in store.list("spool") if key not in spooled)
    (tmp_path / "store" / f"{Path(left).parent}/.000009.parquet.{32 * '0'}").write_bytes(b"text")
    run_extract(settings)
    assert [item.key for item in store.list_all("spool")] == spooled


@pytest.mark.slow
def test_a_corpus_whose_listing_fails_for_a_moment_is_listed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    small_training.write_corpus(tmp_path, 300, ("good", "bad"))
    settings = make_settings(tmp_path, tmp_path / "store", **write_rows(tmp_path / "in" / "corpus.parquet"))
    data = settings.data.model_copy(update={"train": str(tmp_path / "in")})
    break_listing(monkeypatch, tmp_path / "in", errno.ESTALE, times=1)
    manifest = run_extract(settings.model_copy(update={"data": data}))
    assert manifest.results.counts.rows == 300


@pytest.mark.slow
def test_a_spool_that_an_extraction_uses_outlives_a_training(folder: Path, tmp_path: Path) -> None:
    """An extraction of other sites of the same corpus has the same spool."""
    search = {"etas": [0.5], "strengths": [1], "network": "off", "words": "off"}
    settings = make_settings(folder, tmp_path / "store", search=search, train={"baselines": False})
    run_stages(settings, ["extract", "probe"])
    store = Store.of(settings)
    spooled = store.list("spool")
    with Lease(store / "features", ttl=3.0):
        run_train(settings, Registry(settings))
    assert store.list("spool") == spooled
    run_train(settings, Registry(settings))
    assert store.list("spool") == []
