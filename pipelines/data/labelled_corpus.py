"""A labelled corpus, read and checked once before any work is spent on it."""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.data.arrow_strings import ArrowStrings
from pipelines.data.feature_pool import KEY_TYPE, make_key, texts_table
from pipelines.data.files.formats import BAD_ROWS, name_places
from pipelines.data.files.input_files import InputFile
from pipelines.data.files.kept_columns import without_kept
from pipelines.data.files.reader import ALL_COLUMNS, FIELDS, Documents
from pipelines.data.files.reader_process import locate_rows, read_pieces
from pipelines.data.files.shards import Piece
from pipelines.data.files.text_values import is_unicode
from pipelines.data.intake import plan_intake
from pipelines.data.spool import SpoolWriter, check_rows
from pipelines.service_errors import BadFileError
from spin.activations.feature_table import documents_table
from spin.errors import UserError
from spin.labels.label_space import Label
from spin.labels.split_groups import choose_group, hash_text
from spin.labels.splits import SPLITS
from spin.pages.number_format import counted
from spin.settings import DataSettings


@dataclass(frozen=True)
class LabelledCorpus:
    """The checked documents of a labelled corpus, in plan order."""

    ids: ArrowStrings
    labels: Sequence[Label]
    splits: Sequence[str | None]
    """None where the settings name no split column"""
    text_hashes: Sequence[int]
    groups: Sequence[int]
    """see `spin.labels.split_groups`"""
    text_keys: pa.FixedSizeBinaryArray
    """by which the features of a text are found again"""
    texts: Sequence[str]
    """of the first documents, as many as requested"""

    def __len__(self) -> int:
        return len(self.ids)

    def texts_table(self) -> pa.Table:
        """The ids of all documents and the keys of their texts."""
        return texts_table(self.ids.arrow, self.text_keys)

    def table(self) -> pa.Table:
        """The table of all documents: id, label, split, text_hash and group."""
        return documents_table(self.ids, self.labels, self.splits, text_hashes=self.text_hashes, groups=self.groups)


def read_labelled(
    files: Sequence[InputFile], data: DataSettings, *, keep_texts: int | None = 0, spool: SpoolWriter | None = None
) -> LabelledCorpus:
    """Read and check a labelled corpus; of each document about 80 bytes stay in memory, and its id.

    `keep_texts` is the number of texts to keep, counted from the first document; None keeps all. The rows are added to
    `spool`. An empty list is a label: the document belongs to no class. Raises UserError that names the places of the
    first ten of: an id or label that is null, a list of labels with an element that is not a name, a text that is empty
    or not a string, lone surrogates in any of these, an id that occurs twice, a split other than train, valid and test;
    and for a group column that holds nothing but nulls. Mistakes before a file that cannot be read are named in its
    place.
    """
    reader = _Reader(without_kept(data), keep_texts, spool)
    for task in plan_intake(files):
        for piece, parts in read_pieces(task.pieces, reader.data, ALL_COLUMNS):
            reader.read(piece, parts)
    return reader.finish()


@dataclass(frozen=True)
class _Mistake:
    """A row that cannot be learned from."""

    row: int
    """in the corpus"""
    reason: str


@dataclass(frozen=True)
class _Block:
    """Rows of a file that were read at once."""

    piece: Piece
    first: int
    """byte from which rows are counted"""
    row: int
    """number of the first row, counted from there"""
    start: int
    """its number in the corpus"""


