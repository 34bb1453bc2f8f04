"""The hashes of forgotten ids: they recognise these ids and no others, and do not contain them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pipelines.data.forgotten_ids import FOLDER, ForgottenIds, add_forgotten, read_forgotten
from pipelines.storage.object_store import Store
from tests.support.object_search import find_in_store

IDS = ["mail-4711", "ümläut/ß", "with space"]


def test_stored_ids_are_recognised_and_not_contained(store_uri: str) -> None:
    store = Store(store_uri)
    assert len(read_forgotten(store)) == 0
    assert read_forgotten(store).find(IDS) == []
    added = add_forgotten(store, IDS[:2])
    assert added.find(["other", None, *IDS]) == [2, 3]
    add_forgotten(store, IDS[2:])
    assert read_forgotten(store).find(["other", None, *IDS, "mail-471", "mail-47111"]) == [2, 3, 4]
    assert find_in_store(store, IDS) == {}


def test_the_same_ids_are_stored_once(store_uri: str) -> None:
    store = Store(store_uri)
    first = add_forgotten(store, IDS)
    objects = store.list(FOLDER)
    assert add_forgotten(store, list(reversed(IDS))) == first
    assert store.list(FOLDER) == objects
    assert read_forgotten(store) == first


def test_hashes_are_those_of_keyed_blake2b() -> None:
    forgotten = ForgottenIds.of(["a"])
    assert forgotten.hashes == {hashlib.blake2b(b"a", digest_size=16, key=forgotten.salt).digest()}
    assert ForgottenIds.of(["a"]).hashes != forgotten.hashes


def test_other_users_can_read_neither_the_hashes_nor_the_salt(tmp_path: Path) -> None:
    """Whoever has both can test ids that he guesses. The tables beside them stay readable."""
    store = Store(str(tmp_path / "nights"))
    store.write("predictions/a", b"")
    add_forgotten(store, IDS)
    paths = list((tmp_path / "nights" / FOLDER).rglob("*"))
    assert {path.name for path in paths} >= {"salt"}
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "nights" / FOLDER, *paths)} == {0}
    assert (tmp_path / "nights" / "predictions").stat().st_mode & 0o077 != 0
