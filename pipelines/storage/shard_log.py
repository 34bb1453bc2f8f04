"""The shards of a run: which were begun and how often, which are committed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipelines.storage.object_store import Store


@dataclass
class Attempt:
    """One try at a shard, and what tries before it have noted."""

    shard_log: ShardLog
    name: str
    begun: int
    """tries, this one included"""
    ended: int
    """of those before it, how many gave up in words; the others were killed"""
    note: dict[str, Any]
    """what the step keeps for a try that may follow this one"""

    @property
    def deaths(self) -> int:
        """Tries whose process ended in the middle."""
        return self.begun - 1 - self.ended

    def keep(self, note: dict[str, Any]) -> None:
        """Write a note that outlives this process."""
        self.note = note
        self._write()

    def _write(self) -> None:
        fields = {"begun": self.begun, "ended": self.ended, "note": self.note}
        self.shard_log.store.write_json(_attempt_key(self.name), fields)


class ShardLog:
    """The record of a run's shards in its store: files and outcomes under `parts/`, tries under `attempts/`.

    A shard is committed by `parts/NAME.json`, which is written after the shard's files and names them with their
    digests. A shard without it is computed again and writes the same keys.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    @contextmanager
    def attempt(self, name: str) -> Iterator[Attempt]:
        """Count a try at a shard before it starts, so that one whose process is killed is known of."""
        kept = self.store.read_json(_attempt_key(name)) or {"begun": 0, "ended": 0, "note": {}}
        attempt = Attempt(self, name, kept["begun"] + 1, kept["ended"], kept["note"])
        attempt._write()
        try:
            yield attempt
        except (Exception, KeyboardInterrupt):  # whoever stops a run is no death of a shard's process
            attempt.ended += 1
            attempt._write()
            raise

    def commit(self, name: str, files: Mapping[str, bytes], outcome: dict[str, Any]) -> dict[str, Any]:
        """Put the files of a shard under `parts/NAME.ENDING`, then its outcome, which says that they are there."""
        outcome = {**outcome, "files": {}}
        for ending, data in files.items():
            key = f"parts/{name}.{ending}"
            self.store.write(key, data)
            outcome["files"][key] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        self.store.write_json(f"parts/{name}.json", outcome)
        return outcome

    def committed(self) -> dict[str, dict[str, Any]]:
        """The outcomes of the shards that are committed, by name."""
        keys = [key for key in self.store.list("parts") if key.endswith(".json")]
        return {_name_of(key): self.store.read_json(key) for key in keys}

    def begun(self) -> list[str]:
        """The shards that were tried, committed or not, in order."""
        return [_name_of(key) for key in self.store.list("attempts")]


def _attempt_key(name: str) -> str:
    return f"attempts/{name}.json"


def _name_of(key: str) -> str:
    return key.rpartition("/")[2].removesuffix(".json")
