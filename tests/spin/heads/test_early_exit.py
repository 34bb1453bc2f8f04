"""Exits: who leaves, what it costs, and that everything promised holds for those who left."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spin import SpinClassifier
from spin.activations.encoder import split_segments
from spin.activations.engine import open_engine
from spin.activations.extract import read_activations
from spin.backbone.loading import load_backbone
from spin.heads.decision import Decision
from spin.heads.early_exit import DISABLED, EarlyExit, confidence, should_exit
from spin.heads.fitted import FittedClassifier, TrainingResult
from spin.heads.linear_head import LinearHead
from spin.heads.selection import Selection
from spin.integrate.exit_thresholds import choose_exit_thresholds, offered_depths
from spin.labels.label_space import LabelSpace
from spin.labels.metrics import score
from spin.labels.standardizer import Standardizer
from spin.monitor.drift import measure
from spin.monitor.profile import Profile
from spin.settings import BackboneSettings, CascadeSettings, DecisionSettings, ProbeSettings, SearchSettings
from spin.sites import FeatureColumn, Site
from tests.support import tiny
from tests.support.summaries import choice_summary

TASK = LabelSpace(("a", "b", "c"))
LISTS = LabelSpace(("a", "b", "c"), multilabel=True)


def judged(seed: int, n: int = 300, noise: tuple[float, ...] = (2.0, 1.0, 0.3)) -> tuple[Any, ...]:
    """Logits of exits that get better with depth, those of full depth, and the truth."""
    draw = np.random.default_rng(seed)
    y = draw.integers(0, 3, n)
    truth = 3 * np.eye(3)[y]
    *exits, final = (truth + draw.normal(0, sd, truth.shape) for sd in noise)
    return exits, final, y


def costs_and_losses(exits: Any, final: Any, y: Any, thresholds: Any, costs: Any) -> tuple[float, float, float]:
    """One document after another, in plain words: mean cost, what accuracy loses, and what full depth expects to."""
    probabilities = [TASK.probabilities(np.asarray(logits)) for logits in (*exits, final)]
    cost, right, best, expected = 0.0, 0, 0, 0.0
    for row in range(len(y)):
        at = next((i for i, t in enumerate(thresholds) if probabilities[i][row].max() >= t), len(exits))
        own, given = probabilities[-1][row].argmax(), probabilities[at][row].argmax()
        cost += costs[at] + sum(0.03 * costs[-1] for t in thresholds[:at] if t < DISABLED)
        right, best = right + (given == y[row]), best + (own == y[row])
        expected += probabilities[-1][row][own] - probabilities[-1][row][given]
    return cost / len(y), (best - right) / len(y), expected / len(y)


@pytest.mark.parametrize("max_loss", [0.0, 0.01, 0.05])
@pytest.mark.parametrize("seed", [0, 1])
def test_thresholds_cost_least_within_the_loss(seed: int, max_loss: float) -> None:
    """By a plain loop both losses are kept, and no cheaper thresholds of the grid keep them."""
    exits, final, y = judged(seed)
    costs = (0.3, 0.6, 1.0)
    found = choose_exit_thresholds(exits, final, y, TASK, metric="accuracy", costs=costs, max_loss=max_loss)
    cost, lost, expected = costs_and_losses(exits, final, y, found, costs)
    assert max(lost, expected) <= max_loss + 1e-9
    assert cost < 1
    sure = [confidence(TASK, TASK.probabilities(logits)) for logits in exits]
    for other in product(*([*np.quantile(of, np.linspace(0, 0.95, 12)), DISABLED] for of in sure)):
        theirs, lost, expected = costs_and_losses(exits, final, y, other, costs)
        if theirs < cost - 1e-9:
            assert max(lost, expected) > max_loss


def test_exits_that_say_nothing_are_never_taken() -> None:
    exits, final, y = judged(0, noise=(0.1, 0.1))
    noise = [np.random.default_rng(1).normal(0, 5, final.shape)]
    assert len(exits) == 1
    assert choose_exit_thresholds(noise, final, y, TASK, metric="macro_f1", costs=(0.3, 1), max_loss=0.0) == [DISABLED]


def test_the_loss_that_full_depth_expects_needs_no_luck() -> None:
    """Exits that are right where full depth is sure and wrong are lucky: the metric gains, and still none leaves."""
    y = np.zeros(100, np.int64)
    final = np.tile([0.0, 4.0, 0.0], (100, 1))
    lucky = [np.tile([9.0, 0.0, 0.0], (100, 1))]
    assert score("accuracy", y, TASK.predict(lucky[0])) == 1
    assert choose_exit_thresholds(lucky, final, y, TASK, metric="accuracy", costs=(0.3, 1), max_loss=0.1) == [DISABLED]


def test_the_least_sure_answer_decides_of_a_list() -> None:
    probabilities = np.array([[0.9, 0.8, 0.4], [0.99, 0.01, 0.02]])
    assert confidence(LISTS, probabilities) == pytest.approx([0.6, 0.98])
    assert confidence(TASK, probabilities) == pytest.approx([0.9, 0.99])


def test_what_is_given_no_label_does_not_leave() -> None:
    logits = np.log(np.array([[0.5, 0.45, 0.05], [0.5, 0.25, 0.25]]))
    decision = Decision.of(TASK, DecisionSettings(abstain=0.1))
    assert should_exit(TASK, decision, 0.4, logits).tolist() == [False, True]


@pytest.mark.parametrize(("depth", "expected"), [(6, [1, 2, 4]), (3, [1, 2]), (1, []), (30, [5, 10, 20])])
def test_exits_lie_below_full_depth(depth: int, expected: list[int]) -> None:
    assert offered_depths(CascadeSettings().depths, depth) == expected


def test_groups_hold_every_column_once() -> None:
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


TEXTS = [document["text"] for document in tiny.documents(60, ("good", "bad", "plain"), seed=9)]


@pytest.fixture(scope="module")
def spin(backbone_folder: Path) -> SpinClassifier:
    """Of three blocks, with exits after the first and the second, where about a third of the documents leaves each."""
    settings = BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu", batch_tokens=200)
    backbone, draw = load_backbone(settings), np.random.default_rng(0)
    columns = [FeatureColumn(site, pooling) for site in backbone.sites for pooling in ("max", "mean")]
    neurons = {column: np.sort(draw.choice(backbone.width(column.site), 5, replace=False)) for column in columns}
    values = read_activations(open_engine(backbone, split_segments(neurons, [])), TEXTS).values
    selection = Selection(neurons, {column: np.ones(5) for column in columns}, 0.5)
    p, label_space = len(selection), LabelSpace(("bad", "good", "plain"))
    head = LinearHead(draw.normal(0, 0.2, (3, p)).astype(np.float32), draw.normal(size=3).astype(np.float32))
    full = FittedClassifier(selection, Standardizer.fit(values), head, choice_summary())
    exits: list[EarlyExit] = []
    left = np.zeros(len(TEXTS), bool)
    for depth in (1, 2):
        p = len(selection.part(depth))
        shallow = LinearHead(head.coef[:, :p] * 2, head.intercept)
        X = full.standardizer.transform(values)[:, :p]
        sure = confidence(label_space, label_space.probabilities(shallow.logits(X)))
        threshold = float(np.quantile(sure[~left], 0.6)) + 1e-4  # not on a document, where rounding would decide
        exits.append(EarlyExit(depth, shallow, threshold))
        left |= sure >= threshold
    made = TrainingResult({"accuracy": replace(full, exits=tuple(exits))}, (), 0)
    return SpinClassifier.assemble(settings, backbone.digest, label_space, made, "macro_f1")


def early(spin: SpinClassifier, **settings: Any) -> SpinClassifier:
    """The same, whose documents leave."""
    return SpinClassifier.assemble(
        spin.settings.model_copy(update=settings),
        str(spin.backbone_digest),
        spin.label_space,
        spin.training_result,
        spin.metric,
        early=True,
    )


def by_hand(spin: SpinClassifier) -> tuple[np.ndarray, np.ndarray]:
    """Depth and logits of every text, from the activations of full depth and one document after another."""
    full = spin.fitted
    values = full.standardizer.transform(spin.features(TEXTS).values)
    depths, logits = [], []
    for x in values:
        for taken in full.exits:
            mine = taken.head.coef @ x[: taken.head.coef.shape[1]] + taken.head.intercept
            if spin.label_space.probabilities(mine[None]).max() >= taken.threshold:
                depths.append(taken.depth)
                break
        else:
            depths.append(3)
            mine = full.head.logits(x[None])[0]
        logits.append(mine)
    return np.array(depths), np.array(logits)


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_documents_leave_where_they_are_sure(spin: SpinClassifier, engine: str) -> None:
    """The depth and the logits of every document are those that full depth's activations make by hand."""
    depths, logits = by_hand(spin)
    assert {*depths} == {1, 2, 3}
    there = early(spin, engine=engine)
    found = there.features(TEXTS)
    assert found.depth is not None
    assert found.depth.tolist() == depths.tolist()
    assert there.predict_logits(TEXTS) == pytest.approx(logits, abs=1e-3)
    for column, values in found.columns.items():
        assert (np.isfinite(values).all(1) == (column.site.layer <= found.depth)).all()


