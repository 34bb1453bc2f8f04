"""A probe is standardised on its training rows, chosen on its validation rows and stored bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from operator import attrgetter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

import spin.sparsify.probe
from spin.labels.cross_validation import Fold, make_folds
from spin.labels.label_space import LabelSpace, Targets
from spin.labels.metrics import score
from spin.labels.standardizer import Standardizer
from spin.labels.training_data import TrainingData
from spin.settings import ProbeSettings
from spin.sites import FeatureColumn, Site
from spin.sparsify.probe import (
    Probe,
    ProbeStart,
    _choose_penalties,
    class_weights,
    decide,
    fit_probes,
    signs,
    warn_of_inexact_probes,
)
from spin.sparsify.select import Ranking
from spin.sparsify.solvers.l1_path import LassoPaths
from tests.spin.sparsify.test_l1_path import SinglePath, loop_violation

pytestmark = pytest.mark.usefixtures("plain_deviations")

COLUMN, OTHER = FeatureColumn(Site(2, "ffn"), "mean"), FeatureColumn(Site(2, "ffn"), "max")
TASKS = {
    "2": LabelSpace(("a", "b")),
    "3": LabelSpace(("a", "b", "c")),
    "lists of 2": LabelSpace(("a", "b"), multilabel=True),
    "lists of 3": LabelSpace(("a", "b", "c"), multilabel=True),
}
Rows = tuple[NDArray[np.floating], Targets]


def make_rows(
    seed: int, n: int, label_space: LabelSpace = TASKS["2"], dtype: type = np.float32, width: int = 20
) -> Rows:
    """Raw activations far from standardised, whose first neurons move with the class."""
    draw = np.random.default_rng(seed)
    y = np.arange(n) % len(label_space)
    if label_space.multilabel:
        y = draw.random((n, len(label_space))) < [0.5, 0.3, 0.2][: len(label_space)]
    X = draw.normal(size=(n, width))
    X[:, : len(label_space)] += 2.5 * label_space.indicator(y)
    return (X * np.geomspace(0.1, 10, width) + np.linspace(-5, 5, width)).astype(dtype), y


def join_rows(train: Rows, valid: Rows) -> tuple[NDArray[np.floating], Targets, Fold]:
    """One table of both sets of rows, and the fold that divides it."""
    numbers = np.arange(len(train[1]) + len(valid[1]))
    fold = Fold(numbers[: len(train[1])], numbers[len(train[1]) :])
    return np.concatenate([train[0], valid[0]]), np.concatenate([train[1], valid[1]]), fold


def fit_probe(train: Rows, valid: Rows, label_space: LabelSpace = TASKS["2"], **changed: object) -> Probe:
    X, y, fold = join_rows(train, valid)
    probe_settings = ProbeSettings(**changed)  # type: ignore[arg-type]
    [probe] = fit_probes({COLUMN: X}, TrainingData(y, (fold,), label_space, "macro_f1"), probe_settings)
    return probe


@pytest.mark.parametrize("kind", ["none", "balanced"])
@pytest.mark.parametrize(("name", "heads"), [("2", 1), ("3", 3), ("lists of 2", 2), ("lists of 3", 3)])
def test_every_class_has_the_same_share_of_its_own_penalty(name: str, heads: int, kind: str) -> None:
    """Two classes need one model and more classes one each; all are optimal at the same share of their lam_max."""
    label_space = TASKS[name]
    train, valid = make_rows(0, 150, label_space), make_rows(1, 90, label_space)
    if not label_space.multilabel:
        train = train[0][10:], train[1][10:]  # slightly unbalanced
    probe = fit_probe(train, valid, label_space, class_weights=kind)
    assert probe.coef.shape == (heads, 20)
    assert probe.intercept.shape == (heads,)
    standard = ((train[0] - probe.standardizer.mean) / probe.standardizer.scale).astype(np.float32)
    targets = signs(label_space.indicator(train[1]), label_space)
    weights = class_weights(targets, kind)
    problems = list(zip(targets, weights, strict=True))
    lam_max = [SinglePath(standard, y, s).lam_max for y, s in problems]
    assert probe.lam_max == pytest.approx(max(lam_max))
    grid_index = np.log(probe.lam / probe.lam_max) / np.log(1 / 30) * 9
    assert grid_index == pytest.approx(round(grid_index), abs=1e-6)
    violations = [
        loop_violation(standard, y, s, w, b, lam * probe.lam / probe.lam_max)
        for (y, s), w, b, lam in zip(problems, probe.coef, probe.intercept, lam_max, strict=True)
    ]
    assert max(violations) <= 1e-2
    assert probe.kkt == pytest.approx(max(violations), abs=1e-3)
    assert probe.valid_score == score("macro_f1", valid[1], probe.predict(valid[0], label_space)) > 0.75
    figures = {"lam": probe.lam, "lam_max": probe.lam_max, "kkt": probe.kkt, "valid_score": probe.valid_score}
    neurons = int(probe.coef.any(0).sum())
    assert probe.summary().model_dump() == {"column": "ffn.02.mean", "neurons": neurons, **figures}


def test_kkt_reports_the_largest_violation_of_all_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the solver stops too early, `kkt` is the violation that a plain loop finds."""
    monkeypatch.setattr(spin.sparsify.probe, "TOLERANCE", 0.5)
    label_space = TASKS["3"]
    train, valid = make_rows(0, 150, label_space), make_rows(1, 90, label_space)
    probe = fit_probe(train, valid, label_space)
    standard = ((train[0] - probe.standardizer.mean) / probe.standardizer.scale).astype(np.float32)
    targets, s = signs(label_space.indicator(train[1]), label_space), np.full(150, 1 / 150, np.float32)
    ratio = probe.lam / probe.lam_max
    lams = [ratio * SinglePath(standard, y, s).lam_max for y in targets]
    problems = zip(targets, probe.coef, probe.intercept, lams, strict=True)
    violations = [loop_violation(standard, y, s, w, b, lam) for y, w, b, lam in problems]
    assert max(violations) > 0.05
    assert max(violations) > min(violations) + 0.01
    assert probe.kkt == pytest.approx(max(violations), abs=1e-3)


