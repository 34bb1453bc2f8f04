"""Plans and manifests of stages: a plan is written once, every difference is named, a crash never fakes a finish."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.service_errors import HeldError
from pipelines.storage import object_store, stage_plan
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.storage.stage_plan import (
    NothingDerived,
    StageManifest,
    StagePlan,
    _differences,
    create_plan,
    delete_objects,
    find_manifest,
    fingerprint,
    load_finished,
    read_plan,
    write_manifest,
    write_plan,
)
from spin.errors import UserError
from tests.support.leases import expire_lease

json_leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
json_values = st.recursive(
    json_leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=4)
)
metadata_dicts = st.dictionaries(st.text(min_size=1, max_size=3), json_values, max_size=4)

METADATA: dict[str, Any] = {
    "metric": "macro_f1",
    "data": {"id": "id", "files": [{"uri": "a", "size": 1}]},
    "sites": ["ffn"],
}


@dataclass(frozen=True)
class Derived:
    shards: tuple[int, ...] = ()
    name: str | None = None


@dataclass(frozen=True)
class Results:
    seconds: float
    counts: dict[str, int] = field(default_factory=dict)


def write(
    store: Store,
    stage: str,
    metadata: dict[str, Any],
    derive: Callable[[], Derived] = Derived,
    *,
    lease: Lease | None = None,
    restart: bool = False,
) -> StagePlan[Derived]:
    """Write a plan, without a lease as if one were held."""
    lease = lease or cast(Lease, SimpleNamespace(check=lambda max_age=0: None))
    return write_plan(store, stage, metadata, Derived, derive, lease=lease, restart=restart)


def find(store: Store, plan: StagePlan[Any]) -> StageManifest[Results] | None:
    return find_manifest(store, plan, Results)


def read(store: Store) -> StagePlan[Derived] | None:
    return read_plan(store, Derived)


@pytest.fixture
def store(store_uri: str) -> Store:
    return Store(store_uri)


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def reverse_keys(value: Any) -> Any:
    """Return an equal JSON value whose mappings have their keys in reverse order."""
    if isinstance(value, dict):
        return {key: reverse_keys(value[key]) for key in reversed(value)}
    return [reverse_keys(item) for item in value] if isinstance(value, list) else value


def fail_if_called() -> NoReturn:
    raise AssertionError("the derived values were computed again")


@given(json_values)
def test_a_fingerprint_does_not_depend_on_the_order_of_keys(value: Any) -> None:
    assert fingerprint(value) == fingerprint(reverse_keys(value))
    assert re.fullmatch(r"[0-9a-f]{64}", fingerprint(value))


@given(json_values, json_values)
def test_fingerprints_are_equal_only_for_equal_json(first: Any, second: Any) -> None:
    """The order of a list counts."""
    same = json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)
    assert (fingerprint(first) == fingerprint(second)) == same
    assert (fingerprint([first, second]) == fingerprint([second, first])) == same


def test_derived_values_are_computed_once_and_read_back(store: Store) -> None:
    """Writing the same plan again, even with `restart`, returns the stored one; a tuple in it is equal to a list."""
    plan = write(store, "extract", {**METADATA, "sites": ("ffn",)}, lambda: Derived((1, 2)))
    assert plan.derived == Derived((1, 2))
    for restart in (False, True):
        assert write(store, "extract", METADATA, fail_if_called, restart=restart) == plan
    assert read(store) == plan
    assert store.list() == ["plan.json"]


def test_an_empty_store_has_no_plan_and_no_manifest(store: Store) -> None:
    assert read(store) is None
    assert find(store, StagePlan("extract", METADATA, Derived())) is None


def test_an_error_while_deriving_keeps_the_old_plan_and_its_parts(folder: Store) -> None:
    """Bad data found before a restart must not cost the work that is already done."""
    write(folder, "extract", METADATA)
    folder.write("parts/000000.json", b"{}")

    def fail() -> NoReturn:
        raise UserError("bad data")

    with pytest.raises(UserError, match="bad data"):
        write(folder, "extract", {**METADATA, "metric": "accuracy"}, fail, restart=True)
    assert folder.list() == ["parts/000000.json", "plan.json"]
    assert write(folder, "extract", METADATA, fail_if_called).metadata == METADATA


LONG = "s3://bucket/a/rather/long/prefix/that/goes/on/and/on"
DIFFERENCES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "value": ({"metric": "accuracy"}, {"metric": "macro_f1"}, 'metric is "accuracy", was "macro_f1". '),
    "nested": ({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}}, "a.b.c is 1, was 2. "),
    "two values": ({"a": 1, "b": 2}, {"a": 0, "b": 0}, "a is 1, was 0; b is 2, was 0. "),
    "list": ({"sites": ["ffn"]}, {"sites": ["ffn", "resid"]}, 'sites is ["ffn"], was ["ffn", "resid"]. '),
    "file": (
        {"files": [{"uri": "a", "size": 1}, {"uri": "b", "size": 3}]},
        {"files": [{"uri": "a", "size": 1}, {"uri": "b", "size": 2}]},
        "files.1.size is 3, was 2. ",
    ),
    "absent file": ({"a": 1}, {"a": 1, "files": [{"uri": "b"}]}, 'files.0.uri is absent, was "b". '),
    "absent is not null": ({"revision": None}, {}, "revision is null, was absent. "),
    "true is not one": ({"a": True}, {"a": 1}, "a is true, was 1. "),
    "empty mapping": ({"a": {}}, {}, "a is {}, was absent. "),
    "six values": ({str(n): 1 for n in range(6)}, {str(n): 0 for n in range(6)}, "3 is 1, was 0; and 2 more. "),
    "long values": (
        {"uri": f"{LONG}/new.parquet"},
        {"uri": f"{LONG}/old.parquet"},
        'on/and/on/new.parquet", was "s3://bucket/a/rather/lo…',
    ),
}


@pytest.mark.parametrize("case", DIFFERENCES)
def test_different_metadata_is_refused_and_each_difference_named(case: str, folder: Store) -> None:
    """The message holds both values and says what to do; the stored plan does not change."""
    new, old, expected = DIFFERENCES[case]
    plan = write(folder, "probe", old)
    with pytest.raises(UserError) as error:
        write(folder, "probe", new, fail_if_called)
    message = str(error.value)
    assert message.startswith(f"probe: {folder.uri} was made with other settings or data: ")
    assert expected in message
    assert message.endswith("Put them back, name another folder for the results, or start over with --restart")
    assert "\n" not in message
    assert read(folder) == plan


def test_the_plan_of_a_different_stage_is_refused(folder: Store) -> None:
    write(folder, "extract", METADATA)
    with pytest.raises(UserError, match='stage is "probe", was "extract"'):
        write(folder, "probe", METADATA, fail_if_called)


@pytest.mark.slow
@given(metadata_dicts, metadata_dicts)
def test_differences_are_named_exactly_if_fingerprints_differ(new: dict[str, Any], old: dict[str, Any]) -> None:
    different = StagePlan("probe", new, None).fingerprint != StagePlan("probe", old, None).fingerprint
    assert bool(_differences("probe", new, StagePlan("probe", old, Derived()))) == different


@pytest.mark.parametrize("missing", ["stage", "metadata", "derived"])
def test_a_plan_of_another_shape_is_refused_and_replaced_by_a_restart(folder: Store, missing: str) -> None:
    plan = write(folder, "extract", METADATA)
    stored = folder.read_json("plan.json")
    folder.write_json("plan.json", {key: value for key, value in stored.items() if key != missing})
    with pytest.raises(UserError, match=rf"is damaged or of another version \('{missing}'\)"):
        write(folder, "extract", METADATA)
    assert write(folder, "extract", METADATA, restart=True) == plan == read(folder)


def test_a_restart_deletes_everything_but_the_lease(store: Store) -> None:
    """The parts, the manifest and the plan of the previous run are gone; the lease of this run is still valid."""
    with Lease(store) as lease:
        plan = write(store, "extract", METADATA)
        for key in ("parts/000000.json", "parts/000000.parquet", "notes"):
            store.write(key, b"old")
        write_manifest(store, plan, Results(1.5))
        new = write(store, "extract", {"metric": "accuracy"}, Derived, restart=True)
        lease.check()
        assert store.list() == ["_lease/000001", "plan.json"]
    assert read(store) == new
    assert find(store, plan) is None
    assert find(store, new) is None


def test_a_driver_that_sleeps_while_it_plans_a_restart_deletes_nothing_of_its_successor(folder: Store) -> None:
    """The successor has planned and finished something else by the time the driver wakes."""
    write(folder, "extract", METADATA)
    with Lease(folder) as lease:

        def sleep() -> Derived:
            expire_lease(folder)
            with Lease(folder) as next_lease:
                plan = write(folder, "extract", {"metric": "f1"}, lease=next_lease, restart=True)
                folder.write(f"{plan.folder}/parts/000000.json", b"new")
                write_manifest(folder, plan, Results(1.5))
            return Derived()

        with pytest.raises(HeldError):
            write(folder, "extract", {"metric": "accuracy"}, sleep, lease=lease, restart=True)
    plan = read(folder)
    assert plan is not None
    assert plan.metadata == {"metric": "f1"}
    assert find(folder, plan) is not None
    assert folder.read(f"{plan.folder}/parts/000000.json") == b"new"


@pytest.mark.parametrize("deletions", [3, 6])
def test_a_driver_that_sleeps_while_it_clears_a_store_stops_before_it_deletes_more(
    folder: Store, monkeypatch: pytest.MonkeyPatch, deletions: int
) -> None:
    """Nor does it write a plan over that of its successor, also if it sleeps after the last deletion, the sixth."""
    monkeypatch.setattr(stage_plan, "_CONFIRMED_SECONDS", 0.0)
    monkeypatch.setattr(Lease, "_renew", lambda lease: None)
    write(folder, "extract", METADATA)
    for number in range(5):
        folder.write(f"parts/{number}", b"old")
    with Lease(folder) as lease:
        deleted, suspended = list[str](), [False, True]

        def delete(store: Store, keys: Sequence[str], *, delete: Any = Store.delete_many) -> None:
            delete(store, keys)
            deleted.extend(keys)
            if len(deleted) == deletions and suspended.pop():
                expire_lease(folder)
                with Lease(folder) as next_lease:
                    write(folder, "extract", {"metric": "f1"}, lease=next_lease, restart=True)
                    folder.write("parts/4", b"new")

        with monkeypatch.context() as patch:
            patch.setattr(Store, "delete_many", delete)
            with pytest.raises(HeldError):
                write(folder, "extract", {"metric": "accuracy"}, lease=lease, restart=True)
    plan = read(folder)
    assert plan is not None
    assert plan.metadata == {"metric": "f1"}
    assert folder.read("parts/4") == b"new"


def test_a_request_deletes_a_thousand_objects_of_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """And lists none. Manifests have a request of their own, then plans; before each the lease is confirmed."""
    store, done = Store("s3://spin/d"), list[Any]()

    def answer(operation: str, *, Delete: dict[str, Any], **_: Any) -> dict[str, Any]:
        done.append([each["Key"] for each in Delete["Objects"]])
        return {}

    monkeypatch.setattr(store.fs, "call_s3", answer)
    monkeypatch.setattr(object_store, "find_files", lambda *_, **__: done.append("listing") or {})
    lease = cast(Lease, SimpleNamespace(check=lambda max_age=0.0: done.append("check")))
    parts = [f"parts/{number}" for number in range(2500)]
    delete_objects(store, ["a/plan.json", *parts, "plan.json", "manifest.json"], lease)
    assert [of if of in ("check", "listing") else len(of) for of in done] == [
        "check",
        *("check", 1),
        *("check", 2),
        *("check", 1000),
        *("check", 1000),
        *("check", 500),
    ]
    assert done[2] == ["d/manifest.json"]
    assert done[4] == ["d/a/plan.json", "d/plan.json"]


def test_parts_without_a_plan_are_deleted_before_a_plan_is_written(folder: Store) -> None:
    """They are left from an interrupted deletion, and no run may take them for its own."""
    folder.write("parts/000000.json", b"old")
    write(folder, "extract", METADATA)
    assert folder.list() == ["plan.json"]


class Crash(BaseException):
    """Stands for the death of the process."""


Delete = Callable[[Store, Sequence[str]], None]


def crash_after(count: int, delete: Delete) -> Delete:
    """Return a `Store.delete_many` that works `count` times and then raises Crash."""
    remaining = [count]

    def delete_or_crash(store: Store, keys: Sequence[str]) -> None:
        if remaining[0] == 0:
            raise Crash
        remaining[0] -= 1
        delete(store, keys)

    return delete_or_crash


@pytest.mark.parametrize("deletes", range(6))
def test_a_crash_during_a_restart_leaves_no_plan_with_missing_parts(
    deletes: int, folder: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After any number of deletes neither plan counts as finished, and a second restart starts from an empty store."""
    metadata, parts = {"metric": "accuracy"}, [f"parts/{n:06d}.json" for n in range(4)]
    old = write(folder, "extract", METADATA, lambda: Derived(name="old"))
    for key in parts:
        folder.write(key, b"old")
    write_manifest(folder, old, Results(1.5))
    assert find(folder, old)
    monkeypatch.setattr(Store, "delete_many", crash_after(deletes, Store.delete_many))
    with pytest.raises(Crash):
        write(folder, "extract", metadata, lambda: Derived(name="new"), restart=True)
    monkeypatch.undo()
    remaining_parts = [key for key in folder.list() if key.startswith("parts/")]
    if remaining_parts != parts:
        assert read(folder) is None
    if deletes:
        assert find(folder, old) is None
    assert find(folder, StagePlan("extract", metadata, Derived())) is None
    new = write(folder, "extract", metadata, lambda: Derived(name="new"), restart=True)
    assert (new.derived, folder.list()) == (Derived(name="new"), ["plan.json"])


