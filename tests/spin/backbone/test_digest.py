"""The digest of a model's files, and how often a machine hashes them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from spin.backbone import digest, local_cache
from spin.backbone.digest import cached_digest, compute_digest, list_model_files
from spin.backbone.hub import locate_model
from spin.backbone.loading import load_backbone
from spin.errors import UserError
from spin.settings import BackboneSettings
from tests.support import tiny


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("SPIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that this process hashes, as it hashes them."""
    names: list[str] = []
    hash_file = digest.hash_file

    def count(path: Path) -> str:
        names.append(path.name)
        return hash_file(path)

    monkeypatch.setattr(digest, "hash_file", count)
    return names


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model whose files count as settled at once: their change time cannot be dated back."""
    monkeypatch.setattr(digest, "_SETTLED_NS", 0)
    return tiny.bert(tmp_path / "model")


def expected_digest(folder: Path) -> str:
    """The digest by its definition: sha256 over `name sha256` lines of the files, sorted by name."""
    names = sorted(path.name for path in list_model_files(folder))
    lines = [f"{name} {hashlib.sha256((folder / name).read_bytes()).hexdigest()}\n" for name in names]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def test_both_ways_give_the_digest_of_the_contents(model: Path) -> None:
    for _ in range(2):
        assert cached_digest(model) == compute_digest(model) == expected_digest(model)


def test_files_are_hashed_once_over_several_loads(model: Path, hashed: list[str]) -> None:
    """Also under another spelling of the path, and for the digest with code, which the model has none of."""
    settings = BackboneSettings(model=str(model), dtype="float32", device="cpu")
    for _ in range(3):
        load_backbone(settings)
    cached_digest(model.parent / "cache" / ".." / model.name)
    cached_digest(model, include_code=True)
    assert sorted(hashed) == sorted(path.name for path in list_model_files(model))


def test_files_are_hashed_once_over_several_processes(model: Path, hashed: list[str]) -> None:
    """Other processes at the same time, then this one: one of them hashes each file, the others wait for it."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from spin.backbone import digest\n"
        "hash_file, digest._SETTLED_NS = digest.hash_file, 0\n"
        "digest.hash_file = lambda path: print(path.name) or hash_file(path)\n"
        "print('digest', digest.cached_digest(Path(sys.argv[1])))\n"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(model)], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    lines = "".join(child.communicate(timeout=300)[0] for child in children).split("\n")
    assert cached_digest(model) == expected_digest(model)
    assert lines.count(f"digest {expected_digest(model)}") == 2
    names = [line for line in lines if line and not line.startswith("digest ")]
    assert sorted(names + hashed) == sorted(path.name for path in list_model_files(model))


def test_threads_share_one_hashing(model: Path, hashed: list[str]) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(cached_digest, [model] * 8)) == {expected_digest(model)}
    assert len(hashed) == len(list_model_files(model))


@pytest.mark.parametrize("same", ["nothing", "size", "size and modification time"])
def test_a_file_that_changes_is_hashed_anew(model: Path, hashed: list[str], same: str) -> None:
    """It alone, even with the size and modification time that it had: its change time is another."""
    before, weights = cached_digest(model), model / "model.safetensors"
    hashed.clear()
    content, status = weights.read_bytes(), weights.stat()
    changed = content[:-1] + bytes([content[-1] ^ 1])
    weights.write_bytes(changed + b"\0" if same == "nothing" else changed)
    if same == "size and modification time":
        os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert cached_digest(model) == expected_digest(model) != before
    assert hashed == ["model.safetensors"]
    weights.write_bytes(content)
    assert cached_digest(model) == before


def test_another_file_under_the_name_is_hashed_anew(model: Path, tmp_path: Path, hashed: list[str]) -> None:
    """A link that leads to other weights of the same size."""
    weights, other = model / "model.safetensors", tiny.bert(tmp_path / "other", seed=1) / "model.safetensors"
    first = weights.rename(tmp_path / "first.safetensors")
    weights.symlink_to(first)
    before = cached_digest(model)
    weights.unlink()
    weights.symlink_to(other)
    assert cached_digest(model) == expected_digest(model) != before


