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
def hashed_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that this process hashes, in order."""
    names: list[str] = []
    hash_file = digest.hash_file

    def record_and_hash(path: Path) -> str:
        names.append(path.name)
        return hash_file(path)

    monkeypatch.setattr(digest, "hash_file", record_and_hash)
    return names


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model whose new files count as settled at once, since a test cannot set their change time back."""
    monkeypatch.setattr(digest, "_SETTLED_NS", 0)
    return tiny.save_bert(tmp_path / "model")


def expected_digest(folder: Path) -> str:
    """Compute the digest by its definition: sha256 over `name sha256` lines of the files, sorted by name."""
    names = sorted(path.name for path in list_model_files(folder))
    lines = [f"{name} {hashlib.sha256((folder / name).read_bytes()).hexdigest()}\n" for name in names]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def test_cached_and_computed_digests_equal_the_definition(model: Path) -> None:
    for _ in range(2):
        assert cached_digest(model) == compute_digest(model) == expected_digest(model)


@pytest.mark.slow
def test_files_are_hashed_once_over_several_loads(model: Path, hashed_files: list[str]) -> None:
    """A different spelling of the path and a digest that includes code (the model has none) hash nothing again."""
    for _ in range(3):
        load_backbone(settings_of(model))
    cached_digest(model.parent / "cache" / ".." / model.name)
    cached_digest(model, include_code=True)
    assert sorted(hashed_files) == sorted(path.name for path in list_model_files(model))


def test_files_are_hashed_once_over_several_processes(model: Path, hashed_files: list[str]) -> None:
    """Of two processes that start together, one hashes each file while the other waits; this process hashes none."""
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
    assert sorted(names + hashed_files) == sorted(path.name for path in list_model_files(model))


def test_files_are_hashed_once_over_several_threads(model: Path, hashed_files: list[str]) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(cached_digest, [model] * 8)) == {expected_digest(model)}
    assert len(hashed_files) == len(list_model_files(model))


@pytest.mark.parametrize("same", ["nothing", "size", "size and modification time"])
def test_a_changed_file_is_hashed_again(model: Path, hashed_files: list[str], same: str) -> None:
    """Only the changed file is hashed, even if its size and modification time are the same: its change time differs."""
    before, weights = cached_digest(model), model / "model.safetensors"
    hashed_files.clear()
    content, status = weights.read_bytes(), weights.stat()
    changed = content[:-1] + bytes([content[-1] ^ 1])
    weights.write_bytes(changed + b"\0" if same == "nothing" else changed)
    if same == "size and modification time":
        os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert cached_digest(model) == expected_digest(model) != before
    assert hashed_files == ["model.safetensors"]
    weights.write_bytes(content)
    assert cached_digest(model) == before


def test_a_link_to_other_weights_is_hashed_again(model: Path, tmp_path: Path, hashed_files: list[str]) -> None:
    """The weights have the same name and size as those the link led to before."""
    weights, other = model / "model.safetensors", tiny.save_bert(tmp_path / "other", seed=1) / "model.safetensors"
    first = weights.rename(tmp_path / "first.safetensors")
    weights.symlink_to(first)
    before = cached_digest(model)
    weights.unlink()
    weights.symlink_to(other)
    assert cached_digest(model) == expected_digest(model) != before


@pytest.mark.slow
def test_the_digest_of_a_file_just_written_is_not_cached(tmp_path: Path, hashed_files: list[str]) -> None:
    """A second write within one clock tick of the file system would not change the file's times."""
    folder = tiny.save_bert(tmp_path / "model")
    for path in folder.iterdir():
        os.utime(path, (0, 0))  # which sets the change time to now
    cached_digest(folder)
    count = len(hashed_files)
    cached_digest(folder)
    assert (count, len(hashed_files)) == (len(list_model_files(folder)), 2 * count)
    time.sleep(2.1)
    cached_digest(folder)
    cached_digest(folder)
    assert len(hashed_files) == 3 * count


