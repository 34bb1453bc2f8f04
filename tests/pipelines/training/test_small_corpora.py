"""Where probes and heads are fitted: in the process of the command for few documents, else in workers of Ray Train."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.registry.versions import Registry
from pipelines.training import fit_heads, fit_probes
from pipelines.training.fit_probes import run_probe
from pipelines.training.train import run_train
from pipelines.training.workflow import run_stages
from pipelines.workers import train_group
from tests.support import small_training

pytestmark = pytest.mark.slow

DOCUMENTS = 300


class StartedWorkersError(Exception):
    """A stage asked for workers."""


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
