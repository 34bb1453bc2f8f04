"""Fixtures of the tests of the command: a saved classifier, and logging as it was after every test."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from spin import SpinClassifier
from spin.settings import BackboneSettings, ProbeSettings, SearchSettings
from spin_neurons import PACKAGES
from tests.support import tiny


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    """Restore the handlers and levels that a test changes."""
    handlers, levels = logging.getLogger().handlers[:], [logging.getLogger(name).level for name in PACKAGES]
    yield
    logging.getLogger().handlers[:] = handlers
    for name, level in zip(PACKAGES, levels, strict=True):
        logging.getLogger(name).setLevel(level)


@pytest.fixture(scope="session")
def saved(backbone_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a saved classifier with the classes good and bad, which no test changes."""
    rows = tiny.make_documents(120)
    backbone = BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu", engine="torch")
    search = SearchSettings(etas=(0.5,), strengths=(1.0,), network="off", words="off")
    probe = ProbeSettings(penalties=2, max_extra=0)
    spin = SpinClassifier(backbone, sites=["resid"], poolings=["mean"], search=search, probe=probe)
    folder = tmp_path_factory.mktemp("saved") / "classifier"
    spin.fit([row["text"] for row in rows], [row["label"] for row in rows]).save(folder)
    return folder
