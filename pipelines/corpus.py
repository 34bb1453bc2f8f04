"""The documents: which files there are, how they divide into shards, what a shard holds."""

from __future__ import annotations

import glob
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from pipelines.store import open_filesystem, store_errors
from spin.errors import UserError
from spin.settings import DataSettings
from spin.split import SPLITS

_KINDS = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
_PACKED = (".gz", ".bz2", ".zst")
_SAMPLE = 1 << 20


@dataclass(frozen=True)
class File:
    """One input and what tells whether it has changed."""

    uri: str
    kind: str
    size: int
    """bytes"""
    version: str
    """ETag, or modification time on a disk"""


@dataclass(frozen=True)
class Shard:
    """A unit of work: a range of one file, rows of it, or bytes that begin and end at line ends."""

    index: int
    uri: str
    kind: str
    start: int
    stop: int
    by_bytes: bool = False

    @property
    def name(self) -> str:
        return f"{self.index:06d}"


@dataclass
class Documents:
    """The rows of a shard, in order; what a file has no column for is None."""

    ids: list[str | None] = field(default_factory=list)
    texts: list[Any] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    splits: list[str | None] = field(default_factory=list)
    malformed: dict[int, str] = field(default_factory=dict)
    """rows that could not be read as a record, and why"""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Labelled:
    """What training needs to know of every document, in plan order; the texts stay in their files."""

    ids: list[str]
    labels: list[str]
    splits: list[str | None]
    shard_rows: list[int]


def list_files(uri: str) -> list[File]:
    """The files of a path, a folder or a glob, in order of name.

    Raises UserError when there are none, or one is not Parquet, JSONL or CSV.
    """
    fs, path = open_filesystem(uri)
    with store_errors(uri):
        if glob.has_magic(path):
            paths = fs.glob(path)
        elif fs.isdir(path):
            paths = [p for p in fs.find(path) if not p.rpartition("/")[2].startswith(("_", "."))]
        else:
            paths = [path] if fs.exists(path) else []
        infos = [fs.info(p) for p in sorted(paths)]
    files = [_file(fs.unstrip_protocol(i["name"]), i) for i in infos if i["type"] == "file"]
    if not files:
        raise UserError(f"no data at {uri}; expected a file, a folder or a glob of Parquet, JSONL or CSV")
    return files


def plan_shards(files: Sequence[File], documents: int, data: DataSettings) -> list[Shard]:
    """Divide files into shards of about `documents` rows: a pure function of the files and the settings.

    Parquet divides at row groups where they are small enough, plain JSONL at line ends by bytes, CSV and compressed
    JSONL by rows, for which they are read once here. Raises UserError, naming the file, for one that cannot be read
    or lacks a column.
    """
    ranges = [(file, *bounds) for file in files for bounds in _ranges(file, documents, data)]
    return [Shard(n, f.uri, f.kind, start, stop, by_bytes) for n, (f, start, stop, by_bytes) in enumerate(ranges)]


def read_shard(shard: Shard, data: DataSettings, *, labelled: bool = False) -> Documents:
    """The rows of a shard; without `labelled`, only ids and texts. Raises UserError, naming the file."""
    columns = _columns(data, labelled)
    documents = Documents()
    with _reading(shard.uri):
        if shard.kind == "jsonl":
            _read_lines(_lines(shard), columns, documents)
        else:
            tables = _parquet_rows(shard, columns) if shard.kind == "parquet" else _csv_rows(shard, columns)
            for table in tables:
                _append(documents, table, columns)
    return documents


def read_labelled(shards: Sequence[Shard], data: DataSettings) -> Labelled:
    """Read every label once, before any work is spent on a corpus that cannot be trained on.

    Raises UserError, naming file and row, for the first id or label that is null, text that is not text or empty,
    an id seen before or a split that is none.
    """
    found = Labelled([], [], [], [])
    seen: set[str] = set()
    for shard in shards:
        documents = read_shard(shard, data, labelled=True)
        for row, (id, text, label, split) in enumerate(
            zip(documents.ids, documents.texts, documents.labels, documents.splits, strict=True)
        ):
            wrong = documents.malformed.get(row) or _mistake(id, text, label, split, data, seen)
            if wrong:
                where = f"{shard.uri} row {row}" if shard.start == 0 else f"{shard.uri} from {shard.start}, row {row}"
                raise UserError(f"{where}: {wrong}")
            assert id is not None
            assert label is not None
            seen.add(id)
            found.ids.append(id)
            found.labels.append(label)
            found.splits.append(split)
        found.shard_rows.append(len(documents))
    return found


