"""A training is registered once, and again where its version is gone; no version learned from frozen documents."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.data.training_labels import NOTHING_FROZEN
from pipelines.registry.versions import Registry
from pipelines.training import fit_heads
from pipelines.training.train import run_train
from pipelines.training.workflow import run_stages, run_workflow
from spin.errors import UserError
from spin.settings import Settings
from tests.support import registry_fixture, small_training, tiny
from tests.support.registry_databases import create_database

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of 200 documents and a backbone."""
    folder = tmp_path_factory.mktemp("registration")
    small_training.write_corpus(folder, 200, ("good", "bad"))
    return folder


def make_settings(folder: Path, database: str, store: Path, seed: int) -> Settings:
    return small_training.make_settings(
        folder,
        store,
        seed=seed,
        mlflow={"model": "tiny", "tracking_uri": database},
        search={"etas": [0.9], "strengths": [1], "network": "off", "words": "off"},
        train={"baselines": False},
    )


def test_a_version_that_is_gone_is_registered_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is fitted for it. Its test documents are frozen by now, which makes no other training of it."""
    settings = make_settings(folder, create_database(tmp_path / "mlflow.db"), tmp_path / "store", 0)
    first = run_workflow(settings).registered
    registry = Registry(settings)
    monkeypatch.setattr(fit_heads, "integrate", lambda *_, **__: pytest.fail("heads are fitted again"))
    assert run_workflow(settings).registered == first
    assert len(registry.versions()) == 1
    registry.tracking.client.delete_model_version(registry.name, first.version)
    again = run_workflow(settings).registered
    assert again.run_id != first.run_id
    assert [version.number for version in registry.versions()] == [again.version]
    assert not registry.holds(again.version, "another training")


def test_a_training_whose_documents_another_one_froze_registers_nothing(folder: Path, tmp_path: Path) -> None:
    """Both began before the first version: the one that ends later has trained on test documents of the other."""
    database = create_database(tmp_path / "mlflow.db")
    slow, fast = (make_settings(folder, database, tmp_path / f"store{seed}", seed) for seed in (0, 1))
    run_stages(slow, ["extract", "probe"])
    run_workflow(fast)
    with pytest.raises(UserError, match=r"another training of tiny has frozen its test documents meanwhile.*--restart"):
        run_train(slow, Registry(slow), frozen=NOTHING_FROZEN)
    assert len(Registry(slow).versions()) == 1
    run_workflow(slow, restart=True)
    assert len(Registry(slow).versions()) == 2


def test_the_first_version_with_test_documents_freezes_them(folder: Path, tmp_path: Path) -> None:
    """An empty set is not frozen for good. Once MLflow has lost the run that holds it, one line says so."""
    database = create_database(tmp_path / "mlflow.db")
    fixture = registry_fixture.RegistryFixture(tmp_path, folder / "bert", database)
    assert len(fixture.registry.evaluation_set()) == 0
    frozen = registry_fixture.build_evaluation_set(tiny.make_documents(5))
    fixture.register(frozen)
    assert fixture.registry.evaluation_set() == frozen
    fixture.registry.set_tag("spin.evaluation.run", "0" * 32)
    with pytest.raises(UserError, match=r"frozen evaluation set of .* is lost: .* restore this run, or train under"):
        fixture.registry.evaluation_set()
