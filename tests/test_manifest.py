"""The plan is frozen once, refused when it differs, and half cleared never looks finished."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.manifest import Plan, fingerprint, finish, finished, freeze
from pipelines.store import Lease, Store
from spin.errors import UserError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


def never() -> dict[str, Any]:
    raise AssertionError("the detail of a frozen plan is not worked out again")


@given(facts=st.dictionaries(st.text(max_size=5), JSON, max_size=6))
def test_a_fingerprint_is_of_the_facts_not_of_their_order(facts: dict[str, Any]) -> None:
    assert fingerprint(facts) == fingerprint(dict(reversed(list(facts.items()))))
    assert fingerprint({**facts, "one more": 1}) != fingerprint(facts)


def test_a_plan_is_frozen_once(store_uri: str) -> None:
    """The second time the kept detail is given, on a folder and on S3."""
    store = Store(store_uri)
    first = freeze(store, "trial", {"a": (1, 2)}, lambda: {"shards": [3]})
    assert freeze(store, "trial", {"a": [1, 2]}, never) == first
    assert finished(store, first) is None
    assert finish(store, first, rows=3) == finished(store, first)
    assert finished(store, Plan("trial", {"a": [1]}, {})) is None


def test_what_differs_is_named_and_restart_clears(tmp_path: Path) -> None:
    """Both values of each changed fact are told; --restart keeps nothing but the lease."""
    store = Store(str(tmp_path))
    with Lease(store):
        freeze(store, "trial", {"data": {"size": 10}, "metric": "f1"}, dict)
        store.write("parts/000000.json", b"{}")
        with pytest.raises(UserError, match=r"data\.size is 11, was 10; metric is \"auc\", was \"f1\"\. .*--restart"):
            freeze(store, "trial", {"data": {"size": 11}, "metric": "auc"}, never)
        assert store.exists("parts/000000.json")
        freeze(store, "trial", {"data": {"size": 11}, "metric": "auc"}, dict, restart=True)
        assert [key for key in store.list() if not key.startswith("_lease/")] == ["plan.json"]
        assert store.list("_lease")


@pytest.mark.parametrize("survived", range(5))
def test_half_cleared_is_not_finished(survived: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash after any number of deletions leaves nothing that either plan would take for its result."""
    store = Store(str(tmp_path))
    old = freeze(store, "trial", {"n": 1}, dict)
    for n in range(3):
        store.write(f"parts/{n:06d}.json", b"{}")
    finish(store, old)
    real, count = Store.delete, [0]

    def crashing(self: Store, prefix: str) -> None:
        if count[0] == survived:
            raise KeyboardInterrupt
        count[0] += 1
        real(self, prefix)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "delete", crashing)
        with suppress(KeyboardInterrupt):
            freeze(store, "trial", {"n": 2}, dict, restart=True)
    new = Plan("trial", {"n": 2}, {})
    assert finished(store, new) is None
    if survived:
        assert finished(store, old) is None
    after = freeze(store, "trial", {"n": 2}, dict, restart=True)
    assert after.fingerprint == new.fingerprint
    assert finished(store, after) is None
    assert not store.list("parts")
