"""Nights of a version that was trained in int8, by the scales of its training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.nightly.classify import classify_nights
from pipelines.nightly.night_models import RequestedModel
from pipelines.nightly.tables.night_tables import PREDICTIONS, NightTables, read_rows
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import ShardLog
from spin import TrainedClassifier
from spin.backbone.model import Backbone
from spin.errors import UserError
from spin.passes.forward_pass import ForwardPass
from spin.passes.pass_member import PassMember
from spin.settings import BackboneSettings, parse_settings
from tests.pipelines.nightly.test_several_classifiers import NamedRegistry
from tests.support import tiny
from tests.support.chaos import FolderRegistry
from tests.support.night_project import DATE, NightProject, stopped_at_third_shard
from tests.support.registry_fixture import build_quick_classifier

pytestmark = pytest.mark.slow

INT8, FLOAT32 = "1", "2"
NAMES = ("one", "three", "two")
ROWS = [{"id": row["id"], "text": row["text"]} for row in tiny.make_documents(60, seed=3)]


@pytest.fixture(scope="module")
def registry_fixture(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path) -> FolderRegistry:
    """A registry with a version of each precision."""
    folder, rows = tmp_path_factory.mktemp("registry"), tiny.make_documents(200)
    for number, dtype in ((INT8, "int8"), (FLOAT32, "float32")):
        settings = BackboneSettings(model=str(backbone_folder), dtype=dtype, engine="openvino", device="cpu")
        classifier = build_quick_classifier(settings, sites=["resid.03"])
        classifier.fit([row["text"] for row in rows], [row["label"] for row in rows]).save(folder / number)
    return FolderRegistry(folder)


@pytest.fixture
def project(project: NightProject) -> NightProject:
    project.write("a.jsonl", ROWS)
    return project


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path) -> Path:
    """Three versions; the second and the third were trained with the scales of the first, on other texts."""
    folder = tmp_path_factory.mktemp("three")
    settings = BackboneSettings(model=str(backbone_folder), dtype="int8", engine="openvino", device="cpu")
    for seed, name in enumerate(NAMES):
        rows = tiny.make_documents(200, seed=seed)
        own = settings if name == NAMES[0] else settings.model_copy(update={"scales": str(folder / NAMES[0])})
        classifier = build_quick_classifier(own, sites=[f"resid.0{seed + 1}"])
        classifier.fit([row["text"] for row in rows], [row["label"] for row in rows]).save(folder / name)
    return folder


def test_three_models_of_the_same_scales_share_each_forward_pass(
    three: Path, project: NightProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row is what its model alone predicts."""
    passes: list[int] = []

    def record(members: Sequence[PassMember], backbone: Backbone) -> ForwardPass:
        passes.append(len(members))
        return ForwardPass(members, backbone)

    monkeypatch.setattr("spin.shared_pass.ForwardPass", record)
    tree = {
        "backbone": {"model": str(project.backbone), "engine": "openvino", "device": "cpu"},
        "data": {"train": "nowhere"},
        "store": "nowhere",
        "classify": {"cascade": False},
    }
    requested = [RequestedModel(NamedRegistry(three, name)) for name in NAMES]  # type: ignore[arg-type]
    source, output = str(project.folder / "data"), str(project.folder / "out")
    classify_nights(parse_settings(tree), requested, source, output, night=DATE).raise_failures()
    assert passes == [3]
    table = NightTables(Store(output)).open(PREDICTIONS)
    settings = BackboneSettings.model_validate(tree["backbone"])
    for name in NAMES:
        alone = TrainedClassifier.load(three / name, backbone=settings).predict_proba([row["text"] for row in ROWS])
        rows = read_rows(table, {"date": DATE, "model": name}).to_pylist()
        scores = {row["id"]: [score for _, score in sorted(row["scores"])] for row in rows}
        np.testing.assert_allclose([scores[row["id"]] for row in ROWS], alone, atol=1e-3)


def scores_of(project: NightProject, number: str, dtype: str) -> np.ndarray:
    settings = BackboneSettings(model=str(project.backbone), dtype=dtype, engine="openvino", device="cpu")
    spin = TrainedClassifier.load(project.registry_fixture.folder / number, backbone=settings)
    return np.asarray(spin.predict_proba([row["text"] for row in ROWS]))


@pytest.mark.parametrize("dtype", ["auto", "int8"])
def test_a_night_runs_in_the_precision_of_the_training(project: NightProject, dtype: str) -> None:
    project.promote(INT8)
    project.run_night(set=(f"backbone.dtype={dtype}", "backbone.engine=openvino", "classify.cascade=false"))
    scores = np.array([[score for _, score in sorted(row["scores"])] for row in project.read_rows()])
    np.testing.assert_allclose(scores, scores_of(project, INT8, "int8"), atol=1e-4)
    assert np.abs(scores - scores_of(project, INT8, "float32")).max() > 1e-3


def test_a_version_of_another_precision_runs_as_it_was_trained(project: NightProject) -> None:
    project.promote(FLOAT32)
    project.run_night(set=("backbone.dtype=int8", "backbone.engine=openvino", "classify.cascade=false"))
    scores = np.array([[score for _, score in sorted(row["scores"])] for row in project.read_rows()])
    np.testing.assert_allclose(scores, scores_of(project, FLOAT32, "float32"), atol=1e-4)


def test_a_version_in_int8_can_be_the_shadow_of_one_in_float32(
    project: NightProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the other way round; the one in int8 is read in int8, by its scales, also where the engine is torch."""
    ran: list[str] = []

    def record(members: Sequence[PassMember], backbone: Backbone) -> ForwardPass:
        ran.append(f"{backbone.engine} {backbone.precision}")
        return ForwardPass(members, backbone)

    monkeypatch.setattr("spin.classifier.ForwardPass", record)
    for model, shadow, engine in ((FLOAT32, INT8, "torch"), (INT8, FLOAT32, "openvino")):
        project.promote(model)
        options = ("backbone.dtype=auto", f"backbone.engine={engine}")
        report = project.run_night(f"out-{model}", shadow=f"models:/tiny/{shadow}", set=options)
        assert report.shadow is not None
        assert report.shadow.compared == len(ROWS)
        assert "openvino int8" in ran
        assert len(set(ran)) == 2
        ran.clear()


def test_a_night_does_not_resume_on_a_processor_that_cannot_compute_int8(
    project: NightProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused in one line, and the same run goes on where it began."""
    project.promote(INT8)
    options = ("backbone.dtype=auto", "backbone.engine=openvino")
    with stopped_at_third_shard():
        project.run_night(documents=10, set=options)
    with monkeypatch.context() as patch:
        patch.setattr("spin.backbone.engine_choice.adds_int8_products", lambda: False)
        with pytest.raises(UserError, match="int8 needs a processor with VNNI or AMX") as raised:
            project.run_night(documents=10, set=options)
    assert "\n" not in str(raised.value)
    computed: list[str] = []
    commit = ShardLog.commit

    def record_commit(shard_log: ShardLog, name: str, *args: Any, **keywords: Any) -> Any:
        if shard_log.layout.folder:
            computed.append(name)
        return commit(shard_log, name, *args, **keywords)

    monkeypatch.setattr(ShardLog, "commit", record_commit)
    assert project.run_night(documents=10, set=options).counts.predicted == len(ROWS)
    assert computed == ["000002", "000003", "000004", "000005"]