def test_a_probe_far_from_the_optimum_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the solver stops too early; a probe at the optimum gives no line."""
    label_space = TASKS["3"]
    train, valid = make_rows(0, 150, label_space), make_rows(1, 90, label_space)
    exact = fit_probe(train, valid, label_space).summary()
    monkeypatch.setattr(spin.sparsify.probe, "TOLERANCE", 0.5)
    inexact = fit_probe(train, valid, label_space).summary()
    warn_of_inexact_probes([exact])
    assert not caplog.records
    warn_of_inexact_probes([exact, inexact])
    assert "1 of 2 probes are not optimal" in caplog.text
    assert "ffn.02.mean" in caplog.text


def test_balanced_weights_predict_the_rare_class_more_often() -> None:
    """Balanced weights move the border towards the frequent class, and `kkt` is that of the weighted problem."""
    train, valid = make_rows(0, 300), make_rows(1, 200)
    imbalanced = np.concatenate([np.flatnonzero(train[1] == 0), np.flatnonzero(train[1] == 1)[:15]])
    train = train[0][imbalanced], train[1][imbalanced]
    plain, balanced = (fit_probe(train, valid, class_weights=kind) for kind in ("none", "balanced"))
    predictions_of_the_rare_class = [(probe.predict(valid[0], TASKS["2"]) == 1).sum() for probe in (plain, balanced)]
    assert predictions_of_the_rare_class[1] > predictions_of_the_rare_class[0]
    assert max(plain.kkt, balanced.kkt) <= 1e-2


def test_a_rare_class_keeps_its_neurons() -> None:
    """A class of 1 % of the rows has a neuron of its own, which 70 % of the importance include."""
    draw = np.random.default_rng(0)
    y = np.where(draw.random(6000) < 0.01, 2, draw.integers(0, 2, 6000))
    X = draw.normal(size=(6000, 40))
    X[:, 0] += 1.5 * y.clip(0, 1)
    X[:, 1:8] += 0.4 * (y == 1)[:, None]
    X[:, 30] += 2.0 * (y == 2)
    fold = Fold(np.arange(4500), np.arange(4500, 6000))
    data = TrainingData(y, (fold,), TASKS["3"], "macro_f1")
    probes = fit_probes({COLUMN: X.astype(np.float32)}, data, ProbeSettings())
    assert (
        30
        in Ranking.of({p.column: p for p in probes}, {p.column: np.zeros_like(p.importance) for p in probes})
        .select(0.7)
        .neurons[COLUMN]
    )


def test_columns_fitted_together_equal_columns_fitted_alone() -> None:
    """Each column keeps its coefficients, its penalty and its place."""
    label_space = TASKS["3"]
    X, y, fold = join_rows(make_rows(0, 150, label_space), make_rows(1, 90, label_space))
    noise = np.random.default_rng(7).normal(size=X.shape).astype(np.float32)
    probe_settings = ProbeSettings(max_extra=0)
    activations = {COLUMN: X, OTHER: (X + 8 * noise).astype(np.float32)}
    together = fit_probes(activations, TrainingData(y, (fold,), label_space, "accuracy"), probe_settings)
    assert [probe.column for probe in together] == [COLUMN, OTHER]
    for probe, (column, values) in zip(together, activations.items(), strict=True):
        [alone] = fit_probes({column: values}, TrainingData(y, (fold,), label_space, "accuracy"), probe_settings)
        np.testing.assert_array_equal(probe.coef, alone.coef)
        assert (probe.lam, probe.lam_max, probe.valid_score) == (alone.lam, alone.lam_max, alone.valid_score)
    assert together[0].lam != together[1].lam


@pytest.mark.parametrize(("name", "kind"), [("2", "balanced"), ("3", "none"), ("lists of 3", "balanced")])
def test_both_solvers_choose_the_same_probe(name: str, kind: str) -> None:
    """Plain and batched, on one fold and on several: the same penalty and nearly the same weights."""
    label_space = TASKS[name]
    X, y, fold = join_rows(make_rows(0, 120, label_space), make_rows(1, 60, label_space))
    several = make_folds(label_space, y, fold.train, fold.valid, seed=0)[:2]
    probe_settings = ProbeSettings(class_weights=kind, penalties=6)  # type: ignore[arg-type]
    activations = {COLUMN: X, OTHER: X[:, ::-1] ** 2}
    for folds in ([fold], several):
        probes_by_device = [
            fit_probes(
                activations, TrainingData(y, tuple(folds), label_space, "macro_f1", device=device), probe_settings
            )
            for device in ("cpu", "cpu:0")  # "cpu" chooses the plain solver, any other device the batched one
        ]
        for plain, batched in zip(*probes_by_device, strict=True):
            assert plain.lam == pytest.approx(batched.lam, rel=1e-5)
            assert plain.valid_score == pytest.approx(batched.valid_score, abs=0.02)
            assert max(plain.kkt, batched.kkt) <= 1e-2
            np.testing.assert_allclose(plain.coef, batched.coef, atol=5e-3)
            values = activations[plain.column]
            np.testing.assert_allclose(plain.decision(values), batched.decision(values), atol=0.05)
            assert len(plain.folds) == len(batched.folds) == (len(folds) if len(folds) > 1 else 0)


# Targets


def test_labels_and_signs_follow_the_kind_of_task() -> None:
    """Binary: a positive logit means class 1.

    Multi-class: the largest logit wins. Multi-label: every positive logit counts.
    """
    assert decide(np.array([[-1.0], [2.0]]), TASKS["2"]).tolist() == [0, 1]
    assert decide(np.array([[-1.0, -3.0, -2.0], [-5.0, -4.0, -3.0]]), TASKS["3"]).tolist() == [0, 2]
    assert decide(np.array([[-1.0, 2.0], [1.0, 3.0]]), TASKS["lists of 2"]).tolist() == [[False, True], [True, True]]
    has = np.eye(3, dtype=bool)
    assert signs(has[[0, 1]][:, :2], TASKS["2"]).tolist() == [[-1, 1]]
    assert signs(has[[0, 2]], TASKS["3"]).tolist() == [[1, -1], [-1, -1], [-1, 1]]
    assert signs(has[[0, 1]][:, :2], TASKS["lists of 2"]).tolist() == [[1, -1], [-1, 1]]


@settings(deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4))
def test_balanced_weights_give_each_side_one_half(has: list[list[bool]]) -> None:
    """The rows of a side share its half equally; where there is one side only, its rows share all the weight."""
    targets = np.where(np.array(has), 1, -1).astype(np.float32)
    for signs_of_class, actual in zip(targets, class_weights(targets, "balanced"), strict=True):
        sides = len(set(signs_of_class.tolist()))
        assert actual.tolist() == pytest.approx(
            [1 / sides / signs_of_class.tolist().count(t) for t in signs_of_class.tolist()]
        )
    assert class_weights(targets, "none").tolist() == [pytest.approx([0.2] * 5)] * len(has)


# Standardisation


def test_standardisation_uses_training_rows_only() -> None:
    """Mean and scale are those of the training rows whatever the validation rows hold, and `decision` applies both."""
    train, valid = make_rows(0, 120), make_rows(1, 60)
    probe = fit_probe(train, valid)
    np.testing.assert_allclose(probe.standardizer.mean, train[0].mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(probe.standardizer.scale, train[0].std(0), rtol=1e-4)
    other_validation = fit_probe(train, (valid[0] * 3 + 100, valid[1]))
    np.testing.assert_array_equal(probe.standardizer.mean, other_validation.standardizer.mean)
    np.testing.assert_array_equal(probe.standardizer.scale, other_validation.standardizer.scale)
    expected = ((valid[0] - train[0].mean(0)) / train[0].std(0)) @ probe.coef[0] + probe.intercept[0]
    np.testing.assert_allclose(probe.decision(valid[0])[:, 0], expected, atol=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_constant_neuron_is_left_out(dtype: type) -> None:
    """It produces no NaN and gets no weight, even if it varies in the validation rows."""
    train, valid = make_rows(0, 120, dtype=dtype), make_rows(1, 60, dtype=dtype)
    train[0][:, [3, 4]] = [0.0, 301.3]
    probe = fit_probe(train, valid)
    assert not probe.coef[:, [3, 4]].any()
    assert probe.standardizer.scale[[3, 4]].tolist() == [1, 1]
    assert np.isfinite(probe.decision(valid[0])).all()
    assert probe.valid_score > 0.8


def test_a_quiet_neuron_of_few_rows_keeps_its_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variances of few rows are shrunk, so its standardised activations are small, but they are no noise."""
    monkeypatch.setattr("spin.labels.standardizer.FEW_ROWS", 150)
    train, valid = make_rows(0, 40), make_rows(1, 60)
    for rows, y in (train, valid):
        rows[:, 5] = 0.3 * y  # tells the classes apart by itself
    probe = fit_probe(train, valid)
    assert probe.standardizer.scale[5] > 2 * train[0][:, 5].std()
    assert probe.coef[0, 5]


