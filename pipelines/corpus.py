"""The documents: which files there are, how they divide into shards, what a shard holds."""

from __future__ import annotations

import glob
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise, takewhile
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from pipelines.store import open_filesystem, store_errors
from spin.errors import UserError
from spin.settings import DataSettings
from spin.split import SPLITS

_KINDS = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
_PACKED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
_SURROGATE = re.compile("[\ud800-\udfff]")
_ROW = re.compile(r"(Expected \d+ columns, got \d+): .*")
"""what Arrow says of a CSV row, and the row, which is not for logs"""
_SAMPLE = 1 << 20
_BLOCK = 1 << 24
"""bytes asked of a store at a time where a file is read from its beginning; no CSV row may be longer"""


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

    Names that begin with `_` or `.` are left out, of folders and files alike, unless the URI itself spells them.
    Raises UserError when there are none, or one is not Parquet, JSONL or CSV.
    """
    fs, path = open_filesystem(uri)
    with store_errors(uri):
        if fs.isdir(path):
            paths = _visible(fs.find(path), path)
        elif fs.exists(path):
            paths = [path]
        else:
            paths = _glob(fs, path)
        infos = [fs.info(p) for p in sorted(paths)]
    files = [_file(fs.unstrip_protocol(i["name"]).removeprefix("file://"), i) for i in infos if i["type"] == "file"]
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
    lone surrogates in any of them, an id seen before or a split that is none.
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
                first = 0 if shard.by_bytes else shard.start
                after = f" after byte {shard.start}" if shard.by_bytes and shard.start else ""
                raise UserError(f"{shard.uri} row {first + row}{after}: {wrong}")
            assert id is not None
            assert label is not None
            seen.add(id)
            found.ids.append(id)
            found.labels.append(label)
            found.splits.append(split)
        found.shard_rows.append(len(documents))
    return found


def find_repeats(shards: Sequence[Shard], data: DataSettings) -> tuple[dict[int, list[int]], int]:
    """Rows of each shard whose id stood earlier in the plan, and the rows of all; a pass that keeps a digest an id."""
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
    for name, value in ((data.id, id), (data.text, text), (data.label, label)):
        if isinstance(value, str) and not value.isascii() and _SURROGATE.search(value):
            return f"'{name}' holds lone surrogates, expected Unicode"
    if id in seen:
        return f"the id '{id}' was seen before; expected unique ids in '{data.id}'"
    if not isinstance(text, str) or not text.strip():
        return f"the text ({data.text}) is {'empty' if isinstance(text, str) else 'not text'}; leave the row out"
    if not label:
        return f"the label ({data.label}) is null; label the row or leave it out"
    if data.split and split not in SPLITS:
        return f"the split ({data.split}) is {split!r}; expected train, valid or test"
    return None


def _glob(fs: Any, pattern: str) -> list[str]:
    spelt = takewhile(lambda part: not glob.has_magic(part), pattern.split("/"))
    try:
        return _visible(fs.glob(pattern), "/".join(spelt))
    except ValueError as error:
        raise UserError(f"{pattern} is no glob: {error}") from None


def _visible(paths: Sequence[str], base: str) -> list[str]:
    """The paths with no hidden name beyond what the user spelt."""
    return [p for p in paths if not any(part.startswith(("_", ".")) for part in p[len(base) :].split("/"))]


def _file(uri: str, info: dict[str, Any]) -> File:
    stem = uri.lower()
    for packed in _PACKED:
        stem = stem.removesuffix(packed)
    kind = next((kind for ending, kind in _KINDS.items() if stem.endswith(ending)), None)
    if kind is None or (kind == "parquet" and stem != uri.lower()):
        raise UserError(f"{uri} is not Parquet, JSONL or CSV by its name; expected .parquet, .jsonl or .csv")
    version = str(info.get("ETag") or info.get("mtime") or "").strip('"')
    return File(uri, kind, int(info["size"]), version)


def _codec(uri: str) -> str | None:
    return next((codec for ending, codec in _PACKED.items() if uri.lower().endswith(ending)), None)


def _ranges(file: File, documents: int, data: DataSettings) -> Iterator[tuple[int, int, bool]]:
    with _reading(file.uri):
        if file.kind == "parquet":
            for start, stop in _parquet_ranges(file, documents, data):
                yield start, stop, False
        elif file.kind == "jsonl" and _codec(file.uri) is None:
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
    with _parquet(file.uri) as parquet:
        _check_columns(parquet.schema_arrow, (data.id, data.text), file.uri)
        kind = parquet.schema_arrow.field(data.text).type
        if not _is_text(kind):
            raise UserError(f"{file.uri}: column '{data.text}' is {kind}, expected string")
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


def _check_columns(schema: pa.Schema, names: Iterable[str], uri: str) -> None:
    for name in names:
        if (times := schema.names.count(name)) != 1:
            found = f"{times} columns" if times else "no column"
            raise UserError(f"{uri} has {found} '{name}'; it has {', '.join(schema.names)}")


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return any(is_text(kind) for is_text in texts)


def _line_ranges(file: File, documents: int) -> Iterator[tuple[int, int]]:
    """Byte ranges of about so many lines by the length of the first ones, each ending at a line end."""
    if file.size == 0:
        return
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


@contextmanager
def _parquet(uri: str) -> Iterator[pq.ParquetFile]:
    fs, path = open_filesystem(uri)
    with fs.open(path, "rb") as source, pq.ParquetFile(source, page_checksum_verification=True) as parquet:
        yield parquet


@contextmanager
def _stream(uri: str) -> Iterator[BinaryIO]:
    """A file from its beginning, unpacked."""
    fs, path = open_filesystem(uri)
    with fs.open(path, "rb") as source, io.BufferedReader(source, _BLOCK) as plain:
        codec = _codec(uri)
        if codec is None:
            yield plain
            return
        with pa.CompressedInputStream(pa.PythonFile(plain, mode="r"), codec) as packed:
            yield io.BufferedReader(packed, _SAMPLE)


def _parquet_rows(shard: Shard, columns: dict[str, str]) -> Iterator[pa.Table]:
    with _parquet(shard.uri) as parquet:
        _check_columns(parquet.schema_arrow, columns.values(), shard.uri)
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
    with _stream(shard.uri) as source:
        try:
            reader = pacsv.open_csv(
                source,
                read_options=pacsv.ReadOptions(block_size=_BLOCK, use_threads=False),  # threads lose row numbers
                parse_options=pacsv.ParseOptions(newlines_in_values=True),
                convert_options=convert,
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
    with _stream(shard.uri) as source:
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
        except (ValueError, RecursionError) as error:
            documents.malformed[row] = f"the line is not JSON: {error}"
        if not isinstance(record, dict):
            record = {}
        found = {field: record.get(column) for field, column in columns.items()}
        documents.ids.append(_name(found["ids"]))
        documents.texts.append(found["texts"])
        documents.labels.append(_name(found.get("labels")))
        documents.splits.append(_name(found.get("splits")))


def _name(value: Any) -> str | None:
    """An id or a label as text: a number by its digits; null, NaN and what is empty is no name."""
    if value is None or value == "" or value != value or isinstance(value, (dict, list)):
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
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if isinstance(error, OSError) and (error.errno is not None or isinstance(error, TimeoutError)):
                raise  # the disk or the store, not the file
            reason = _ROW.sub(r"\1", " ".join(str(error).split()))[:160]
            raise UserError(
                f"{uri} cannot be read, it is corrupt, truncated or not what its name says: {reason}"
            ) from None
