"""Whatever ends the child that reads files, the file is named and the others are read."""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data.files import reader_child, reader_process
from pipelines.data.files.input_files import list_files
from pipelines.data.files.reader import Documents, Role
from pipelines.data.files.reader_process import read_pieces
from pipelines.data.files.readers import read_piece
from pipelines.data.files.shards import Piece
from pipelines.data.intake import plan_intake, take_in
from pipelines.data.labelled_corpus import read_labelled
from pipelines.data.spool import PartSize
from pipelines.service_errors import BadFileError, UnavailableError, WorkerFaultError
from pipelines.storage.store_requests import PROCESS_REQUESTS
from spin.errors import UserError
from spin.settings import DataSettings
from tests.support.repository import ROOT

DATA = DataSettings(train="unused")
ROWS = 2500
"""rows of a file, which come in three parts"""
_read_rows = reader_child.read_rows


@pytest.fixture
def misbehaving(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Children that do what the name of a file says before its last part."""
    monkeypatch.setattr(reader_child, "read_rows", read_and_misbehave)
    yield
    reader_process._end_idle()


def read_and_misbehave(
    pieces: Sequence[Piece], data: DataSettings, columns: Collection[Role]
) -> Iterator[reader_child.Answer]:
    """In a child: `read_rows`, but for files that are named after what ends the child."""
    reader_child.SECONDS = 1
    reader_child.read_piece = read_piece_and_misbehave  # type: ignore[attr-defined]
    return _read_rows(pieces, data, columns)


def read_piece_and_misbehave(piece: Piece, *args: Any, **options: Any) -> Iterator[Documents]:
    for number, documents in enumerate(read_piece(piece, *args, **options)):
        if number == 2:
            misbehave(Path(piece.uri))
        yield documents


def misbehave(file: Path) -> None:
    kind, _, once = file.stem.partition("-")
    if once:
        try:
            (file.parent / "_done").touch(exist_ok=False)
        except FileExistsError:
            return
    if kind == "abort":
        os.abort()
    elif kind == "exit":
        os._exit(3)
    elif kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "vanish":
        file.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "late":
        threading.Timer(1, os.abort).start()
    elif kind == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif kind == "memory":
        bytearray(reader_child.MEMORY)
    elif kind == "time":
        while True:
            pass
    elif kind == "hang":
        time.sleep(1e6)
    elif kind == "raise":
        raise TypeError("no reason")


def write_files(folder: Path, *names: str) -> list[Piece]:
    for name in names:
        rows = [{"id": f"{name}{row}", "text": "some text"} for row in range(ROWS)]
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return [file.whole for file in list_files(str(folder))]


def read_all(pieces: Sequence[Piece]) -> dict[str, list[str | None] | str]:
    """The ids of each file, or the reason why it cannot be read, by name."""
    found: dict[str, list[str | None] | str] = {}
    for piece, parts in read_pieces(pieces, DATA):
        name = Path(piece.uri).stem
        try:
            found[name] = [id for documents in parts for id in documents.ids]
        except BadFileError as error:
            found[name] = error.reason
    return found


def ids_of(name: str) -> list[str]:
    return [f"{name}{row}" for row in range(ROWS)]


def check_named(folder: Path, name: str, reason: str) -> None:
    """Assert that of three files one is named with a reason, and the two around it are read."""
    found = read_all(write_files(folder, "a", name, "z"))
    assert list(found) == ["a", name, "z"]
    assert f"{name}.jsonl cannot be read" in found[name]
    assert reason in found[name]
    assert (found["a"], found["z"]) == (ids_of("a"), ids_of("z"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reason"),
    [("abort", "ends the process that reads it (SIGABRT)"), ("segv", "(SIGSEGV)"), ("exit", "(status 3)")],
)
@pytest.mark.usefixtures("misbehaving")
def test_a_file_that_ends_its_readers_is_quarantined(name: str, reason: str, tmp_path: Path) -> None:
    check_named(tmp_path, name, reason)


@pytest.mark.slow
@pytest.mark.usefixtures("misbehaving")
def test_a_file_that_takes_all_memory_is_quarantined(tmp_path: Path) -> None:
    check_named(tmp_path, "memory", "it takes more than 2 GB of memory")


@pytest.mark.slow
@pytest.mark.usefixtures("misbehaving")
def test_a_file_that_takes_too_long_is_quarantined(tmp_path: Path) -> None:
    check_named(tmp_path, "time", "it takes more than 10 s of processor time and 10 s per MB")


@pytest.mark.slow
@pytest.mark.usefixtures("misbehaving")
def test_a_child_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store may be at fault, so the file is not quarantined."""
    monkeypatch.setattr(reader_process, "_STALL_SECONDS", 1)
    with pytest.raises(UnavailableError, match=r"hang\.jsonl: the process that reads it has done nothing for 1 s"):
        read_all(write_files(tmp_path, "a", "hang"))


@pytest.mark.slow
@pytest.mark.usefixtures("misbehaving")
def test_a_file_that_is_gone_when_it_is_read_again_is_named(tmp_path: Path) -> None:
    """Its first child was killed when some of its rows had been read."""
    assert "not found" in read_all(write_files(tmp_path, "a", "vanish"))["vanish"]


@pytest.mark.slow
@pytest.mark.usefixtures("misbehaving")
def test_a_child_that_dies_within_a_message_has_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its third answer is longer than what a pipe holds, so it dies while it sends it."""
    children: list[Any] = []
    take_child = reader_process._take_child
    monkeypatch.setattr(reader_process, "_take_child", lambda: children.append(take_child()) or children[-1])
    rows = [{"id": f"{row}", "text": "x" * 5_000_000} for row in range(4)]
    (tmp_path / "late-once.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    ids: list[str | None] = []
    for _, parts in read_pieces([file.whole for file in list_files(str(tmp_path))], DATA):
        for documents in parts:
            ids += documents.ids
            if len(ids) == 2:
                os.waitid(os.P_PID, children[0].process.pid, os.WEXITED | os.WNOWAIT)
    assert ids == [row["id"] for row in rows]
    assert len(children) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("misbehaving")
def test_an_error_that_no_reader_expects_is_one_of_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log says where it was raised."""
    check_named(tmp_path, "raise", "TypeError: no reason")
    assert "in misbehave" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kill", "abort", "memory"])
@pytest.mark.usefixtures("misbehaving")
def test_what_ends_a_child_once_changes_nothing(kind: str, tmp_path: Path) -> None:
    """The file is read again, and no row comes twice."""
    name = f"{kind}-once"
    assert read_all(write_files(tmp_path, "a", name, "z")) == {each: ids_of(each) for each in ("a", name, "z")}


@pytest.mark.slow
@pytest.mark.usefixtures("misbehaving")
def test_a_child_that_is_killed_is_not_the_fault_of_its_file(tmp_path: Path) -> None:
    """A machine without memory kills with SIGKILL, so the run ends, and no file is quarantined."""
    pieces = write_files(tmp_path, "a", "kill")
    with pytest.raises(WorkerFaultError, match=r"4 processes in a row were killed while they read .*kill\.jsonl"):
        read_all(pieces)


@pytest.mark.slow
@pytest.mark.usefixtures("misbehaving")
def test_none_of_the_rows_of_a_file_that_ends_its_readers_is_taken(tmp_path: Path) -> None:
    write_files(tmp_path, "a", "abort", "z")
    [task] = plan_intake(list_files(str(tmp_path)))
    parts: list[int] = []
    report = take_in(task, DATA, PartSize(500), lambda part: parts.append(len(part.ids)) or "uri")
    assert [file.rows for file in report.files] == [ROWS, 0, ROWS]
    assert sum(ready.piece.documents for ready in report.pieces) == 2 * ROWS


@pytest.mark.slow
@pytest.mark.usefixtures("misbehaving")
def test_a_training_names_a_file_that_ends_its_readers(tmp_path: Path) -> None:
    write_files(tmp_path, "a", "abort", "z")
    with pytest.raises(BadFileError, match=r"abort\.jsonl cannot be read: it ends the process that reads it"):
        read_labelled(list_files(str(tmp_path)), DATA.model_copy(update={"label": "id"}))


@pytest.mark.slow
def test_a_training_names_a_text_that_is_too_long(tmp_path: Path) -> None:
    write_files(tmp_path, "a")
    with pytest.raises(UserError, match=r"a\.jsonl lines 1, 2, .*: the text has 9 bytes, expected at most 8 \(data"):
        read_labelled(list_files(str(tmp_path)), DATA.model_copy(update={"label": "id", "max_text_bytes": 8}))


def test_a_child_reads_task_after_task(tmp_path: Path) -> None:
    """Also after a file that cannot be read; not after a reading that was given up."""
    pieces = write_files(tmp_path, "a")
    read_all(pieces)
    [child] = reader_process._idle
    (tmp_path / "a.jsonl").unlink()
    assert "not found" in read_all(pieces)["a"]
    assert reader_process._idle == [child]
    for _, parts in read_pieces(write_files(tmp_path, "a", "b"), DATA):
        next(parts)
        break
    assert child.process.poll() is not None
    assert reader_process._idle == []


@pytest.mark.slow
def test_a_child_has_the_environment_of_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that was set since may name the store."""
    [piece] = write_files(tmp_path, "a")
    read_all([piece])
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://elsewhere")
    assert reader_process._ask(piece, partial(os.getenv, "AWS_ENDPOINT_URL")) == "http://elsewhere"
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert reader_process._ask(piece, partial(os.getenv, "AWS_ENDPOINT_URL")) is None


def test_a_child_that_cannot_start_is_not_the_fault_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader_process._end_idle()
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(WorkerFaultError, match=r"could not start: .*ModuleNotFoundError"):
        read_all(write_files(tmp_path, "a"))


@pytest.mark.slow
def test_large_stacks_take_no_memory_from_a_child(tmp_path: Path) -> None:
    """The stacks of Arrow's threads are as large as the limit of a stack, and count as memory."""
    pq.write_table(pa.table({"id": ["a"], "text": ["t"]}), tmp_path / "a.parquet")
    command = [
        "/bin/sh",
        "-c",
        'ulimit -s 1048576; exec "$@"',
        "sh",
        sys.executable,
        "-c",
        READ_ALL,
        str(tmp_path),
    ]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "['a']\n"


READ_ALL = """
import sys
from pipelines.data.files.input_files import list_files
from pipelines.data.files.reader_process import read_pieces
from spin.settings import DataSettings
pieces = [file.whole for file in list_files(sys.argv[1])]
for _, parts in read_pieces(pieces, DataSettings(train="unused")):
    print([id for documents in parts for id in documents.ids])
"""
"""prints the ids of the files in a folder"""


@pytest.mark.slow
def test_a_row_group_of_long_texts_fits_into_a_child(tmp_path: Path) -> None:
    """Arrow's allocator takes a gigabyte in advance unless it is told not to."""
    texts = [base64.b64encode(random.Random(row).randbytes(3_000_000)).decode() for row in range(100)]
    pq.write_table(pa.table({"id": [f"{row}" for row in range(100)], "text": texts}), tmp_path / "a.parquet")
    assert read_all([file.whole for file in list_files(str(tmp_path))])["a"] == [f"{row}" for row in range(100)]


def test_a_deeply_nested_text_is_no_fault_of_its_file(tmp_path: Path) -> None:
    """It is dropped before it is sent: nothing could pickle it."""
    lines = ['{"id": "a", "text": "t"}', f'{{"id": "b", "text": {"[" * 900}{"]" * 900}}}', '{"id": "c", "text": "t"}']
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, ""]))
    [(_, parts)] = [(piece, list(parts)) for piece, parts in read_pieces([list_files(str(tmp_path))[0].whole], DATA)]
    assert [documents.ids for documents in parts] == [["a", "b", "c"]]
    assert parts[0].dropped == {1: ("not_text", "the text is list, expected a string")}