def test_a_file_that_was_just_written_is_not_trusted(tmp_path: Path, hashed: list[str]) -> None:
    """Within one tick of the clock of a file system, a second write would not show in the file's times."""
    folder = tiny.bert(tmp_path / "model")
    for path in folder.iterdir():
        os.utime(path, (0, 0))  # which sets the change time to now
    cached_digest(folder)
    count = len(hashed)
    cached_digest(folder)
    assert (count, len(hashed)) == (len(list_model_files(folder)), 2 * count)
    time.sleep(2.1)
    cached_digest(folder)
    cached_digest(folder)
    assert len(hashed) == 3 * count


def test_a_file_that_changes_while_it_is_hashed_is_not_remembered(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hash_file, weights = digest.hash_file, model / "model.safetensors"

    def write_meanwhile(path: Path) -> str:
        sha256 = hash_file(path)
        if path == weights:
            weights.write_bytes(b"other")
        return sha256

    monkeypatch.setattr(digest, "hash_file", write_meanwhile)
    cached_digest(model)
    monkeypatch.setattr(digest, "hash_file", hash_file)
    assert cached_digest(model) == expected_digest(model)


def test_code_is_always_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashed: list[str]) -> None:
    monkeypatch.setattr(digest, "_SETTLED_NS", 0)
    folder = tiny.bert(tmp_path / "model")
    (folder / "modeling.py").write_text("print()\n")
    for _ in range(3):
        cached_digest(folder, include_code=True)
    assert hashed.count("modeling.py") == 3
    assert hashed.count("model.safetensors") == 1


def test_a_verifying_digest_reads_every_byte(model: Path, cache: Path, hashed: list[str]) -> None:
    """Whatever the cache says of the files, also where it was tampered with."""
    right = cached_digest(model)
    [record] = (cache / "digests").glob("*.json")
    content = json.loads(record.read_text())
    content["files"]["model.safetensors"]["sha256"] = "0" * 64
    record.write_text(json.dumps(content))
    hashed.clear()
    assert cached_digest(model) != right
    assert hashed == []
    assert compute_digest(model) == right
    assert sorted(hashed) == sorted(path.name for path in list_model_files(model))


@pytest.mark.parametrize("damage", ["{", "[]", '{"format": 1}', '{"format": 1, "files": {"config.json": 3}}', "other"])
def test_a_record_that_cannot_be_used_is_written_anew(model: Path, cache: Path, hashed: list[str], damage: str) -> None:
    """One that is damaged, or of another format."""
    cached_digest(model)
    [record] = (cache / "digests").glob("*.json")
    content = {**json.loads(record.read_text()), "format": 0}
    record.write_text(json.dumps(content) if damage == "other" else damage)
    for _ in range(2):
        assert cached_digest(model) == expected_digest(model)
    assert len(hashed) == 2 * len(list_model_files(model))


def test_a_cache_that_cannot_be_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashed: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Files are hashed each time, and a warning says so once."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPIN_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(local_cache, "_reported", set())
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert cached_digest(model) == expected_digest(model)
    assert len(hashed) == 2 * len(list_model_files(model))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "set SPIN_CACHE to a folder that can" in caplog.text


def test_a_folder_without_weights(tmp_path: Path) -> None:
    for digest_of in (compute_digest, cached_digest):
        with pytest.raises(UserError, match=r"no \.safetensors in"):
            digest_of(tmp_path)


def test_a_gguf_file_is_hashed_once(tmp_path: Path, cache: Path, hashed: list[str], model: Path) -> None:
    """It names the folder of its conversion, which is found there again."""
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF")
    converted = cache / "gguf" / hashlib.sha256(b"GGUF").hexdigest()[:32]
    converted.mkdir(parents=True)
    for _ in range(2):
        assert locate_model(str(file)) == converted
    assert hashed == ["tiny.gguf"]
