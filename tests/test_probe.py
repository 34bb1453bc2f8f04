"""A probe: standardised on its training rows, chosen on its validation rows, the same after a round trip."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import spin.probe
from spin.lasso import LogisticPath
from spin.metric import score
from spin.probe import Probe, classes_of, fit_probe, signs, standardisation
from spin.settings import ProbeSettings
from spin.sites import Column, Site
from tests.test_lasso import loop_violation

COLUMN = Column(Site(2, "ffn"), "mean")
Rows = tuple[NDArray[np.floating], NDArray[np.int64]]


def rows(seed: int, n: int, classes: int, width: int = 20, dtype: type = np.float32) -> Rows:
    """Raw activations far from standardised, whose first neurons move with the class."""
    draw = np.random.default_rng(seed)
    y = np.arange(n) % classes
    X = draw.normal(size=(n, width))
    X[:, :classes] += 2.5 * np.eye(classes)[y]
    return (X * np.geomspace(0.1, 10, width) + np.linspace(-5, 5, width)).astype(dtype), y


def fit(train: Rows, valid: Rows, classes: int, **changed: float) -> Probe:
    given = ProbeSettings(**changed)
    return fit_probe(COLUMN, train, valid, classes, metric="macro_f1", settings=given)


@pytest.mark.parametrize(("classes", "heads"), [(2, 1), (3, 3)])
def test_classes_share_one_penalty(classes: int, heads: int) -> None:
    """Two classes need one model, three need three; all are optimal at one penalty of one grid, which works."""
    train, valid = rows(0, 150, classes), rows(1, 90, classes)
    probe = fit(train, valid, classes)
    assert probe.coef.shape == (heads, 20)
    assert probe.intercept.shape == (heads,)
    standard = ((train[0] - probe.mean) / probe.scale).astype(np.float32)
    targets = signs(train[1], classes)
    assert probe.lam_max == pytest.approx(max(LogisticPath(standard, y).lam_max for y in targets))
    steps = np.log(probe.lam / probe.lam_max) / np.log(1 / 30) * 9
    assert steps == pytest.approx(round(steps), abs=1e-6)
    violations = [
        loop_violation(standard, y, w, b, probe.lam)
        for y, w, b in zip(targets, probe.coef, probe.intercept, strict=True)
    ]
    assert max(violations) <= 1e-2
    assert probe.kkt == pytest.approx(max(violations), abs=1e-4)
    assert probe.valid_score == score("macro_f1", valid[1], probe.predict(valid[0])) > 0.8


def test_the_mirrored_class_is_the_positive_one() -> None:
    """With one model, a positive logit means class 1; with three, the largest logit wins."""
    assert classes_of(np.array([[-1.0], [2.0]])).tolist() == [0, 1]
    assert classes_of(np.array([[-1.0, -3.0, -2.0], [-5.0, -4.0, -3.0]])).tolist() == [0, 2]
    assert [t.tolist() for t in signs(np.array([0, 1]), 2)] == [[-1, 1]]
    assert [t.tolist() for t in signs(np.array([0, 2]), 3)] == [[1, -1], [-1, -1], [-1, 1]]


def test_standardisation_sees_training_rows_only() -> None:
    """Mean and scale are the training rows', whatever the validation rows hold; decision applies both."""
    train, valid = rows(0, 120, 2), rows(1, 60, 2)
    probe = fit(train, valid, 2)
    np.testing.assert_allclose(probe.mean, train[0].mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(probe.scale, train[0].std(0), rtol=1e-4)
    moved = fit(train, (valid[0] * 3 + 100, valid[1]), 2)
    np.testing.assert_array_equal(probe.mean, moved.mean)
    np.testing.assert_array_equal(probe.scale, moved.scale)
    by_hand = ((valid[0] - train[0].mean(0)) / train[0].std(0)) @ probe.coef[0] + probe.intercept[0]
    np.testing.assert_allclose(probe.decision(valid[0])[:, 0], by_hand, atol=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_neuron_that_never_varies_is_left_out(dtype: type) -> None:
    """It gives no NaN and takes no weight, in validation too, where it does vary."""
    train, valid = rows(0, 120, 2, dtype=dtype), rows(1, 60, 2, dtype=dtype)
    train[0][:, [3, 4]] = [0.0, 301.3]
    probe = fit(train, valid, 2)
    assert not probe.coef[:, [3, 4]].any()
    assert probe.scale[[3, 4]].tolist() == [1, 1]
    assert np.isfinite(probe.decision(valid[0])).all()
    assert probe.valid_score > 0.8


def test_a_silent_layer_gives_a_probe_without_neurons() -> None:
    """Where no neuron varies but for rounding, as at the embedded [CLS] token, the probe is finite and empty."""
    (values, y), noise = rows(0, 60, 3), np.random.default_rng(0).normal(size=(60, 20))
    for constant, rounding in [(0.0, 0), (0.1, 0), (-301.3, 0), (0.5, 1e-7), (301.3, 1e-5)]:
        values[:] = constant + rounding * noise
        probe = fit((values, y), (values, y), 3)  # validation on its own noise would reward it
        assert not probe.coef.any()
        assert not probe.importance.any()
        assert np.isfinite([probe.lam, probe.lam_max, probe.kkt, *probe.intercept]).all()


def test_float16_activations_work() -> None:
    """Stored as float16, activations give nearly the probe that they give as float32, even when they are large."""
    train, valid = rows(0, 400, 3), rows(1, 90, 3)
    for of in (train, valid):
        of[0][:, 19] += 20000  # a sum of 400 such values leaves float16's range
    half = fit((train[0].astype(np.float16), train[1]), (valid[0].astype(np.float16), valid[1]), 3)
    full = fit((train[0].astype(np.float16).astype(np.float32), train[1]), valid, 3)
    np.testing.assert_allclose(half.mean, full.mean, rtol=1e-5)
    np.testing.assert_allclose(half.coef, full.coef, atol=1e-4)
    assert np.isfinite(half.coef).all()
    assert half.valid_score > 0.8


@pytest.mark.parametrize(
    ("scores", "tried", "chosen"),
    [
        ([0.1, 0.5, 0.4, 0.4, 9, 9], 4, 1),  # the last of the path did not improve: no more
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 6, 5),  # improving all along: to the last extra
        ([0.1, 0.2, 0.3, 0.4, 0.4, 9], 5, 3),  # a tie is no improvement and keeps the larger penalty
        ([0.5, 0.1, 0.1, 0.6, 0.2, 9], 5, 3),
    ],
)
def test_path_goes_on_only_while_validation_improves(
    monkeypatch: pytest.MonkeyPatch, scores: list[float], tried: int, chosen: int
) -> None:
    """After lam_max, which has no neuron to score, four penalties and two extra ones: the score says how far."""
    seen: list[float] = []
    script: Iterator[float] = iter(scores)

    def scripted(metric: str, true: object, predicted: object) -> float:
        seen.append(next(script))
        return seen[-1]

    monkeypatch.setattr(spin.probe, "score", scripted)
    probe = fit(rows(0, 60, 2), rows(1, 30, 2), 2, penalties=5, max_extra=2, min_ratio=0.1)
    assert len(seen) == tried
    assert probe.lam == pytest.approx(probe.lam_max * 0.1 ** ((chosen + 1) / 4))
    assert probe.valid_score == scores[chosen]


def test_neurons_are_kept_even_where_guessing_is_better() -> None:
    """A layer that misleads on the validation rows gives its neurons nonetheless, at the penalty that harms least."""
    X, y = rows(0, 120, 2)
    rare = np.concatenate([np.flatnonzero(y == 0), np.flatnonzero(y == 1)[:8]])
    probe = fit((X[rare], y[rare]), (X, 1 - y), 2)
    assert probe.coef.any()
    assert probe.lam < probe.lam_max
    assert 0 <= probe.valid_score < 0.5


def test_standardisation_of_a_huge_constant_is_exact() -> None:
    """A deviation that is rounding noise counts as none."""
    mean, scale = standardisation(np.full((1000, 1), 12345.678, np.float32))
    assert scale.tolist() == [1]
    assert mean[0] == np.float32(12345.678)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 1000), st.floats(allow_nan=False, allow_infinity=False))
def test_bytes_round_trip(heads: int, width: int, seed: int, fact: float) -> None:
    """A probe of any shape comes back bit for bit, its facts too."""
    draw = np.random.default_rng(seed)
    coef, intercept, mean, scale = (
        draw.normal(size=shape).astype(np.float32) for shape in [(heads, width), heads, width, width]
    )
    probe = Probe(COLUMN, coef, intercept, mean, scale, fact, 0.25, 1e-3, 0.5)
    back = Probe.from_bytes(probe.to_bytes())
    for name in ("coef", "intercept", "mean", "scale"):
        np.testing.assert_array_equal(getattr(back, name), getattr(probe, name))
        assert getattr(back, name).dtype == np.float32
    assert (back.column, back.lam, back.lam_max, back.kkt, back.valid_score) == (COLUMN, fact, 0.25, 1e-3, 0.5)
