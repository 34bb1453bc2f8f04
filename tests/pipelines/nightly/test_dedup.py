"""Duplicate ids, found with hash partitions in the store and compared with a plain loop over all ids."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.input_files import list_files
from pipelines.data.readers import read_shard
from pipelines.data.sharding import plan_shards
from pipelines.data.shards import Piece, Shard
from pipelines.nightly import dedup
from pipelines.nightly.dedup import DigestStep, DuplicateStep, duplicate_rows, plan_partitions
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import ShardLog
from pipelines.workers.map_shards import commit_shard
from spin.settings import DataSettings

DATA = DataSettings(train="nowhere")
IDS = st.sampled_from([1, "1", "a", "b", "c", "\ud800", "\ufffd", None, ""])


def find_duplicates(shards: list[Shard], store: Store, partitions: int) -> dict[int, list[int]]:
    """Run both passes as the actors do; returns the duplicate rows by shard index."""
    ids, duplicates = Store(f"{store.uri}/ids"), Store(f"{store.uri}/repeats")
    digests = DigestStep(DATA, partitions)
    for shard in shards:
        commit_shard(digests, shard, ShardLog(ids))
    search = DuplicateStep(ids, partitions, [shard.name for shard in shards])
    work = [Shard(n) for n in range(partitions)]
    keys = [key for partition in work for key in commit_shard(search, partition, ShardLog(duplicates)).files]
    return {shard.index: rows for shard in shards if (rows := duplicate_rows(shard, duplicates, keys))}


def write_jsonl(folder: Path, name: str, ids: list[Any]) -> None:
    """Write a document per id; without ids a blank line, since a file without a byte is a bad file."""
    (folder / name).write_text("".join(json.dumps({"id": id, "text": "t"}) + "\n" for id in ids) or "\n")


@settings(max_examples=40, deadline=None)
@given(st.lists(IDS, max_size=12), st.integers(0, 12), st.integers(1, 5), st.integers(1, 4))
def test_a_row_is_a_duplicate_if_an_earlier_row_has_its_id(
    ids: list[Any], cut: int, documents: int, partitions: int
) -> None:
    """The earlier row may be in another shard or file; null and empty ids are never duplicates."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        write_jsonl(data, "a.jsonl", ids[:cut])
        write_jsonl(data, "b.jsonl", ids[cut:])
        shards = plan_shards(list_files(str(data)), documents, DATA)
        duplicates = find_duplicates(shards, Store(f"{folder}/store"), partitions)
        first_rows = [0]
        for shard in shards:
            first_rows.append(first_rows[-1] + len(read_shard(shard, DATA)))
    names = [None if id in (None, "") else str(id) for id in ids]
    expected = [row for row, name in enumerate(names) if name is not None and name in names[:row]]
    assert sorted(first_rows[index] + row for index, rows in duplicates.items() for row in rows) == expected
    assert all(rows == sorted(rows) for rows in duplicates.values())


def test_duplicate_ids_are_found_across_shards_in_any_store(store_uri: str, tmp_path: Path) -> None:
    """The store is a folder, then a real S3 server. An unreadable file contributes no ids."""
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data", "a.jsonl", [f"d{n % 700}" for n in range(1000)])
    shards = plan_shards(list_files(str(tmp_path / "data")), 300, DATA)
    unreadable = Shard(len(shards), (Piece(str(tmp_path / "none.csv"), "csv", 0, 9),))
    Path(unreadable.uri).write_bytes(b"")
    duplicates = find_duplicates([*shards, unreadable], Store(store_uri), 5)
    sizes = [len(read_shard(shard, DATA)) for shard in shards]
    assert sum(sizes) == 1000
    rows = [sum(sizes[:index]) + row for index, shard_rows in duplicates.items() for row in shard_rows]
    assert rows == list(range(700, 1000))


@pytest.mark.parametrize(("documents", "count"), [(0, 1), (1, 1), (10, 1), (11, 2), (95, 10)])
def test_a_partition_holds_a_bounded_number_of_documents(
    documents: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are as few partitions as that allows, and one if there are no documents."""
    monkeypatch.setattr(dedup, "PARTITION", 10)
    assert [shard.index for shard in plan_partitions(documents)] == list(range(count))