def test_a_layer_without_variance_gives_an_empty_probe() -> None:
    """Where neurons vary by rounding alone, as at the embedded [CLS] token, the probe is finite and empty."""
    (values, y), noise = make_rows(0, 60, TASKS["3"]), np.random.default_rng(0).normal(size=(60, 20))
    for constant, rounding in [(0.0, 0), (0.1, 0), (-301.3, 0), (0.5, 1e-7), (301.3, 1e-5)]:
        values[:] = constant + rounding * noise
        probe = fit_probe((values, y), (values, y), TASKS["3"])  # validation on the same noise would reward overfitting
        assert not probe.coef.any()
        assert not probe.importance.any()
        assert np.isfinite([probe.lam, probe.lam_max, probe.kkt, *probe.intercept]).all()


def test_float16_activations_give_the_probe_of_float32_activations() -> None:
    """The probe is nearly the same, even if the sum of the values exceeds the range of float16."""
    label_space = TASKS["3"]
    train, valid = make_rows(0, 400, label_space), make_rows(1, 90, label_space)
    for part in (train, valid):
        part[0][:, 19] += 20000  # a sum of 400 such values leaves float16's range
    stored = [(X.astype(np.float16), y) for X, y in (train, valid)]
    half, full = (
        fit_probe(*stored, label_space),
        fit_probe(*((X.astype(np.float32), y) for X, y in stored), label_space),
    )
    np.testing.assert_allclose(half.standardizer.mean, full.standardizer.mean, rtol=1e-5)
    np.testing.assert_allclose(half.coef, full.coef, atol=1e-4)
    assert np.isfinite(half.coef).all()
    assert half.valid_score > 0.8


