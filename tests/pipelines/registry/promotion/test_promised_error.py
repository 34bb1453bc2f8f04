"""The gate's check of a promised error, on predictions and test documents that were constructed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
from safetensors.numpy import save as save_tensors

from pipelines.registry.evaluation_set import EvaluationSet
from pipelines.registry.promotion import gate
from pipelines.registry.promotion.earlier_gates import EarlierGates
from pipelines.registry.promotion.gate import run_gate, settle_promise
from pipelines.registry.promotion.gate_checks import CheckResult, judge
from pipelines.registry.promotion.judged_version import JudgedVersion
from pipelines.registry.promotion.subprocess_predict import PredictionReply
from spin.classifier import TrainedClassifier
from spin.fitted import persistence
from spin.fitted.abstention import choose_band
from spin.fitted.decision import Decision
from spin.fitted.fitted_classifier import FittedClassifier, TrainingResult
from spin.fitted.held_out import HELD_OUT, HeldOutLogits
from spin.fitted.persistence import ClassifierMetadata
from spin.heads.linear_head import LinearHead
from spin.heads.selection import Selection
from spin.labels.label_space import LabelSpace
from spin.labels.standardizer import Standardizer
from spin.settings import BackboneSettings, Choice, DecisionSettings, Settings, parse_settings
from tests.support.summaries import build_choice_summary

SPACE = LabelSpace(("bad", "good"))
DECISION = Decision.of(SPACE, DecisionSettings())


def draw_documents(count: int, seed: int, *, wrong: float = 0.0) -> HeldOutLogits:
    """Documents whose classes are drawn from the probabilities; a share of the certain ones is `wrong` besides."""
    draw = np.random.default_rng(seed)
    margin = 3 * draw.normal(size=count)
    logits = np.stack([-margin / 2, margin / 2], 1)
    y = (draw.random(count) < SPACE.probabilities(logits)[:, 1]).astype(np.int64)
    flipped = (draw.random(count) < wrong) & (np.abs(margin) > 3)
    return HeldOutLogits(logits[None].astype(np.float32), np.where(flipped, (margin < 0).astype(np.int64), y))


def write_version(folder: Path, held_out: HeldOutLogits | None) -> Path:
    folder.mkdir()
    head = LinearHead(np.zeros((2, 0)), np.zeros(2))
    fitted = FittedClassifier(Selection({}, {}, 0.0), Standardizer.concatenate([]), head, build_choice_summary())
    metadata = ClassifierMetadata(
        classes=SPACE.classes,
        multilabel=False,
        backbone=BackboneSettings(model="m"),
        backbone_digest="d",
        metric="accuracy",
        decision=DecisionSettings(),
    )
    files = persistence.save(TrainingResult(dict.fromkeys(get_args(Choice), fitted), (), 0), metadata)
    if held_out is not None:
        files[HELD_OUT] = save_tensors(held_out.to_tensors("accuracy"))
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def check(folder: Path, documents: HeldOutLogits, max_error: float | None = 0.1) -> tuple[Settings, list[CheckResult]]:
    """The settings of a version in the gate, and its checks if its predictions are those of some documents."""
    decision = {} if max_error is None else {"max_error": max_error}
    settings = parse_settings({"backbone": {"model": "m"}, "data": {"train": "t"}, "store": "s", "decision": decision})

    def load(number: str) -> TrainedClassifier:
        assert number == "7"
        return TrainedClassifier.open(folder, settings)

    registry: Any = SimpleNamespace(settings=settings, load=load)
    settled, reason = settle_promise(registry, "7")
    probabilities = SPACE.probabilities(documents.logits[-1])
    given = Decision.of(SPACE, settled.decision).labels(probabilities)
    reply = PredictionReply({"text": "string"}, SPACE.classes, False, given, probabilities, 1.0)
    version = JudgedVersion(settings, SPACE.names(documents.y), reply, unproven=reason)
    return settled, [result for result in judge(version) if result.name == "max_error"]


@pytest.mark.parametrize(("wrong", "passes"), [(0.0, True), (0.3, False)])
def test_the_error_under_the_band_of_the_version_is_compared_with_the_promise(
    tmp_path: Path, wrong: float, passes: bool
) -> None:
    held_out, documents = draw_documents(2000, 0), draw_documents(1000, 1, wrong=wrong)
    settled, [found] = check(write_version(tmp_path / "7", held_out), documents)
    band = choose_band(held_out, (), DECISION, 0.1)
    assert band is not None
    assert settled.decision == DecisionSettings(abstain=band.abstain)
    p = SPACE.probabilities(documents.logits[-1])
    labelled = np.abs(p[:, 1] - p[:, 0]) >= band.abstain
    expected = (p.argmax(1) != documents.y)[labelled].mean()
    assert found.name == "max_error"
    assert found.value == pytest.approx(expected)
    assert found.passed == passes
    assert found.measured == f"{100 * expected:.1f} % of the {100 * labelled.mean():.1f} % that get a label"
    assert 0.5 < labelled.mean() < 1


def test_a_version_that_cannot_promise_the_error_fails_with_the_reason(tmp_path: Path) -> None:
    documents = draw_documents(100, 1)
    settled, [found] = check(write_version(tmp_path / "old", None), documents)
    assert not found.passed
    assert settled.decision == DecisionSettings()
    assert "no test documents" in found.measured
    _, [found] = check(write_version(tmp_path / "7", draw_documents(200, 0)), documents, 0.001)
    assert not found.passed
    assert "cannot be promised" in found.measured


def test_there_is_no_check_where_nothing_is_promised(tmp_path: Path) -> None:
    version = write_version(tmp_path / "7", draw_documents(200, 0))
    assert check(version, draw_documents(100, 1), None)[1] == []
    assert check(version, draw_documents(0, 1))[1] == []


def test_each_version_predicts_with_its_own_band(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a night would: a document within the band goes on to later exits. A version without a band has none."""
    write_version(tmp_path / "7", draw_documents(2000, 0))
    write_version(tmp_path / "6", None)
    documents, decided = draw_documents(1000, 1), {}
    probabilities = SPACE.probabilities(documents.logits[-1])

    def predict(model: Path, texts: Sequence[str], settings: Settings) -> PredictionReply:
        decided[model.name] = settings.decision
        given = Decision.of(SPACE, settings.decision).labels(probabilities)
        return PredictionReply({"text": "string"}, SPACE.classes, False, given, probabilities, 1.0)

    monkeypatch.setattr(gate, "predict_in_subprocess", predict)
    monkeypatch.setattr(gate, "with_engine", lambda settings, _: settings)
    settings = parse_settings(
        {"backbone": {"model": "m"}, "data": {"train": "t"}, "store": "s", "decision": {"max_error": 0.1}}
    )
    registry: Any = SimpleNamespace(
        settings=settings,
        name="tiny",
        load=lambda number: TrainedClassifier.open(tmp_path / number, settings),
        download_model=lambda number, folder: folder / number,
    )
    rows = [str(row) for row in range(len(documents))]
    report = run_gate(registry, "7", "6", EvaluationSet(rows, rows, SPACE.names(documents.y)), EarlierGates())
    band = choose_band(draw_documents(2000, 0), (), DECISION, 0.1)
    assert band is not None
    assert decided == {"7": DecisionSettings(abstain=band.abstain), "6": DecisionSettings()}
    [found] = [check for check in report.checks if check.name == "max_error"]
    assert found.passed
    assert "that get a label" in found.measured
