"""Fixtures of the tests of nights: the tables of an empty output."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.nightly.tables.night_tables import NightTables
from pipelines.storage.object_store import Store


@pytest.fixture
def tables(store_uri: str) -> NightTables:
    """The tables of an empty output."""
    return NightTables(Store(store_uri))


@pytest.fixture
def local_tables(tmp_path: Path) -> NightTables:
    """The tables of an empty output on a disk."""
    return NightTables(Store(str(tmp_path / "out")))
