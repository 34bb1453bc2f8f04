"""Documents are forgotten in the store, the registry and the nights of a training, and all of it works afterwards."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.forget import training_store
from pipelines.forget.forget import forget_documents, read_ids
from pipelines.forget.purge import STAGE_FOLDERS
from pipelines.forget.training_store import forget_in_store
from pipelines.nightly.classify import run_classify
from pipelines.nightly.report.night_report import REPORT
from pipelines.registry import evaluation_set, file_replacement, packaging, signatures
from pipelines.registry.file_replacement import replace_night_files
from pipelines.registry.promotion import promote
from pipelines.registry.versions import Registry
from pipelines.service_errors import HeldError
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.storage.stage_plan import StagePlan
from pipelines.training import extract_features
from pipelines.training.neurons import NEURONS
from pipelines.training.workflow import run_workflow
from spin.errors import UserError
from spin.settings import Settings
from tests.support import small_training, tiny
from tests.support.fake_nights import before_call
from tests.support.key_pair import write_key_pair
from tests.support.leases import expire_lease
from tests.support.object_search import find_in_files

NIGHT = "2026-03-01"
KILLED = ("features", "spool")
"""folders in which a killed write has left a temporary file"""


def make_corpus() -> list[dict[str, Any]]:
    """Documents with ids that stand for nothing else, some with a wrong label."""
    rows = [
        {**row, "id": f"Xyzzy-{n:04d}-id", "split": ("train", "valid", "test")[(n % 10) // 4]}
        for n, row in enumerate(tiny.make_documents(900))
    ]
    for row in rows[:20]:
        row["label"] = {"good": "bad", "bad": "good"}[row["label"]]
    return rows


def train(folder: Path, rows: Sequence[dict[str, Any]], *, restart: bool = False, **keys: str) -> Settings:
    tiny.save_bert(folder / "bert")
    corpus = folder / "train.parquet"
    pq.write_table(pa.Table.from_pylist(list(rows)), corpus, row_group_size=100)
    search = {"etas": [0.9], "max_share": 0.5, "strengths": [3], "network": "off", "words": "off"}
    data = {"train": str(corpus), "split": "split"}
    settings = small_training.make_settings(
        folder, folder / "store", search=search, data=data, registry={"include_backbone": False, **keys}
    )
    run_workflow(settings, restart=restart)
    return settings


def choose_ids(folder: Path, registry: Registry) -> list[str]:
    """Documents that are named wherever one can be: as suspects, by neurons, and in the evaluation set."""
    suspects = pq.read_table(folder / "store/suspects.parquet")["id"].to_pylist()
    artifact = folder / "artifact"
    registry.download("1", artifact)
    neurons = json.loads((artifact / NEURONS).read_text())
    frozen = registry.evaluation_set()
    (artifact / NEURONS).unlink()
    return [suspects[0], neurons[0]["top"][0]["id"], neurons[-1]["top"][-1]["id"], *frozen.ids[:2]]


@pytest.mark.slow
@pytest.mark.usefixtures("gate_in_process")
def test_a_search_over_every_file_finds_nothing(tmp_path: Path) -> None:
    rows = make_corpus()
    settings = train(tmp_path, rows)
    registry, output = Registry(settings), str(tmp_path / "nights")
    promote.promote(registry, "1", "the first")
    ids = choose_ids(tmp_path, registry)
    night = [{"id": row["id"], "text": row["text"]} for row in rows[:300]] + [{"id": ids[-1], "text": "good day"}]
    pq.write_table(pa.Table.from_pylist(night), tmp_path / "tonight.parquet")
    run_classify(settings, registry, str(tmp_path / "tonight.parquet"), output, night=NIGHT)
    inputs = {"train.parquet", "tonight.parquet"}
    places = {name.split("/")[0] for name in find_in_files(tmp_path, ids)} - inputs
    assert places == {"store", "nights"}

    before = find_in_files(tmp_path, ids)
    planned = forget_documents(settings, ids, [output], dry_run=True)
    assert find_in_files(tmp_path, ids) == before
    done = forget_documents(settings, ids, [output])
    assert find_in_files(tmp_path, ids).keys() == inputs
    assert done.store.emptied
    assert done.registries == planned.registries
    [of_model] = done.registries
    assert (of_model.evaluation, of_model.versions) == (2, ("1",))
    again = forget_documents(settings, ids, [output])
    assert not again.store.emptied
    assert (again.registries[0].evaluation, again.registries[0].versions, again.outputs[0].rows) == (0, (), {})
    assert not find_in_files(tmp_path / "store" / "mlflow", [row["text"] for row in rows if row["id"] in ids[-2:]])

    with pytest.raises(UserError, match=f"holds {len(set(ids))} documents whose ids `spin forget` was given"):
        run_workflow(settings)
    left = [row for row in rows if row["id"] not in ids]
    settings = train(tmp_path, left)
    assert promote.promote(registry, "2", "without them", force=True).to_version == "2"
    report = run_classify(settings, registry, str(tmp_path / "tonight.parquet"), output, night="2026-03-02")
    assert report.counts.reasons["forgotten"] >= 1
    assert find_in_files(tmp_path, ids).keys() == {"tonight.parquet"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Settings]:
    """A training with one version, which is signed."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "keys").mkdir()
    return folder, train(folder, make_corpus(), **write_key_pair(folder / "keys"))