def test_who_leaves_is_not_computed_further(spin: SpinClassifier) -> None:
    """The blocks above see only the documents that reach them."""
    there = early(spin)
    seen = dict.fromkeys(range(3), 0)
    for index in range(3):

        def count(_module: Any, args: Any, index: int = index) -> None:
            seen[index] += len(args[0])

        there.backbone.ffn_projection(index + 1).register_forward_pre_hook(count)
    depth = there.features(TEXTS).depth
    assert depth is not None
    assert seen == {index: int((depth > index).sum()) for index in range(3)}


def test_the_order_of_texts_does_not_matter(spin: SpinClassifier) -> None:
    there = early(spin)
    assert there.predict_logits(TEXTS[::-1])[::-1] == pytest.approx(there.predict_logits(TEXTS), abs=1e-4)


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_the_exit_that_decided_is_explained(spin: SpinClassifier, engine: str) -> None:
    """Neurons, words and bias make the logits that were given, and no neuron is named above the exit."""
    there = early(spin, engine=engine)
    depth = there.features(TEXTS).depth
    assert depth is not None
    for at in (1, 2, 3):
        text = TEXTS[int(np.flatnonzero(depth == at)[0])]
        told, logits = there.explain(text), there.predict_logits([text])[0]
        assert told.logits == pytest.approx(logits, abs=1e-4)
        assert told.contributions.sum(0) + told.bias == pytest.approx(logits, abs=1e-4)
        assert told.word_contributions.sum(0) + told.bias == pytest.approx(logits, abs=1e-4)
        assert max(column.site.layer for column, _ in told.neurons) <= at


