"""The model card of a trained classifier holds the figures of the choice in use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard

from pipelines.training.held_out_logits import describe_promise, promise_error
from pipelines.training.model_card_facts import build_card
from spin import TrainedClassifier
from spin.backbone.loading import load_backbone
from spin.fitted.abstention import choose_band
from spin.fitted.decision import Decision
from spin.fitted.held_out import HeldOutLogits
from spin.labels.label_space import LabelSpace
from spin.labels.metrics import ClassFigures
from spin.monitor.quality import QualitySums, estimate_quality
from spin.pages.model_card import Comparison, ContenderResult, ScoreInterval
from spin.settings import BackboneSettings, Choice, DecisionSettings, parse_settings
from tests.pipelines.training.test_neurons import build_random_classifier

CLASSES = LabelSpace(("a", "b", "c"))
INTERVAL = ScoreInterval(0.2, 0.8, -0.1, 0.1)
TREE: dict[str, Any] = {
    "backbone": {"model": "tiny"},
    "data": {"train": "corpus.parquet"},
    "store": "store",
    "mlflow": {"model": "tiny"},
}


@pytest.mark.parametrize(("choose", "accuracy"), [("accuracy", 0.75), ("balanced", 0.75), ("cheapest", 0.5)])
def test_the_card_holds_the_figures_of_the_choice_in_use(
    backbone_folder: Path, choose: Choice, accuracy: float
) -> None:
    """A choice that selected the same classifier as `accuracy` has the figures of the table's row `spin`."""
    unloaded, labels, _ = build_random_classifier(CLASSES)
    settings = BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu")
    backbone = load_backbone(settings)
    spin = TrainedClassifier(
        settings,
        backbone.digest,
        CLASSES,
        unloaded.training_result,
        "accuracy",
        backbone=backbone,
        choose=choose,
    )
    table = tuple(
        ContenderResult(
            name,
            share,
            INTERVAL,
            share,
            INTERVAL,
            40,
            neurons=3,
            neurons_of=9,
            words=0,
            depth=1,
            depth_of=4,
            docs_per_s=10.0,
        )
        for name, share in (("tfidf", 0.25), ("cheapest", 0.5), ("spin", 0.75))
    )
    per_class = {name: ClassFigures(precision=1, recall=1, f1=1, support=15) for name in spin.classes}
    text = build_card(
        parse_settings(TREE | {"choose": choose}),
        spin,
        labels,
        Comparison(table, per_class, test_ece=0.125, test_ece_limit=0.0625),
        held_out=HeldOutLogits(np.empty((1, 0, 3), np.float32), np.empty(0, np.int64)),
        promise=None,
        fingerprint="f" * 64,
    )
    card = ModelCard(text)
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}  # type: ignore[attr-defined]
    assert results == {"accuracy": accuracy, "f1": accuracy}
    assert f"| {choose} (this card) |" in card.text
    assert (
        "| expected calibration error on test | 0.1250; exact probabilities show up to 0.0625 by chance |" in card.text
    )
    assert f"fingerprint {'f' * 64}" in card.text


def draw_held_out(count: int) -> HeldOutLogits:
    """Documents whose classes are drawn from their probabilities."""
    draw = np.random.default_rng(count)
    logits = 3 * draw.normal(size=(1, count, 3)).astype(np.float32)
    p = CLASSES.probabilities(logits[0])
    return HeldOutLogits(logits, (p.cumsum(1) > draw.random((count, 1))).argmax(1))


def make_card(backbone_folder: Path, held_out: HeldOutLogits, decision: dict[str, Any]) -> str:
    """The card of a random classifier with these test documents, in which white space is a single space."""
    unloaded, labels, _ = build_random_classifier(CLASSES)
    backbone_settings = BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu")
    backbone = load_backbone(backbone_settings)
    settings = parse_settings(TREE | {"decision": decision})
    spin = TrainedClassifier(
        backbone_settings,
        backbone.digest,
        CLASSES,
        unloaded.training_result,
        "accuracy",
        backbone=backbone,
        decision=settings.decision.without_promise(),
    )
    card = build_card(
        settings,
        spin,
        labels,
        Comparison((), {}, test_ece=None),
        held_out=held_out,
        promise=promise_error(settings, spin, held_out),
        fingerprint="f" * 64,
    )
    return " ".join(card.split())