def change_keys(settings: Settings, **keys: str | None) -> Settings:
    return settings.model_copy(update={"registry": settings.registry.model_copy(update=keys)})


def find_named(registry: Registry, folder: Path) -> list[str]:
    """Ids of documents that neurons of the version name."""
    registry.download("1", folder)
    return [document["id"] for row in json.loads((folder / NEURONS).read_text()) for document in row["top"]]


def crash() -> None:
    raise SystemError("the process ends here")


def crash_at(call: int) -> Callable[[], None]:
    """Return a function that ends the process when it is called for a number of times."""
    calls = itertools.count(1)
    return lambda: crash() if next(calls) == call else None


STEPS = {
    "before the digests of a version are announced": (file_replacement, "_announce", 1),
    "before it is signed again": (file_replacement, "_sign", 1),
    "before all of its signatures are stored": (file_replacement, "_upload", 2),
    "before its file is replaced": (file_replacement, "_upload", 3),
    "before its digests are settled": (file_replacement, "_settle", 2),
    "before the evaluation set is written": (evaluation_set, "_write", 1),
    "before it is settled": (evaluation_set, "settle_frozen", 2),
}
"""functions, with the number of the call, before which a process may end"""


@pytest.mark.slow
@pytest.mark.parametrize(("place", "step"), list(enumerate(STEPS)))
def test_a_version_loads_wherever_a_process_has_ended(trained: tuple[Path, Settings], place: int, step: str) -> None:
    """Each step forgets other documents of the same training. Every download checks the signatures too."""
    folder, settings = trained
    registry = Registry(settings)
    frozen = registry.evaluation_set()
    registry.download("1", folder / f"before-{place}")
    rows = json.loads((folder / f"before-{place}" / NEURONS).read_text())
    ids = [frozen.ids[0], next(row["top"][0]["id"] for row in rows if row["top"])]

    target, name, call = STEPS[step]
    with before_call(target, name, action=crash_at(call), once=False), pytest.raises(SystemError):
        forget_documents(settings, ids, [])
    registry.download("1", folder / f"between-{place}")
    registry.download_model("1", folder / f"between-{place}")
    assert registry.evaluation_set()
    forget_documents(settings, ["Xyzzy-unknown"], [])
    registry.download("1", folder / f"other-{place}")
    registry.download_model("1", folder / f"other-{place}")
    forget_documents(settings, ids, [])
    (folder / f"model-{place}").mkdir()
    registry.download_model("1", folder / f"model-{place}")
    registry.download("1", folder / f"after-{place}")
    after = json.loads((folder / f"after-{place}" / NEURONS).read_text())
    named = {document["id"] for row in after for document in row["top"]}
    left = registry.evaluation_set()
    assert named.isdisjoint(ids)
    assert set(left.ids) == set(frozen.ids) - set(ids)
    assert not [tag for tag in registry.tags() if tag.endswith(".next")]
    tags = registry.tracking.client.get_model_version(registry.name, "1").tags
    assert not [tag for tag in tags if tag.endswith(".next")]