def test_requests_of_children_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators see the requests for input files, and those that fail."""
    monkeypatch.setattr(reader_child, "answer_question", request_and_answer)
    before = PROCESS_REQUESTS.totals()
    reader_process.describe_columns(write_files(tmp_path, "a")[0], DATA)
    sent = PROCESS_REQUESTS.totals().since(before)
    assert (sent.requests, sent.errors) == ({"GetObject": 2}, {("GetObject", "503"): 1})


def request_and_answer(*_: object) -> Iterator[reader_child.Answer]:
    for status in (200, 503):
        PROCESS_REQUESTS._count_answer({"status_code": status}, "response-received.s3.GetObject")
    yield reader_child.Answer(["id"], ends="request")


@pytest.mark.slow
def test_columns_and_lines_are_read_in_a_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is said of a file that ends it."""
    [piece] = write_files(tmp_path, "a")
    assert reader_process.describe_columns(piece, DATA).endswith("a.jsonl has id, text")
    assert reader_process.locate_rows(piece, [0, 7], DATA) == [1, 8]
    monkeypatch.setattr(reader_child, "answer_question", abort)
    assert reader_process.describe_columns(piece, DATA) == ""
    assert reader_process.locate_rows(piece, [0, 7], DATA) is None


def abort(*_: object) -> Iterator[Documents]:
    os.abort()


@pytest.mark.slow
def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    """Also if the parent is killed."""
    write_files(tmp_path, "a")
    code = f"""
import sys
from pipelines.data.files.input_files import list_files
from pipelines.data.files.reader_process import _idle, read_pieces
from pipelines.storage.store_requests import PROCESS_REQUESTS
from spin.errors import UserError
from spin.settings import DataSettings
for piece, parts in read_pieces([file.whole for file in list_files({str(tmp_path)!r})], DataSettings(train="unused")):
    list(parts)
print(_idle[0].process.pid, flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=-1, stdout=-1, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    child.wait(60)