def find_repeats(shards: Sequence[Shard], data: DataSettings) -> tuple[dict[int, list[int]], int]:
    """Rows of each shard whose id stood earlier in the plan, and the rows of all; a pass that keeps 16 bytes an id."""
    seen: set[bytes] = set()
    repeats: dict[int, list[int]] = {}
    total = 0
    for shard in shards:
        ids = read_shard(shard, data).ids
        total += len(ids)
        for row, id in enumerate(ids):
            if id is None:
                continue
            key = hashlib.blake2b(id.encode(errors="surrogatepass"), digest_size=16).digest()
            if key in seen:
                repeats.setdefault(shard.index, []).append(row)
            seen.add(key)
    return repeats, total


def describe(files: Sequence[File]) -> list[dict[str, Any]]:
    """The inputs as a plan and a manifest keep them."""
    return [asdict(file) for file in files]


def _mistake(
    id: str | None, text: Any, label: str | None, split: str | None, data: DataSettings, seen: set[str]
) -> str | None:
    if not id:
        return f"the id ({data.id}) is null; expected a unique one"
    if id in seen:
        return f"the id '{id}' was seen before; expected unique ids in '{data.id}'"
    if not isinstance(text, str) or not text.strip():
        return f"the text ({data.text}) is {'empty' if isinstance(text, str) else 'not text'}; leave the row out"
    if not label:
        return f"the label ({data.label}) is null; label the row or leave it out"
    if data.split and split not in SPLITS:
        return f"the split ({data.split}) is {split!r}; expected train, valid or test"
    return None


def _file(uri: str, info: dict[str, Any]) -> File:
    stem = uri.lower()
    for packed in _PACKED:
        stem = stem.removesuffix(packed)
    kind = next((kind for ending, kind in _KINDS.items() if stem.endswith(ending)), None)
    if kind is None or (kind == "parquet" and stem != uri.lower()):
        raise UserError(f"{uri} is not Parquet, JSONL or CSV by its name; expected .parquet, .jsonl or .csv")
    version = str(info.get("ETag") or info.get("mtime") or "").strip('"')
    return File(uri.removeprefix("file://"), kind, int(info["size"]), version)


def _ranges(file: File, documents: int, data: DataSettings) -> Iterator[tuple[int, int, bool]]:
    with _reading(file.uri):
        if file.kind == "parquet":
            for start, stop in _parquet_ranges(file, documents, data):
                yield start, stop, False
        elif file.kind == "jsonl" and not file.uri.endswith(_PACKED):
            for start, stop in _line_ranges(file, documents):
                yield start, stop, True
        else:
            whole = Shard(0, file.uri, file.kind, 0, 1 << 62)
            if file.kind == "csv":
                rows = sum(batch.num_rows for batch in _csv_rows(whole, _columns(data, labelled=False)))
            else:
                rows = sum(1 for _ in _lines(whole))
            for start in range(0, rows, documents):
                yield start, min(start + documents, rows), False