def expect_widths(held_out: HeldOutLogits, abstain: float) -> str:
    """The sentence of the card, by an estimate of a night of 10,000 documents whose labels are those of the test."""
    decision = Decision.of(CLASSES, DecisionSettings(abstain=abstain))
    p = CLASSES.probabilities(held_out.logits[0])
    given, abstains = decision.decide(p)
    times = 10_000 // len(p)
    night = QualitySums.of(CLASSES, np.tile(given[~abstains], times), np.tile(p[~abstains], (times, 1)))
    estimate = estimate_quality(night, p, held_out.y, decision)
    assert estimate is not None
    accuracy, macro_f1 = (100 * (e.high - e.low) for e in (estimate.accuracy, estimate.macro_f1))
    return f"to be {accuracy:.1f} points wide for accuracy and {macro_f1:.1f} points for macro-F1"


@pytest.mark.parametrize("abstain", [0.0, 0.3])
def test_the_expected_widths_are_those_of_a_night_that_repeats_the_test_documents(
    backbone_folder: Path, abstain: float
) -> None:
    """Also where documents within an abstention band get no label."""
    held_out = draw_held_out(500)
    card = make_card(backbone_folder, held_out, {"abstain": abstain})
    assert "A night estimates the quality of its labels by 500 of" in card
    widths = expect_widths(held_out, abstain)
    assert f"For a night of 10,000 documents like them, the interval of 95 % is expected {widths}" in card
    assert "labels, scores or neurons of a night drift" in card


def test_a_promised_error_is_on_the_card_with_its_band_and_price(backbone_folder: Path) -> None:
    """The widths are those of nights under this band."""
    held_out = draw_held_out(500)
    decision = Decision.of(CLASSES, DecisionSettings())
    band = choose_band(held_out, (), decision, 0.1)
    assert band is not None
    card = make_card(backbone_folder, held_out, {"max_error": 0.1})
    assert "`decision.max_error` 0.1: of the labels that are given, at most 10 % are wrong" in card
    assert f"{100 * band.coverage:.1f} % get a label, of which {100 * band.error:.1f} % are wrong" in card
    assert f"within an abstention band of {band.abstain:.3f}." in card
    assert expect_widths(held_out, band.abstain) in card


def test_an_error_that_cannot_be_promised_leaves_nights_without_figures(backbone_folder: Path) -> None:
    card = make_card(backbone_folder, draw_held_out(120), {"max_error": 0.001})
    assert "`decision.max_error` 0.001 cannot be promised: 120 test documents do not prove it" in card
    assert "For a night of" not in card


@pytest.mark.parametrize(
    ("documents", "expected"),
    [(99, "Fewer than 100 of them get a label"), (0, "There were no test documents, so a night does not estimate")],
)
def test_too_few_test_documents_allow_no_estimate(backbone_folder: Path, documents: int, expected: str) -> None:
    assert expected in make_card(backbone_folder, draw_held_out(documents), {})


def test_the_note_on_a_promise_is_that_of_the_card() -> None:
    """Printed by `spin train`, and kept in report.json; there is none without a promise."""
    spin, *_ = build_random_classifier(CLASSES)
    held_out = draw_held_out(500)
    promised, impossible, silent = (
        promise_error(parse_settings(TREE | {"decision": decision}), spin, held_out)
        for decision in ({"max_error": 0.1}, {"max_error": 0.001}, {})
    )
    assert promised is not None
    assert promised.band is not None
    [note] = describe_promise(promised)
    assert note.startswith(f"decision.max_error 0.1: {100 * promised.band.coverage:.1f} % of the test documents get a ")
    [failure] = describe_promise(impossible)
    assert "decision.max_error 0.001 cannot be promised" in failure
    assert "it takes 2,995 test documents that the gate does not read, and the version has 500" in failure
    assert describe_promise(silent) == ()
