"""Trained parts of a trial on disk, so that rounds can be repeated without training again."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchmarks.method
import spin

FORMAT = 1
"""raise it when the parts of this benchmark are trained in another way"""


class Parts:
    """A folder of parts, each trained when it is first asked for.

    `depends_on` are JSON values that the parts depend on, beside the source of the method and of the benchmark of the
    method. Parts of others are removed.
    """

    def __init__(self, folder: Path, depends_on: Any) -> None:
        text = json.dumps([FORMAT, depends_on, source_digest()], sort_keys=True)
        self.folder = folder / hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        if folder.exists():
            for other in folder.iterdir():
                if other != self.folder:
                    shutil.rmtree(other)

    def get(self, name: str, train: Callable[[Path], None]) -> Path:
        """The folder of a part, which `train` fills if there is none."""
        path = self.folder / name
        if not path.exists():
            unfinished = path.with_name(f"{name}.tmp")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            train(unfinished)
            unfinished.rename(path)
        return path


def source_digest() -> str:
    """A digest of the source of the method and of the benchmark of the method, by which everything is trained."""
    digest = hashlib.blake2b(digest_size=8)
    for package in (spin, benchmarks.method):
        [root] = package.__path__
        for file in sorted(Path(root).rglob("*.py")):
            digest.update(file.relative_to(root).as_posix().encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()