def test_the_digest_of_a_file_changed_during_hashing_is_not_cached(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hash_file, weights = digest.hash_file, model / "model.safetensors"

    def hash_then_change(path: Path) -> str:
        sha256 = hash_file(path)
        if path == weights:
            weights.write_bytes(b"other")
        return sha256

    monkeypatch.setattr(digest, "hash_file", hash_then_change)
    cached_digest(model)
    monkeypatch.setattr(digest, "hash_file", hash_file)
    assert cached_digest(model) == expected_digest(model)


def test_code_of_a_model_is_hashed_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashed_files: list[str]
) -> None:
    monkeypatch.setattr(digest, "_SETTLED_NS", 0)
    folder = tiny.save_bert(tmp_path / "model")
    (folder / "modeling.py").write_text("print()\n")
    for _ in range(3):
        cached_digest(folder, include_code=True)
    assert hashed_files.count("modeling.py") == 3
    assert hashed_files.count("model.safetensors") == 1


def test_compute_digest_reads_every_file_whatever_the_cache_holds(
    model: Path, cache: Path, hashed_files: list[str]
) -> None:
    """A manipulated record in the cache changes `cached_digest`, but not `compute_digest`."""
    expected = cached_digest(model)
    [record] = (cache / "digests").glob("*.json")
    content = json.loads(record.read_text())
    content["files"]["model.safetensors"]["sha256"] = "0" * 64
    record.write_text(json.dumps(content))
    hashed_files.clear()
    assert cached_digest(model) != expected
    assert hashed_files == []
    assert compute_digest(model) == expected
    assert sorted(hashed_files) == sorted(path.name for path in list_model_files(model))


@pytest.mark.parametrize(
    "damage", ["{", "[]", '{"format": 1}', '{"format": 1, "files": {"config.json": 3}}', "format 0"]
)
def test_an_unusable_record_is_replaced(model: Path, cache: Path, hashed_files: list[str], damage: str) -> None:
    """A record that is damaged or has another format counts as absent."""
    cached_digest(model)
    [record] = (cache / "digests").glob("*.json")
    content = {**json.loads(record.read_text()), "format": 0}
    record.write_text(json.dumps(content) if damage == "format 0" else damage)
    for _ in range(2):
        assert cached_digest(model) == expected_digest(model)
    assert len(hashed_files) == 2 * len(list_model_files(model))


def test_without_a_writable_cache_files_are_hashed_every_time(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hashed_files: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One warning names the remedy."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPIN_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(local_cache, "_reported", set())
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert cached_digest(model) == expected_digest(model)
    assert len(hashed_files) == 2 * len(list_model_files(model))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "set SPIN_CACHE to a folder that can" in caplog.text


def test_a_folder_without_weights_has_no_digest(tmp_path: Path) -> None:
    for compute in (compute_digest, cached_digest):
        with pytest.raises(UserError, match=r"no \.safetensors in"):
            compute(tmp_path)


def test_a_folder_with_an_adapter_beside_its_weights_is_refused(model: Path) -> None:
    """Whether transformers applies it depends on whether peft is installed, which differs between machines."""
    before = cached_digest(model)
    (model / "adapter_model.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    assert cached_digest(model) != before  # weights of any name count
    (model / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    for use in (compute_digest, cached_digest, list_model_files, lambda folder: load_backbone(settings_of(folder))):
        with pytest.raises(
            UserError, match=r"model holds an adapter \(adapter_config\.json\).*merge it into the weights"
        ):
            use(model)


def settings_of(folder: Path) -> BackboneSettings:
    return BackboneSettings(model=str(folder), dtype="float32", device="cpu")


def test_a_gguf_file_is_hashed_once(tmp_path: Path, cache: Path, hashed_files: list[str], model: Path) -> None:
    """The digest of the file names the folder of the converted weights."""
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF")
    converted = cache / "gguf" / (hashlib.sha256(b"GGUF").hexdigest()[:32] + "-2")
    converted.mkdir(parents=True)
    for _ in range(2):
        assert locate_model(str(file)) == converted
    assert hashed_files == ["tiny.gguf"]
