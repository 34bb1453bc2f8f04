"""Repeated ids, found through hash partitions in the store, against a plain loop over all ids."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.input_files import list_files
from pipelines.data.readers import Shard, read_shard
from pipelines.data.sharding import plan_shards
from pipelines.nightly import dedup
from pipelines.nightly.dedup import DigestStep, DuplicateStep, duplicate_rows, plan_partitions
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import ShardLog
from pipelines.workers.map_shards import commit_shard
from spin.settings import DataSettings

DATA = DataSettings(train="nowhere")
IDS = st.sampled_from([1, "1", "a", "b", "c", "\ud800", "\ufffd", None, ""])


def found_in(shards: list[Shard], store: Store, partitions: int) -> dict[int, list[int]]:
    """Both passes, as the actors make them."""
    ids, found = Store(f"{store.uri}/ids"), Store(f"{store.uri}/repeats")
    digests = DigestStep(DATA, partitions)
    for shard in shards:
        commit_shard(digests, shard, ShardLog(ids))
    second = DuplicateStep(ids, partitions, [shard.name for shard in shards])
    work = [Shard(n, "", "partition", n, n + 1) for n in range(partitions)]
    keys = [key for part in work for key in commit_shard(second, part, ShardLog(found)).files]
    return {shard.index: rows for shard in shards if (rows := duplicate_rows(shard, found, keys))}


def write(folder: Path, name: str, ids: list[Any]) -> None:
    (folder / name).write_text("".join(json.dumps({"id": id, "text": "t"}) + "\n" for id in ids))


@settings(max_examples=40, deadline=None)
@given(st.lists(IDS, max_size=12), st.integers(0, 12), st.integers(1, 5), st.integers(1, 4))
def test_repeats_are_what_stood_earlier(ids: list[Any], cut: int, documents: int, partitions: int) -> None:
    """Within a shard, across shards and files: every row whose id an earlier row has; null ones are no ids."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        write(data, "a.jsonl", ids[:cut])
        write(data, "b.jsonl", ids[cut:])
        shards = plan_shards(list_files(str(data)), documents, DATA)
        found = found_in(shards, Store(f"{folder}/store"), partitions)
        firsts = [0]
        for shard in shards:
            firsts.append(firsts[-1] + len(read_shard(shard, DATA)))
    names = [None if id in (None, "") else str(id) for id in ids]
    expected = [row for row, name in enumerate(names) if name is not None and name in names[:row]]
    assert sorted(firsts[index] + row for index, rows in found.items() for row in rows) == expected
    assert all(rows == sorted(rows) for rows in found.values())


def test_repeats_lie_in_the_store(store_uri: str, tmp_path: Path) -> None:
    """On the real S3 server too, over many partitions; a file that cannot be read has no ids."""
    (tmp_path / "data").mkdir()
    write(tmp_path / "data", "a.jsonl", [f"d{n % 700}" for n in range(1000)])
    shards = plan_shards(list_files(str(tmp_path / "data")), 300, DATA)
    broken = Shard(len(shards), str(tmp_path / "none.csv"), "csv", 0, 9)
    Path(broken.uri).write_bytes(b"")
    found = found_in([*shards, broken], Store(store_uri), 5)
    sizes = [len(read_shard(shard, DATA)) for shard in shards]
    assert sum(sizes) == 1000
    rows = [sum(sizes[:index]) + row for index, of in found.items() for row in of]
    assert rows == list(range(700, 1000))


@pytest.mark.parametrize(("documents", "count"), [(0, 1), (1, 1), (10, 1), (11, 2), (95, 10)])
def test_a_partition_is_bounded(documents: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as keep each at its bound, and one where there is nothing."""
    monkeypatch.setattr(dedup, "PARTITION", 10)
    assert [shard.index for shard in plan_partitions(documents)] == list(range(count))
