"""The listing of input files: few requests, literal names, changes, empty inputs, outputs within inputs."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from s3fs import S3FileSystem

from pipelines.data.files.input_files import check_output_outside, list_files
from pipelines.data.files.readers import read_piece
from pipelines.service_errors import BadFileError, UnavailableError
from pipelines.storage.filesystem import locate
from pipelines.storage.object_store import Store
from spin.errors import SpinError, UserError
from spin.settings import DataSettings
from tests.support.broken_folders import break_listing

DATA = DataSettings(train="unused")
HOSTILE_NAMES = [
    "a&pass=1.jsonl",
    "sound.jsonl::x.jsonl",
    "sound.jsonl?pass=1.jsonl",
    "50%41.jsonl",
    "x#sound.jsonl",
    "~root.jsonl",
    "file:sound.jsonl",
    "a b+c.jsonl",
    "[s]ound.jsonl",
    "KEY:HUSH@sound.jsonl",
    "é\u2028日.jsonl",
]


def write_document(store: Store, key: str, id: str) -> None:
    store.write(key, json.dumps({"id": id, "text": "t"}).encode() + b"\n")


def read_ids(uri: str) -> list[str | None]:
    """Return the ids in a folder as training and nights read them."""
    return [id for file in list_files(uri) for part in read_piece(file.whole, DATA) for id in part.ids]


@pytest.mark.s3
def test_a_prefix_is_listed_with_one_request(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a file whose size and version are known sends no request, and reading it one."""
    store, requests, call = Store(f"{s3_server}/listed-{os.getpid()}"), [], S3FileSystem._call_s3
    for n in range(20):
        write_document(store, f"data/{n:02d}.jsonl", str(n))
    store.write("data/", b"")  # a marker of a folder

    async def count_and_call(self: Any, method: str, *args: Any, **options: Any) -> Any:
        requests.append(method)
        return await call(self, method, *args, **options)

    monkeypatch.setattr(S3FileSystem, "_call_s3", count_and_call)
    files = list_files(f"{store.uri}/data/")
    assert (len(files), requests) == (20, ["list_objects_v2"])
    parts = [part for file in files for part in read_piece(file.whole, DATA)]
    assert [id for part in parts for id in part.ids] == [str(n) for n in range(20)]
    assert requests == ["list_objects_v2", *["get_object"] * 20]


def test_names_from_outside_are_opened_exactly_as_they_are(store_uri: str) -> None:
    """No part of a name is taken for a protocol, a chain of file systems, a query, a home or a pattern."""
    store = Store(store_uri)
    names = ["sound.jsonl", *HOSTILE_NAMES]
    for name in names:
        write_document(store, f"data/{name}", f"id of {name}")
    assert read_ids(f"{store.uri}/data") == [f"id of {name}" for name in sorted(names)]
    for name in names:
        assert read_ids(f"{store.uri}/data/{name}") == [f"id of {name}"]


def test_a_local_path_may_hold_a_protocol(tmp_path: Path) -> None:
    (tmp_path / "s3:").mkdir()
    write_document(Store(f"{tmp_path}"), "s3:/x.jsonl", "local")
    assert read_ids(f"{tmp_path}/s3:/") == ["local"]


@pytest.mark.s3
def test_a_name_that_s3_clients_take_for_a_version_is_a_bad_file(s3_server: str) -> None:
    store = Store(f"{s3_server}/versions-{os.getpid()}")
    write_document(store, "a.jsonl", "a")
    store.fs.call_s3("put_object", Bucket="spin", Key=store.path("a?versionId=1.jsonl").partition("/")[2], Body=b"{}")
    bad: dict[str, str] = {}
    assert [file.uri for file in list_files(store.uri, bad=bad)] == [f"{store.uri}/a.jsonl"]
    assert "take for a version" in bad[f"{store.uri}/a?versionId=1.jsonl"]


