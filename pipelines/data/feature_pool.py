"""The pool of a store: the features of every text that a training in it has read, found again by the text.

A shard of the pool has a name that follows from its texts, so whoever computes it computes the same, and an extraction
that was killed or overtaken has left nothing that a later one could not use. What belongs to the texts and what does
not is kept apart: labels, splits and the order of documents are in the plan of an extraction, and never in the pool.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.data.forgotten_ids import ForgottenIds
from pipelines.storage.lease import Lease
from pipelines.storage.local_files import is_temporary
from pipelines.storage.object_store import Store
from pipelines.storage.parquet import to_parquet
from pipelines.storage.retrying import retry_unavailable
from pipelines.storage.shard_log import OUTCOMES, LogLayout, ShardCounts, ShardLog, ShardOutcome, StepResult
from pipelines.storage.stage_plan import PLAN, delete_objects, fingerprint
from spin.errors import UserError
from spin.pages.number_format import counted

POOL = "pool"
"""folder of the pools in the store of the extract stage, one for each way to read a text"""
FEATURES, TEXTS = "features.parquet", "texts.parquet"
"""endings of the files of a shard: the values of its texts, and their ids and keys"""
KEY_TYPE = pa.binary(16)
USES = "uses"
"""folder in a pool with the shards of each corpus that was planned, which is as old as its last plan"""
_SCHEMA = pa.schema({"id": pa.string(), "key": KEY_TYPE})
_READING = "reading.json"
_IDS = "ids"
"""folder in a pool with further ids of texts that another document has brought"""


def make_key(text: str) -> bytes:
    """The key of a text: equal texts have the same, and two others practically never do."""
    return hashlib.blake2b(text.encode(), digest_size=KEY_TYPE.byte_width).digest()


def texts_table(ids: Sequence[str] | pa.ChunkedArray, keys: Sequence[bytes] | pa.FixedSizeBinaryArray) -> pa.Table:
    """A table of texts: id and key."""
    return pa.table([ids, keys], schema=_SCHEMA)


def name_shard(texts: pa.Table) -> str:
    """The name of a shard with these texts."""
    digest = hashlib.sha256()
    for batch in texts.to_batches():
        for id, key in zip(batch["id"].to_pylist(), batch["key"].to_pylist(), strict=True):
            digest.update(key + repr(id).encode(errors="surrogatepass"))
    return digest.hexdigest()[:24]


@dataclass(frozen=True)
class Places:
    """Where the values of n documents are stored; those of a document that has none are in file -1."""

    files: NDArray[np.int32]
    """(n,) number of the file"""
    rows: NDArray[np.int32]
    """(n,) row in the file"""

    @classmethod
    def of_sizes(cls, sizes: Sequence[int]) -> Places:
        """The places of all rows of files of these sizes, in order."""
        files = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        rows = np.concatenate([np.empty(0, np.int32), *(np.arange(size, dtype=np.int32) for size in sizes)])
        return cls(files, rows)


@dataclass(frozen=True)
class PooledTexts:
    """The m texts of some shards of a pool."""

    shards: tuple[str, ...]
    """their names"""
    keys: pa.ChunkedArray
    """(m,) of the texts of all shards, in order"""
    places: Places
    """(m,) of the texts; shards count from 0"""

    @classmethod
    def of(cls, tables: dict[str, pa.Table]) -> PooledTexts:
        """The texts of shards, by their names."""
        sizes = [len(table) for table in tables.values()]
        keys = pa.chunked_array([chunk for table in tables.values() for chunk in table["key"].chunks], KEY_TYPE)
        return cls(tuple(tables), keys, Places.of_sizes(sizes))

    def find(self, keys: pa.Array) -> Places:
        """The places of texts, by their n keys."""
        at = pc.fill_null(pc.index_in(keys, value_set=self.keys), -1).to_numpy(zero_copy_only=False)
        files, rows = (np.append(values, np.int32(-1))[at] for values in (self.places.files, self.places.rows))
        return Places(files, rows)


@dataclass(frozen=True)
class FeaturePool:
    """The features of texts that are read in one way: by one backbone, in one precision, with the same columns.

    How the first extraction has found out to read them is stored beside them, and later ones take it over.
    """

    store: Store
    """of the extract stage"""
    form: str
    """digest of all that decides the features of a text"""

    @property
    def folder(self) -> str:
        """The folder of the shards in the store."""
        return f"{POOL}/{self.form}"

    def read_reading(self) -> dict[str, Any] | None:
        """How the texts are read, as JSON values; None if it is not stored."""
        stored: dict[str, Any] | None = retry_unavailable(self.store)(self.store.read_json, f"{self.folder}/{_READING}")
        return stored

    def note_reading(self, values: Mapping[str, Any]) -> None:
        """Store how the texts are read."""
        retry_unavailable(self.store)(self.store.write_json, f"{self.folder}/{_READING}", dict(values))

    def note_use(self, shards: Sequence[str]) -> None:
        """Store which shards the features of a corpus are taken from, and with it when."""
        key = f"{self.folder}/{USES}/{fingerprint(list(shards))[:24]}.json"
        retry_unavailable(self.store)(self.store.write_json, key, {"shards": list(shards)})

    @classmethod
    def list_all(cls, store: Store) -> list[FeaturePool]:
        """The pools in the store of the extract stage."""
        return [cls(store, form) for form in sorted({key.split("/")[1] for key in store.list(POOL)})]

    def read_texts(self, shards: Sequence[str] | None = None) -> PooledTexts:
        """The texts of some shards, or of all that are committed. Raises UserError for one that is not."""
        tables = self._read_tables()
        missing = [name for name in shards or () if name not in tables]
        if missing:
            raise UserError(
                f"{self.store.uri}/{self.folder} lacks {counted(len(missing), 'shard')} that the plan names, such as "
                f"{missing[0]}; delete {self.store.uri}/{PLAN} and run the command again"
            )
        return PooledTexts.of(tables if shards is None else {name: tables[name] for name in shards})

    def outcomes(self) -> dict[str, ShardOutcome[ShardCounts]]:
        """The committed shards by name."""
        return self._open_log().outcomes(ShardCounts)

    def note_ids(self, texts: pa.Table) -> None:
        """Store which ids texts come with, so far as the pool does not know: a text is forgotten with all its ids."""
        known = [_join(table) for table in [*self._read_tables().values(), *self._read_ids().values()]]
        new = texts.filter(pc.invert(pc.is_in(_join(texts), value_set=pa.chunked_array(known, pa.binary()))))
        self._write_ids(new)

    def holds(self, forgotten: ForgottenIds) -> bool:
        """Whether one of some documents has brought a text, or may have: one of a shard that is not committed."""
        tables = [*self._read_tables().values(), *self._read_ids().values()]
        return bool(self._list_unnamed()) or any(forgotten.find(table["id"].to_pylist()) for table in tables)

    def forget(self, forgotten: ForgottenIds, lease: Lease) -> int:
        """Remove the texts that no document brings any more, and the ids; return the number of the texts.

        Shards that hold one are written again without it, and deleted then. To call it again changes nothing, and
        completes what an earlier call has begun. No plan may name the shards meanwhile. Raises HeldError if the lease
        was taken.
        """
        self.delete_unnamed(lease)
        outcomes, shards, further = self.outcomes(), self._read_tables(), self._read_ids()
        texts = pa.concat_tables([_SCHEMA.empty_table(), *shards.values(), *further.values()])
        gone = _mask(texts, forgotten)
        # guarded by test_a_text_stays_while_another_document_has_it; broken by:
        #   brought = texts.slice(0, 0)
        brought = texts.filter(pc.and_(pc.invert(gone), pc.is_valid(texts["id"])))
        lost = pc.unique(texts.filter(pc.invert(pc.is_in(texts["key"], value_set=brought["key"])))["key"])
        for name, table in shards.items():
            stays, nameless = pc.invert(pc.is_in(table["key"], value_set=lost)), _mask(table, forgotten)
            if not pc.all(stays).as_py() or pc.any(nameless).as_py():
                ids = pc.if_else(nameless, pa.scalar(None, pa.string()), table["id"])
                self._replace(name, outcomes, texts_table(ids, table["key"]).filter(stays), stays, lease)
        for key, table in further.items():
            stays = pc.invert(_mask(table, forgotten))
            if not pc.all(stays).as_py():
                lease.check()
                self._write_ids(table.filter(stays))
                delete_objects(self.store, [key], lease)
        return len(lost)

    def delete_unnamed(self, lease: Lease) -> None:
        """Delete what processes have left that were killed over a shard. Raises HeldError if the lease was taken."""
        delete_objects(self.store, self._list_unnamed(), lease)

    def _replace(
        self,
        name: str,
        outcomes: Mapping[str, ShardOutcome[ShardCounts]],
        texts: pa.Table,
        stays: pa.ChunkedArray,
        lease: Lease,
    ) -> None:
        """Write a shard again with some of its texts, under their name, and delete it."""
        log, outcome, successor = self._open_log(lease.number), outcomes[name], name_shard(texts)
        if len(texts) and successor not in outcomes:
            data = self.store.read(required_file(outcome, FEATURES))
            assert data is not None
            features = pq.read_table(io.BytesIO(data)).filter(stays)
            files = {FEATURES: to_feature_file(features), TEXTS: to_parquet(texts)}
            lease.check()
            result = StepResult(files, ShardCounts(rows=len(texts)))
            log.commit(successor, result, tries=1, seconds=0.0, ended=outcome.ended)
        delete_objects(self.store, [log.outcome_key(name), *outcome.files], lease)

    def _list_unnamed(self) -> list[str]:
        """The files of shards that are not committed, and what killed writes have left in any folder."""
        named = {key for outcome in self.outcomes().values() for key in outcome.files}
        keys = [item.key for item in self.store.list_all(self.folder)]
        parts = f"{self.folder}/{OUTCOMES}/"
        unnamed = [key for key in keys if key.startswith(parts) and key not in named and not key.endswith(".json")]
        return [*unnamed, *(key for key in keys if is_temporary(key.rpartition("/")[2]) and key not in unnamed)]

    def _open_log(self, claim: int = 0) -> ShardLog:
        return ShardLog(self.store, claim=claim, layout=LogLayout(self.folder))

    def _write_ids(self, texts: pa.Table) -> None:
        if len(texts):
            retry_unavailable(self.store)(
                self.store.create, f"{self._ids}/{name_shard(texts)}.parquet", to_parquet(texts)
            )

    @property
    def _ids(self) -> str:
        return f"{self.folder}/{_IDS}"

    def _read_ids(self) -> dict[str, pa.Table]:
        """The tables of further ids by key."""
        return self._read_parquet(retry_unavailable(self.store)(self.store.list, self._ids))

    def _read_tables(self) -> dict[str, pa.Table]:
        """The texts of every committed shard, by name."""
        keys = {name: required_file(outcome, TEXTS) for name, outcome in self.outcomes().items()}
        tables = self._read_parquet(list(keys.values()))
        return {name: tables[key] for name, key in keys.items()}

    def _read_parquet(self, keys: Sequence[str]) -> dict[str, pa.Table]:
        stored = retry_unavailable(self.store)(self.store.read_many, keys) if keys else {}
        return {key: pq.read_table(io.BytesIO(data)) for key, data in stored.items()}


def to_feature_file(table: pa.Table) -> bytes:
    """The table as an uncompressed Parquet file, since activations do not compress.

    It is one row group, so that a reader of one column asks for one range.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=max(1, len(table)),
        compression="none",
        use_dictionary=False,
        write_statistics=False,
    )
    return sink.getvalue().to_pybytes()


def required_file(outcome: ShardOutcome[Any], ending: str) -> str:
    """The key of the file with this ending, which every outcome of a stage has."""
    key = outcome.file_key(ending)
    assert key is not None
    return key


def _mask(texts: pa.Table, forgotten: ForgottenIds) -> pa.Array:
    """Whether each text came with the id of a forgotten document."""
    found = np.zeros(len(texts), bool)
    found[forgotten.find(texts["id"].to_pylist())] = True
    return pa.array(found)


def _join(texts: pa.Table) -> pa.Array:
    """Key and id of each text as one value; a text that has lost its id has its key alone."""
    ids = pc.fill_null(texts["id"].cast(pa.binary()), b"")
    joined = pc.binary_join_element_wise(texts["key"].cast(pa.binary()), ids, b"")
    return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined
