"""The run's copy of a model: what a worker loads is what the driver wrote."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from pipelines.storage.object_store import Store
from pipelines.workers.artifact_copy import ArtifactCopy
from spin.errors import UserError

FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256))}


@pytest.fixture
def copy(store_uri: str) -> ArtifactCopy:
    """A copy as a worker gets it: with the step, so pickled."""
    written = ArtifactCopy.write(Store(store_uri) / "_runs/r/model", FILES)
    restored: ArtifactCopy = pickle.loads(pickle.dumps(written))
    return restored


def test_a_worker_gets_the_files_that_the_driver_wrote(copy: ArtifactCopy, tmp_path: Path) -> None:
    (tmp_path / "fetched").mkdir()
    copy.fetch(tmp_path / "fetched")
    assert {path.name: path.read_bytes() for path in (tmp_path / "fetched").iterdir()} == FILES


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_worker_refuses_a_copy_that_was_changed(copy: ArtifactCopy, tmp_path: Path, name: str, damage: str) -> None:
    """It writes nothing where the model would be loaded from; the driver that writes the copy anew repairs it."""
    if damage == "changed":
        copy.store.write(name, FILES[name] + b" ")
    else:
        copy.store.delete_many([name])
    (tmp_path / "fetched").mkdir()
    with pytest.raises(UserError, match=rf"model/{name} is not what the driver of this run wrote: expected digest"):
        copy.fetch(tmp_path / "fetched")
    assert list((tmp_path / "fetched").iterdir()) == []
    assert ArtifactCopy.write(copy.store, FILES).sha256 == copy.sha256
    copy.fetch(tmp_path / "fetched")