def test_standardisation_of_a_huge_constant_is_exact() -> None:
    """A deviation that is rounding noise counts as none."""
    standardizer = Standardizer.fit(np.full((1000, 1), 12345.678, np.float32))
    assert standardizer.scale.tolist() == [1]
    assert standardizer.mean[0] == np.float32(12345.678)


# The choice of the penalty


@pytest.mark.parametrize(
    ("losses", "tried", "chosen"),
    [
        ([0.9, 0.5, 0.6, 0.6, 0, 0], 4, 1),  # the last penalty of the path did not improve: no extra ones
        ([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], 6, 5),  # every penalty improves: all extra ones are tried
        ([0.9, 0.8, 0.7, 0.6, 0.6, 0], 5, 3),  # a tie is no improvement and keeps the larger penalty
        ([0.5, 0.9, 0.9, 0.4, 0.8, 0], 5, 3),
    ],
)
def test_the_path_continues_only_while_the_validation_loss_falls(
    monkeypatch: pytest.MonkeyPatch, losses: list[float], tried: int, chosen: int
) -> None:
    """The grid has lam_max, four penalties to judge and at most two extra ones."""
    script: Iterator[float] = iter(losses)
    monkeypatch.setattr(spin.sparsify.probe, "logistic_loss", lambda *_: next(script))
    probe = fit_probe(make_rows(0, 60), valid := make_rows(1, 30), penalties=5, max_extra=2, min_ratio=0.1)
    assert len(list(script)) == len(losses) - tried
    assert probe.lam == pytest.approx(probe.lam_max * 0.1 ** ((chosen + 1) / 4))
    assert probe.valid_score == (probe.predict(valid[0], TASKS["2"]) == valid[1]).mean()