def read_state(registry: Registry, folder: Path) -> tuple[Any, ...]:
    """The tags of the model and its version, the evaluation set, and the digest of the version's files."""
    registry.download("1", folder)
    tags = registry.tracking.client.get_model_version(registry.name, "1").tags
    return registry.tags(), tags, registry.evaluation_set(), packaging.folder_digest(folder)


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_a_forget_that_is_overtaken_changes_nothing_more(
    trained: tuple[Path, Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """It is suspended before each step for so long that another one forgets other documents meanwhile."""
    monkeypatch.setattr(Lease, "_renew", lambda lease: None)
    _, settings = trained
    registry = Registry(settings)
    frozen = registry.evaluation_set()
    named = find_named(registry, tmp_path / "before")
    first, second = ([frozen.ids[at], sorted({*named} - {*frozen.ids[:2]})[at]] for at in range(2))
    left: list[tuple[Any, ...]] = []
    target, name, call = STEPS[step]
    calls = itertools.count(1)

    def sleep() -> None:
        if next(calls) == call:
            expire_lease(Store.of(settings) / "forget")
            forget_documents(settings, second, [])
            left.append(read_state(registry, tmp_path / "between"))

    with before_call(target, name, action=sleep, once=False), pytest.raises(HeldError):
        forget_documents(settings, first, [])
    assert left == [read_state(registry, tmp_path / "after")]
    forget_documents(settings, first, [])
    assert {*first, *second}.isdisjoint(find_named(registry, tmp_path / "again"))
    shortened = registry.evaluation_set()
    assert {*first, *second}.isdisjoint(shortened.ids)


def test_the_report_of_a_night_is_not_replaced_by_a_forget_that_was_overtaken(tmp_path: Path) -> None:
    """One file is replaced, then another process takes the lease."""
    store, replaced = Store(str(tmp_path)), list[str]()
    registry: Any = Mock(search_runs=lambda _: [Mock(info=Mock(run_id="run"))], read_run_file=lambda *_: "old")
    registry.tracking.session = nullcontext

    def log_text(run: str, text: str, file: str) -> None:
        replaced.append(file)
        expire_lease(store)
        with Lease(store):
            pass

    registry.tracking.client.log_text = log_text
    with Lease(store) as lease, pytest.raises(HeldError):
        replace_night_files(registry, REPORT, lambda _: {"page": "new", REPORT: "new"}, lease)
    assert replaced == ["page"]


@pytest.mark.slow
def test_a_signed_version_is_signed_again(trained: tuple[Path, Settings], tmp_path: Path) -> None:
    folder, settings = trained
    registry = Registry(settings)
    [first, *_] = find_named(registry, tmp_path / "before")
    [of_model] = forget_documents(settings, [first], []).registries
    assert of_model.versions == ("1",)
    assert first not in find_named(registry, tmp_path / "after")
    registry.download_model("1", tmp_path)
    signed = {path.name for path in (folder / "store" / "mlflow").rglob("signatures/*.sig")}
    artifact = packaging.folder_digest(tmp_path / "after")
    assert {f"artifact-{artifact}.sig", f"model-{packaging.folder_digest(tmp_path / 'model-1')}.sig"} <= signed


def other_key(folder: Path) -> dict[str, str | None]:
    return {"sign": write_key_pair(folder)["sign"], "verify": None}


def other_pair(folder: Path) -> dict[str, str | None]:
    return {**write_key_pair(folder)}


def missing_public_key(folder: Path) -> dict[str, str | None]:
    return {"verify": str(folder / "none.pub")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choose", "fault"),
    [
        (lambda folder: {"sign": None}, "version 1 of tiny is signed; let registry.sign name the private key"),
        (lambda folder: {"sign": str(folder / "none")}, "registry.sign: .*/none cannot be used"),
        (missing_public_key, "registry.verify: .*/none.pub cannot be used"),
        (other_key, "version 1 of tiny is not signed again, since it was not signed by .*; let registry.sign name the"),
        (other_pair, "version 1 of tiny is not signed again, since it was not signed by .*, or delete its folder"),
    ],
    ids=["no key", "no file", "no public key", "another key", "another pair"],
)
def test_a_signed_version_is_not_changed_without_its_key(
    trained: tuple[Path, Settings],
    tmp_path: Path,
    choose: Callable[[Path], dict[str, str | None]],
    fault: str,
) -> None:
    """Nothing else is changed either, unless no version names the documents.

    By another key, whatever somebody has made of the version would be vouched for.
    """
    folder, settings = trained
    changed = change_keys(settings, **choose(tmp_path))
    [first, *_] = find_named(Registry(settings), tmp_path / "before")
    Store.of(settings).write("spool/0/000000.parquet", _documents(first))
    before = find_in_files(folder, [first])
    for dry_run in (True, False):
        with pytest.raises(UserError, match=f"^{fault}.*; nothing was changed, since the {NEURONS} of version 1"):
            forget_documents(changed, [first], [], dry_run=dry_run)
    assert find_in_files(folder, [first]) == before
    [of_model] = forget_documents(changed, ["Xyzzy-unknown"], []).registries
    assert not of_model.unreadable
    Store.of(settings).delete_many(["spool/0/000000.parquet"])


@pytest.mark.slow
def test_a_version_that_is_not_signed_is_changed_all_the_same(trained: tuple[Path, Settings], tmp_path: Path) -> None:
    """As one from before signatures were asked for. It is not signed then: nothing says what the key vouched for."""
    folder, settings = trained
    [first, *_] = find_named(Registry(settings), tmp_path / "before")
    [signed] = (folder / "store" / "mlflow").rglob("signatures")
    signed.rename(tmp_path / "signatures")
    [of_model] = forget_documents(settings, [first], []).registries
    assert (of_model.versions, of_model.unreadable) == (("1",), {})
    assert not signed.exists()
    with pytest.raises(UserError, match="version 1 of tiny is not signed"):
        Registry(settings).load("1")
    unsigned = Registry(change_keys(settings, verify=None))
    assert first not in find_named(unsigned, tmp_path / "after")
    keys = settings.registry  # the other tests have a signed version
    assert keys.sign is not None
    signatures.sign_model(unsigned.download_model("1", tmp_path), signed, keys.sign, keys.verify)


@pytest.mark.slow
def test_a_training_at_work_is_not_disturbed(trained: tuple[Path, Settings]) -> None:
    folder, settings = trained
    features = Store.of(settings) / "features"
    with Lease(features), pytest.raises(HeldError):
        forget_documents(settings, ["Xyzzy-held"], [])
    features.write("0/labels.parquet", _documents("Xyzzy-held"))
    with before_call(training_store, "delete_objects", action=crash), pytest.raises(SystemError):
        forget_documents(settings, ["Xyzzy-held"], [])
    assert find_in_files(folder, ["Xyzzy-held"])
    assert forget_documents(settings, ["Xyzzy-held"], []).store.emptied
    assert not find_in_files(folder, ["Xyzzy-held"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "left", ["kept/0/part", "probes/words", "model/0/heads/1", *(f"{name}/0/.part.{32 * '0'}" for name in KILLED)]
)
def test_values_that_outlive_their_documents_are_deleted(tmp_path: Path, left: str) -> None:
    """As after a purge of the features alone: nothing says of which documents they are."""
    store = Store(str(tmp_path / "store"))
    store.write(left, b"values")
    store.write("model/model.safetensors", b"weights")
    settings = small_training.make_settings(tmp_path, tmp_path / "store")
    assert forget_in_store(settings, ["any"], dry_run=True).emptied
    assert forget_in_store(settings, ["any"]).emptied
    assert {key.split("/")[0] for key in find_in_files(tmp_path, ["values", "weights"])} == set()
    store.write("model/model.safetensors", b"weights")
    assert not forget_in_store(settings, ["any"]).emptied
    assert store.exists("model/model.safetensors")


@pytest.mark.parametrize(("read", "held"), [("F", False), ("before F", True), (None, True)])
def test_a_second_pass_over_an_earlier_corpus_is_deleted(tmp_path: Path, read: str | None, held: bool) -> None:
    """It may hold a document that the corpus of the features no longer has."""
    store = Store(str(tmp_path / "store"))
    store.write("features/0/labels.parquet", _documents("another"))
    plan = StagePlan("extract", {}, None)
    store.write_json("features/plan.json", {"stage": "extract", "metadata": {}, "derived": {}})
    store.write_json("features/manifest.json", {"stage": "extract", "fingerprint": plan.fingerprint, "results": {}})
    store.write("kept/0/features.parquet", b"values")
    if read is not None:
        features = plan.fingerprint if read == "F" else read
        store.write_json("kept/0/plan.json", {"stage": "keep", "metadata": {"features": features}, "derived": {}})
    settings = small_training.make_settings(tmp_path, tmp_path / "store")
    assert forget_in_store(settings, ["Xyzzy-held"]).emptied == held
    assert store.exists("kept/0/features.parquet") != held


def test_a_spool_that_holds_a_document_is_deleted(tmp_path: Path) -> None:
    """As of a training that ended while it took its corpus in; one of other documents is kept."""
    store = Store(str(tmp_path / "store"))
    store.write("spool/0/000000.parquet", _documents("Xyzzy-held"))
    with Lease(store / "features"):
        pass
    settings = small_training.make_settings(tmp_path, tmp_path / "store")
    assert not forget_in_store(settings, ["another"]).emptied
    assert store.list("spool")
    assert forget_in_store(settings, ["Xyzzy-held"]).emptied
    assert not store.list("spool")


def test_a_forget_that_is_overtaken_deletes_no_report_of_its_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is suspended once it has found a document, while a training begins anew and writes its own."""
    monkeypatch.setattr(Lease, "_renew", lambda lease: None)
    store = Store(str(tmp_path / "store"))
    store.write("spool/0/000000.parquet", _documents("Xyzzy-held"))
    with Lease(store / "features"):
        pass

    holds = training_store._holds

    def find_and_sleep(*args: Any) -> bool:
        found = holds(*args)
        for name in STAGE_FOLDERS:
            expire_lease(store / name)
            with Lease(store / name):
                pass
        store.write("report.json", b"new")
        return found

    monkeypatch.setattr(training_store, "_holds", find_and_sleep)
    with pytest.raises(HeldError):
        forget_in_store(small_training.make_settings(tmp_path, tmp_path / "store"), ["Xyzzy-held"])
    assert store.read("report.json") == b"new"
    assert store.list("spool")


@pytest.mark.slow
def test_an_extraction_that_was_interrupted_is_not_continued(tmp_path: Path) -> None:
    """Its plan was made before the documents were forgotten; shards with them may still be missing."""
    rows = make_corpus()
    with before_call(extract_features, "read_corpus", action=crash), pytest.raises(SystemError):
        train(tmp_path, rows)
    settings = small_training.make_settings(tmp_path, tmp_path / "store")
    assert forget_documents(settings, [rows[-1]["id"]], []).store.emptied
    with pytest.raises(UserError, match="holds 1 document whose ids `spin forget` was given"):
        train(tmp_path, rows)


def _documents(id: str) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": [id]}), sink)
    return sink.getvalue().to_pybytes()


def test_ids_are_read_from_lines(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_bytes("\ufeffa\r\n\nb c\na\nd\u2028e\n".encode())
    assert read_ids(tmp_path / "ids.txt") == ["a", "b c", "d\u2028e"]
    (tmp_path / "ids.txt").write_text("\n", encoding="utf-8")
    with pytest.raises(UserError, match="is empty; expected an id per line"):
        read_ids(tmp_path / "ids.txt")
    with pytest.raises(UserError, match="cannot be read"):
        read_ids(tmp_path / "none.txt")
