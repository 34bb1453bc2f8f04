"""Delta tables: open a snapshot, and commit on top of it or not at all.

The files of a table are written before the commit that adds them, and never replaced. A commit succeeds only if no
other process has committed since the snapshot was opened, so whatever a caller has checked in the snapshot still holds.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote, urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from botocore.config import Config
from botocore.exceptions import NoCredentialsError
from botocore.session import Session
from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from pipelines.service_errors import UnavailableError
from pipelines.storage.filesystem import DEADLINE, FULL, REFUSED, SERVICE_MODELS, store_error, store_errors
from pipelines.storage.local_files import flush_files, make_folder
from pipelines.storage.object_store import Store
from spin.errors import SpinError, UserError, shorten_message

_log = logging.getLogger(__name__)
LOG = "_delta_log"
"""folder of a table's log, in the folder of the table"""
_PROPERTIES = {"delta.checkpointInterval": "10", "delta.logRetentionDuration": "interval 30 days"}
"""properties of new tables: to open a table takes at most twice as many requests as there are commits in between, and
its history reaches back for 30 days"""
_COMMIT = re.compile(r"[0-9]{20}\.json")
"""entry of a commit in the log"""
_PATH = re.compile(r"[A-Za-z0-9._=-]+(/[A-Za-z0-9._=-]+)*")
"""paths that every reader takes literally; with any other character some of them decode percent signs"""
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)
_DEFAULT_REGION = "us-east-1"
"""region in requests to servers that have none; AWS needs the real one, from AWS_REGION or the profile"""

_REFUSED = re.compile("|".join((*REFUSED, r"\b403 Forbidden", r"\(os error (1|13)\)")))
_FULL = re.compile("|".join((*FULL, r"\b507\b", r"\(os error (28|122)\)")))
_MISSING = re.compile(r"NoSuchBucket")
_UNANSWERED = re.compile(r"Generic S3 error")
"""a request that failed after all its attempts, also while a checkpoint is read, where it is no OSError"""
_CREDENTIALS_SECONDS = 300.0
"""age of a handle from which its credentials are compared with the current ones: to ask for these may take a request"""
_CODE = re.compile(r"<Code>(\w+)</Code>")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


class StaleSnapshotError(UnavailableError):
    """Another process has committed to the table since the snapshot was opened; nothing was changed."""


@dataclass(frozen=True)
class DataFile:
    """A Parquet file of a table."""

    path: str
    """relative to the folder of the table; of letters, digits, `.`, `_`, `=`, `-` and `/`"""
    size: int
    """bytes"""
    rows: int
    """number of rows"""


