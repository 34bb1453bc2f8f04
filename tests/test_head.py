"""The head is scikit-learn's; integration chooses on validation rows and says what it chose from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from spin.errors import UserError
from spin.head import LinearHead, fit_head
from spin.integrate import Integration, integrate, search_size
from spin.metric import score
from spin.probe import Probe, fit_probe
from spin.select import Selection, select
from spin.settings import ProbeSettings, SearchSettings
from spin.sites import Column

Floats = NDArray[np.floating]


def standard(seed: int, classes: int, n: int = 400, p: int = 15) -> tuple[Floats, NDArray[np.int64]]:
    """Standardised features of overlapping, unbalanced classes."""
    draw = np.random.default_rng(seed)
    y = np.minimum(draw.integers(0, classes + 1, n), classes - 1)
    X = draw.normal(size=(n, p)) + np.eye(p)[y] * 1.5
    return ((X - X.mean(0)) / X.std(0)).astype(np.float32), y


def head_objective(head: LinearHead, X: Floats, y: NDArray[np.int64]) -> float:
    """The regularised loss whose minimum does not depend on where a fit starts, for the K class form."""
    logits = head.logits(X.astype(np.float64))
    loss = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(y)), y]
    # two mirrored rows w/2 and -w/2 stand for one row w
    penalty = (head.coef.astype(np.float64) ** 2).sum() * (2 if len(head.coef) == 2 else 1)
    return float(loss.sum() * head.strength + penalty / 2)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("strength", [1e-4, 1e-2, 3e-2])
def test_head_is_plain_logistic_regression(classes: int, strength: float) -> None:
    """Probabilities and labels are scikit-learn's at a far tighter tolerance; coefficients sum to zero by class."""
    X, y = standard(0, classes)
    head = fit_head(X, y, strength)
    reference = LogisticRegression(C=strength, tol=1e-8, max_iter=10000).fit(X, y)
    assert head.coef.shape == (classes, X.shape[1])
    np.testing.assert_allclose(head.predict_proba(X), reference.predict_proba(X), atol=5e-3)
    np.testing.assert_allclose(head.predict_proba(X).sum(1), 1, atol=1e-6)
    sure = np.sort(reference.predict_proba(X), axis=1)
    sure = sure[:, -1] - sure[:, -2] > 0.02
    assert (head.predict(X) == reference.predict(X))[sure].all()
    np.testing.assert_allclose(head.coef.sum(0), 0, atol=1e-5)
    assert abs(head.intercept.sum()) < 1e-5


@pytest.mark.parametrize("classes", [2, 3])
def test_a_warm_start_reaches_the_same_optimum(classes: int) -> None:
    """From a stronger penalty's head, from nonsense and from nothing: the same minimum."""
    X, y = standard(1, classes)
    cold = fit_head(X, y, 1e-2)
    draw = np.random.default_rng(0)
    nonsense = LinearHead(draw.normal(size=cold.coef.shape), draw.normal(size=classes), 1.0)
    for start in (fit_head(X, y, 1e-4), fit_head(X, y, 1.0), nonsense):
        warm = fit_head(X, y, 1e-2, start=start)
        assert head_objective(warm, X, y) == pytest.approx(head_objective(cold, X, y), rel=1e-4)
        np.testing.assert_allclose(warm.predict_proba(X), cold.predict_proba(X), atol=1e-2)
        np.testing.assert_allclose(warm.coef.sum(0), 0, atol=1e-5)


def test_a_warm_start_from_the_optimum_stays_there() -> None:
    """The start is used: begun from its own solution the fit does not move, in either form of the head."""
    for classes in (2, 3):
        X, y = standard(2, classes)
        done = fit_head(X, y, 1e-2)
        again = fit_head(X, y, 1e-2, start=done)
        np.testing.assert_allclose(again.coef, done.coef, atol=1e-5)
        np.testing.assert_allclose(again.intercept, done.intercept, atol=1e-5)


@dataclass
class Project:
    """Activations of four layers under two poolings, labels, rows of each split, and the probes of it."""

    activations: dict[Column, Floats]
    y: NDArray[np.int64]
    train: NDArray[np.int64]
    valid: NDArray[np.int64]
    test: NDArray[np.int64]
    probes: list[Probe]

    def read(self, selection: Selection) -> Floats:
        return np.concatenate([self.activations[c][:, n] for c, n in selection.neurons.items()], axis=1)

    def integrate(self, settings: SearchSettings) -> Integration:
        train, valid = (self.train, self.y[self.train]), (self.valid, self.y[self.valid])
        return integrate(self.probes, self.read, train, valid, metric="accuracy", settings=settings)

    def aligned(self, selection: Selection, rows: NDArray[np.int64]) -> Floats:
        """The feature matrix of some rows, standardised on the training rows by plain numpy."""
        raw = self.read(selection).astype(np.float64)
        spread = raw[self.train].std(0)
        return ((raw - raw[self.train].mean(0)) / spread)[rows].astype(np.float32)

    def refit(self, selection: Selection, strength: float) -> float:
        """The validation score of scikit-learn's classifier on a selection."""
        model = LogisticRegression(C=strength, tol=1e-6, max_iter=10000)
        model.fit(self.aligned(selection, self.train), self.y[self.train])
        predicted = model.predict(self.aligned(selection, self.valid))
        return score("accuracy", self.y[self.valid], predicted)


