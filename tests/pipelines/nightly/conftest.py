"""Fixtures of the tests of nights: the tables of an empty output, and nights without a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.nightly.tables.night_tables import NightTables
from pipelines.storage.object_store import Store
from tests.support.chaos import FolderRegistry
from tests.support.fake_nights import FakeNights, use_fake_step
from tests.support.night_project import NightProject, run_shards_here


@pytest.fixture
def tables(store_uri: str) -> NightTables:
    """The tables of an empty output."""
    return NightTables(Store(store_uri))


@pytest.fixture
def local_tables(tmp_path: Path) -> NightTables:
    """The tables of an empty output on a disk."""
    return NightTables(Store(str(tmp_path / "out")))


@pytest.fixture
def project(
    tmp_path: Path, registry_fixture: FolderRegistry, backbone_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> NightProject:
    """A project without input files, whose nights run in this process; modules have their own `registry_fixture`."""
    run_shards_here(monkeypatch)
    return NightProject(tmp_path, registry_fixture, backbone_folder)


@pytest.fixture
def nights(store_uri: str, monkeypatch: pytest.MonkeyPatch) -> FakeNights:
    """Nights without a model, in a folder, then on the S3 server."""
    use_fake_step(monkeypatch)
    return FakeNights(store_uri)


@pytest.fixture
def local_nights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNights:
    """Nights without a model in a folder."""
    use_fake_step(monkeypatch)
    return FakeNights(str(tmp_path / "store"))
