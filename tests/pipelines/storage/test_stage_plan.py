"""Plans and manifests: frozen once, told apart by name, never finished while half cleared."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.storage.stage_plan import (
    NothingDerived,
    StageManifest,
    StagePlan,
    _differences,
    find_manifest,
    fingerprint,
    load_finished,
    plan_fingerprint,
    read_plan,
    write_manifest,
    write_plan,
)
from spin.errors import UserError

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
trees = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=4)
)
facts_of = st.dictionaries(st.text(min_size=1, max_size=3), trees, max_size=4)

FACTS: dict[str, Any] = {
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


def freeze(
    store: Store,
    stage: str,
    metadata: dict[str, Any],
    derive: Callable[[], Derived] = Derived,
    *,
    restart: bool = False,
) -> StagePlan[Derived]:
    return write_plan(store, stage, metadata, Derived, derive, restart=restart)


def finished(store: Store, plan: StagePlan[Any]) -> StageManifest[Results] | None:
    return find_manifest(store, plan, Results)


def kept(store: Store) -> StagePlan[Derived] | None:
    return read_plan(store, Derived)


@pytest.fixture
def store(store_uri: str) -> Store:
    return Store(store_uri)


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def reordered(tree: Any) -> Any:
    """The same tree, every mapping written the other way round."""
    if isinstance(tree, dict):
        return {key: reordered(tree[key]) for key in reversed(tree)}
    return [reordered(item) for item in tree] if isinstance(tree, list) else tree


def nothing() -> NoReturn:
    raise AssertionError("worked out again")


@given(trees)
def test_a_fingerprint_does_not_depend_on_the_order_of_keys(tree: Any) -> None:
    assert fingerprint(tree) == fingerprint(reordered(tree))
    assert re.fullmatch(r"[0-9a-f]{64}", fingerprint(tree))


@given(trees, trees)
def test_a_fingerprint_tells_facts_apart(one: Any, other: Any) -> None:
    """Equal exactly where the JSON is; the order of a list counts."""
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (fingerprint(one) == fingerprint(other)) == same
    assert (fingerprint([one, other]) == fingerprint([other, one])) == same


def test_the_first_detail_is_kept(store: Store) -> None:
    """What was worked out once is read back; facts come back as JSON holds them."""
    made = freeze(store, "extract", {**FACTS, "sites": ("ffn",)}, lambda: Derived((1, 2)))
    assert made.derived == Derived((1, 2))
    for restart in (False, True):
        assert freeze(store, "extract", FACTS, nothing, restart=restart) == made
    assert kept(store) == made
    assert store.list() == ["plan.json"]


def test_no_plan_is_kept_in_an_empty_store(store: Store) -> None:
    assert kept(store) is None
    assert finished(store, StagePlan("extract", FACTS, Derived())) is None


def test_a_detail_that_fails_changes_nothing(folder: Store) -> None:
    """A survey that finds bad data leaves the old plan and what was made by it."""
    freeze(folder, "extract", FACTS)
    folder.write("parts/000000.json", b"{}")

    def fail() -> NoReturn:
        raise UserError("bad data")

    with pytest.raises(UserError, match="bad data"):
        freeze(folder, "extract", {**FACTS, "metric": "accuracy"}, fail, restart=True)
    assert folder.list() == ["parts/000000.json", "plan.json"]
    assert freeze(folder, "extract", FACTS, nothing).metadata == FACTS


LONG = "s3://bucket/a/rather/long/prefix/that/goes/on/and/on"
DIFFERENCES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "value": ({"metric": "accuracy"}, {"metric": "macro_f1"}, 'metric is "accuracy", was "macro_f1". '),
    "nested": ({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}}, "a.b.c is 1, was 2. "),
    "two": ({"a": 1, "b": 2}, {"a": 0, "b": 0}, "a is 1, was 0; b is 2, was 0. "),
    "list": ({"sites": ["ffn"]}, {"sites": ["ffn", "resid"]}, 'sites is ["ffn"], was ["ffn", "resid"]. '),
    "file": (
        {"files": [{"uri": "a", "size": 1}, {"uri": "b", "size": 3}]},
        {"files": [{"uri": "a", "size": 1}, {"uri": "b", "size": 2}]},
        "files.1.size is 3, was 2. ",
    ),
    "new": ({"a": 1}, {"a": 1, "files": [{"uri": "b"}]}, 'files.0.uri is absent, was "b". '),
    "absent is not null": ({"revision": None}, {}, "revision is null, was absent. "),
    "true is not one": ({"a": True}, {"a": 1}, "a is true, was 1. "),
    "empty": ({"a": {}}, {}, "a is {}, was absent. "),
    "many": ({str(n): 1 for n in range(6)}, {str(n): 0 for n in range(6)}, "3 is 1, was 0; and 2 more. "),
    "long": (
        {"uri": f"{LONG}/new.parquet"},
        {"uri": f"{LONG}/old.parquet"},
        'on/and/on/new.parquet", was "s3://bucket/a/rather/lo…',
    ),
}


@pytest.mark.parametrize("case", DIFFERENCES)
def test_other_facts_are_refused_by_name(case: str, folder: Store) -> None:
    """What differs is named with both values, and what to do; nothing is touched."""
    facts, old, said = DIFFERENCES[case]
    made = freeze(folder, "probe", old)
    with pytest.raises(UserError) as error:
        freeze(folder, "probe", facts, nothing)
    message = str(error.value)
    assert message.startswith(f"probe: {folder.uri} was made with other settings or data: ")
    assert said in message
    assert message.endswith("Put them back, use another store, or start over with --restart")
    assert "\n" not in message
    assert kept(folder) == made


def test_another_stage_is_refused_by_name(folder: Store) -> None:
    freeze(folder, "extract", FACTS)
    with pytest.raises(UserError, match='stage is "probe", was "extract"'):
        freeze(folder, "probe", FACTS, nothing)


@given(facts_of, facts_of)
def test_a_difference_always_has_a_name(facts: dict[str, Any], old: dict[str, Any]) -> None:
    """Whatever makes two plans different is told; the same facts differ in nothing."""
    different = plan_fingerprint("probe", facts) != plan_fingerprint("probe", old)
    assert bool(_differences("probe", facts, {"stage": "probe", "facts": old})) == different


def test_a_restart_clears_what_was_there(store: Store) -> None:
    """The parts, the manifest and the plan of before are gone; the run's own lease is not."""
    with Lease(store) as lease:
        plan = freeze(store, "extract", FACTS)
        for key in ("parts/000000.json", "parts/000000.parquet", "notes"):
            store.write(key, b"old")
        write_manifest(store, plan, Results(1.5))
        new = freeze(store, "extract", {"metric": "accuracy"}, Derived, restart=True)
        lease.check()
        assert store.list() == ["_lease/000001", "plan.json"]
    assert kept(store) == new
    assert finished(store, plan) is None
    assert finished(store, new) is None