@pytest.mark.parametrize("change", ["replaced", "moved away"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_file_that_changed_since_it_was_listed_is_a_bad_file(change: str, name: str, store_uri: str) -> None:
    """Its size may be the same. The error names it, so that a night quarantines it and goes on."""
    store, before, after = Store(store_uri), b'{"id": 1, "text": "a"}\n', b'{"id": 2, "text": "b"}\n'
    store.write(name, before)
    [file] = list_files(store.uri)
    if change == "replaced":
        store.write(name, after)
        if store.local:
            os.utime(store.path(name), (1, 1))
    else:
        store.delete_many([name])
    with pytest.raises(BadFileError, match=f"{name}.*(has changed since it was listed|not found)"):
        list(read_piece(file.whole, DATA))


def test_a_glob_whose_first_folder_is_a_wildcard_is_read_from_the_root(tmp_path: Path) -> None:
    """From any working directory: it is not looked for below that one."""
    (tmp_path / "a.csv").write_text("id,text\n")
    first, _, rest = str(tmp_path.resolve()).lstrip("/").partition("/")
    [found] = list_files(f"/{first[:-1]}?/{rest}/*.csv")
    assert found.uri == str(tmp_path.resolve() / "a.csv")


def test_an_empty_path_is_refused() -> None:
    """It would be the current directory, such as for a variable of the shell that is not set."""
    for uri in ("", "file://"):
        with pytest.raises(UserError, match="found an empty path; expected a folder"):
            locate(uri)
    assert locate("s3a://bucket/x") == locate("s3://bucket/x") == ("s3", "bucket/x")


def test_an_empty_folder_is_an_empty_input_only_where_that_is_allowed(tmp_path: Path) -> None:
    """A night may have no documents; a training may not, and a path that does not exist is a mistake for both."""
    (tmp_path / "date=2026-01-31" / "_tmp").mkdir(parents=True)
    empty = f"{tmp_path}/date=2026-01-31"
    for uri in (empty, f"{empty}/", f"{empty}/*.parquet"):
        assert list_files(uri, allow_empty=True) == []
        with pytest.raises(UserError, match="no data at"):
            list_files(uri)
    for uri in (f"{tmp_path}/none", f"{tmp_path}/none/*.parquet"):
        with pytest.raises(UserError, match="no data at"):
            list_files(uri, allow_empty=True)


@pytest.mark.s3
def test_an_empty_prefix_is_an_empty_input_only_where_that_is_allowed(s3_server: str) -> None:
    uri = f"{s3_server}/nothing-{os.getpid()}"
    assert list_files(uri, allow_empty=True) == []
    with pytest.raises(UserError, match="no data at"):
        list_files(uri)


def test_a_folder_of_files_that_are_no_data_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    bad: dict[str, str] = {}
    assert list_files(str(tmp_path), bad=bad, allow_empty=True) == []
    assert list(bad) == [f"{tmp_path}/a.txt"]


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("gone.jsonl", "to a file that does not exist; remove it, or mend it"),
        ("b.jsonl", "to a file that does not exist"),
        ("sub", "to a folder"),
    ],
)
def test_a_link_that_cannot_be_read_is_a_bad_file(target: str, found: str, tmp_path: Path) -> None:
    """The other files are listed."""
    (tmp_path / "a.jsonl").write_text("x")
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.jsonl").symlink_to(tmp_path / target)
    bad: dict[str, str] = {}
    assert [file.uri for file in list_files(str(tmp_path), bad=bad)] == [f"{tmp_path}/a.jsonl"]
    [(uri, reason)] = bad.items()
    assert uri == f"{tmp_path}/b.jsonl"
    assert f"is a symbolic link {found}" in reason


@pytest.mark.parametrize("source", ["link", "link/us", "link/*/a.jsonl", "link/us/*.jsonl", "link/us/a.jsonl"])
@pytest.mark.parametrize("folder", ["in", "[2026]"])
def test_a_file_whose_folder_is_reached_through_a_link_has_one_name(source: str, folder: str, tmp_path: Path) -> None:
    """It may itself be a link, whose name says of what format it is."""
    (tmp_path / folder / "us").mkdir(parents=True)
    (tmp_path / "blob").write_text("x")
    file = tmp_path / folder / "us" / "a.jsonl"
    file.symlink_to(tmp_path / "blob")
    (tmp_path / "link").symlink_to(folder)
    files = list_files(str(tmp_path / source), allow_empty=True)
    if folder == "in":
        assert files == list_files(str(file))
    assert [(each.kind, each.size) for each in files] == [("jsonl", 1)]


