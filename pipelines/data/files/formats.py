"""Helpers of all formats: compressed files, encodings, names of columns and places, and the errors of reading."""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, BinaryIO

import pyarrow as pa

from pipelines.service_errors import BadFileError
from pipelines.storage.filesystem import store_errors
from spin.errors import shorten_message
from spin.settings import DataSettings

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
"""Arrow's codec by file-name ending"""
MAX_BYTES = 1 << 26
"""bytes of text that a shard, a part of the spool or a row holds at most"""
BLOCK = 1 << 24
"""bytes per request where a file is read from its beginning"""
_BUFFER = 1 << 20
"""bytes that are decompressed at a time"""
_COLUMNS, _COLUMN = 20, 30
"""most columns that a message lists, and most characters of the name of one"""
BAD_ROWS = 10
"""most rows that a message names"""
_NAME = re.compile(r"[^\W\d][\w.-]*( [\w.-]+)?")
"""what the name of a column looks like: at most two words, the first of which begins with a letter"""


def compression_codec(uri: str) -> str | None:
    """Arrow's codec for a file, by its name; None if it is not compressed."""
    return next((codec for ending, codec in COMPRESSIONS.items() if uri.lower().endswith(ending)), None)


class _BlockReader(io.BufferedReader):
    """A file that is read in whole blocks, also by `read1`, by which text is decoded a few kilobytes at a time."""

    def read1(self, size: int = -1, /) -> bytes:
        # `read` refills the buffer with a block; `read1` would request no more than `size` bytes
        return self.read(BLOCK if size < 0 else size)


def decompressed(source: BinaryIO, uri: str, data: DataSettings) -> BinaryIO:
    """A file from its beginning in requests of `BLOCK` bytes, decompressed if its name says that it is compressed.

    Raises BadFileError if a compressed file is empty, and while it is read as `DecodedBytes` does; the intake refuses
    other files without a byte.
    """
    codec = compression_codec(uri)
    if not isinstance(source, io.BytesIO):
        source = _BlockReader(source, BLOCK)  # type: ignore[arg-type]
    if codec is None:
        return source
    decoded = DecodedBytes(uri, source.seek(0, io.SEEK_END), data)
    source.seek(0)
    stream = pa.CompressedInputStream(pa.PythonFile(source, mode="r"), codec)
    content = io.BufferedReader(_CountedStream(stream, decoded), _BUFFER)
    if not content.peek(1):
        raise empty_file(uri)
    return content


class DecodedBytes:
    """The bytes that a file has held so far, and how many it may hold."""

    def __init__(self, uri: str, size: int, data: DataSettings) -> None:
        self.uri, self.size, self.data = uri, size, data
        self.count = 0

    def add(self, count: int) -> None:
        """Count bytes. Raises BadFileError for more than the settings allow for a file of this size."""
        self.count += count
        limits = {
            "max_decoded_ratio": MAX_BYTES + self.data.max_decoded_ratio * self.size,
            "max_decoded_bytes": self.data.max_decoded_bytes,
        }
        name, most = min(limits.items(), key=lambda limit: limit[1])
        # guarded by test_a_file_that_holds_too_much_is_not_decoded_to_its_end; broken by:
        #   if False:
        if self.count > most:
            raise BadFileError(
                f"{self.uri} has {self.size:,} bytes and holds more than {most:,}, which data.{name} allows; raise "
                "this limit if the file is sound"
            )


class _CountedStream(io.RawIOBase):
    """A decompressed stream whose bytes are counted."""

    def __init__(self, stream: pa.NativeFile, decoded: DecodedBytes) -> None:
        self.stream, self.decoded = stream, decoded

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = int(self.stream.readinto(buffer))
        self.decoded.add(count)
        return count


def text_codec(encoding: str) -> str:
    """The codec that decodes texts of an encoding; a byte order mark before UTF-8 is no part of them."""
    return "utf-8-sig" if encoding == "utf-8" else encoding


def not_encoded(byte: int, encoding: str) -> str:
    """Describe the first byte of a line that its encoding does not know."""
    return (
        f"is not {encoding}, it holds the byte 0x{byte:02x}; name the encoding in data.encoding, as cp1252 or latin-1"
    )


def name_places(noun: str, numbers: Sequence[int], more: int = 0) -> str:
    """`line 3`, `lines 3, 5 and 8`, or with more that are not named `lines 3, 5 and 1,200 more`."""
    shown = [f"{number:,}" for number in numbers] + ([f"{more:,} more"] if more else [])
    listed = " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else shown[0]
    return f"{noun if len(shown) == 1 else f'{noun}s'} {listed}"


def check_columns(names: Sequence[str], wanted: Sequence[str], uri: str, *, header: bool = False) -> None:
    """Raise BadFileError unless each wanted column is there once.

    The error lists the columns, those in a `header` if they look like names and not like a document: a file may have
    none.
    """
    for name in wanted:
        if (times := names.count(name)) != 1:
            number = f"{times} columns" if times else "no column"
            if header and not all(len(each) <= _COLUMN and _NAME.fullmatch(each) for each in names if each):
                raise BadFileError(f"{uri} has {number} '{name}' among its {len(names)}; is the first line a header?")
            raise BadFileError(f"{uri} has {number} '{name}'; it has {list_columns(names)}")


def list_columns(names: Collection[str]) -> str:
    """The names of columns for a message, long ones cut, and of very many the first."""
    shown = [name if len(name) <= _COLUMN else f"{name[:_COLUMN]}…" for name in islice(names, _COLUMNS)]
    shown = [name.encode(errors="backslashreplace").decode() for name in shown]  # a JSON key may hold lone surrogates
    return ", ".join(shown) + (f" and {len(names) - _COLUMNS:,} more" if len(names) > _COLUMNS else "")


def check_column_count(count: int, uri: str, data: DataSettings) -> None:
    """Raise BadFileError for more columns than a file may have."""
    if count > data.max_columns:
        raise BadFileError(f"{uri} has {count:,} columns; expected at most {data.max_columns:,} (data.max_columns)")


def long_row(uri: str, noun: str, most: int) -> BadFileError:
    """The error for a line or a row of more bytes than it may have."""
    return BadFileError(
        f"{uri} has a {noun} of more than {most:,} bytes (data.max_row_bytes); expected one document per {noun}"
    )


@contextmanager
def file_errors(uri: str) -> Iterator[None]:
    """Turn the errors of reading an input file into SpinErrors of one line.

    Raises BadFileError for a file that is not of the type that its name ends in, or that is no longer there, otherwise
    as `store_errors` does.
    """
    with store_errors(uri):
        try:
            yield
        except FileNotFoundError:
            raise BadFileError(f"{uri}: not found; it was there when the files were listed") from None
        except MemoryError:  # Arrow's is an ArrowException, too
            raise
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if isinstance(error, PermissionError) and error.errno is not None:  # of a disk; a store's has no number
                raise BadFileError(
                    f"{uri} may not be read by this user; give read permission, or move it away"
                ) from None
            if isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError):
                raise  # an error of the disk or the store, not of the file
            raise unreadable_file(uri, shorten_message(str(error))) from None


def empty_file(uri: str) -> BadFileError:
    """The error for a file without a single byte: no format but JSONL allows it, and there it is a file cut short."""
    return unreadable_file(uri, "it is empty")


def unreadable_file(uri: str, reason: str) -> BadFileError:
    """The error for a file that is not what its name says."""
    return BadFileError(f"{uri} cannot be read, it is corrupt, truncated or not what its name says: {reason}")