def test_what_has_no_plan_is_cleared_before_one_is_frozen(folder: Store) -> None:
    """Parts without a plan are a half cleared store's: no run may take them for its own."""
    folder.write("parts/000000.json", b"old")
    freeze(folder, "extract", FACTS)
    assert folder.list() == ["plan.json"]


class Crash(BaseException):
    """The machine went off."""


def crashing(delete: Callable[[Store, str], None], after: int) -> Callable[[Store, str], None]:
    """`Store.delete` that ends everything when it has worked so many times."""
    left = [after]

    def crash(store: Store, prefix: str) -> None:
        if left[0] == 0:
            raise Crash
        left[0] -= 1
        delete(store, prefix)

    return crash


@pytest.mark.parametrize("after", range(6))
def test_a_crash_while_clearing(after: int, folder: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """After however many deletes: no plan is finished, and the run of either plan ends with a store of its own."""
    facts, parts = {"metric": "accuracy"}, [f"parts/{n:06d}.json" for n in range(4)]
    old = freeze(folder, "extract", FACTS, lambda: Derived(name="old"))
    for key in parts:
        folder.write(key, b"old")
    write_manifest(folder, old, Results(1.5))
    assert finished(folder, old)
    monkeypatch.setattr(Store, "delete", crashing(Store.delete, after))
    with pytest.raises(Crash):
        freeze(folder, "extract", facts, lambda: Derived(name="new"), restart=True)
    monkeypatch.undo()
    left = [key for key in folder.list() if key.startswith("parts/")]
    if left != parts:
        assert kept(folder) is None
    if after:
        assert finished(folder, old) is None
    assert finished(folder, StagePlan("extract", facts, Derived())) is None
    new = freeze(folder, "extract", facts, lambda: Derived(name="new"), restart=True)
    assert (new.derived, folder.list()) == (Derived(name="new"), ["plan.json"])


def test_finished_only_by_its_own_plan(store: Store) -> None:
    """The manifest of a plan is no other's; it holds what the stage told."""
    plan = freeze(store, "train", FACTS)
    assert finished(store, plan) is None
    manifest = write_manifest(store, plan, Results(1.5, {"rows": 3}))
    assert finished(store, plan) == manifest
    assert store.read_json("manifest.json") == manifest.to_json()
    assert manifest.to_json() == {
        "stage": "train",
        "fingerprint": plan.fingerprint,
        "counts": {"rows": 3},
        "seconds": 1.5,
    }
    assert finished(store, StagePlan("train", {**FACTS, "metric": "accuracy"}, Derived())) is None
    assert finished(store, StagePlan("probe", FACTS, Derived())) is None
    assert finished(store, StagePlan("train", FACTS, Derived((7,)))) == manifest


def test_keys_of_the_files(folder: Store) -> None:
    """The keys of plan.json are an interface; a derived value that is None is absent."""
    freeze(folder, "extract", FACTS, lambda: Derived((1, 2)))
    assert folder.read_json("plan.json") == {"stage": "extract", "facts": FACTS, "detail": {"shards": [1, 2]}}


def test_a_stage_that_builds_on_another_loads_what_has_finished(folder: Store) -> None:
    """Before the other has finished, and where it finished with other metadata, the error names what to do."""

    def load(metadata: dict[str, Any]) -> tuple[StagePlan[Derived], StageManifest[Results]]:
        return load_finished(folder, "extract", metadata, Derived, Results)

    with pytest.raises(UserError, match=r"extract has not finished in .*; run `spin extract` first"):
        load(FACTS)
    plan = freeze(folder, "extract", FACTS, lambda: Derived((1, 2)))
    with pytest.raises(UserError, match="has not finished"):
        load(FACTS)
    manifest = write_manifest(folder, plan, Results(2.5))
    assert load({**FACTS, "sites": ("ffn",)}) == (plan, manifest)
    with pytest.raises(UserError, match='metric is "accuracy", was "macro_f1"'):
        load({**FACTS, "metric": "accuracy"})


def test_a_stage_may_derive_nothing(folder: Store) -> None:
    plan = write_plan(folder, "probe", FACTS, NothingDerived, NothingDerived)
    assert folder.read_json("plan.json")["detail"] == {}
    assert read_plan(folder, NothingDerived) == plan