def test_a_manifest_is_found_only_for_the_plan_it_was_written_for(store: Store) -> None:
    """Stage and metadata must be the same, derived values need not; manifest.json holds the results of the stage."""
    plan = write(store, "train", METADATA)
    assert find(store, plan) is None
    manifest = write_manifest(store, plan, Results(1.5, {"rows": 3}))
    assert find(store, plan) == manifest
    assert store.read_json("manifest.json") == manifest.to_json()
    assert manifest.to_json() == {
        "stage": "train",
        "fingerprint": plan.fingerprint,
        "counts": {"rows": 3},
        "seconds": 1.5,
    }
    assert find(store, StagePlan("train", {**METADATA, "metric": "accuracy"}, Derived())) is None
    assert find(store, StagePlan("probe", METADATA, Derived())) is None
    assert find(store, StagePlan("train", METADATA, Derived((7,)))) == manifest


def test_a_plan_file_holds_stage_metadata_and_derived_values(folder: Store) -> None:
    """These keys of plan.json are an interface; a derived value that is None is left out."""
    write(folder, "extract", METADATA, lambda: Derived((1, 2)))
    assert folder.read_json("plan.json") == {"stage": "extract", "metadata": METADATA, "derived": {"shards": [1, 2]}}


def test_load_finished_returns_plan_and_manifest_of_a_finished_stage(folder: Store) -> None:
    """The error names what to do if the stage has not finished or finished with different metadata."""

    def load(metadata: dict[str, Any]) -> tuple[StagePlan[Derived], StageManifest[Results]]:
        return load_finished(folder, "extract", metadata, Derived, Results)

    with pytest.raises(UserError, match=r"extract has not finished in .*; run `spin extract` first"):
        load(METADATA)
    plan = write(folder, "extract", METADATA, lambda: Derived((1, 2)))
    with pytest.raises(UserError, match="has not finished"):
        load(METADATA)
    manifest = write_manifest(folder, plan, Results(2.5))
    assert load({**METADATA, "sites": ("ffn",)}) == (plan, manifest)
    differences = r'metric is "accuracy", was "macro_f1"\. Put them back, .*, or run `spin extract --restart` first$'
    with pytest.raises(UserError, match=differences):
        load({**METADATA, "metric": "accuracy"})


def test_a_stage_may_derive_nothing(folder: Store) -> None:
    with Lease(folder) as lease:
        plan = write_plan(folder, "probe", METADATA, NothingDerived, NothingDerived, lease=lease)
    assert folder.read_json("plan.json")["derived"] == {}
    assert read_plan(folder, NothingDerived) == plan


def test_the_first_plan_of_two_drivers_is_that_of_both(store: Store) -> None:
    """Neither replaces what the other has planned with."""

    def derive() -> Derived:
        create_plan(store, "classify", METADATA, Derived, lambda: Derived((1,)))
        return Derived((2,))

    assert create_plan(store, "classify", METADATA, Derived, derive).derived == Derived((1,))
    assert read_plan(store, Derived) == StagePlan("classify", METADATA, Derived((1,)))
