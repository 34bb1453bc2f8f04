"""The stack of several sources: its weights and biases have the least loss, and its head gives the weighted sum."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from spin.arrays import Floats
from spin.heads import stack as module
from spin.heads.calibration import calibration_error, fit_temperature, log_loss
from spin.heads.linear_head import LinearHead
from spin.heads.network_head import NetworkHead
from spin.heads.stack import Source, Stack, fit_stack
from spin.labels.label_space import LabelSpace, Targets

MULTICLASS = LabelSpace(("a", "b", "c"))
LABEL_SPACES = {"multi-class": MULTICLASS, "multi-label": LabelSpace(("a", "b", "c"), multilabel=True)}


def make_evidence(label_space: LabelSpace, n: int = 3000) -> tuple[dict[Source, Floats], Targets]:
    """Two independent sources of evidence, whose best weights are 0.5 and 2."""
    draw = np.random.default_rng(0)
    of_neurons, of_words = (draw.normal(size=(n, 3)).astype(np.float32) * scale for scale in (2.0, 0.5))
    sources: dict[Source, Floats] = {"neurons": of_neurons, "words": of_words}
    probabilities = label_space.probabilities(0.5 * of_neurons + 2 * of_words)
    if label_space.multilabel:
        return sources, draw.random((n, 3)) < probabilities
    return sources, np.array([draw.choice(3, p=p / p.sum()) for p in probabilities.astype(float)])


def plain_loss(values: Floats, sources: dict[Source, Floats], y: Targets, label_space: LabelSpace) -> float:
    """The penalised log loss of two weights and three biases, one document and class after another.

    The weights are those of logits over their temperatures.
    """
    n, total = len(y), float(((values[0] - 1) ** 2 + values[1] ** 2) / (2 * 0.3**2) + (values[2:] ** 2).sum() / 8)
    for row in range(n):
        logits = values[0] * sources["neurons"][row] + values[1] * sources["words"][row] + values[2:]
        for k, p in enumerate(label_space.probabilities(logits[None])[0]):
            has = bool(y[row, k]) if label_space.multilabel else y[row] == k
            sides = 2 if label_space.multilabel else 3
            target = (1 - 1 / (n + 2)) * has + 1 / (n + 2) / sides
            total -= target * np.log(p) + label_space.multilabel * (1 - target) * np.log(1 - p)
    return float(total)


@pytest.mark.slow
@pytest.mark.parametrize("kind", LABEL_SPACES)
def test_weights_and_biases_are_the_minimum_that_a_plain_loop_finds(kind: str) -> None:
    """Nelder and Mead's method, which needs no derivative, finds no smaller loss and about the same values."""
    label_space = LABEL_SPACES[kind]
    sources, y = make_evidence(label_space, 60)
    stack = fit_stack(sources, y, label_space)
    temperatures = {name: fit_temperature(values, y, label_space) for name, values in sources.items()}
    actual = np.array([*(stack.weight(name) * t for name, t in temperatures.items()), *stack.bias])
    options = {"xatol": 1e-6, "fatol": 1e-9, "maxiter": 4000, "maxfev": 4000}
    arguments = (
        {name: values.astype(np.float64) / temperatures[name] for name, values in sources.items()},
        y,
        label_space,
    )
    oracle = minimize(plain_loss, np.array([1.0, 0, 0, 0, 0]), arguments, "Nelder-Mead", options=options)
    assert plain_loss(actual, *arguments) == pytest.approx(oracle.fun, rel=1e-6)
    assert actual == pytest.approx(oracle.x, abs=1e-2)


@pytest.mark.parametrize("kind", LABEL_SPACES)
def test_weights_are_those_that_made_the_targets(kind: str) -> None:
    label_space = LABEL_SPACES[kind]
    stack = fit_stack(*make_evidence(label_space), label_space)
    assert stack.neurons == pytest.approx(0.5, abs=0.1)
    assert stack.words == pytest.approx(2, abs=0.4)
    assert stack.network == 0
    assert max(map(abs, stack.bias)) < 0.2


def test_a_useless_source_has_no_weight() -> None:
    sources, y = make_evidence(MULTICLASS)
    both = sources["neurons"] + 2 * sources["words"]
    assert fit_stack({"neurons": both, "words": -sources["words"]}, y, MULTICLASS).words == 0


