"""A run's copy of a classifier's files: the driver writes it to the store of the run, every worker checks it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.storage.object_store import Store
from spin.errors import UserError


@dataclass(frozen=True)
class ArtifactCopy:
    """The place of a classifier's files, and the digests that they must have.

    The driver hands it to the workers with the step, and not through the store: who can change the files there could
    change their digests too.
    """

    store: Store
    """the files under their names, and nothing else"""
    sha256: Mapping[str, str]
    """digest (64 hex digits) of every file by its name"""

    @classmethod
    def write(cls, store: Store, files: Mapping[str, bytes]) -> ArtifactCopy:
        """Write files to a store, over those of an earlier driver of the same run, and return what workers need."""
        for name, data in files.items():
            store.write(name, data)
        return cls(store, {name: hashlib.sha256(data).hexdigest() for name, data in files.items()})

    def fetch(self, folder: Path) -> None:
        """Write the files to a folder. Raises UserError, before any is written, if one is not what the driver wrote."""
        files = self.store.read_many(list(self.sha256))
        for name, expected in self.sha256.items():
            actual = hashlib.sha256(files[name]).hexdigest() if name in files else "none"
            if actual != expected:
                raise UserError(
                    f"{self.store.uri}/{name} is not what the driver of this run wrote: expected digest "
                    f"{expected[:12]}, found {actual[:12]}; run the command again, which writes it anew"
                )
        for name, data in files.items():
            (folder / name).write_bytes(data)
