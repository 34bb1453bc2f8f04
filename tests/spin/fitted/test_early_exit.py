"""Early exits: which documents exit, what it costs, and that predictions and explanations are those of the exit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spin import SpinClassifier, TrainedClassifier
from spin.activations.engines.encoder import split_segments
from spin.activations.engines.engine import open_engine
from spin.activations.extract import read_activations
from spin.backbone.loading import load_backbone
from spin.fitted.decision import Decision
from spin.fitted.early_exit import EarlyExit, confidence, should_exit
from spin.fitted.fitted_classifier import FittedClassifier, TrainingResult
from spin.heads.linear_head import LinearHead
from spin.heads.selection import Selection
from spin.labels.label_space import LabelSpace
from spin.labels.standardizer import Standardizer
from spin.monitor.profile import Profile
from spin.settings import BackboneSettings, CascadeSettings, DecisionSettings, ProbeSettings, SearchSettings
from spin.sites import FeatureColumn, Site
from tests.support import tiny
from tests.support.summaries import build_choice_summary

MULTICLASS = LabelSpace(("a", "b", "c"))
MULTILABEL = LabelSpace(("a", "b", "c"), multilabel=True)
ARGMAX = Decision.of(MULTICLASS, DecisionSettings())


def test_the_confidence_of_a_multilabel_document_is_that_of_its_least_certain_class() -> None:
    """The distance to its threshold, as a share of the largest on that side; with one class the lead of the best."""
    probabilities = np.array([[0.9, 0.8, 0.4], [0.99, 0.01, 0.02]])
    plain = Decision.of(MULTILABEL, DecisionSettings())
    assert confidence(plain, probabilities) == pytest.approx([0.2, 0.96])
    strict = Decision.of(MULTILABEL, DecisionSettings(thresholds={"a": 0.8}))
    assert confidence(strict, probabilities) == pytest.approx([0.2, 0.95])
    assert confidence(strict, np.array([[0.81, 0.0, 0.0], [0.2, 0.0, 0.0]])) == pytest.approx([0.05, 0.75])


def test_the_confidence_is_the_margin_of_the_decision() -> None:
    """A class that needs more has a smaller lead; at the border there is none."""
    probabilities = np.array([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1]])
    assert confidence(ARGMAX, probabilities) == pytest.approx([0.5, 0.5])
    strict = Decision.of(MULTICLASS, DecisionSettings(thresholds={"a": 0.6, "b": 0.2, "c": 0.2}))
    odds = np.array([0.7 / 0.6, 1.0, 0.5])
    assert confidence(strict, probabilities)[0] == pytest.approx((odds[0] - odds[1]) / odds.sum())
    assert confidence(strict, np.array([[0.6, 0.2, 0.2]])) == pytest.approx([0])


def test_a_document_on_which_the_decision_abstains_does_not_exit() -> None:
    logits = np.log(np.array([[0.5, 0.45, 0.05], [0.5, 0.25, 0.25]]))
    decision = Decision.of(MULTICLASS, DecisionSettings(abstain=0.1))
    assert should_exit(decision, 0.0, logits).tolist() == [False, True]


def test_segments_hold_every_column_once() -> None:
    """Blocks are divided at the exits; each column belongs to the segment that computes its layer."""
    columns = [
        FeatureColumn(Site(layer, kind), "mean")
        for layer in range(4)
        for kind in ("ffn", "resid")
        if layer or kind != "ffn"
    ]
    segments = split_segments({column: np.arange(2) for column in columns}, [1, 2])
    assert [(segment.start, segment.stop) for segment in segments] == [(0, 1), (1, 2), (2, 3)]
    assert [column for segment in segments for column in segment.neurons] == columns
    assert all(segment.start < c.site.layer <= segment.stop for segment in segments[1:] for c in segment.neurons)


TEXTS = [document["text"] for document in tiny.make_documents(60, ("good", "bad", "plain"), seed=9)]


@pytest.fixture(scope="module")
def classifier(backbone_folder: Path) -> TrainedClassifier:
    """A classifier of three blocks with exits after the first and the second.

    About a third of the documents takes each exit.
    """
    settings = BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu", batch_tokens=200)
    backbone, draw = load_backbone(settings), np.random.default_rng(0)
    columns = [FeatureColumn(site, pooling) for site in backbone.sites for pooling in ("max", "mean")]
    neurons = {column: np.sort(draw.choice(backbone.width(column.site), 5, replace=False)) for column in columns}
    values = read_activations(open_engine(backbone, split_segments(neurons, [])), TEXTS).values
    selection = Selection(neurons, {column: np.ones(5) for column in columns}, 0.5)
    p, label_space = len(selection), LabelSpace(("bad", "good", "plain"))
    head = LinearHead(draw.normal(0, 0.2, (3, p)).astype(np.float32), draw.normal(size=3).astype(np.float32))
    full = FittedClassifier(selection, Standardizer.fit(values), head, build_choice_summary())
    exits: list[EarlyExit] = []
    exited = np.zeros(len(TEXTS), bool)
    for depth in (1, 2):
        p = len(selection.up_to(depth))
        shallow = LinearHead(head.coef[:, :p] * 2, head.intercept)
        X = full.standardizer.transform(values)[:, :p]
        confidences = confidence(
            Decision.of(label_space, DecisionSettings()), label_space.probabilities(shallow.logits(X))
        )
        # between two documents, so that rounding cannot decide
        threshold = float(np.quantile(confidences[~exited], 0.6)) + 1e-4
        exits.append(EarlyExit(depth, shallow, threshold))
        exited |= confidences >= threshold
    training_result = TrainingResult({"accuracy": replace(full, exits=tuple(exits))}, (), 0)
    return TrainedClassifier(settings, backbone.digest, label_space, training_result, "macro_f1")


def with_exits(classifier: TrainedClassifier, **settings: Any) -> TrainedClassifier:
    """The same classifier with its early exits enabled."""
    return TrainedClassifier(
        classifier.settings.model_copy(update=settings),
        classifier.backbone_digest,
        classifier.label_space,
        classifier.training_result,
        classifier.metric,
        early=True,
    )


def test_blocks_above_an_exit_process_only_the_documents_that_stay(classifier: TrainedClassifier) -> None:
    """A hook counts the documents that reach each block."""
    early = with_exits(classifier)
    documents_per_block = dict.fromkeys(range(3), 0)
    for index in range(3):

        def count(_module: Any, args: Any, index: int = index) -> None:
            documents_per_block[index] += len(args[0])

        early.backbone.ffn_projection(index + 1).register_forward_pre_hook(count)
    depth = early.features(TEXTS).depth
    assert depth is not None
    assert documents_per_block == {index: int((depth > index).sum()) for index in range(3)}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_an_explanation_is_that_of_the_exit_taken(classifier: TrainedClassifier, engine: str) -> None:
    """Neurons, words and bias add up to the predicted logits, and no neuron lies above the exit."""
    early = with_exits(classifier, engine=engine)
    depth = early.features(TEXTS).depth
    assert depth is not None
    for exit_depth in (1, 2, 3):
        text = TEXTS[int(np.flatnonzero(depth == exit_depth)[0])]
        explanation, logits = early.explain(text), early.predict_logits([text])[0]
        assert explanation.logits == pytest.approx(logits, abs=1e-4)
        assert explanation.contributions.sum(0) + explanation.bias == pytest.approx(logits, abs=1e-4)
        assert explanation.word_contributions.sum(0) + explanation.bias == pytest.approx(logits, abs=1e-4)
        assert max(column.site.layer for column, _ in explanation.neurons) <= exit_depth


def test_exits_abstain_by_the_chosen_thresholds(classifier: TrainedClassifier) -> None:
    """A document near the border of the chosen thresholds goes on, and one that is near no other border exits."""
    thresholds, space = {"bad": 0.6, "good": 0.2, "plain": 0.2}, classifier.label_space
    fitted = replace(classifier.fitted, summary=classifier.fitted.summary.model_copy(update={"thresholds": thresholds}))
    result, band = replace(classifier.training_result, choices={"accuracy": fitted}), DecisionSettings(abstain=0.3)
    digest, depths = classifier.backbone_digest, []
    for training_result in (classifier.training_result, result):
        spin = TrainedClassifier(
            classifier.settings, digest, space, training_result, "macro_f1", decision=band, early=True
        )
        depth = spin.features(TEXTS).depth
        assert depth is not None
        values = np.concatenate([*classifier.features(TEXTS).columns.values()], axis=1)
        assert depth.tolist() == spin.fitted.exit_depths(values, spin.decision_rule).tolist()
        depths.append(depth.tolist())
    assert depths[0] != depths[1]


def test_exits_are_saved_and_loaded(classifier: TrainedClassifier, tmp_path: Path) -> None:
    classifier.save(tmp_path)
    loaded = TrainedClassifier.load(tmp_path, backbone=classifier.settings, early=True)
    assert loaded.predict_logits(TEXTS) == pytest.approx(with_exits(classifier).predict_logits(TEXTS), abs=1e-6)
    assert [(e.depth, e.threshold) for e in loaded.fitted.exits] == [
        (e.depth, e.threshold) for e in classifier.fitted.exits
    ]


@pytest.mark.slow
def test_training_offers_exits_within_the_allowed_loss(backbone_folder: Path) -> None:
    """On held-out rows the metric loses no more than allowed; where no loss is allowed there are no exits."""
    rows = tiny.make_documents(1500, ("good", "bad"))
    texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]

    def fit(max_loss: float) -> TrainedClassifier:
        return (
            SpinClassifier(
                BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu"),
                probe=ProbeSettings(penalties=4),
                search=SearchSettings(etas=(0.5,), max_share=1, strengths=(3,), network="off", words="off"),
                cascade=CascadeSettings(max_loss=max_loss),
                early=True,
            )
            .fit(texts, labels)
            .trained_
        )

    classifier = fit(0.05)
    assert classifier.fitted.exits
    assert [e.depth for e in classifier.fitted.exits] == sorted({e.depth for e in classifier.fitted.exits})
    for summary, early_exit in zip(classifier.fitted.summary.exits, classifier.fitted.exits, strict=True):
        assert summary.depth == early_exit.depth < classifier.depth
        assert 0 < summary.valid_share <= 1
    assert not fit(0.0).fitted.exits


def test_drift_is_not_measured_above_the_first_exit(classifier: TrainedClassifier) -> None:
    """Neurons that only uncertain documents reach do not indicate drift."""
    early = with_exits(classifier)
    features, full = early.features(TEXTS), classifier.features(TEXTS)
    fitted = classifier.fitted
    decision = Decision.of(classifier.label_space, classifier.decision)
    depth = fitted.exit_depths(full.values, decision)
    assert features.depth is not None
    assert depth.tolist() == features.depth.tolist()
    logits = fitted.predict_logits(full.values, depth)
    reference = Profile.from_outputs(classifier.label_space, fitted, logits, full.values, replace(full, depth=depth))
    logits = fitted.predict_logits(features.values, features.depth)
    current = Profile.from_outputs(classifier.label_space, fitted, logits, features.values, features)
    drifts = {drift.name: drift for drift in current.drift_from(reference, fitted.selection, 0.1)}
    assert drifts["neurons"].now == (0, len(fitted.selection.up_to(1)))
    assert not any(drift.drifted for drift in drifts.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [({"max_loss": 1.0}, "max_loss"), ({"depths": (0.0,)}, "greater than 0"), ({"depths": (1.0,)}, "less than 1")],
)
def test_meaningless_cascade_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CascadeSettings(**change)
