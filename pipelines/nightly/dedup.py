"""Find duplicate ids in bounded memory, in two passes over hash partitions in the store."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.data.readers import IDS, read_shard
from pipelines.data.shards import Shard
from pipelines.nightly.run_records import DigestCounts, DuplicateCounts
from pipelines.service_errors import BadFileError
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import Attempt, StepResult
from pipelines.workers.fault_isolation import check_readable
from spin.settings import DataSettings

PARTITION = 2_000_000
"""approximate number of ids in the memory of a process, 24 bytes each and some more to sort them"""
_DIGEST = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<u4")])
_DUPLICATES = pa.schema([("shard", pa.int32()), ("row", pa.int32())])
_ROW_GROUP = 1 << 16
"""rows per row group"""


def plan_partitions(documents: int) -> list[Shard]:
    """Return the work of the second pass: so many partitions that each has about `PARTITION` ids at most."""
    return [Shard(n) for n in range(max(1, math.ceil(documents / PARTITION)))]


class DigestStep:
    """First pass, on one shard of documents: write the digests of its ids with their rows, sorted by partition.

    The file begins with the offsets of the partitions, so that the second pass reads only its range of every file.
    """

    def __init__(self, data: DataSettings, partitions: int) -> None:
        self.data, self.partitions = data, partitions

    def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[DigestCounts]:
        try:
            check_readable(shard.uri, attempt)
            ids = read_shard(shard, self.data, columns=IDS).ids
        except BadFileError as error:  # Its ids are not known, so none of its documents may be classified.
            return StepResult({}, DigestCounts(rows=0, bad=str(error)))
        digests = np.array([(*_digest(id), row) for row, id in enumerate(ids) if id is not None], _DIGEST)
        partition = digests["high"] % self.partitions
        order = np.argsort(partition, kind="stable")
        offsets = np.concatenate([[0], np.cumsum(np.bincount(partition, minlength=self.partitions))])
        data = offsets.astype("<u8").tobytes() + digests[order].tobytes()
        return StepResult({"ids": data}, DigestCounts(rows=len(ids)))


class DuplicateStep:
    """Second pass, on one partition: list the rows whose id occurs in an earlier row, in order of shard and row."""

    def __init__(self, ids: Store, partitions: int, shards: Sequence[str]) -> None:
        self.ids, self.partitions, self.shards = ids, partitions, shards

    def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[DuplicateCounts]:
        keys = {Path(key).name.partition("-")[0]: key for key in self.ids.list("parts") if key.endswith(".ids")}
        parts = [self._read(keys.get(name), shard.index) for name in self.shards]
        shard_index = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        digests = np.concatenate(parts) if parts else np.empty(0, _DIGEST)
        order = np.lexsort((digests["row"], shard_index, digests["low"], digests["high"]))
        high, low = digests["high"][order], digests["low"][order]
        duplicates = order[1:][(high[1:] == high[:-1]) & (low[1:] == low[:-1])]
        duplicates = duplicates[np.lexsort((digests["row"][duplicates], shard_index[duplicates]))]
        counts = DuplicateCounts(rows=len(digests), repeats=len(duplicates))
        if not len(duplicates):
            return StepResult({}, counts)
        shards = np.array([int(name) for name in self.shards], np.int32)[shard_index[duplicates]]
        table = pa.table([shards, digests["row"][duplicates].astype(np.int32)], schema=_DUPLICATES)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", row_group_size=_ROW_GROUP)
        return StepResult({"parquet": sink.getvalue().to_pybytes()}, counts)

    def _read(self, key: str | None, partition: int) -> NDArray[Any]:
        """Return the digests of one shard that belong to a partition; none if its file could not be read."""
        if key is None:
            return np.empty(0, _DIGEST)
        header = 8 * (self.partitions + 1)
        offsets = self.ids.read(key, 0, header)
        assert offsets is not None
        start, stop = (int(offset) for offset in np.frombuffer(offsets, "<u8")[partition : partition + 2])
        if start == stop:
            return np.empty(0, _DIGEST)
        data = self.ids.read(key, header + start * _DIGEST.itemsize, header + stop * _DIGEST.itemsize)
        assert data is not None
        return np.frombuffer(data, _DIGEST)


def duplicate_rows(shard: Shard, repeats: Store, keys: Sequence[str]) -> list[int]:
    """Return the rows of a shard whose id occurs earlier in the plan; `keys` are the files of the second pass."""
    rows: list[int] = []
    for key in keys:
        with repeats.open(key) as file:
            rows += pq.read_table(file, filters=[("shard", "=", shard.index)])["row"].to_pylist()
    return sorted(rows)


def _digest(id: str) -> tuple[int, int]:
    """Return 128 bits of a hash of an id; any two of 10^12 ids share them with a probability below 10^-14."""
    digest = hashlib.blake2b(id.encode(errors="surrogatepass"), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
