"""A folder of files that were made to harm whoever reads them.

Each is small and the same every time; all of them are written within a few seconds and a few hundred megabytes of
memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from tests.hostile.hostile_file import HostileFile, bad, good
from tests.hostile.hostile_parquet import parquet_files
from tests.hostile.hostile_text import csv_files, jsonl_files
from tests.hostile.parquet_edits import write_parquet

_LINE = b'{"id": "a", "text": "some text"}\n'


def write_hostile_files(folder: Path) -> dict[str, HostileFile]:
    """Write all of them into a folder; return them by name."""
    written = {}
    for file in chain(parquet_files(), jsonl_files(), csv_files(), files_with_names()):
        assert file.name not in written
        write_hostile_file(folder, file)
        written[file.name] = file
    return written


def write_hostile_file(folder: Path, file: HostileFile) -> None:
    """Write one of them."""
    path = folder / file.name
    path.parent.mkdir(parents=True, exist_ok=True)
    if file.content is not None:
        path.write_bytes(file.content)
    else:
        os.symlink(file.name if "itself" in file.wrong else "nowhere", path)


def files_with_names() -> Iterator[HostileFile]:
    """Files whose names are hostile."""
    parquet = write_parquet({"id": ["b"], "text": ["t"]})
    yield bad("parquet.jsonl", "Parquet under the name of JSONL", parquet)
    yield bad("parquet.csv", "Parquet under the name of CSV", parquet)
    yield bad("jsonl.parquet", "JSONL under the name of Parquet", _LINE)
    yield bad("jsonl.csv", "JSONL under the name of CSV", _LINE)
    yield bad("csv.jsonl", "CSV under the name of JSONL", b"id,text\na,some text")
    yield bad("parquet.parquet.gz", "a compressed Parquet file", parquet)
    yield bad("program.exe", "a file of no known format", b"MZ")
    yield good("new\nline.jsonl", "a name of two lines", _LINE)
    yield good("\x1b[2J\x1b[31mred\x07.jsonl", "a name that clears the terminal", _LINE)
    yield good("%s {0} ${HOME} `id` $(id) ; # ? * [a].jsonl", "a name that shells and formats expand", _LINE)
    yield good("\u202elnosj.jsonl", "a name that is written from right to left", _LINE)
    yield good("é" * 120 + ".jsonl", "a name of 246 bytes", _LINE)
    yield bad(os.fsdecode(b"not-utf-8-\xff.jsonl"), "a name that is not UTF-8", _LINE)
    yield good("folder.parquet/a.jsonl", "a file in a folder that is named like a file", _LINE)
    yield HostileFile("broken-link.jsonl", "a link to a file that does not exist", "bad")
    yield HostileFile("own-link.jsonl", "a link to itself", "bad")
