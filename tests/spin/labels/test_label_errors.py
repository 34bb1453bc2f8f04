"""Flipped labels are found, as by a plain loop over the rule of confident learning."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spin.labels.label_errors import LabelCheck, find_suspects
from spin.labels.label_space import LabelSpace

THREE = LabelSpace(("a", "b", "c"))
LISTS = LabelSpace(("a", "b", "c"), multilabel=True)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40))
def test_suspects_equal_a_plain_loop(seed: int, n: int) -> None:
    """Also where a class has no row."""
    draw = np.random.default_rng(seed)
    probabilities, y = draw.dirichlet(np.ones(3), n), draw.integers(0, 3, n)
    thresholds = [np.mean(probabilities[y == k, k]) if (y == k).any() else np.inf for k in range(3)]
    expected = []
    for row in range(n):
        confident = [k for k in range(3) if probabilities[row, k] >= thresholds[k]]
        contradicted = bool(confident) and max(confident, key=lambda k: probabilities[row, k]) != y[row]
        expected.append(contradicted and probabilities[row].argmax() != y[row])
    assert find_suspects(probabilities, y).tolist() == expected


def test_flipped_labels_are_suspect_and_lead_by_margin() -> None:
    """Of 1,000 labels 100 are flipped; the model is right in nine of ten documents."""
    draw = np.random.default_rng(0)
    truth = draw.integers(0, 3, 1000)
    logits = 4.0 * np.eye(3)[truth] + draw.gumbel(size=(1000, 3))
    y, flipped = truth.copy(), np.arange(1000) < 100
    y[flipped] = (y[flipped] + 1) % 3
    check = LabelCheck.of(THREE.probabilities(logits), y, THREE)
    assert check.suspect[flipped].mean() > 0.8
    assert check.suspect[~flipped].mean() < 0.05
    assert flipped[np.argsort(-check.margin)[:80]].mean() > 0.95
    assert ((check.margin == 0) == (check.predicted == y)).all()


def test_a_label_that_is_predicted_is_never_suspect() -> None:
    """Where little is known, half of the labels lie below the mean probability of their class."""
    draw = np.random.default_rng(0)
    y = (draw.random(2000) < 0.05).astype(np.int64)
    right = np.clip(draw.normal(0.94, 0.02, 2000), 0, 1)
    check = LabelCheck.of(np.stack([right, 1 - right], axis=1), y, LabelSpace(("a", "b")))
    assert not check.suspect[y == 0].any()
    assert ((check.margin > 0) >= check.suspect).all()


def test_a_wrong_class_of_a_list_makes_it_suspect() -> None:
    draw = np.random.default_rng(1)
    truth = draw.random((600, 3)) < 0.4
    probabilities = np.where(truth, 0.95, 0.05) + draw.uniform(-0.04, 0.04, truth.shape)
    y = truth.copy()
    y[:50, 2] ^= True
    check = LabelCheck.of(probabilities, y, LISTS)
    assert check.suspect[:50].all()
    assert not check.suspect[50:].any()
    assert check.margin[:50].min() > 0.8
    assert check.margin[50:].max() == pytest.approx(0)
    np.testing.assert_array_equal(check.predicted, truth)