def test_few_documents_leave_the_weights_near_those_of_neurons_alone() -> None:
    """Six documents that the words happen to name do not make words count as much as the neurons; 600 do."""
    draw = np.random.default_rng(0)
    for count, words_lead in ((6, False), (600, True)):
        y = np.arange(count) % 3
        evidence = np.eye(3)[y] + draw.normal(0, 0.7, (count, 3))
        sources: dict[Source, Floats] = {"neurons": evidence, "words": np.eye(3)[y]}
        stack = fit_stack(sources, y, MULTICLASS)
        assert (stack.share("words", sources) > stack.share("neurons", sources)) == words_lead


@pytest.mark.parametrize("kind", LABEL_SPACES)
def test_a_document_that_validates_twice_counts_once(kind: str) -> None:
    """With its predictions twice, the priors would weigh half as much as they do against as many documents."""
    label_space = LABEL_SPACES[kind]
    sources, y = make_evidence(label_space, 48)
    twice: dict[Source, Floats] = {name: np.repeat(values, 2, axis=0) for name, values in sources.items()}
    once, again = fit_stack(sources, y, label_space), fit_stack(twice, np.repeat(y, 2, axis=0), label_space, repeats=2)
    assert [*again.bias, again.neurons, again.words] == pytest.approx([*once.bias, once.neurons, once.words], abs=1e-3)


def test_the_scale_of_a_source_does_not_matter() -> None:
    """As little documents as there may be: a strongly regularised head has small logits."""
    sources, y = make_evidence(MULTICLASS, 40)
    small = sources | {"neurons": sources["neurons"] / 10}
    logits, of_small = (fit_stack(each, y, MULTICLASS).logits(each) for each in (sources, small))
    np.testing.assert_allclose(logits, of_small, atol=0.02)


def test_separable_evidence_has_finite_weights() -> None:
    y = np.arange(30) % 3
    perfect = np.eye(3, dtype=np.float32)[y]
    stack = fit_stack({"neurons": perfect, "words": perfect}, y, MULTICLASS)
    assert 0 < stack.neurons + stack.words < 20


def test_large_samples_are_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    sources, y = make_evidence(MULTICLASS)
    monkeypatch.setattr(module, "_MOST_ROWS", 1000)
    third: dict[Source, Floats] = {name: values[::3] for name, values in sources.items()}
    assert fit_stack(sources, y, MULTICLASS) == fit_stack(third, y[::3], MULTICLASS)


def draw_balanced(label_space: LabelSpace, seed: int, n: int) -> tuple[Floats, Targets]:
    """Twice the logits of a model that takes classes of shares 0.9, 0.08 and 0.02 for equally frequent, and targets.

    In a multi-label task the shares are 0.5, 0.1 and 0.03.
    """
    draw = np.random.default_rng(seed)
    if label_space.multilabel:
        y: Targets = draw.random((n, 3)) < [0.5, 0.1, 0.03]
        return (2 * (2 * y - 1.0 + draw.normal(size=(n, 3))) * 2).astype(np.float32), y
    y, means = draw.choice(3, n, p=[0.9, 0.08, 0.02]), np.array([[0.0, 0.0], [1.6, 0.0], [2.4, 0.0]])
    evidence = means[y] + draw.normal(size=(n, 2))
    return -np.square(evidence[:, None] - means).sum(2).astype(np.float32), y


@pytest.mark.parametrize("kind", LABEL_SPACES)
def test_biases_calibrate_logits_of_other_class_shares(kind: str) -> None:
    """The biases are the log shares of the classes, up to a constant, and the error on new documents is small.

    A temperature alone leaves several times the error.
    """
    label_space = LABEL_SPACES[kind]
    (held_out, y), (others, other_y) = draw_balanced(label_space, 0, 4_000), draw_balanced(label_space, 1, 20_000)
    stack = fit_stack({"neurons": held_out}, y, label_space)
    expected = np.log([0.9, 0.08, 0.02])
    if label_space.multilabel:
        expected = np.log([0.5, 0.1, 0.03]) - np.log1p([-0.5, -0.1, -0.03])
    centred = np.array(stack.bias) - (0 if label_space.multilabel else np.mean(stack.bias) - expected.mean())
    assert centred == pytest.approx(expected, abs=0.3)
    assert stack.neurons == pytest.approx(0.5, rel=0.1)
    errors = [
        calibration_error(label_space.probabilities(logits), other_y, label_space)
        for logits in (stack.logits({"neurons": others}), others / fit_temperature(held_out, y, label_space))
    ]
    assert errors[0] < 0.015
    assert errors[1] > 3 * errors[0]