def project(seed: int = 0, signal: float = 0.8, classes: int = 3, n: int = 360) -> Project:
    """Each layer shows the class through two of its twelve neurons, at another scale than the next."""
    draw = np.random.default_rng(seed)
    y = np.arange(n) % classes
    columns = [Column.parse(f"ffn.{layer:02d}.{pooling}") for layer in (1, 2, 3, 4) for pooling in ("max", "mean")]
    activations = {}
    for column in columns:
        values = draw.normal(size=(n, 12))
        values[:, :classes] += signal * np.eye(classes)[y]
        activations[column] = (values * 10.0**column.site.layer + 3).astype(np.float32)
    order = draw.permutation(n)
    train, valid, test = order[: n // 2], order[n // 2 : 3 * n // 4], order[3 * n // 4 :]
    given = ProbeSettings(penalties=5)
    probes = [
        fit_probe(c, (a[train], y[train]), (a[valid], y[valid]), classes, metric="accuracy", settings=given)
        for c, a in activations.items()
    ]
    return Project(activations, y, train, valid, test, probes)


SEARCH = SearchSettings(etas=(0.3, 0.6), strengths=(1e-4, 1e-3, 1e-2))


def test_test_rows_change_nothing() -> None:
    """Whatever the test rows hold, NaN included, the choice and the head are the same bit for bit."""
    subject = project()
    before = subject.integrate(SEARCH)
    for values in subject.activations.values():
        values[subject.test] = np.nan
    subject.y[subject.test] = 77
    after = subject.integrate(SEARCH)
    assert after.describe() == before.describe()
    assert after.selection.rows() == before.selection.rows()
    np.testing.assert_array_equal(after.head.coef, before.head.coef)


def test_validation_rows_choose() -> None:
    """With the validation labels of a layer's opposite, the choice changes: those rows are what chooses."""
    subject = project()
    before = subject.integrate(SEARCH)
    subject.y[subject.valid] = (subject.y[subject.valid] + 1) % 3
    assert subject.integrate(SEARCH).valid_score < before.valid_score


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_frontier_equals_an_independent_refit(seed: int) -> None:
    """Depths rise, every point is what a refit from raw activations scores, and the best of them was chosen."""
    subject = project(seed)
    found = subject.integrate(SEARCH)
    depths = [point.depth for point in found.frontier]
    assert depths == sorted(set(depths)) == [1, 2, 3, 4]
    a_document = 1 / len(subject.valid)  # on the boundary, a looser tolerance may fall on the other side
    for point in found.frontier:
        selection = select(subject.probes, point.eta).upto(point.depth)
        assert point.neurons == len(selection)
        assert subject.refit(selection, point.strength) == pytest.approx(point.valid_score, abs=1.01 * a_document)
    best = max(point.valid_score for point in found.frontier)
    assert found.valid_score == best
    assert len(found.selection) == min(p.neurons for p in found.frontier if p.valid_score == best)
    at_full_depth = max(
        subject.refit(select(subject.probes, eta), strength) for eta in SEARCH.etas for strength in SEARCH.strengths
    )
    assert found.frontier[-1].valid_score == pytest.approx(at_full_depth, abs=1.01 * a_document)


def test_integration_standardises_on_the_training_rows() -> None:
    """The chosen head scores what it claims from raw activations aligned by the integration itself."""
    subject = project()
    found = subject.integrate(SEARCH)
    raw = subject.read(found.selection)
    np.testing.assert_allclose(
        found.standardise(raw)[subject.valid], subject.aligned(found.selection, subject.valid), atol=1e-3
    )
    predicted = found.head.predict(found.standardise(raw[subject.valid]))
    assert score("accuracy", subject.y[subject.valid], predicted) == found.valid_score


def test_a_tie_goes_to_fewer_neurons() -> None:
    """Where everything separates the classes, the fewest neurons win: smallest eta, shallowest depth, then C."""
    subject = project(signal=60.0, classes=2)
    found = subject.integrate(SEARCH)
    assert {point.valid_score for point in found.frontier} == {1.0}
    smallest = min((select(subject.probes, eta).upto(depth) for eta in SEARCH.etas for depth in (1, 2, 3, 4)), key=len)
    assert found.selection.rows() == smallest.rows()
    assert found.head.strength == min(c for c in SEARCH.strengths if subject.refit(smallest, c) == 1.0)


def test_progress_counts_the_heads() -> None:
    """Every fit is told, and search_size bounds them."""
    subject = project()
    told: list[int] = []
    train, valid = (subject.train, subject.y[subject.train]), (subject.valid, subject.y[subject.valid])
    integrate(subject.probes, subject.read, train, valid, metric="accuracy", settings=SEARCH, progress=told.append)
    assert 6 <= sum(told) <= search_size(SEARCH, 4)


def test_no_neuron_at_all_is_said_in_words() -> None:
    """When no probe kept a neuron there is nothing to integrate."""
    subject = project()
    subject.probes = [
        Probe(p.column, p.coef * 0, p.intercept, p.mean, p.scale, p.lam, p.lam_max, p.kkt, p.valid_score)
        for p in subject.probes
    ]
    with pytest.raises(UserError, match="no probe kept a neuron"):
        subject.integrate(SEARCH)
