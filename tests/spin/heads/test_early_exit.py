"""Early exits: which documents exit, what it costs, and that predictions and explanations are those of the exit."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spin import SpinClassifier, TrainedClassifier
from spin.activations.engines.encoder import split_segments
from spin.activations.engines.engine import open_engine
from spin.activations.extract import read_activations
from spin.backbone.loading import load_backbone
from spin.heads.decision import Decision
from spin.heads.early_exit import DISABLED, EarlyExit, confidence, find_stops, should_exit
from spin.heads.fitted import FittedClassifier, TrainingResult
from spin.heads.linear_head import LinearHead
from spin.heads.selection import Selection
from spin.integrate.exit_thresholds import _ExpectedLoss, choose_exit_thresholds, offered_depths
from spin.labels.label_space import LabelSpace
from spin.labels.metrics import score
from spin.labels.standardizer import Standardizer
from spin.monitor.profile import Profile
from spin.settings import BackboneSettings, CascadeSettings, DecisionSettings, ProbeSettings, SearchSettings
from spin.sites import FeatureColumn, Site
from tests.support import tiny
from tests.support.summaries import build_choice_summary

MULTICLASS = LabelSpace(("a", "b", "c"))
MULTILABEL = LabelSpace(("a", "b", "c"), multilabel=True)
ARGMAX = Decision.of(MULTICLASS, DecisionSettings())


def draw_exit_logits(seed: int, n: int = 300, noise: tuple[float, ...] = (2.0, 1.0, 0.3)) -> tuple[Any, ...]:
    """Logits of exits that get better with depth, those of full depth, and the true classes."""
    draw = np.random.default_rng(seed)
    y = draw.integers(0, 3, n)
    true_logits = 3 * np.eye(3)[y]
    *exits, final = (true_logits + draw.normal(0, sd, true_logits.shape) for sd in noise)
    return exits, final, y


def costs_and_losses(
    exits: Any, final: Any, y: Any, thresholds: Any, costs: Any, passing: Any
) -> tuple[float, float, float]:
    """Mean cost, lost accuracy and the accuracy that full depth expects to lose, one document after another.

    To the expected loss one standard error is added, from leaving out every twentieth document.
    """
    probabilities = [MULTICLASS.probabilities(np.asarray(logits)) for logits in (*exits, final)]
    cost, correct, correct_at_full_depth, terms = 0.0, 0, 0, []
    for row in range(len(y)):
        exit_index = next((i for i, t in enumerate(thresholds) if probabilities[i][row].max() >= t), len(exits))
        full, predicted = probabilities[-1][row].argmax(), probabilities[exit_index][row].argmax()
        cost += costs[exit_index]
        cost += sum(p for p, t in zip(passing, thresholds[:exit_index], strict=False) if t < DISABLED)
        correct, correct_at_full_depth = correct + (predicted == y[row]), correct_at_full_depth + (full == y[row])
        terms.append(probabilities[-1][row][full] - probabilities[-1][row][predicted])
    without = [np.mean([t for row, t in enumerate(terms) if row % 20 != part]) for part in range(20)]
    expected = float(np.mean(terms) + np.sqrt(19 * np.var(without)))
    return cost / len(y), (correct_at_full_depth - correct) / len(y), expected


@pytest.mark.slow
@pytest.mark.parametrize("max_loss", [0.0, 0.01, 0.05])
@pytest.mark.parametrize(("seed", "passing"), [(0, None), (1, None), (1, (0.1, 0.0))])
def test_thresholds_have_the_least_cost_within_the_allowed_loss(
    seed: int, passing: tuple[float, ...] | None, max_loss: float
) -> None:
    """A plain loop confirms that both losses are kept and that no cheaper thresholds of a grid keep them."""
    exits, final, y = draw_exit_logits(seed)
    costs = (0.3, 0.6, 1.0)
    thresholds = choose_exit_thresholds(
        exits, final, y, ARGMAX, metric="accuracy", costs=costs, passing=passing, max_loss=max_loss
    )
    passing = passing or (0.03, 0.03)
    cost, lost, expected = costs_and_losses(exits, final, y, thresholds, costs, passing)
    assert max(lost, expected) <= max_loss + 1e-9
    assert cost < 1
    confidences = [confidence(MULTICLASS, MULTICLASS.probabilities(logits)) for logits in exits]
    for other in product(*([*np.quantile(values, np.linspace(0, 0.95, 12)), DISABLED] for values in confidences)):
        other_cost, lost, expected = costs_and_losses(exits, final, y, other, costs, passing)
        if other_cost < cost - 1e-9:
            assert max(lost, expected) > max_loss


@pytest.mark.parametrize(("metric", "most"), [("macro_f1", 0.0025), ("balanced_accuracy", 0.004)])
def test_a_rare_class_does_not_pay_for_the_exits(metric: str, most: float) -> None:
    """One document in fifty is of a class that the exit hardly sees; a loss of 0.002 is allowed.

    The loss on new documents is 0.006 if only the measured loss and the expected loss of accuracy are limited.
    """
    losses = []
    for seed in range(20):
        exits, final, y = draw_rare_class(seed, 2_000)
        thresholds = choose_exit_thresholds(exits, final, y, ARGMAX, metric=metric, costs=(0.3, 1), max_loss=0.002)
        exits, final, y = draw_rare_class(100 + seed, 40_000)
        at = find_stops(exits, thresholds, ARGMAX, len(y))
        given = np.stack([*exits, final])[at, np.arange(len(y))].argmax(1)
        losses.append(score(metric, y, final.argmax(1)) - score(metric, y, given))
    assert np.mean(losses) <= most


def draw_rare_class(seed: int, n: int) -> tuple[Any, ...]:
    """Logits of an exit and of full depth, which are calibrated, and the classes, the last of which is rare."""
    draw = np.random.default_rng(seed)
    y = draw.choice(3, n, p=[0.49, 0.49, 0.02])
    evidence = 2.2 * np.eye(3)[y] + draw.normal(size=(n, 3))
    prior = np.log([0.49, 0.49, 0.02])
    final = 2.2 * evidence + prior
    early = np.where(np.arange(3) == 2, 0.6, 1.9) * (evidence + 0.4 * draw.normal(size=(n, 3))) + prior
    return [early], final, y


@pytest.mark.parametrize("label_space", [MULTICLASS, MULTILABEL], ids=["multi-class", "multi-label"])
@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "balanced_accuracy"])
def test_the_expected_loss_is_the_mean_loss_over_drawn_labels(metric: str, label_space: LabelSpace) -> None:
    """Labels are drawn from the probabilities of full depth; one standard error is added to their mean loss."""
    draw = np.random.default_rng(0)
    final = draw.normal(size=(3_000, 3)) * 2
    decision = Decision.of(label_space, DecisionSettings())
    probabilities, given = label_space.probabilities(final), label_space.predict(final + draw.normal(size=final.shape))
    expected = _ExpectedLoss(metric, decision, final)
    losses = []
    for _ in range(40):
        y = draw.random(final.shape) < probabilities
        if not label_space.multilabel:
            y = (final + draw.gumbel(size=final.shape)).argmax(1)
        losses.append(score(metric, y, label_space.predict(final)) - score(metric, y, given))
    error = expected(given) - np.mean(losses)
    assert 0 < error < 0.02
    assert expected(label_space.predict(final)) == 0


def test_repeated_predictions_of_a_document_do_not_shrink_the_standard_error() -> None:
    """Each document is predicted twice, as by repeated cross-validation."""
    draw = np.random.default_rng(0)
    final = draw.normal(size=(510, 3)) * 2
    given = (final + draw.normal(size=final.shape)).argmax(1)
    once = _ExpectedLoss("macro_f1", ARGMAX, final)(given)
    twice = np.tile(np.arange(510), 2)
    assert _ExpectedLoss("macro_f1", ARGMAX, final[twice], twice)(given[twice]) == pytest.approx(once)
    assert _ExpectedLoss("macro_f1", ARGMAX, final[twice])(given[twice]) < once


def test_exits_are_judged_by_the_labels_under_thresholds() -> None:
    """The threshold of a class moves the border; an exit that argmax would keep changes labels there."""
    draw = np.random.default_rng(0)
    final = draw.normal(size=(4_000, 3)) * 4
    y = (final + draw.gumbel(size=final.shape)).argmax(1)
    exits = [final / 2]  # the same argmax, too unsure
    strict = Decision.of(MULTICLASS, DecisionSettings(thresholds={"c": 0.9}))
    options: Any = {"metric": "accuracy", "costs": (0.3, 1), "max_loss": 0.002}
    for decision, lost in ((ARGMAX, 0.0), (strict, 0.002)):
        thresholds = choose_exit_thresholds(exits, final, y, decision, **options)
        at = find_stops(exits, thresholds, decision, len(y))
        given = np.stack([*exits, final])[at, np.arange(len(y))]
        full, early = (decision.decide(MULTICLASS.probabilities(logits))[0] for logits in (final, given))
        assert score("accuracy", y, full) - score("accuracy", y, early) <= lost + 1e-9
    by_argmax = choose_exit_thresholds(exits, final, y, ARGMAX, **options)
    assert thresholds != by_argmax, "or nothing was tested"


def test_exits_with_random_logits_are_disabled() -> None:
    exits, final, y = draw_exit_logits(0, noise=(0.1, 0.1))
    random_logits = [np.random.default_rng(1).normal(0, 5, final.shape)]
    assert len(exits) == 1
    assert choose_exit_thresholds(random_logits, final, y, ARGMAX, metric="macro_f1", costs=(0.3, 1), max_loss=0.0) == [
        DISABLED
    ]


def test_an_exit_that_is_right_by_luck_is_disabled() -> None:
    """It is right only where full depth is certain and wrong. The metric gains, but the expected loss is too large."""
    y = np.zeros(100, np.int64)
    final = np.tile([0.0, 4.0, 0.0], (100, 1))
    lucky_exit = [np.tile([9.0, 0.0, 0.0], (100, 1))]
    assert score("accuracy", y, MULTICLASS.predict(lucky_exit[0])) == 1
    assert choose_exit_thresholds(lucky_exit, final, y, ARGMAX, metric="accuracy", costs=(0.3, 1), max_loss=0.1) == [
        DISABLED
    ]


def test_the_confidence_of_a_multilabel_document_is_that_of_its_least_certain_class() -> None:
    probabilities = np.array([[0.9, 0.8, 0.4], [0.99, 0.01, 0.02]])
    assert confidence(MULTILABEL, probabilities) == pytest.approx([0.6, 0.98])
    assert confidence(MULTICLASS, probabilities) == pytest.approx([0.9, 0.99])


def test_a_document_on_which_the_decision_abstains_does_not_exit() -> None:
    logits = np.log(np.array([[0.5, 0.45, 0.05], [0.5, 0.25, 0.25]]))
    decision = Decision.of(MULTICLASS, DecisionSettings(abstain=0.1))
    assert should_exit(decision, 0.4, logits).tolist() == [False, True]


@pytest.mark.parametrize(("depth", "expected"), [(6, [1, 2, 4]), (3, [1, 2]), (1, []), (30, [5, 10, 20])])
def test_offered_exits_lie_below_full_depth(depth: int, expected: list[int]) -> None:
    assert offered_depths(CascadeSettings().depths, depth) == expected


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
        confidences = confidence(label_space, label_space.probabilities(shallow.logits(X)))
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
                search=SearchSettings(etas=(0.9,), max_share=1, strengths=(3,), l1=(), head="linear", words="off"),
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
