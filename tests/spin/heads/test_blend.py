"""The blend of neurons and words: its weights have the least log loss, and its head gives the weighted sum."""

from __future__ import annotations

import numpy as np
import pytest

from spin.arrays import Floats
from spin.heads import blend as module
from spin.heads.blend import Blend, fit_blend
from spin.heads.calibration import log_loss
from spin.heads.linear_head import LinearHead
from spin.heads.mlp_head import MlpHead
from spin.labels.label_space import LabelSpace, Targets

LABEL_SPACES = {"multi-class": LabelSpace(("a", "b", "c")), "multi-label": LabelSpace(("a", "b", "c"), multilabel=True)}


def make_evidence(label_space: LabelSpace, n: int = 3000) -> tuple[Floats, Floats, Targets]:
    """Two independent sources of evidence, whose best weights are 0.5 and 2."""
    draw = np.random.default_rng(0)
    of_neurons, of_words = (draw.normal(size=(n, 3)).astype(np.float32) * scale for scale in (2.0, 0.5))
    probabilities = label_space.probabilities(0.5 * of_neurons + 2 * of_words)
    if label_space.multilabel:
        return of_neurons, of_words, draw.random((n, 3)) < probabilities
    return of_neurons, of_words, np.array([draw.choice(3, p=p / p.sum()) for p in probabilities.astype(float)])


@pytest.mark.parametrize("kind", LABEL_SPACES)
def test_weights_have_the_least_log_loss(kind: str) -> None:
    """They are near those that made the targets, and no point of a fine grid is better."""
    label_space = LABEL_SPACES[kind]
    evidence = make_evidence(label_space)
    of_neurons, of_words, y = evidence
    blend = fit_blend(*evidence, label_space)
    assert blend.neurons == pytest.approx(0.5, abs=0.1)
    assert blend.other == pytest.approx(2, abs=0.3)
    best = log_loss(blend.logits(of_neurons, of_words), y, label_space)
    for a in np.linspace(0.3, 0.7, 9):
        for b in np.linspace(1.5, 2.5, 11):
            assert best <= log_loss(Blend(a, b).logits(of_neurons, of_words), y, label_space) + 1e-4


def test_useless_words_have_no_weight() -> None:
    label_space = LABEL_SPACES["multi-class"]
    of_neurons, of_words, y = make_evidence(label_space)
    assert fit_blend(of_neurons + 2 * of_words, -of_words, y, label_space).other == 0


def test_separable_evidence_has_finite_weights() -> None:
    label_space = LABEL_SPACES["multi-class"]
    y = np.arange(30) % 3
    perfect = np.eye(3, dtype=np.float32)[y]
    blend = fit_blend(perfect, perfect, y, label_space)
    assert 0 < blend.neurons + blend.other < 20


def test_large_samples_are_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    label_space = LABEL_SPACES["multi-class"]
    of_neurons, of_words, y = make_evidence(label_space)
    monkeypatch.setattr(module, "_MOST_ROWS", 1000)
    thinned = fit_blend(of_neurons, of_words, y, label_space)
    assert thinned == fit_blend(of_neurons[::3], of_words[::3], y[::3], label_space)


@pytest.mark.parametrize("mlp", [False, True])
def test_the_head_of_a_blend_gives_the_weighted_sum(mlp: bool) -> None:
    draw = np.random.default_rng(0)

    def values(*shape: int) -> Floats:
        return draw.normal(size=shape).astype(np.float32)

    head: LinearHead = LinearHead(values(3, 5), values(3))
    if mlp:
        head = MlpHead(*vars(head).values(), values(4, 5), values(4), values(3, 4))
    X, of_words, blend = values(7, 5), values(7, 3), Blend(0.7, 1.3)
    scale = np.array([0.5, 1, 2], np.float32)
    joined = blend.fold_into(head, scale).logits(np.concatenate([of_words / scale, X], axis=1))
    np.testing.assert_allclose(joined, 0.7 * head.logits(X) + 1.3 * of_words, rtol=1e-4, atol=1e-5)