@pytest.mark.parametrize("source", ["in/*/a.jsonl", "in/**/*.jsonl"])
def test_a_linked_folder_below_which_a_glob_may_match_is_named(source: str, tmp_path: Path) -> None:
    for folder in ("in/de", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.jsonl").write_text("x")
    (tmp_path / "in" / "us").symlink_to(tmp_path / "elsewhere")
    bad: dict[str, str] = {}
    assert [file.uri for file in list_files(str(tmp_path / source), bad=bad)] == [f"{tmp_path}/in/de/a.jsonl"]
    assert list(bad) == [f"{tmp_path}/in/us"]


@pytest.mark.parametrize(("source", "folder"), [("in", "in/.Trash-0"), ("day-*/a.jsonl", "lost+found")])
def test_a_folder_without_input_need_not_be_listed(
    source: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("in", "day-1", folder):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jsonl").write_text("x")
    break_listing(monkeypatch, tmp_path / folder, errno.EACCES)
    assert len(list_files(str(tmp_path / source))) == 1


def test_a_glob_in_an_object_store_raises_what_its_listing_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """s3fs lists folder by folder where a depth is given, and takes one that cannot be listed as empty."""

    async def fail(*_: Any, **__: Any) -> Any:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(S3FileSystem, "_lsdir", fail)
    with pytest.raises(UserError, match="Access Denied"):
        list_files("s3://bucket/in/*/a.jsonl", allow_empty=True)


@pytest.mark.parametrize(("code", "kind"), [(errno.EACCES, UserError), (errno.ESTALE, UnavailableError)])
@pytest.mark.parametrize("source", ["in", "in/*/*.jsonl"])
@pytest.mark.parametrize("folder", ["in", "in/us"])
def test_an_input_folder_that_cannot_be_listed_ends_the_command(
    code: int, kind: type[SpinError], source: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a night would lack half of its input, or an empty one would replace a full one."""
    for name in ("de", "us"):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "a.jsonl").write_text('{"id": "a", "text": "t"}')
    break_listing(monkeypatch, tmp_path / folder, code)
    with pytest.raises(kind, match=os.strerror(code)):
        list_files(str(tmp_path / source), bad={}, allow_empty=True)


@pytest.mark.parametrize(
    ("source", "output", "within"),
    [
        ("{}/data", "{}/data", True),
        ("{}/data", "{}/data/", True),
        ("{}/data/", "{}/data/out", True),
        ("file://{}/data", "{}/data/out", True),
        ("{}/data", "{}/link/out", True),
        ("{}/data", "{}/data/../data/out", True),
        ("{}/data", "{}/database", False),
        ("{}/data/date=2026-01-31", "{}/data/out", False),
        ("{}/data/*/x", "{}/data/out", True),
        ("{}/data/in*/x.csv", "{}/data/out", False),
        ("{}/data/*.csv", "{}/data/out", False),
        ("{}/**/*.csv", "{}/data/out", True),
        ("s3://b/data", "s3://b/data/out", True),
        ("s3://b", "s3://b/out", True),
        ("s3://b/data/", "s3://b/data", True),
        ("s3://b/data", "s3://b/database", False),
        ("s3://b/data", "s3://c/data/out", False),
        ("s3://b/data", "{}/data/out", False),
    ],
)
def test_an_output_within_its_input_is_refused(source: str, output: str, within: bool, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    source, output = source.format(tmp_path), output.format(tmp_path)
    if within:
        with pytest.raises(UserError, match="^the output .* lies within the input .*; name an output elsewhere$"):
            check_output_outside(source, output)
    else:
        check_output_outside(source, output)
