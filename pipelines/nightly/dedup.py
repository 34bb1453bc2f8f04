"""Ids that stood earlier in the plan, found in bounded memory: two passes over hash partitions in the store."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.data.readers import IDS, Shard, read_shard
from pipelines.nightly.run_records import DigestCounts, DuplicateCounts
from pipelines.service_errors import BadFileError
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import Attempt, StepResult
from pipelines.workers.fault_isolation import check_readable
from spin.settings import DataSettings

PARTITION = 2_000_000
"""ids that a process holds at a time, about, in 24 bytes each and some more to sort them"""
_DIGEST = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<u4")])
_FOUND = pa.schema([("shard", pa.int32()), ("row", pa.int32())])
_GROUP = 1 << 16


def plan_partitions(documents: int) -> list[Shard]:
    """The work of the second pass: as many partitions as keep each below its bound."""
    return [Shard(n, "", "partition", n, n + 1) for n in range(max(1, math.ceil(documents / PARTITION)))]


class DigestStep:
    """First pass, a shard of documents: the digests of its ids with their rows, a partition after another.

    The file begins with the partition offsets, so that the second pass reads its own range of every file.
    """

    def __init__(self, data: DataSettings, partitions: int) -> None:
        self.data, self.partitions = data, partitions

    def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[DigestCounts]:
        try:
            check_readable(shard.uri, attempt)
            ids = read_shard(shard, self.data, columns=IDS).ids
        except BadFileError as error:  # its ids are not known, so none of its documents may be predicted
            return StepResult({}, DigestCounts(rows=0, bad=str(error)))
        found = np.array([(*_digest(id), row) for row, id in enumerate(ids) if id is not None], _DIGEST)
        partition = found["high"] % self.partitions
        order = np.argsort(partition, kind="stable")
        offsets = np.concatenate([[0], np.cumsum(np.bincount(partition, minlength=self.partitions))])
        data = offsets.astype("<u8").tobytes() + found[order].tobytes()
        return StepResult({"ids": data}, DigestCounts(rows=len(ids)))


class RepeatStep:
    """Second pass, a partition: the rows whose id stood earlier, in order of shard and row."""

    def __init__(self, ids: Store, partitions: int, shards: Sequence[str]) -> None:
        self.ids, self.partitions, self.shards = ids, partitions, shards

    def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[DuplicateCounts]:
        parts = [self._read(name, shard.index) for name in self.shards]
        where = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        found = np.concatenate(parts) if parts else np.empty(0, _DIGEST)
        order = np.lexsort((found["row"], where, found["low"], found["high"]))
        high, low = found["high"][order], found["low"][order]
        again = order[1:][(high[1:] == high[:-1]) & (low[1:] == low[:-1])]
        again = again[np.lexsort((found["row"][again], where[again]))]
        counts = DuplicateCounts(rows=len(found), repeats=len(again))
        if not len(again):
            return StepResult({}, counts)
        shards = np.array([int(name) for name in self.shards], np.int32)[where[again]]
        table = pa.table([shards, found["row"][again].astype(np.int32)], schema=_FOUND)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", row_group_size=_GROUP)
        return StepResult({"parquet": sink.getvalue().to_pybytes()}, counts)

    def _read(self, name: str, partition: int) -> NDArray[Any]:
        """The digests of one shard that fall into a partition; none where its file could not be read."""
        key, head = f"parts/{name}.ids", 8 * (self.partitions + 1)
        offsets = self.ids.read(key, 0, head)
        if offsets is None:
            return np.empty(0, _DIGEST)
        start, stop = (int(at) for at in np.frombuffer(offsets, "<u8")[partition : partition + 2])
        if start == stop:
            return np.empty(0, _DIGEST)
        data = self.ids.read(key, head + start * _DIGEST.itemsize, head + stop * _DIGEST.itemsize)
        assert data is not None
        return np.frombuffer(data, _DIGEST)


def duplicate_rows(shard: Shard, repeats: Store, keys: Sequence[str]) -> list[int]:
    """The rows of a shard whose id stood earlier in the plan, out of the files of the second pass."""
    rows: list[int] = []
    for key in keys:
        with repeats.open(key) as file:
            rows += pq.read_table(file, filters=[("shard", "=", shard.index)])["row"].to_pylist()
    return sorted(rows)


def _digest(id: str) -> tuple[int, int]:
    """128 bits of an id: two of 10^12 ids share them with a chance below 10^-14."""
    digest = hashlib.blake2b(id.encode(errors="surrogatepass"), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
