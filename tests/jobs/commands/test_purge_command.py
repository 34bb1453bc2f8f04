"""`spin purge` as a user types it, on a store in a folder that no training has written."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from tests.support.command_line import run_spin

Run = Callable[..., str]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with features that have not changed for 40 days, and a probe that has not for 3."""
    store = Store(str(tmp_path / "store"))
    for key, days in (("features/a/parts/0.parquet", 40), ("probes/b/ffn.01.mean.safetensors", 3)):
        store.write(key, bytes(2_000))
        changed = (datetime.now(UTC) - timedelta(days=days)).timestamp()
        os.utime(store.path(key), (changed, changed))
    return store


@pytest.fixture
def purge(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A function that runs `spin purge` and returns its output, or the line of its error."""
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"backbone: {{model: m}}\ndata: {{train: t}}\nstore: {{uri: {store.uri}, retention: 30}}\n")

    def run(*words: str, status: int = 0) -> str:
        return run_spin(capsys, monkeypatch, "purge", str(settings), *words, status=status)

    return run


def test_what_is_deleted_and_what_is_too_young_is_printed(purge: Run, store: Store) -> None:
    planned = purge("--dry-run").splitlines()
    assert planned == [
        "would delete features: 1 object, 2.0 kB, unchanged for 40.0 days",
        "left probes: unchanged for 3.0 days only",
        "would delete 1 object, 2.0 kB",
    ]
    assert store.exists("features")
    assert purge().splitlines() == [line.replace("would delete", "deleted") for line in planned]
    assert store.list("features/a") == []
    assert purge().splitlines()[-1] == "deleted 0 objects, 0 bytes"
    assert purge("--older-than", "2").splitlines() == [
        "deleted probes: 1 object, 2.0 kB, unchanged for 3.0 days",
        "deleted 1 object, 2.0 kB",
    ]


def test_without_an_age_nothing_is_deleted(purge: Run, store: Store) -> None:
    error = purge("--set", f"store={store.uri}", status=2)
    assert "expected a number of days in store.retention or --older-than" in error
    assert len(error.splitlines()) == 1
    assert len(store.list()) == 2


@pytest.mark.parametrize("days", ["-1", "1e6", "soon"])
def test_an_age_that_is_no_number_of_days_is_refused(purge: Run, days: str) -> None:
    assert "Invalid value for '--older-than'" in purge("--older-than", days, status=2)


@pytest.mark.slow
def test_a_store_at_work_ends_the_command_with_status_3(purge: Run, store: Store) -> None:
    with Lease(store / "model", ttl=3.0):
        error = purge(status=3)
    assert "store/model is held by" in error
    assert store.exists("features/a/parts/0.parquet")
