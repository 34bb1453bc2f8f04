"""The files that a model is loaded from, and the digest of their contents.

There are two ways to the same digest. `compute_digest` reads every byte: it verifies files that come from elsewhere,
such as a backbone that was fetched from a store. `cached_digest` hashes a file once per machine and state of the
file: it is for files that stay where they are.

What `cached_digest` trusts:

- The file system. A file whose path, size, modification time, change time (ctime) and inode are those of an earlier
  hashing is taken to have the same content. A hash is stored only if the file had not been modified for two seconds
  when hashing began. A second write within one tick of the file system's clock would go unnoticed.
- Not a read-only file system: those of images set all times to one value when they are built, so that another image
  may look the same.
- The cache folder (`SPIN_CACHE`). Whoever can write there can make weights pass for others, so it should be writable
  for no more people than the weights are.

Python files, which are in the digest where a model may run code of its own, are always hashed anew.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from spin.backbone.local_cache import cache_folder, lock_record, read_record, write_record
from spin.errors import UserError

_LOADED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
)
"""patterns of the files that loading a model reads from its folder"""
_ADAPTER = "adapter_config.json"
"""makes transformers change the weights of a folder by those of an adapter, but only where `peft` is installed"""
_FORMAT = 3
"""version of the records in the cache; records of another version are ignored"""
_SETTLED_NS = 2_000_000_000
"""nanoseconds since the last change of a file after which another change is sure to show in its times"""


def compute_digest(folder: Path, *, include_code: bool = False) -> str:
    """The sha256 (64 hex digits) over names and contents of the files that a model loads from; reads every byte.

    Raises UserError if the folder holds no weights.
    """
    return _combine((path, hash_file(path)) for path in list_model_files(folder, include_code=include_code))


def cached_digest(folder: Path, *, include_code: bool = False) -> str:
    """The same as `compute_digest`, but hashes only files that this machine has not hashed in their present state.

    Raises UserError if the folder holds no weights.
    """
    return _combine(cached_hashes(folder, list_model_files(folder, include_code=include_code)))


def list_model_files(folder: Path, *, include_code: bool = False) -> list[Path]:
    """The files that a model loads from, sorted: weights, configuration and tokenizer, with `include_code` also *.py.

    Raises UserError if the folder holds no weights, or an adapter beside them. Whether it counts would depend on the
    packages of a machine, which no digest covers.
    """
    patterns = (*_LOADED, "*.py") if include_code else _LOADED
    files = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    if not any(path.suffix == ".safetensors" for path in files):
        raise UserError(f"backbone: no .safetensors in {folder}; save the model there with save_pretrained")
    if (folder / _ADAPTER).exists():
        raise UserError(
            f"backbone: {folder} holds an adapter ({_ADAPTER}), which would count only where peft is installed; merge "
            "it into the weights (merge_and_unload, then save_pretrained), or take this file out of the folder"
        )
    return files


def hash_file(path: Path) -> str:
    """The sha256 (64 hex digits) of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cached_hashes(folder: Path, paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """Files of a folder with their sha256 (64 hex digits), in the order given; see the module for what is trusted.

    Of several processes that need it at the same time, one hashes and the others wait.
    """
    record = _record_file(folder)
    with lock_record(record):
        known = _read_hashes(record)
        current = {path.name: _hash_if_changed(path, known.get(path.name)) for path in paths}
        remembered = {**known, **{name: hashed for name, (hashed, settled) in current.items() if settled}}
        if remembered != known:
            _write_hashes(record, folder, remembered)
    return [(path, current[path.name][0].sha256) for path in paths]


def _combine(hashes: Iterable[tuple[Path, str]]) -> str:
    total = hashlib.sha256()
    for path, sha256 in hashes:
        total.update(f"{path.name} {sha256}\n".encode())
    return total.hexdigest()


@dataclass(frozen=True)
class _HashedFile:
    """A file's state and the hash of the content that it had in this state."""

    state: list[int]
    """size, modification time and change time (ctime) in nanoseconds since 1970, inode, and number of the file system.

    If the state changes, the content may have changed.
    """
    sha256: str


def _hash_if_changed(path: Path, known: _HashedFile | None) -> tuple[_HashedFile, bool]:
    """The hash of a file, or of the file that a link leads to, and whether it may be remembered."""
    now_ns, status = time.time_ns(), path.stat()
    state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]
    if known is not None and known.state == state and path.suffix != ".py":
        return known, True
    # so long ago that any change from now on shows in the times
    settled = max(status.st_mtime_ns, status.st_ctime_ns) <= now_ns - _SETTLED_NS
    return _HashedFile(state, hash_file(path)), settled and not os.statvfs(path).f_flag & os.ST_RDONLY


def _record_file(folder: Path) -> Path:
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
    return cache_folder() / "digests" / f"{name}.json"


def _read_hashes(record: Path) -> dict[str, _HashedFile]:
    """Hashes by file name; empty where the record is missing, of another format or damaged."""
    content = read_record(record)
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        return {}
    try:
        return {name: _HashedFile(file["state"], str(file["sha256"])) for name, file in content["files"].items()}
    except (KeyError, TypeError, AttributeError):
        return {}


def _write_hashes(record: Path, folder: Path, hashes: dict[str, _HashedFile]) -> None:
    files = {name: asdict(hashed) for name, hashed in hashes.items()}
    write_record(record, {"format": _FORMAT, "folder": str(folder.resolve()), "files": files})