@dataclass(frozen=True)
class TableSnapshot:
    """A version of a table. It never changes; `open_table` returns a newer one.

    It commits once. A commit raises StaleSnapshotError if another process has committed; after any other
    UnavailableError it may be in the table. `transactions` are numbers by application. The snapshot that
    `open_table` then returns in its place takes over its handle of the table; from then on its own methods raise
    StaleSnapshotError.
    """

    store: Store
    """folder of the table"""
    version: int
    """number of the last commit"""
    partition_columns: tuple[str, ...]
    """columns whose values the log holds, not the files"""
    _handle: DeltaTable = field(repr=False, compare=False)
    _options: Mapping[str, str] | None = field(repr=False, compare=False)
    """with which the handle was opened; deltalake does not renew credentials that expire"""
    _opened: float = field(repr=False, compare=False)
    """when it was, by `time.monotonic`"""
    _committed: threading.Event = field(default_factory=threading.Event, repr=False, compare=False)
    """set once a commit was made, or may have been made, on top of this version"""

    @property
    def _table(self) -> DeltaTable:
        # guarded by test_a_snapshot_has_no_table_once_another_took_it_over; broken by:
        #   if False:
        if self._handle.version() != self.version:
            raise StaleSnapshotError(
                f"{self.store.uri}: version {self._handle.version()} was opened meanwhile; try again"
            )
        return self._handle

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns of the table, partition columns included."""
        return pa.schema(self._table.schema().to_arrow())

    @cached_property
    def file_table(self) -> pa.Table:
        """The files of the table: path, size, rows, modified (milliseconds since 1970) and each partition column.

        Partition values are strings. A file counts as modified when it was committed.
        """
        with _table_errors(self.store.uri):
            actions = pa.table(self._table.get_add_actions(flatten=True))
        columns = {
            "path": actions["path"],
            "size": actions["size_bytes"],
            "rows": pc.fill_null(actions["num_records"], 0),
            "modified": actions["modification_time"],
        }
        partitions = {name: pc.cast(actions[f"partition.{name}"], pa.string()) for name in self.partition_columns}
        return pa.table({**columns, **partitions})

    def last_transaction(self, app: str) -> int | None:
        """The number that an application last committed under its name, None if it never did."""
        number = self._table.transaction_version(app)
        return None if number is None else int(number)

    def files(self, partition: Mapping[str, str]) -> list[DataFile]:
        """The files with these partition values, sorted by path. Partition columns that are not named may be any."""
        rows = self.file_table
        for name, value in partition.items():
            rows = rows.filter(pc.equal(rows[name], value))
        files = rows.select(["path", "size", "rows"]).sort_by("path").to_pylist()
        return [DataFile(**file) for file in files]

    def commit_transaction(self, app: str, number: int, *, metadata: Mapping[str, str] | None = None) -> None:
        """Commit a number for an application and no change of rows."""
        self._commit([], transactions={app: number}, metadata=metadata)

    def replace_partition(
        self,
        partition: Mapping[str, str],
        files: Sequence[DataFile],
        *,
        schema: pa.Schema | None = None,
        transactions: Mapping[str, int] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Commit that one partition consists of these files, which the caller has checked to exist.

        `schema` replaces the schema of the table and must contain it.
        """
        if set(partition) != set(self.partition_columns):
            raise ValueError(f"expected a value for each of {self.partition_columns}, got {partition}")
        now = int(time.time() * 1000)
        actions = [_add_action(file, partition, now) for file in files]
        filters = [(name, "=", value) for name, value in partition.items()]
        self._commit(
            actions,
            # guarded by test_replacing_a_partition_leaves_the_others
            filters=filters,
            schema=schema,
            transactions=transactions,
            metadata=metadata,
        )

    def add_files(self, files: Iterable[tuple[Mapping[str, str], DataFile]]) -> None:
        """Commit that files, each with its partition, belong to the table too."""
        now = int(time.time() * 1000)
        self._commit([_add_action(file, partition, now) for partition, file in files])

    def remove_partitions(
        self,
        partitions: Sequence[Mapping[str, str]],
        *,
        transactions: Mapping[str, int] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Commit that partitions have no files. The files stay in the store."""
        now = int(time.time() * 1000)
        actions = [
            RemoveAction(file.path, True, now, file.size, dict(partition))
            for partition in partitions
            for file in self.files(partition)
        ]
        self._commit(actions, transactions=transactions, metadata=metadata)

    def _commit(
        self,
        actions: Sequence[AddAction | RemoveAction],
        *,
        filters: list[tuple[str, str, str]] | None = None,
        schema: pa.Schema | None = None,
        transactions: Mapping[str, int] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        properties = CommitProperties(
            custom_metadata=dict(metadata or {}) or None,
            # guarded by test_a_stale_writer_is_refused_where_nothing_was_removed
            max_commit_retries=0,
            app_transactions=[Transaction(app, number) for app, number in (transactions or {}).items()],
        )
        table = self._table
        self._committed.set()
        with _table_errors(self.store.uri):
            table.create_write_transaction(
                list(actions),
                mode="append" if filters is None else "overwrite",
                schema=table.schema() if schema is None else Schema.from_arrow(schema),
                partition_by=list(self.partition_columns),
                partition_filters=filters,
                commit_properties=properties,
            )
        _flush_log(self.store, self.version + 1)


def open_table(store: Store, last: TableSnapshot | None = None) -> TableSnapshot | None:
    """The current version of the table in a store, None if there is none.

    `last` is a version of it that was opened before, and is returned if it is the current one. After a commit through
    it, only the commits since are read, not the names of all files.
    """
    if last is not None and (snapshot := _reopen(last)) is not None:
        return snapshot
    try:
        return _open_table(store)
    except UserError:
        if not store.local:
            raise
        try:
            _delete_damaged_checkpoints(store)
        except SpinError:  # the folder may be read-only
            _log.debug("%s: damaged checkpoints could not be deleted", store.uri, exc_info=True)
        return _open_table(store)


def create_table(
    store: Store, schema: pa.Schema, partition_columns: Sequence[str], last: TableSnapshot | None = None
) -> TableSnapshot:
    """Create a table if the store holds none; return its current version. Of several processes, one creates it.

    `last` is as for `open_table`. Raises UserError where commits would not be atomic or readers would not find the
    files, or if the store holds a table with other partition columns.
    """
    table = open_table(store, last) or _create_table(store, schema, partition_columns)
    if table.partition_columns != tuple(partition_columns):
        raise UserError(
            f"{store.uri} holds a table with the partition columns {', '.join(table.partition_columns)}; expected "
            f"{', '.join(partition_columns)}. Use another output"
        )
    return table


def _create_table(store: Store, schema: pa.Schema, partition_columns: Sequence[str]) -> TableSnapshot:
    _require_literal_path(store)
    require_hard_links(store)
    try:
        with _table_errors(store.uri):
            options = _storage_options(store)
            table = DeltaTable.create(
                _table_uri(store),
                Schema.from_arrow(schema),
                mode="ignore",
                partition_by=list(partition_columns),
                configuration=_PROPERTIES,
                storage_options=options,
                # a retry would commit a second creation on top of the first, with the schema of a new table
                commit_properties=CommitProperties(max_commit_retries=0),
            )
    except SpinError:
        created = open_table(store)
        if created is None:
            raise
        _log.debug("%s: another process created the table", store.uri, exc_info=True)
        return created
    _flush_log(store, 0)
    return _snapshot(store, table, options)


def _open_table(store: Store) -> TableSnapshot | None:
    with _table_errors(store.uri):
        options = _storage_options(store)
        try:
            table = DeltaTable(_table_uri(store), storage_options=options)
        except TableNotFoundError:
            return None
        return _snapshot(store, table, options)


def _snapshot(
    store: Store, table: DeltaTable, options: Mapping[str, str] | None, opened: float | None = None
) -> TableSnapshot:
    opened = time.monotonic() if opened is None else opened
    return TableSnapshot(store, table.version(), tuple(table.metadata().partition_columns), table, options, opened)


def _reopen(last: TableSnapshot) -> TableSnapshot | None:
    """The current version of a table that was opened before; None if it has to be read from its beginning."""
    expired = time.monotonic() - last._opened > _CREDENTIALS_SECONDS
    if expired and _storage_options(last.store) != last._options:
        return None
    if not last._committed.is_set():
        return last if _latest_version(last.store) == last.version else None
    try:
        with _table_errors(last.store.uri):
            last._handle.update_incremental()
    except UserError:
        _log.debug("%s: the snapshot could not be brought up to date", last.store.uri, exc_info=True)
        return None
    return _snapshot(last.store, last._handle, last._options, last._opened)


def _latest_version(store: Store) -> int:
    """The number of the last commit in the log, -1 if there is none."""
    return max((int(name[:20]) for name in store.list_names(LOG) if _COMMIT.fullmatch(name)), default=-1)


def _flush_log(store: Store, version: int) -> None:
    """Flush what a commit has written on a disk, which deltalake does not: a power cut would undo the commit."""
    if not store.local:
        return
    folder = Path(store.root)
    names = [f"{version:020d}.json", f"{version:020d}.checkpoint.parquet", "_last_checkpoint"]
    with store_errors(store.uri):
        # guarded by test_a_power_cut_after_a_night_loses_nothing
        flush_files(folder / LOG, names)
        if not version:  # deltalake has made the folders
            flush_files(folder, [])
            flush_files(folder.parent, [])


def _delete_damaged_checkpoints(store: Store) -> None:
    """Delete the checkpoints that a power cut during a commit has left half-written on a disk, and the hint at one.

    A checkpoint repeats what the commits before it say, and these are all there. The hint goes first, so that it never
    names a checkpoint that was deleted.
    """
    keys = [item.key for item in store.list_objects(LOG) if item.key.endswith(".checkpoint.parquet")]
    damaged = [key for key in keys if not _is_whole_parquet(Path(store.path(key)))]
    hint = re.search(rb'"version": *(\d+)', store.read(f"{LOG}/_last_checkpoint") or b"")
    named = f"{LOG}/{int(hint[1]):020d}.checkpoint.parquet" if hint else None
    if damaged or named not in (None, *keys):
        _log.warning("%s: deleting checkpoints that a power cut has left: %s", store.uri, ", ".join(damaged) or named)
        store.delete_many([f"{LOG}/_last_checkpoint"])
        store.delete_many(damaged)


def _is_whole_parquet(path: Path) -> bool:
    """Whether a file has the footer of Parquet, which is written last."""
    try:
        pq.read_metadata(path)
    except pa.ArrowException:
        return False
    return True


def require_hard_links(store: Store) -> None:
    """Raise UserError if the store is a folder whose file system has no hard links, which atomic creation needs."""
    if not store.local:
        return
    name = f".links-{uuid.uuid4().hex}"
    probe, link = Path(store.root) / name, Path(store.root) / f"{name}-2"
    with store_errors(store.uri):
        make_folder(probe.parent)
        try:
            probe.touch()
            os.link(probe, link)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            raise UserError(
                f"{store.uri}: the file system has no hard links ({error.strerror}), so commits would not be atomic; "
                "use a folder on another file system, or an object store"
            ) from None
        finally:
            probe.unlink(missing_ok=True)
            link.unlink(missing_ok=True)


def _add_action(file: DataFile, partition: Mapping[str, str], now: int) -> AddAction:
    if not _PATH.fullmatch(file.path):
        raise ValueError(f"{file.path!r}: expected letters, digits, '.', '_', '=', '-' and '/'")
    stats = json.dumps({"numRecords": file.rows})
    return AddAction(file.path, file.size, dict(partition), now, True, stats)


def _require_literal_path(store: Store) -> None:
    """Raise UserError for a path with characters that deltalake or a reader of tables takes for something else."""
    if refused := sorted({"%", "\\"} & set(store.uri)):
        raise UserError(f"{store.uri} contains {' and '.join(refused)}, which tables cannot have in their paths")


def _table_uri(store: Store) -> str:
    if store.local:
        return str(store.uri)
    scheme, _, path = store.uri.partition("://")
    return f"{scheme}://{quote(path)}"


def _storage_options(store: Store) -> dict[str, str] | None:
    """Endpoint, region and credentials as botocore finds them, so that a table is opened as every other object is."""
    if store.local:
        return None
    session = Session()
    session.register_component("data_loader", SERVICE_MODELS)
    region = session.get_config_variable("region") or os.environ.get("AWS_REGION") or _DEFAULT_REGION
    with store_errors(store.uri):
        credentials = session.get_credentials()
        if credentials is None:
            raise NoCredentialsError
        keys = credentials.get_frozen_credentials()
        config = Config(region_name=region)
        endpoint = session.create_client("s3", config=config).meta.endpoint_url
    options = {
        "aws_access_key_id": keys.access_key,
        "aws_secret_access_key": keys.secret_key,
        "aws_region": region,
        "aws_conditional_put": "etag",  # a commit creates its log entry only if there is none
        "connect_timeout": "5s",
        "timeout": "30s",
        "retry_timeout": f"{DEADLINE}s",
    }
    if keys.token:
        options["aws_session_token"] = keys.token
    if not (urlsplit(endpoint).hostname or "").endswith(("amazonaws.com", "amazonaws.com.cn")):
        options |= {"aws_endpoint": endpoint, "allow_http": str(endpoint.startswith("http:")).lower()}
    return options


@contextmanager
def _table_errors(what: str) -> Iterator[None]:
    """Turn the errors of deltalake into SpinErrors of one line; `what` is its first part.

    deltalake raises OSError for what a store answers, with the answer in the message alone.
    """
    try:
        yield
    except (SpinError, TableNotFoundError):
        raise
    except CommitFailedError:
        _log.debug("%s: a commit was refused", what, exc_info=True)
        raise StaleSnapshotError(f"{what}: other processes commit to the table all the time; try again") from None
    except Exception as error:  # for what its kernel refuses, deltalake raises a bare Exception
        _log.debug("%s: deltalake raised an error", what, exc_info=True)
        _raise_for(what, error)


def _raise_for(what: str, error: Exception) -> NoReturn:
    text, reason = str(error), _reason(error)
    if _MISSING.search(text):
        raise UserError(f"{what}: not found ({reason})") from None
    full, refused = _FULL.search(text) is not None, _REFUSED.search(text) is not None
    if full or refused or isinstance(error, OSError) or _UNANSWERED.search(text):
        raise store_error(what, reason, full=full, refused=refused) from None
    if isinstance(error, DeltaError):
        raise UserError(f"{what}: the table is damaged or of another version ({reason})") from None
    raise UserError(f"{what}: the table does not take this ({reason}); nothing was changed") from None


def _reason(error: Exception) -> str:
    """The code of the store's answer, or the innermost cause in a message of deltalake, which has one per line."""
    text = _ANSI.sub("", str(error))
    code = _CODE.search(text)
    cause = code.group(1) if code else shorten_message(text.rpartition("↳")[2])
    return cause or type(error).__name__
