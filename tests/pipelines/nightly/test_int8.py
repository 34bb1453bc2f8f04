"""Nights of a version that was trained in int8, by the scales of its training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spin import TrainedClassifier
from spin.errors import UserError
from spin.settings import BackboneSettings
from tests.support import tiny
from tests.support.chaos import FolderRegistry
from tests.support.night_project import NightProject
from tests.support.registry_fixture import build_quick_classifier

pytestmark = pytest.mark.slow

INT8, FLOAT32 = "1", "2"
ROWS = [{"id": row["id"], "text": row["text"]} for row in tiny.make_documents(60, seed=3)]


@pytest.fixture(scope="module")
def registry_fixture(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path) -> FolderRegistry:
    """A registry with a version of each precision."""
    folder, rows = tmp_path_factory.mktemp("registry"), tiny.make_documents(200)
    for number, dtype in ((INT8, "int8"), (FLOAT32, "float32")):
        settings = BackboneSettings(model=str(backbone_folder), dtype=dtype, engine="openvino", device="cpu")
        classifier = build_quick_classifier(settings)
        classifier.fit([row["text"] for row in rows], [row["label"] for row in rows]).save(folder / number)
    return FolderRegistry(folder)


@pytest.fixture
def project(project: NightProject) -> NightProject:
    project.write("a.jsonl", ROWS)
    return project


def logits_of(project: NightProject, number: str, dtype: str) -> np.ndarray:
    settings = BackboneSettings(model=str(project.backbone), dtype=dtype, engine="openvino", device="cpu")
    spin = TrainedClassifier.load(project.registry_fixture.folder / number, backbone=settings)
    return np.asarray(spin.predict_proba([row["text"] for row in ROWS]))


@pytest.mark.parametrize("dtype", ["auto", "int8"])
def test_a_night_runs_in_the_precision_of_the_training(project: NightProject, dtype: str) -> None:
    project.promote(INT8)
    project.run_night(set=(f"backbone.dtype={dtype}", "backbone.engine=openvino", "classify.cascade=false"))
    scores = np.array([[score for _, score in sorted(row["scores"])] for row in project.read_rows()])
    np.testing.assert_allclose(scores, logits_of(project, INT8, "int8"), atol=1e-4)
    assert np.abs(scores - logits_of(project, INT8, "float32")).max() > 1e-3


def test_a_version_of_another_precision_is_refused_in_int8(project: NightProject) -> None:
    project.promote(FLOAT32)
    with pytest.raises(UserError, match="this one was trained with float32"):
        project.run_night(set=("backbone.dtype=int8", "backbone.engine=openvino"))


def test_a_version_in_int8_can_be_the_shadow_of_one_in_float32(project: NightProject) -> None:
    """And the other way round; each is read in its own precision."""
    options = ("backbone.dtype=auto", "backbone.engine=openvino")
    for model, shadow in ((FLOAT32, INT8), (INT8, FLOAT32)):
        project.promote(model)
        report = project.run_night(f"out-{model}", shadow=f"models:/tiny/{shadow}", set=options)
        assert report.shadow is not None
        assert report.shadow.compared == len(ROWS)


def test_a_night_does_not_resume_on_a_processor_that_cannot_compute_int8(
    project: NightProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused in one line, and resumes on the processor on which it began."""
    project.promote(INT8)
    options = ("backbone.dtype=auto", "backbone.engine=openvino")
    with monkeypatch.context() as patch:
        patch.setattr("spin.backbone.engine_choice.adds_int8_products", lambda: False)
        with pytest.raises(UserError, match="int8 needs a processor with VNNI or AMX") as raised:
            project.run_night(set=options)
    assert "\n" not in str(raised.value)
    assert project.run_night(set=options).counts.predicted == len(ROWS)