def test_a_misleading_layer_still_gives_neurons() -> None:
    """Where validation labels contradict the training labels, the probe takes the penalty that harms least."""
    X, y = make_rows(0, 120)
    imbalanced = np.concatenate([np.flatnonzero(y == 0), np.flatnonzero(y == 1)[:8]])
    probe = fit_probe((X[imbalanced], y[imbalanced]), (X, 1 - y))
    assert probe.coef.any()
    assert probe.lam < probe.lam_max
    assert 0 <= probe.valid_score < 0.5


@pytest.mark.usefixtures("all_folds")
@pytest.mark.parametrize("name", ["2", "3", "lists of 3"])
def test_cross_validation_chooses_the_smallest_penalty_within_one_standard_error(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses of scikit-learn's own fits on the same grid give the same choice.

    Every fold's probe uses the same share of its own lam_max, and the final probe is fitted on all rows.
    """
    monkeypatch.setattr(spin.sparsify.probe, "_FOLD_TOLERANCE", 1e-3)
    label_space = TASKS[name]
    X, y = make_rows(7, 90, label_space, width=60)
    X[:, :3] += 20 * np.random.default_rng(0).normal(size=(90, 3)) * np.geomspace(0.1, 10, 60)[:3] / 6
    folds = make_folds(label_space, y, np.arange(60), np.arange(60, 90), seed=0)[:4]
    probe_settings = ProbeSettings(penalties=6, max_extra=0)
    [probe] = fit_probes({COLUMN: X}, TrainingData(y, tuple(folds), label_space, "accuracy"), probe_settings)
    expected_losses = np.full((len(folds), 6), 100.0)  # no neuron at lam_max
    scores = np.zeros((len(folds), 6))
    for number, fold in enumerate(folds):
        Z, heads = (X - X[fold.train].mean(0)) / X[fold.train].std(0), signs(label_space.indicator(y), label_space)
        lam_max = [np.abs(Z[fold.train].T @ ((h - h.mean()) / 2)).max() for h in heads[:, fold.train]]
        for at, ratio in enumerate(30 ** -(np.arange(6) / 5)):
            if at == 0:
                continue
            columns = [sklearn_scores(Z, h, fold.train, ratio * lam) for h, lam in zip(heads, lam_max, strict=True)]
            logits = np.stack(columns, axis=1)[fold.valid]
            if label_space.multilabel:
                right = ((logits > 0) == y[fold.valid]).all(1)
            else:
                right = (logits.argmax(1) if len(heads) > 1 else logits[:, 0] > 0) == y[fold.valid]
            scores[number, at] = right.mean()
            expected_losses[number, at] = np.log1p(np.exp(-heads[:, fold.valid].T * logits)).mean()
    means = expected_losses.mean(0)
    behind = expected_losses - expected_losses[:, [means.argmin()]]
    error = behind.std(0, ddof=1) * np.sqrt(1 / len(folds) + len(folds[0].valid) / len(folds[0].train))
    chosen = max(at for at in range(1, 6) if behind[:, at].mean() <= error[at])
    assert 1 <= chosen <= 4, "or the test would not see a choice"
    assert probe.lam / probe.lam_max == pytest.approx(30 ** -(chosen / 5))
    assert probe.valid_score == pytest.approx(scores[:, chosen].mean(), abs=0.006)
    assert len(probe.folds) == len(folds)
    np.testing.assert_allclose(probe.standardizer.mean, X.mean(0), rtol=1e-4, atol=1e-5)
    for part, fold in zip(probe.folds, folds, strict=True):
        assert part.lam / part.lam_max == pytest.approx(30 ** -(chosen / 5))
        np.testing.assert_allclose(part.standardizer.mean, X[fold.train].mean(0), rtol=1e-4, atol=1e-5)
    assert probe.kkt <= 1e-2
    assert max(part.kkt for part in probe.folds) <= 1e-2


def test_the_probes_of_folds_are_solved_less_exactly_than_the_final_one() -> None:
    X, y = make_rows(7, 90, TASKS["3"], width=60)
    folds = make_folds(TASKS["3"], y, np.arange(60), np.arange(60, 90), seed=0)
    [probe] = fit_probes({COLUMN: X}, TrainingData(y, folds, TASKS["3"]), ProbeSettings())
    assert probe.kkt <= 1.01e-3 < max(part.kkt for part in probe.folds) <= 3.1e-2


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from([100.0, 0.7, 0.6, 0.58, 0.5]), min_size=4, max_size=4), min_size=2, max_size=5
    ).map(np.array)
)
def test_the_one_standard_error_choice_equals_a_plain_loop(losses: NDArray[np.floating]) -> None:
    """The last penalty whose mean loss is within one standard error of the least and that has neurons in some fold."""
    count = len(losses)
    folds = [Fold(np.arange(80), np.arange(80, 100))] * count
    means = [sum(column) / count for column in losses.T]
    best = means.index(min(means))
    expected = best
    for at in range(4):
        behind = [float(row[at] - row[best]) for row in losses]
        variance = sum((b - sum(behind) / count) ** 2 for b in behind) / (count - 1)
        border = (variance * (1 / count + 20 / 80)) ** 0.5 - sum(behind) / count
        assume(abs(border) > 1e-9 or at == best)
        if at == best or (border > 0 and means[at] < 100):
            expected = max(expected, at)
    assert _choose_penalties(losses[..., None], folds).tolist() == [expected]


def sklearn_scores(
    Z: NDArray[np.floating], signs: NDArray[np.floating], train: NDArray[np.int64], lam: float
) -> object:
    """The scores (n,) of scikit-learn's L1 logistic regression, `lam` in units of the summed loss."""
    model = LogisticRegression(C=1 / lam, l1_ratio=1, solver="liblinear", intercept_scaling=1000, tol=1e-6)
    return model.fit(Z[train], signs[train]).decision_function(Z)


def test_the_probe_of_a_fold_does_not_depend_on_its_validation_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other validation values and labels change neither its weights nor its standardizer.

    The probes of other folds change.
    """
    # the choice of the penalty depends on all rows
    monkeypatch.setattr(spin.sparsify.probe, "logistic_loss", lambda *_: 1.0)
    label_space = TASKS["3"]
    X, y = make_rows(0, 90, label_space)
    folds = make_folds(label_space, y, np.arange(60), np.arange(60, 90), seed=0)[:3]
    probe_settings = ProbeSettings(penalties=4, max_extra=0)

    def fit() -> Probe:
        [probe] = fit_probes({COLUMN: X}, TrainingData(y, tuple(folds), label_space, "accuracy"), probe_settings)
        return probe

    before = fit()
    X[folds[1].valid] = X[folds[1].valid] * -3 + 100
    y[folds[1].valid] = 2 - y[folds[1].valid]
    after = fit()
    for name in ("coef", "intercept", "standardizer.mean", "standardizer.scale", "lam", "lam_max"):
        value = attrgetter(name)
        np.testing.assert_array_equal(value(after.for_fold(1)), value(before.for_fold(1)))
        assert np.any(value(after.for_fold(0)) != value(before.for_fold(0)))
    assert not np.array_equal(after.standardizer.mean, before.standardizer.mean)


def test_with_one_fold_the_probe_of_the_fold_is_the_probe_itself() -> None:
    """Where separate validation rows chose the penalty, no second probe is fitted."""
    probe = fit_probe(make_rows(0, 60), make_rows(1, 30))
    assert probe.folds == ()
    assert probe.for_fold(0) is probe


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 40),
    st.integers(0, 1000),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(0, 3),
)
def test_a_probe_is_restored_from_bytes_bit_for_bit(heads: int, width: int, seed: int, lam: float, folds: int) -> None:
    """For any shape, with its figures and the probes of its folds."""
    draw = np.random.default_rng(seed)

    def random_probe(number: int) -> Probe:
        shapes = [(heads, width), heads, width, width]
        coef, intercept, mean, scale = (draw.normal(size=shape).astype(np.float32) for shape in shapes)
        return Probe(COLUMN, coef, intercept, Standardizer(mean, scale), lam, 0.25 + number, 1e-3, 0.5)

    probe = replace(random_probe(0), folds=tuple(random_probe(number + 1) for number in range(folds)))
    restored = Probe.from_bytes(COLUMN, probe.to_bytes())
    assert len(restored.folds) == folds
    for number, (actual, expected) in enumerate(zip((restored, *restored.folds), (probe, *probe.folds), strict=True)):
        for value in map(attrgetter, ("coef", "intercept", "standardizer.mean", "standardizer.scale")):
            np.testing.assert_array_equal(value(actual), value(expected))
            assert value(actual).dtype == np.float32
        assert (actual.column, actual.lam, actual.lam_max) == (COLUMN, lam, 0.25 + number)
        assert (actual.kkt, actual.valid_score) == (1e-3, 0.5)


@pytest.mark.parametrize("kind", ["none", "balanced"])
@pytest.mark.parametrize("name", TASKS)
def test_a_warm_start_reaches_what_a_cold_start_reaches(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After some rows have come and labels have changed: the same penalty, and the same minimum within its tolerance.

    Fewer penalties are solved for it.
    """
    label_space, solved = TASKS[name], list[int]()
    solve = LassoPaths.solve

    def count(self: LassoPaths, lams: NDArray[np.floating]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        solved.append(len(lams))
        return solve(self, lams)

    valid, (X, y) = make_rows(1, 90, label_space), make_rows(0, 400, label_space)
    before = fit_probe((X[:380], y[:380]), valid, label_space, class_weights=kind)
    y = y.copy()
    y[[5, 17]] = y[[6, 19]]
    monkeypatch.setattr(LassoPaths, "solve", count)
    cold = fit_probe((X, y), valid, label_space, class_weights=kind)
    tried_cold, solved[:] = sum(solved), []
    joined, targets, fold = join_rows((X, y), valid)
    data = TrainingData(targets, (fold,), label_space, "macro_f1")
    starts = {COLUMN: ProbeStart(before, tuple(label_space.classes))}
    [warm] = fit_probes({COLUMN: joined}, data, ProbeSettings(class_weights=kind), starts)  # type: ignore[arg-type]
    assert sum(solved) <= 5 < tried_cold
    assert warm.lam == pytest.approx(cold.lam)
    assert max(warm.kkt, cold.kkt) < 2e-3
    np.testing.assert_allclose(warm.decision(joined), cold.decision(joined), atol=0.05)


@pytest.mark.parametrize(("old", "new"), [("3", "3"), ("3", "2"), ("2", "2"), ("2", "3"), ("lists of 2", "lists of 3")])
def test_a_start_is_the_same_function_of_raw_activations(old: str, new: str) -> None:
    """Of each class by its name, whatever the standardizer; a class that is new has no coefficients."""
    classes = TASKS[old].classes
    probe = fit_probe(make_rows(0, 200, TASKS[old]), make_rows(1, 90, TASKS[old]), TASKS[old])
    label_space = LabelSpace(tuple(reversed(TASKS[new].classes)), TASKS[new].multilabel)
    X = make_rows(2, 50)[0]
    standardizer = Standardizer.fit(X + 1)
    coef, intercept = ProbeStart(probe, tuple(classes)).coefficients(standardizer, label_space)
    found = standardizer.transform(X) @ coef.T + intercept
    known = probe.decision(X)
    expected = dict(zip(classes, np.c_[-known, known].T if known.shape[1] == 1 else known.T, strict=True))
    wanted = label_space.classes[1:] if found.shape[1] == 1 else label_space.classes
    for logits, name in zip(found.T, wanted, strict=True):
        np.testing.assert_allclose(logits, expected.get(name, np.zeros(50)), atol=1e-3)


def test_a_start_without_neurons_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the penalty that keeps no neuron the search goes on to smaller ones."""
    X, y = make_rows(0, 300)
    valid = make_rows(1, 90)
    noise = fit_probe((np.random.default_rng(0).normal(size=X.shape).astype(np.float32), y), valid)
    nothing = replace(noise, coef=np.zeros_like(noise.coef), lam=noise.lam_max)
    joined, targets, fold = join_rows((X, y), valid)
    data = TrainingData(targets, (fold,), TASKS["2"], "macro_f1")
    [probe] = fit_probes({COLUMN: joined}, data, ProbeSettings(), {COLUMN: ProbeStart(nothing, ("a", "b"))})
    assert probe.coef.any()
    assert probe.kkt < 2e-3
