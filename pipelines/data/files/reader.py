"""The base class of the formats of input files, and the rows that a reader yields."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, ClassVar, Literal, TypeVar

import pyarrow as pa

from pipelines.data.files.formats import COMPRESSIONS, compression_codec, list_columns
from pipelines.data.files.kept_columns import parse_column
from pipelines.data.files.shards import Piece
from pipelines.data.files.text_values import to_text
from spin.labels.label_space import Label
from spin.settings import DataSettings

Role = Literal["id", "text", "label", "split", "group"]
"""the role of a column; `data.id` and so on name it in the file"""
ID_AND_TEXT: tuple[Role, ...] = ("id", "text")
ALL_COLUMNS: tuple[Role, ...] = ("id", "text", "label", "split", "group")
FIELDS = ("ids", "texts", "labels", "splits", "groups")
"""the lists of `Documents`"""
_REQUIRED = {"ids", "texts", "labels"}
"""fields of `Documents` that every row has"""
_CHUNK, _CHUNK_BYTES = 1000, 1 << 22
"""most rows that are parsed at a time, and about how many bytes"""
T = TypeVar("T")


@dataclass
class Documents:
    """Rows in order: five lists of equal length. A column that was not requested holds None."""

    ids: list[str | None] = field(default_factory=list)
    """None for null and empty ids"""
    texts: list[Any] = field(default_factory=list)
    """as the file holds them, which need not be strings"""
    labels: list[Label | None] = field(default_factory=list)
    splits: list[str | None] = field(default_factory=list)
    groups: list[str | None] = field(default_factory=list)
    malformed: dict[int, str] = field(default_factory=dict)
    """rows that are no record, or that hold a value of another type than expected, each with the reason"""
    dropped: dict[int, tuple[str, str]] = field(default_factory=dict)
    """reason of a dead letter and message for each row whose text was dropped, see `drop_unfit_texts`"""
    absent: dict[int, str] = field(default_factory=dict)
    """rows that lack a requested column, each with what it has; in most formats a file lacks it"""
    kept: pa.Table | None = None
    """the columns of `data.keep` that the file has; types may differ between files"""
    first: int = 0
    """byte from which the rows of a part of a file are counted; 0 where they are counted from the start of the file"""
    row: int = 0
    """number of the first row, counted from there; a reader need not count on: `read_piece` does"""

    def __len__(self) -> int:
        return len(self.ids)

    def drop_unfit_texts(self, data: DataSettings) -> None:
        """Drop what is no text, and the texts that are longer than `data.max_text_bytes`."""
        most = data.max_text_bytes
        for row, text in enumerate(self.texts):
            if not isinstance(text, str):
                if text is not None:
                    self.texts[row] = None
                    self.dropped[row] = "not_text", f"the text is {type(text).__name__}, expected a string"
            elif 4 * len(text) > most:
                size = len(text.encode(errors="surrogatepass"))
                # guarded by test_a_text_that_is_too_long_is_a_dead_letter
                if size > most:
                    self.texts[row] = None
                    limit = f"expected at most {most:,} (data.max_text_bytes)"
                    self.dropped[row] = "too_long", f"the text has {size:,} bytes, {limit}"


class Reader(ABC):
    """A format of input files.

    To add one, derive a class, implement `read`, and add an object of it to `READERS` in `readers.py`::

        class TabReader(Reader):
            name, title, endings = "tab", "tab-separated text", (".tab",)

            def read(self, source, piece, data, columns):
                content = decompressed(source, piece.uri, data)
                lines = io.TextIOWrapper(content, encoding=text_codec(data.encoding))
                names = next(lines, "").rstrip("\\n").split("\\t")
                for chunk in in_chunks(lines, len):
                    rows = [line.rstrip("\\n").split("\\t") for line in chunk]
                    yield to_documents([dict(zip(names, row, strict=False)) for row in rows], data, columns)

    This is the least that works. A reader for others also calls `check_columns(…, header=True)`, so that no message
    shows a document. It makes a row with another number of values, or a line that is not in the encoding, malformed.
    It bounds a line, as `read_lines` of `jsonl_reader.py` does, and defines `lines`, so that messages name lines.

    Nights and trainings then read such files. A file that cannot be read raises BadFileError, which names it; errors
    of Arrow, of a file and of its encoding become one. A row that is no record is named in `malformed` of
    `to_documents`, which itself finds rows that lack a column. No value, or null, is left to what reads the documents.
    The first reader of `READERS` that recognises a name reads the file.
    """

    name: ClassVar[str]
    """kind of its files, in plans, which outlive a release: lower case, never changed"""
    title: ClassVar[str]
    """name of the format in messages"""
    endings: ClassVar[tuple[str, ...]]
    """of the names of its files, in lower case, such as `.tab` or `.tab.txt`; the first one is named in messages"""
    compressible: ClassVar[bool] = True
    """whether a name may end in `.gz`, `.bz2` or `.zst` besides"""
    window: ClassVar[int | None] = None
    """bytes of a part of a large file; None where a file can only be read from its beginning"""

    def recognises(self, uri: str) -> bool:
        """Whether a file is of this format, by its name."""
        stem = uri.lower()
        for ending in COMPRESSIONS if self.compressible else ():
            stem = stem.removesuffix(ending)
        return stem.endswith(self.endings)

    def divide(self, uri: str, size: int) -> list[tuple[int, int]]:
        """The ranges of bytes in which a large file is read; each holds the rows that begin in it."""
        step = size if self.window is None or compression_codec(uri) is not None else self.window
        return [(start, min(start + step, size)) for start in range(0, size, step)]

    @abstractmethod
    def read(
        self, source: BinaryIO, piece: Piece, data: DataSettings, columns: Collection[Role]
    ) -> Iterator[Documents]:
        """The rows of a range of an open file in order and in bounded memory, with these columns and `data.keep`.

        The first documents say where the range begins, in `first` and `row`, if it does not begin with the file. A file
        without the header that its format has is an `empty_file`; a header alone has no rows.
        """

    def column_names(self, source: BinaryIO, uri: str, data: DataSettings) -> Sequence[str]:
        """The names of the columns of an open file, for messages; none if the format does not tell."""
        return ()

    def lines(self, source: BinaryIO, uri: str, data: DataSettings, first: int) -> Iterator[int] | None:
        """The lines, from 1, at which rows begin that are counted from a byte on; None where a file has no lines.

        Messages name lines by them; without, they name rows, from 0.
        """
        return None


def in_chunks(rows: Iterator[T], weigh: Callable[[T], int]) -> Iterator[list[T]]:
    """Rows in lists of bounded length and bytes."""
    chunk: list[T] = []
    weight = 0
    for row in rows:
        chunk.append(row)
        weight += weigh(row)
        if len(chunk) == _CHUNK or weight > _CHUNK_BYTES:
            yield chunk
            chunk, weight = [], 0
    if chunk:
        yield chunk


def names_by_field(data: DataSettings, columns: Collection[Role]) -> dict[str, str]:
    """The name of each column in the file, by field of `Documents`."""
    named = {f"{role}s": getattr(data, role) for role in ALL_COLUMNS if role in columns}
    return {field: name for field, name in named.items() if name or field in _REQUIRED}


def to_documents(
    records: Sequence[Mapping[str, Any]],
    data: DataSettings,
    columns: Collection[Role],
    *,
    malformed: Mapping[int, str] | None = None,
    noun: str = "row",
) -> Documents:
    """The documents of records of JSON values by name. Those of `malformed` are no record, for these reasons.

    `noun` names a row in messages.
    """
    names, documents = names_by_field(data, columns), Documents(malformed=dict(malformed or {}))
    # in one order in all processes, which a set has not
    required = dict.fromkeys(name for field, name in names.items() if field in _REQUIRED)
    for row, record in enumerate(records):
        if row not in documents.malformed and not required.keys() <= record.keys():
            documents.absent[row] = _describe_absent(record, required, noun)
        values = {field: record.get(name) for field, name in names.items()}
        documents.ids.append(to_text(values.get("ids")))
        documents.texts.append(values.get("texts"))
        append_label(documents, values.get("labels"), names)
        documents.splits.append(to_text(values.get("splits")))
        documents.groups.append(to_text(group := values.get("groups")))
        if isinstance(group, (list, dict)):
            kind = type(group).__name__
            documents.malformed.setdefault(
                row, f"the group ({names['groups']}) is a {kind}; expected one value, or null"
            )
    present = [name for name in data.keep if any(name in record for record in records)]
    keep_values(documents, {name: [record.get(name) for record in records] for name in present}, data)
    return documents


def _describe_absent(record: Mapping[str, Any], required: Collection[str], noun: str) -> str:
    """Describe which columns a row lacks, and which it has."""
    lacks = " and no ".join(f"'{name}'" for name in required if name not in record)
    return f"the {noun} has no {lacks}; it has {list_columns(record.keys()) or 'none'}"


def append_label(documents: Documents, value: Any, names: Mapping[str, str]) -> None:
    """Add a name, or a list of names; a list that holds anything else makes the row malformed."""
    if not isinstance(value, list):
        documents.labels.append(to_text(value))
        return
    labels = [to_text(element) for element in value]
    if None in labels:
        at = labels.index(None)
        documents.malformed[len(documents.labels)] = (
            f"the label ({names['labels']}) is a list with {_describe_no_name(value[at])} as element {at}; "
            "expected only names, mend the row or leave it out"
        )
        documents.labels.append(None)
    else:
        documents.labels.append([label for label in labels if label is not None])


def _describe_no_name(value: Any) -> str:
    """The kind of value that a row has in place of a name, without its content."""
    if value is None:
        return "null"
    if value == "":
        return "an empty string"
    return "NaN" if value != value else f"a {type(value).__name__}"


def keep_values(documents: Documents, values: Mapping[str, Sequence[Any]], data: DataSettings) -> None:
    """Keep columns of JSON values or texts; a row with a value of another type than declared is malformed."""
    columns = {}
    for name, column in values.items():
        columns[name], rejected = parse_column(column, data.keep[name])
        for row in rejected:
            documents.malformed.setdefault(row, f"the value of '{name}' is no {data.keep[name]}")
    if columns:
        documents.kept = pa.table(columns)