@dataclass
class _Reader:
    """The columns read so far. Equal labels share one object, and ids are Arrow strings once they are read."""

    data: DataSettings
    keep_texts: int | None
    spool: SpoolWriter | None
    blocks: list[_Block] = field(default_factory=list)
    id_chunks: list[pa.Array] = field(default_factory=list)
    id_hashes: array[int] = field(default_factory=lambda: array("q"))
    labels: list[Label] = field(default_factory=list)
    splits: list[str | None] = field(default_factory=list)
    text_hashes: array[int] = field(default_factory=lambda: array("Q"))
    groups: array[int] = field(default_factory=lambda: array("Q"))
    text_keys: bytearray = field(default_factory=bytearray)
    grouped: bool = False
    """whether any document has a value of the group column"""
    texts: list[str] = field(default_factory=list)
    known: dict[Hashable, Label] = field(default_factory=dict)
    """every label that has occurred, by its value"""
    mistakes: list[_Mistake] = field(default_factory=list)
    """the first `BAD_ROWS` rows that cannot be learned from; repeated ids are found at the end"""
    mistaken: int = 0
    """number of all such rows"""

    def read(self, piece: Piece, parts: Iterator[Documents]) -> None:
        """Add the documents of a piece."""
        try:
            for documents in parts:
                self.blocks.append(_Block(piece, documents.first, documents.row, len(self.id_hashes)))
                self._add_rows(documents)
                if self.spool is not None:
                    self.spool.add(check_rows(documents, piece.uri))
        except BadFileError:
            self._raise_for_mistakes()  # of rows before
            raise
        if self.spool is not None:
            self.spool.accept(piece.uri)

    def _add_rows(self, documents: Documents) -> None:
        """Add the rows that can be learned from, and note the others: once there is one, only ids are complete."""
        ids: list[str | None] = []
        for row, (id, text, label, split, group) in enumerate(
            zip(*(getattr(documents, name) for name in FIELDS), strict=True)
        ):
            reason, dropped = documents.dropped.get(row, ("", None))
            broken = documents.malformed.get(row) or (dropped if reason == "too_long" else None)
            mistake = broken or _find_mistake(id, text, label, split, self.data)
            ids.append(None if mistake else id)
            self.id_hashes.append(hash(id) if not mistake else -1 - len(self.id_hashes))
            if mistake:
                self.mistaken += 1
                if len(self.mistakes) < BAD_ROWS:
                    reason = mistake if broken else documents.absent.get(row, mistake)
                    self.mistakes.append(_Mistake(len(self.id_hashes) - 1, reason))
                continue
            self.labels.append(self.known.setdefault(label if isinstance(label, str) else tuple(label), label))
            self.splits.append(None if split is None else sys.intern(split))
            self.text_hashes.append(hash_text(text))
            self.groups.append(choose_group(self.text_hashes[-1], group))
            self.text_keys += make_key(text)
            self.grouped = self.grouped or group is not None
            if self.keep_texts is None or len(self.texts) < self.keep_texts:
                self.texts.append(text)
        self.id_chunks.append(pa.array(ids, pa.string()))

    def finish(self) -> LabelledCorpus:
        """The corpus of all pieces that were read."""
        self._raise_for_mistakes()
        if self.spool is not None:
            self.spool.flush()
        if self.data.group and self.labels and not self.grouped:
            raise UserError(
                f"data.group: '{self.data.group}' is null in all {len(self.labels):,} documents; expected a column "
                "with values, or leave the setting out"
            )
        keys = pa.Array.from_buffers(KEY_TYPE, len(self.labels), [None, pa.py_buffer(self.text_keys)])
        return LabelledCorpus(self._ids(), self.labels, self.splits, self.text_hashes, self.groups, keys, self.texts)

    def _ids(self) -> ArrowStrings:
        return ArrowStrings(pa.chunked_array(self.id_chunks, pa.string()))

    def _raise_for_mistakes(self) -> None:
        """Raise UserError that names the first rows that cannot be learned from, if there are any."""
        repeated, count = self._find_repeated_ids()
        total = self.mistaken + count
        if not total:
            return
        mistakes = sorted([*self.mistakes, *repeated], key=lambda mistake: mistake.row)[:BAD_ROWS]
        reasons = list(dict.fromkeys(mistake.reason for mistake in mistakes))
        more = f"; and {counted(total - len(mistakes), 'more row')}" if total > len(mistakes) else ""
        raise UserError("; ".join(self._describe(reason, mistakes) for reason in reasons) + more)

    def _find_repeated_ids(self) -> tuple[list[_Mistake], int]:
        """The first rows whose id a row before has, and the number of all.

        Ids are compared where their hashes are equal, which takes a third of the memory of a set of all ids.
        """
        hashes = np.frombuffer(self.id_hashes, np.int64)
        order = np.argsort(hashes, kind="stable")
        later = np.sort(order[1:][hashes[order[1:]] == hashes[order[:-1]]]).tolist()
        ids, found = self._ids() if later else [], list[_Mistake]()
        for at, row in enumerate(later):
            if any(ids[other] == ids[row] for other in np.flatnonzero(hashes[:row] == hashes[row]).tolist()):
                reason = f"the id '{ids[row]}' was seen before; expected unique ids in '{self.data.id}'"
                found.append(_Mistake(row, reason))
            if len(found) == BAD_ROWS:  # two ids with one hash are rare enough not to be looked for among the others
                return found, BAD_ROWS + len(later) - at - 1
        return found, len(found)

    def _describe(self, reason: str, mistakes: Sequence[_Mistake]) -> str:
        """The places of the rows with one mistake, file by file, and the mistake."""
        rows: dict[tuple[Piece, int], list[int]] = {}
        for mistake in mistakes:
            if mistake.reason == reason:
                block = self.blocks[bisect_right(self.blocks, mistake.row, key=lambda block: block.start) - 1]
                rows.setdefault((block.piece, block.first), []).append(block.row + mistake.row - block.start)
        places: dict[tuple[str, str], list[int]] = {}
        for (piece, first), numbers in rows.items():
            lines = locate_rows(piece, numbers, self.data, first)
            noun = "row" if lines is None else "line"
            places.setdefault((piece.uri, noun), []).extend(numbers if lines is None else lines)
        named = (
            f"{uri} {name_places(noun, numbers)}{' (from 0)' if noun == 'row' else ''}"
            for (uri, noun), numbers in places.items()
        )
        return f"{' and '.join(named)}: {reason}"


def _find_mistake(id: str | None, text: Any, label: Label | None, split: str | None, data: DataSettings) -> str | None:
    """Describe what is wrong with a document by itself, apart from other ids; None if nothing is."""
    if not id:
        return f"the id ({data.id}) is null; expected a unique one"
    labels = label if isinstance(label, list) else [label]
    for name, value in ((data.id, id), (data.text, text), *((data.label, label) for label in labels)):
        if isinstance(value, str) and not is_unicode(value):
            return f"'{name}' holds lone surrogates, expected Unicode"
    if not isinstance(text, str) or not text.strip():
        return f"the text ({data.text}) is {'empty' if isinstance(text, str) else 'not text'}; leave the row out"
    if label is None:
        return f"the label ({data.label}) is missing (null, NaN or empty); label the row or leave it out"
    if data.split and split not in SPLITS:
        return f"the split ({data.split}) is {split!r}; expected train, valid or test"
    return None
