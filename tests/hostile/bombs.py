"""Streams that are small and become large: compressed data made of one block that is repeated.

Nothing here holds more than a block in memory.
"""

from __future__ import annotations

import bz2
import zlib

import pyarrow as pa

from tests.hostile.thrift import write_unsigned

MEGABYTE = 1 << 20


def repeat_zstd(block: bytes, times: int, start: bytes = b"") -> bytes:
    """A zstd file of a start and a block so many times: frames one after another."""
    frames = bytes(pa.Codec("zstd", 3).compress(block, asbytes=True)) * times
    return bytes(pa.compress(start, codec="zstd", asbytes=True)) + frames if start else frames


def repeat_bz2(block: bytes, times: int, start: bytes = b"") -> bytes:
    """A bz2 file of a start and a block so many times: streams one after another."""
    return bz2.compress(start) + bz2.compress(block) * times if start else bz2.compress(block) * times


def repeat_gzip(block: bytes, times: int, start: bytes = b"") -> bytes:
    """A gzip file, of one member, of a start and a block so many times."""
    checksum = zlib.crc32(start)
    for _ in range(times):
        checksum = zlib.crc32(block, checksum)
    length = (len(start) + len(block) * times) & 0xFFFFFFFF
    head = b"\x1f\x8b\x08" + bytes(6) + b"\xff"
    end = b"\x03\0" + checksum.to_bytes(4, "little") + length.to_bytes(4, "little")
    return head + _deflate(start) + _deflate(block) * times + end


def _deflate(data: bytes) -> bytes:
    """Blocks that end at a byte and refer to nothing before them."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflate.compress(data) + deflate.flush(zlib.Z_FULL_FLUSH) if data else b""


def repeat_brotli(block: bytes, times: int, start: bytes = b"") -> bytes:
    """A brotli stream of a start and a block so many times."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "brotli") as stream:
        stream.write(start)
        for _ in range(times):
            stream.write(block)
    return bytes(sink.getvalue())


def run_of_lz4(start: bytes, length: int) -> bytes:
    """A block of raw LZ4: a start, and its last byte so many times more, at least 20."""
    copied = length - 5  # the last five bytes are literals
    more, rest = divmod(copied - 4 - 15, 255)
    return _lz4_literals(start, 15) + b"\x01\0" + b"\xff" * more + bytes([rest]) + b"\x50" + start[-1:] * 5


def _lz4_literals(data: bytes, match: int) -> bytes:
    more, rest = divmod(len(data) - 15, 255)
    if len(data) < 15:
        return bytes([len(data) << 4 | match]) + data
    return bytes([0xF0 | match]) + b"\xff" * more + bytes([rest]) + data


def run_of_snappy(start: bytes, length: int) -> bytes:
    """A block of snappy: a start of at most 60 bytes, and its last byte so many times more."""
    copies, rest = divmod(length, 64)
    head = write_unsigned(len(start) + length) + bytes([(len(start) - 1) << 2]) + start
    return head + b"\xfe\x01\0" * copies + (bytes([(rest - 1) << 2 | 2]) + b"\x01\0" if rest else b"")
