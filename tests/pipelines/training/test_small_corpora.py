"""Where a training reads and fits: in the process of the command for few documents, else in workers of Ray."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest

from pipelines.registry.versions import Registry
from pipelines.training import extract_features, fit_heads, fit_probes
from pipelines.training.fit_probes import run_probe
from pipelines.training.train import run_train
from pipelines.training.workflow import run_stages
from pipelines.workers import map_shards, train_group
from tests.support import small_training

pytestmark = pytest.mark.slow

DOCUMENTS = 300


class StartedWorkersError(Exception):
    """A stage asked for workers."""


class KilledError(BaseException):
    """The process of the command is killed: nothing handles it, and nothing is recorded of it."""


def test_few_documents_are_read_without_workers_unless_that_has_ended_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings leave the number of workers open. What kills the process of the command is found by workers."""
    small_training.write_corpus(tmp_path, DOCUMENTS, ("good", "bad"))

    def start_workers(*_: object) -> NoReturn:
        raise StartedWorkersError

    monkeypatch.setattr(map_shards, "_run_in_actors", start_workers)

    def kill(*_: object) -> NoReturn:
        raise KilledError

    def extract(store: str) -> None:
        ray = {"shard_documents": 100}
        run_stages(small_training.make_settings(tmp_path, tmp_path / store, ray=ray), ["extract"])

    extract("few")
    with monkeypatch.context() as patched:
        patched.setattr(extract_features, "FEW_DOCUMENTS", DOCUMENTS)
        with pytest.raises(StartedWorkersError):
            extract("many")
    with monkeypatch.context() as patched:
        patched.setattr(extract_features.ExtractStep, "__call__", kill)
        with pytest.raises(KilledError):
            extract("killed")
    with pytest.raises(StartedWorkersError):
        extract("killed")


def test_few_documents_are_fitted_without_workers_and_more_in_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings leave the number of workers open; only the number of documents decides."""
    small_training.write_corpus(tmp_path, DOCUMENTS, ("good", "bad"))
    search = {"etas": [0.9], "strengths": [1], "network": "off", "words": "off"}
    changes = {"search": search, "train": {"baselines": False}}
    run_stages(small_training.make_settings(tmp_path, tmp_path / "store", **changes), ["extract"])
    settings = small_training.make_settings(tmp_path, tmp_path / "store", ray={"shard_documents": 100}, **changes)
    asked: list[int] = []

    def start_workers(stage: str, work: object, most_workers: int) -> None:
        asked.append(most_workers)
        raise StartedWorkersError

    monkeypatch.setattr(train_group, "_run_workers", start_workers)

    def set_documents_per_worker(documents: int) -> None:
        for module in (fit_probes, fit_heads):
            monkeypatch.setattr(module, "DOCUMENTS_PER_WORKER", documents)

    set_documents_per_worker(DOCUMENTS // 4)  # of 300 some test
    with pytest.raises(StartedWorkersError):
        run_probe(settings)
    set_documents_per_worker(DOCUMENTS + 1)
    run_probe(settings)
    set_documents_per_worker(DOCUMENTS // 4)
    with pytest.raises(StartedWorkersError):
        run_train(settings, Registry(settings))
    assert min(asked) > 1
    set_documents_per_worker(DOCUMENTS + 1)
    run_train(settings, Registry(settings))
    assert len(asked) == 2