def test_exits_are_saved(spin: SpinClassifier, tmp_path: Path) -> None:
    spin.save(tmp_path)
    back = SpinClassifier.load(tmp_path, backbone=spin.settings, early=True)
    assert back.predict_logits(TEXTS) == pytest.approx(early(spin).predict_logits(TEXTS), abs=1e-6)
    assert [(e.depth, e.threshold) for e in back.fitted.exits] == [(e.depth, e.threshold) for e in spin.fitted.exits]


def test_training_offers_exits_within_the_loss(backbone_folder: Path) -> None:
    """On held-out rows the metric loses no more than was granted; where nothing is granted there are none."""
    rows = tiny.documents(1500, ("good", "bad"))
    texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]

    def fitted(max_loss: float) -> SpinClassifier:
        return SpinClassifier(
            BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu"),
            probe=ProbeSettings(penalties=4),
            search=SearchSettings(etas=(0.9,), max_share=1, strengths=(3,), l1=(), head="linear"),
            cascade=CascadeSettings(max_loss=max_loss),
            early=True,
        ).fit(texts, labels)

    some = fitted(0.05)
    assert some.fitted.exits
    assert [e.depth for e in some.fitted.exits] == sorted({e.depth for e in some.fitted.exits})
    for told, taken in zip(some.fitted.summary.exits, some.fitted.exits, strict=True):
        assert told.depth == taken.depth < some.depth
        assert 0 < told.valid_share <= 1
    assert not fitted(0.0).fitted.exits


def test_drift_is_not_measured_above_the_first_exit(spin: SpinClassifier) -> None:
    """Neurons that only the unsure documents reach are no sign of drift."""
    there = early(spin)
    found, full = there.features(TEXTS), spin.features(TEXTS)
    chosen = spin.fitted
    decision = Decision.of(spin.label_space, spin.decision)
    depth = chosen.exit_depths(full.values, spin.label_space, decision)
    assert found.depth is not None
    assert depth.tolist() == found.depth.tolist()
    logits = chosen.predict_logits(full.values, depth)
    then = Profile.from_outputs(spin.label_space, chosen, logits, full.values, full)
    logits = chosen.predict_logits(found.values, found.depth)
    now = Profile.from_outputs(spin.label_space, chosen, logits, found.values, found)
    drifts = {drift.name: drift for drift in measure(now, then, chosen.selection, 0.1)}
    assert drifts["neurons"].now == (0, len(chosen.selection.part(1)))
    assert not any(drift.drifted for drift in drifts.values())


@pytest.mark.parametrize(
    ("change", "said"),
    [({"max_loss": 1.0}, "max_loss"), ({"depths": (0.0,)}, "greater than 0"), ({"depths": (1.0,)}, "less than 1")],
)
def test_settings_that_mean_nothing_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CascadeSettings(**change)
