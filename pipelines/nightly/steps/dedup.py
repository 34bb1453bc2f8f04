"""Find duplicate ids in bounded memory: the intake writes digests, then hash partitions of them are compared."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.data.files.shards import Shard
from pipelines.data.intake import NightPlan
from pipelines.storage.object_store import Store
from pipelines.storage.parquet import to_parquet
from pipelines.storage.shard_log import Attempt, ShardCounts, ShardOutcome, StepResult
from spin.errors import UserError

REPEATS = "repeats"
"""name of the stage that compares the ids, and its folder in that of the run"""
PARTITION = 2_000_000
"""approximate number of ids in the memory of a process, 24 bytes each and some more to sort them"""
_BUCKETS = 1024
"""groups of digests in the file of a task; a partition consists of whole buckets"""
_DIGEST = np.dtype([("high", "<u8"), ("low", "<u8"), ("part", "<u4"), ("row", "<u4")])
_HEADER = 8 * (_BUCKETS + 1)
"""bytes of the offsets of the buckets at the beginning of a file"""
_DUPLICATES = pa.schema([("shard", pa.int32()), ("row", pa.int32())])
Digests = NDArray[np.void]
"""records of `_DIGEST`"""


class IdDigests:
    """The digests of the ids of a task of the intake, with the part and the row of each."""

    def __init__(self) -> None:
        self._parts: dict[int, Digests] = {}

    def add(self, part: int, ids: Sequence[str | None]) -> None:
        """Add the ids of a part by row; None has no digest."""
        rows = [(*_digest(id), part, row) for row, id in enumerate(ids) if id is not None]
        self._parts[part] = np.array(rows, _DIGEST)

    def keep_parts(self, parts: Collection[int]) -> None:
        """Forget all parts but these."""
        self._parts = {part: digests for part, digests in self._parts.items() if part in parts}

    def count_repeated(self) -> int:
        """Number of rows whose id an earlier row has."""
        digests = self._all()
        return int(_repeated(digests[np.lexsort((digests["low"], digests["high"]))]).sum())

    def to_bytes(self) -> bytes:
        """The offsets of the buckets, then the digests by bucket, so that a partition reads only its range."""
        digests = self._all()
        buckets = _buckets(digests)
        counts = np.bincount(buckets, minlength=_BUCKETS)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        return offsets.astype("<u8").tobytes() + digests[np.argsort(buckets, kind="stable")].tobytes()

    def _all(self) -> Digests:
        return np.concatenate(list(self._parts.values()) or [np.empty(0, _DIGEST)])


def plan_partitions(documents: int) -> list[Shard]:
    """So many partitions that each has about `PARTITION` ids at most."""
    # guarded by test_a_partition_holds_a_bounded_number_of_documents; broken by:
    #   return [Shard(0)]
    return [Shard(n) for n in range(min(_BUCKETS, max(1, math.ceil(documents / PARTITION))))]


class DuplicateStep:
    """List the rows of a partition whose id another row has, which is predicted in their place.

    Of the rows with an id, the first in the order of the plan is predicted that is sound: the intake has left out the
    ids of rows that it knows to be dead letters. A row that turns out to fail while it is computed still counts as the
    first. The rows that are counted are those with an id.
    """

    def __init__(self, run: Store, keys: Sequence[str | None], plan: NightPlan, partitions: int) -> None:
        self.run, self.keys, self.partitions = run, keys, partitions
        self.places = _Places.of(plan, len(keys))

    def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[ShardCounts]:
        rows = self._read_partition(shard.index)
        # guarded by test_the_first_sound_row_with_an_id_is_no_duplicate; broken by:
        #   rows = rows[np.lexsort((-rows["row"], rows["shard"], rows["low"], rows["high"]))]
        rows = rows[np.lexsort((rows["row"], rows["shard"], rows["low"], rows["high"]))]
        duplicates = rows[_repeated(rows)]
        counts = ShardCounts(rows=len(rows))
        if not len(duplicates):
            return StepResult({}, counts)
        table = pa.table([duplicates["shard"], duplicates["row"]], schema=_DUPLICATES)
        return StepResult({"parquet": to_parquet(table)}, counts)

    def _read_partition(self, partition: int) -> NDArray[np.void]:
        """The rows of a partition that are part of the plan, as records of `_ROW`."""
        parts = [np.empty(0, _ROW)]
        for task, key in enumerate(self.keys):
            if key is not None:
                parts.append(self.places.locate(task, self._read(key, partition)))
        return np.concatenate(parts)

    def _read(self, key: str, partition: int) -> Digests:
        """The digests in the file of a task that belong to a partition."""
        offsets = np.frombuffer(_read_range(self.run, key, 0, _HEADER), "<u8")
        first, last = (_BUCKETS * n // self.partitions for n in (partition, partition + 1))
        start, stop = int(offsets[first]), int(offsets[last])
        if start == stop:
            return np.empty(0, _DIGEST)
        start, stop = (_HEADER + place * _DIGEST.itemsize for place in (start, stop))
        return np.frombuffer(_read_range(self.run, key, start, stop), _DIGEST)


_ROW = np.dtype([("high", "<u8"), ("low", "<u8"), ("shard", "<i4"), ("row", "<i4")])


@dataclass(frozen=True)
class _Places:
    """The place of each part: its shard, and the row of the shard at which it begins."""

    shards: tuple[NDArray[np.int32], ...]
    """by task and part; -1 for a part that is in no shard"""
    offsets: tuple[NDArray[np.int32], ...]
    """the row of that shard at which the part begins, by task and part"""

    @classmethod
    def of(cls, plan: NightPlan, tasks: int) -> _Places:
        """The places in a plan."""
        parts = [0] * tasks
        for keys in plan.parts:
            for key in keys:
                parts[key.task] = max(parts[key.task], key.part + 1)
        places = cls(tuple(np.full(n, -1, np.int32) for n in parts), tuple(np.zeros(n, np.int32) for n in parts))
        for shard, keys in zip(plan.shards, plan.parts, strict=True):
            offset = 0
            for piece, key in zip(shard.pieces, keys, strict=True):
                places.shards[key.task][key.part], places.offsets[key.task][key.part] = shard.index, offset
                offset += piece.documents
        return places

    def locate(self, task: int, digests: Digests) -> NDArray[np.void]:
        """The digests of a task as rows of shards, without those of parts that are in no shard."""
        digests = digests[digests["part"] < len(self.shards[task])]
        shards = self.shards[task][digests["part"]]
        rows = np.empty(len(digests), _ROW)
        rows["high"], rows["low"], rows["shard"] = digests["high"], digests["low"], shards
        rows["row"] = self.offsets[task][digests["part"]] + digests["row"].astype(np.int32)
        return rows[shards >= 0]


def _repeated(rows: NDArray[np.void]) -> NDArray[np.bool_]:
    """Whether each of some rows, sorted by digest, has the digest of the row before."""
    same = [np.diff(rows[name]) == 0 for name in ("high", "low")]
    return np.concatenate([np.zeros(min(1, len(rows)), bool), same[0] & same[1]])


def _read_range(store: Store, key: str, start: int, stop: int) -> bytes:
    """A range of an object of the run. Raises UserError if there is no object."""
    data = store.read(key, start, stop)
    if data is None:
        raise _missing(store, key)
    return data


def _missing(store: Store, key: str) -> UserError:
    return UserError(f"{store.uri}/{key} is missing, so the run cannot go on; start over with --restart")


@dataclass(frozen=True)
class DuplicateRows:
    """The rows with duplicate ids of every shard, in one object of which a shard reads only its range."""

    store: Store
    key: str
    offsets: tuple[int, ...]
    """number of its first row by shard, and that after the last"""

    def of(self, shard: Shard) -> list[int]:
        """The rows of a shard, sorted."""
        start, stop = self.offsets[shard.index : shard.index + 2] if self.key else (0, 0)
        if start == stop:
            return []
        rows: list[int] = np.frombuffer(_read_range(self.store, self.key, 4 * start, 4 * stop), "<i4").tolist()
        return rows

    @classmethod
    def none(cls, store: Store) -> DuplicateRows:
        """No rows for any shard."""
        return cls(store, "", ())


def collect_duplicates(
    run: Store, outcomes: Sequence[ShardOutcome[ShardCounts]], stop: int, claim: int, stage: str = REPEATS
) -> DuplicateRows:
    """Write the duplicates of all partitions, sorted by shard, to one object in the folder of the run.

    `stop` is the index after that of the last shard, `stage` the folder in which the partitions were compared.
    """
    keys = [key for outcome in outcomes for key in outcome.files]
    stored = (run / stage).read_many(keys)
    if missing := sorted(set(keys) - stored.keys()):
        raise _missing(run / stage, missing[0])
    tables = [pq.read_table(io.BytesIO(stored[key])) for key in keys]
    table = pa.concat_tables([_DUPLICATES.empty_table(), *tables]).sort_by(
        [("shard", "ascending"), ("row", "ascending")]
    )
    if not len(table):
        return DuplicateRows.none(run)
    counts = np.bincount(table["shard"].to_numpy(), minlength=stop)
    key = f"{stage}/rows-{claim:06d}"
    run.write(key, table["row"].to_numpy().astype("<i4").tobytes())
    return DuplicateRows(run, key, (0, *np.cumsum(counts).tolist()))


def _buckets(digests: Digests) -> NDArray[np.int64]:
    return (digests["high"] >> np.uint64(54)).astype(np.int64)


def _digest(id: str) -> tuple[int, int]:
    """128 bits of a hash of an id; any two of 10^12 ids share them with a probability below 10^-14."""
    digest = hashlib.blake2b(id.encode(errors="surrogatepass"), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
