"""Nights report coverage and an estimate of their labels' quality, and keep the error that the settings promise."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save as save_tensors

from pipelines.nightly.observed_nights import list_metrics
from pipelines.nightly.steps.classify_job import PROFILE
from pipelines.nightly.steps.night_profile import NightProfile, sum_profiles
from pipelines.registry.packaging import REFERENCE
from pipelines.storage.object_store import Store
from spin.classifier import TrainedClassifier
from spin.errors import UserError
from spin.estimator import SpinClassifier
from spin.fitted import persistence
from spin.fitted.abstention import choose_band
from spin.fitted.early_exit import EarlyExit
from spin.fitted.held_out import HELD_OUT, HeldOutLogits
from spin.heads.linear_head import LinearHead
from spin.labels.label_space import Targets
from spin.monitor.profile import Profile
from spin.monitor.quality import QualitySums, estimate_quality
from spin.settings import BackboneSettings, CascadeSettings, SearchSettings
from tests.support import tiny
from tests.support.chaos import FolderRegistry
from tests.support.night_project import NightProject

pytestmark = pytest.mark.slow

SINGLE, SEVERAL, NO_TEST, OTHER, EXIT, BFLOAT16 = "1", "2", "3", "4", "5", "6"
TEST = [row["text"] for row in tiny.make_documents(400, seed=9)]
ROWS = tiny.make_documents(70, seed=3)


def draw_classes(spin: TrainedClassifier, seed: int = 0) -> Targets:
    """The classes of the test texts, drawn from the probabilities."""
    p = spin.predict_proba(TEST)
    draw = np.random.default_rng(seed)
    if spin.label_space.multilabel:
        return draw.random(p.shape) < p
    return np.asarray((p.cumsum(1) > draw.random((len(p), 1))).argmax(1))


@pytest.fixture(scope="module")
def registry_fixture(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path) -> FolderRegistry:
    """A registry with a version of one class per document and a multi-label one.

    The others are the first one without test documents, and with test documents of which it is never wrong.
    """
    folder = tmp_path_factory.mktemp("registry")
    settings = BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu")
    quick = SearchSettings(etas=(0.9,), max_share=1, strengths=(0.1,), network="off", words="off")
    no_exits = CascadeSettings(max_loss=0)
    rows = tiny.make_documents(600)
    texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
    for number, given in ((SINGLE, labels), (SEVERAL, [["all", label] for label in labels[:-20]] + [[]] * 20)):
        classifier = SpinClassifier(settings, sites=["ffn.01", "resid.03"], search=quick, cascade=no_exits)
        spin = classifier.fit(texts, given).trained_
        spin.save(folder / number)
        held_out = HeldOutLogits(spin.predict_logits(TEST)[None], draw_classes(spin))
        (folder / number / HELD_OUT).write_bytes(save_tensors(held_out.to_tensors("accuracy")))
        if number == SINGLE:
            spin.save(folder / NO_TEST)
            spin.save(folder / OTHER)
            right = HeldOutLogits(held_out.logits, spin.label_space.predict(held_out.logits[0]))
            (folder / OTHER / HELD_OUT).write_bytes(save_tensors(right.to_tensors("accuracy")))
    return FolderRegistry(folder)


@pytest.fixture
def project(project: NightProject) -> NightProject:
    project.write("a.jsonl", ROWS)
    return project


def load(project: NightProject, number: str) -> tuple[TrainedClassifier, HeldOutLogits]:
    folder = project.registry_fixture.folder / number
    held_out = HeldOutLogits.read_all(folder).get("accuracy")
    assert held_out is not None
    return TrainedClassifier.load(folder), held_out


def add_exit(folder: Path, spin: TrainedClassifier) -> None:
    """Save a classifier with an exit that takes every document, as long as no band of 0.6 is around its decision.

    Its reference is that of documents that take the exit.
    """
    neurons = len(spin.fitted.selection.up_to(1))
    constant = LinearHead(np.zeros((2, neurons), np.float32), np.array([0.6, -0.6], np.float32))
    fitted = replace(spin.fitted, exits=(EarlyExit(1, constant, 0.5),))
    result = replace(spin.training_result, choices=dict.fromkeys(spin.training_result.choices, fitted))
    digest = spin.backbone_digest
    leaving = TrainedClassifier(spin.settings, digest, spin.label_space, result, spin.metric, early=True)
    leaving.save(folder)
    held_out = HeldOutLogits.read_all(folder.parent / SINGLE).get("accuracy")
    assert held_out is not None
    logits = np.stack([np.tile(constant.intercept, (len(TEST), 1)), held_out.logits[-1]])
    tensors = HeldOutLogits(logits, held_out.y).to_tensors("accuracy")
    (folder / HELD_OUT).write_bytes(save_tensors(tensors))
    features = leaving.features(TEST)
    predictions = leaving.predict_features(features)
    profile = Profile.from_outputs(spin.label_space, fitted, predictions.logits, features.values, features)
    reference = {f"accuracy.early.{name}": tensor for name, tensor in profile.sums.items()}
    (folder / REFERENCE).write_bytes(save_tensors(reference))


def test_a_band_that_keeps_documents_from_an_exit_is_no_drift(project: NightProject) -> None:
    """The documents are the test documents themselves: without a band they take the exit, with it none does."""
    spin, _ = load(project, SINGLE)
    add_exit(project.registry_fixture.folder / EXIT, spin)
    project.promote(EXIT)
    project.write("a.jsonl", [{"id": str(number), "text": text} for number, text in enumerate(TEST)])
    assert project.run_night().counts.depths == {"1": len(TEST)}
    report = project.run_night(date="2026-03-02", set=("decision.max_error=0.2",))
    assert report.counts.depths == {"3": len(TEST)}
    drift = {each.name: each.drifted for each in report.drift}
    assert {"labels", "scores"} <= drift.keys()
    assert not any(drift.get(name) for name in ("exits", "labels", "scores"))


@pytest.mark.parametrize("number", [SINGLE, SEVERAL])
def test_the_estimate_is_that_of_all_documents_at_once(project: NightProject, number: str) -> None:
    project.promote(number)
    report = project.run_night(documents=9)
    spin, held_out = load(project, number)
    predictions = spin.predict_all([row["text"] for row in ROWS])
    given, _ = spin.decision_rule.decide(predictions.probabilities)
    sums = QualitySums.of(spin.label_space, given, predictions.probabilities)
    expected = estimate_quality(
        sums, spin.label_space.probabilities(held_out.logits[-1]), held_out.y, spin.decision_rule
    )
    assert expected is not None
    assert report.quality is not None
    assert report.quality.documents == len(ROWS)
    assert report.quality.accuracy.value == pytest.approx(expected.accuracy.value, abs=2e-4)
    assert [each.name for each in report.quality.classes] == list(spin.classes)
    assert report.quality_withdrawn == ()
    metrics = list_metrics(report)
    assert metrics["coverage"] == 1
    assert metrics["estimated_accuracy_low"] <= metrics["estimated_accuracy"] <= metrics["estimated_accuracy_high"]


def test_a_model_without_test_documents_has_no_estimate(project: NightProject) -> None:
    project.promote(NO_TEST)
    report = project.run_night()
    assert report.quality is None
    assert report.quality_withdrawn == ()
    assert "estimated_accuracy" not in list_metrics(report)


def test_drift_withdraws_the_estimate(project: NightProject) -> None:
    """The reference are documents of one class alone."""
    spin, _ = load(project, SINGLE)
    features = spin.features(TEST[:1] * 400)
    profile = Profile.from_outputs(
        spin.label_space, spin.fitted, spin.predict_features(features).logits, features.values, features
    )
    tensors = {f"accuracy.early.{name}": tensor for name, tensor in profile.sums.items()}
    reference = project.registry_fixture.folder / SINGLE / REFERENCE
    reference.write_bytes(save_tensors(tensors))
    try:
        report = project.run_night()
    finally:
        reference.unlink()
    assert report.quality is None
    assert "labels" in report.quality_withdrawn


def test_a_night_abstains_where_the_promised_error_needs_it(project: NightProject) -> None:
    spin, held_out = load(project, SINGLE)
    band = choose_band(held_out, (), spin.decision_rule, 0.2)
    assert band is not None
    assert band.abstain > 0
    report = project.run_night(set=("decision.max_error=0.2",))
    labels = {row["id"]: row["label"] for row in project.read_rows()}
    spin = TrainedClassifier.load(
        project.registry_fixture.folder / SINGLE, decision=spin.decision.model_copy(update={"abstain": band.abstain})
    )
    expected = spin.predict([row["text"] for row in ROWS])
    assert [labels[row["id"]] for row in ROWS] == expected
    assert 0 < report.counts.abstained == sum(label is None for label in expected)
    assert report.coverage == pytest.approx(1 - report.counts.abstained / len(ROWS))
    assert report.max_error == 0.2
    assert report.quality is not None
    assert report.quality.documents == len(ROWS) - report.counts.abstained


def test_a_shadow_has_a_band_of_its_own(project: NightProject) -> None:
    """The same classifier without a band, as its test documents need none, labels what the model leaves out."""
    report = project.run_night(shadow=f"models:/tiny/{OTHER}", set=("decision.max_error=0.2",))
    assert report.shadow is not None
    assert report.counts.abstained > 0
    assert report.shadow.compared - report.shadow.agreed == report.counts.abstained
    with pytest.raises(UserError, match="--shadow: version 3 cannot be compared .* no test documents"):
        project.run_night(shadow=f"models:/tiny/{NO_TEST}", restart=True, set=("decision.max_error=0.2",))


def test_a_shadow_is_refused_in_another_precision_than_that_of_its_promise(project: NightProject) -> None:
    """Its test documents prove the band for the precision of its own training."""
    folder = project.registry_fixture.folder
    shutil.copytree(folder / OTHER, folder / BFLOAT16)
    config = folder / BFLOAT16 / persistence.CONFIG
    config.write_text(config.read_text().replace('"dtype": "float32"', '"dtype": "bfloat16"'))
    project.run_night(shadow=f"models:/tiny/{BFLOAT16}")
    with pytest.raises(UserError, match="--shadow: version 6 cannot .* backbone.dtype bfloat16, and not in float32"):
        project.run_night(shadow=f"models:/tiny/{BFLOAT16}", restart=True, set=("decision.max_error=0.2",))


def test_a_night_does_not_begin_where_the_error_cannot_be_promised(project: NightProject) -> None:
    with pytest.raises(UserError, match=r"decision.max_error 0.001 cannot be promised"):
        project.run_night(set=("decision.max_error=0.001",))
    project.promote(NO_TEST)
    with pytest.raises(UserError, match="no test documents"):
        project.run_night(restart=True, set=("decision.max_error=0.2",))
    assert project.list_published_runs() == []


def test_the_profiles_of_shards_add_up(project: NightProject, tmp_path: Path) -> None:
    """A file without the sums for quality is refused."""
    spin, _ = load(project, SINGLE)
    features = spin.features(TEST[:10])
    profile = NightProfile.of(spin, spin.predict_features(features), features)
    store = Store(str(tmp_path / "profiles"))
    for name in ("a", "b"):
        store.write(f"{name}.{PROFILE}", profile.to_bytes())
    both = sum_profiles(store, [f"a.{PROFILE}", f"b.{PROFILE}"])
    assert both is not None
    assert (both.quality.labelled, both.documents.documents) == (20, 20)
    store.write(f"c.{PROFILE}", save_tensors(profile.documents.sums))
    with pytest.raises(UserError, match="not a profile of a night: it has no 'quality"):
        sum_profiles(store, [f"a.{PROFILE}", f"c.{PROFILE}"])
    assert sum_profiles(store, []) is None