def test_two_sources_that_know_the_shares_do_not_count_them_twice() -> None:
    """Both hold the prior of a rare class, which their sum would count twice; the biases take it back."""
    draw, shares = np.random.default_rng(0), np.array([0.9, 0.08, 0.02])
    y = draw.choice(3, 8000, p=shares)
    evidence = [2 * np.eye(3)[y] + draw.normal(size=(8000, 3)) for _ in range(2)]
    sources: dict[Source, Floats] = {
        "neurons": 2 * evidence[0] + np.log(shares),
        "words": 2 * evidence[1] + np.log(shares),
    }
    stack = fit_stack({name: logits[:4000] for name, logits in sources.items()}, y[:4000], MULTICLASS)
    new = MULTICLASS.probabilities(stack.logits({name: logits[4000:] for name, logits in sources.items()}))
    assert new.mean(0) == pytest.approx(shares, abs=0.01)
    summed = MULTICLASS.probabilities(sources["neurons"] + sources["words"])
    assert summed.mean(0)[2] < 0.8 * 0.02


@pytest.mark.parametrize("kind", LABEL_SPACES)
def test_a_class_without_held_out_documents_is_not_moved_far(kind: str) -> None:
    """The prior counts as about one document: without it the class gets a third of its probability, or less."""
    label_space, y = LABEL_SPACES[kind], np.arange(400) % 2
    sources: dict[Source, Floats] = {"neurons": np.zeros((400, 3), np.float32)}
    targets = MULTICLASS.indicator(y) if label_space.multilabel else y
    probabilities = label_space.probabilities(fit_stack(sources, targets, label_space).logits(sources))
    assert 1 < 400 * probabilities[0, 2] < 3


def test_the_share_of_a_source_is_that_of_the_spread() -> None:
    sources: dict[Source, Floats] = {"neurons": np.array([[1.0, -1.0]]), "words": np.array([[3.0, -3.0]])}
    assert Stack((0.0, 0.0), 1.0, 1.0).share("words", sources) == 0.75
    assert Stack((0.0, 0.0), 0.0, 0.0).share("words", sources) == 0


@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("network", [False, True])
def test_the_head_of_a_stack_gives_the_weighted_sum(words: bool, network: bool) -> None:
    draw = np.random.default_rng(0)

    def values(*shape: int) -> Floats:
        return draw.normal(size=shape).astype(np.float32)

    head, X, of_words = LinearHead(values(3, 5), values(3)), values(7, 5), values(7, 3)
    beside = NetworkHead(np.zeros((3, 5), np.float32), values(3), values(4, 5), values(4), values(3, 4))
    stack = Stack((0.5, -1.0, 2.0), 0.7, 1.3 * words, 0.4 * network)
    scale = np.array([0.5, 1, 2], np.float32)
    joined = stack.join(head, network=beside if network else None, word_scale=scale if words else None)
    assert type(joined) is (NetworkHead if network else LinearHead)
    assert all(tensor.dtype == np.float32 for tensor in joined.to_tensors().values())
    read = np.concatenate([of_words / scale, X], axis=1) if words else X
    expected = 0.7 * head.logits(X) + 1.3 * words * of_words + 0.4 * network * beside.logits(X) + [0.5, -1, 2]
    np.testing.assert_allclose(joined.logits(read), expected, rtol=1e-4, atol=1e-5)
    sources: dict[Source, Floats] = {"neurons": head.logits(X), "words": of_words, "network": beside.logits(X)}
    np.testing.assert_allclose(stack.logits(sources), expected, rtol=1e-4, atol=1e-5)


def test_words_without_weight_are_features_all_the_same() -> None:
    """An exit reads the features of the whole classifier, also where words are worth nothing there."""
    head = LinearHead(np.ones((2, 3), np.float32), np.zeros(2, np.float32))
    joined = Stack((0.0, 0.0), 1.0).join(head, word_scale=np.ones(2, np.float32))
    assert joined.coef.tolist() == [[0, 0, 1, 1, 1]] * 2


def test_without_any_weight_the_logits_are_the_biases() -> None:
    logits = Stack((0.5, -1.0)).logits({"neurons": np.ones((3, 2), np.float32)})
    assert logits.tolist() == [[0.5, -1.0]] * 3


def test_a_stack_is_no_worse_than_its_best_source() -> None:
    sources, y = make_evidence(MULTICLASS)
    stacked = log_loss(fit_stack(sources, y, MULTICLASS).logits(sources), y, MULTICLASS)
    for name, logits in sources.items():
        alone = fit_stack({name: logits}, y, MULTICLASS)
        assert stacked <= log_loss(alone.logits({name: logits}), y, MULTICLASS) + 1e-3