def _parquet_ranges(file: File, documents: int, data: DataSettings) -> Iterator[tuple[int, int]]:
    """Neighbouring row groups together while they fit; a larger one in equal parts."""
    with _open(file.uri) as source, pq.ParquetFile(source) as parquet:
        _check_schema(parquet.schema_arrow, file.uri, data)
        groups = [parquet.metadata.row_group(g).num_rows for g in range(parquet.num_row_groups)]
    start = stop = 0
    for rows in groups:
        if stop > start and stop - start + rows > documents:
            yield start, stop
            start = stop
        stop += rows
        parts = -(-(stop - start) // documents)
        if parts > 1:
            edges = [start + (stop - start) * part // parts for part in range(parts + 1)]
            yield from pairwise(edges)
            start = stop
    if stop > start:
        yield start, stop


def _check_schema(schema: pa.Schema, uri: str, data: DataSettings) -> None:
    for name in (data.id, data.text):
        if name not in schema.names:
            raise UserError(f"{uri} has no column '{name}'; it has {', '.join(schema.names)}")
    if not _is_text(schema.field(data.text).type):
        raise UserError(f"{uri}: column '{data.text}' is {schema.field(data.text).type}, expected string")


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def _line_ranges(file: File, documents: int) -> Iterator[tuple[int, int]]:
    """Byte ranges of about so many lines by the length of the first ones, each ending at a line end."""
    fs, path = open_filesystem(file.uri)
    sample = fs.cat_file(path, start=0, end=min(_SAMPLE, file.size))
    step = max(1, documents * len(sample) // max(1, sample.count(b"\n")))
    start = 0
    while start < file.size:
        stop = _line_end(fs, path, min(start + step, file.size), file.size)
        yield start, stop
        start = stop


def _line_end(fs: Any, path: str, near: int, size: int) -> int:
    """The first line end at or after a position."""
    while near < size:
        piece = fs.cat_file(path, start=near - 1, end=min(near + (1 << 16), size))
        at = piece.find(b"\n")
        if at >= 0:
            return int(near + at)
        near = min(near + (1 << 16), size)
    return size


def _columns(data: DataSettings, labelled: bool) -> dict[str, str]:
    """Field of `Documents` to column."""
    wanted = {"ids": data.id, "texts": data.text}
    if labelled:
        wanted |= {"labels": data.label} | ({"splits": data.split} if data.split else {})
    return wanted


def _open(uri: str) -> Any:
    fs, path = open_filesystem(uri)
    return fs.open(path, "rb", compression="infer")


def _parquet_rows(shard: Shard, columns: dict[str, str]) -> Iterator[pa.Table]:
    with _open(shard.uri) as source, pq.ParquetFile(source) as parquet:
        missing = [name for name in columns.values() if name not in parquet.schema_arrow.names]
        if missing:
            have = ", ".join(parquet.schema_arrow.names)
            raise UserError(f"{shard.uri} has no column '{missing[0]}'; it has {have}")
        first = 0
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            start, stop = max(shard.start, first), min(shard.stop, first + rows)
            if start < stop:
                table = parquet.read_row_group(group, columns=list(dict.fromkeys(columns.values())))
                yield table.slice(start - first, stop - start)
            first += rows


def _csv_rows(shard: Shard, columns: dict[str, str]) -> Iterator[pa.Table]:
    names = list(dict.fromkeys(columns.values()))
    convert = pacsv.ConvertOptions(
        include_columns=names, column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
    )
    with _open(shard.uri) as source:
        try:
            reader = pacsv.open_csv(
                source, convert_options=convert, parse_options=pacsv.ParseOptions(newlines_in_values=True)
            )
        except KeyError as error:
            raise UserError(f"{shard.uri}: {error.args[0]}; expected a header with {', '.join(names)}") from None
        first = 0
        for batch in reader:
            start, stop = max(shard.start, first), min(shard.stop, first + batch.num_rows)
            if start < stop:
                yield pa.Table.from_batches([batch]).slice(start - first, stop - start)
            first += batch.num_rows
            if first >= shard.stop:
                return


def _lines(shard: Shard) -> Iterator[bytes]:
    """The lines that are not blank."""
    if shard.by_bytes:
        fs, path = open_filesystem(shard.uri)
        yield from (line for line in fs.cat_file(path, shard.start, shard.stop).split(b"\n") if line.strip())
        return
    with _open(shard.uri) as source:
        lines = (line for line in source if line.strip())
        for row, line in enumerate(lines):
            if row >= shard.stop:
                return
            if row >= shard.start:
                yield line


def _read_lines(lines: Iterator[bytes], columns: dict[str, str], documents: Documents) -> None:
    for row, line in enumerate(lines):
        record: Any = None
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                documents.malformed[row] = f"the line is a JSON {type(record).__name__}, expected an object"
        except ValueError as error:
            documents.malformed[row] = f"the line is not JSON: {error}"
        if not isinstance(record, dict):
            record = {}
        documents.ids.append(_name(record.get(columns["ids"])))
        documents.texts.append(record.get(columns["texts"]))
        documents.labels.append(_name(record.get(columns.get("labels", ""))))
        documents.splits.append(_name(record.get(columns.get("splits", ""))))


def _name(value: Any) -> str | None:
    """An id or a label as text: a number by its digits; null and what is empty is no name."""
    if value is None or value == "" or isinstance(value, (dict, list)):
        return None
    return value if isinstance(value, str) else json.dumps(value)


def _append(documents: Documents, table: pa.Table, columns: dict[str, str]) -> None:
    for name in ("ids", "texts", "labels", "splits"):
        values = getattr(documents, name)
        if name not in columns:
            values.extend([None] * table.num_rows)
            continue
        column = table[columns[name]]
        if name != "texts":
            column = pc.cast(column, pa.string())
        found = column.to_pylist()
        values.extend(found if name == "texts" else [value or None for value in found])


@contextmanager
def _reading(uri: str) -> Iterator[None]:
    """Storage errors in one line, and a file that is not what its name says named."""
    with store_errors(uri):
        try:
            yield
        except (pa.ArrowException, OSError, EOFError, zlib.error) as error:
            if isinstance(error, OSError) and (error.errno is not None or isinstance(error, TimeoutError)):
                raise  # the disk or the store, not the file
            reason = " ".join(str(error).split())[:160]
            raise UserError(
                f"{uri} cannot be read, it is corrupt, truncated or not what its name says: {reason}"
            ) from None
