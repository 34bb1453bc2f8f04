"""Selection keeps the fewest neurons of all columns that carry the share, in the order of the feature matrix."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from spin.heads.selection import Selection
from spin.integrate.feature_matrix import selected_standardizer
from spin.labels.standardizer import Standardizer
from spin.sites import FeatureColumn
from spin.sparsify.probe import Probe
from spin.sparsify.select import Ranking

COLUMNS = [
    FeatureColumn.parse(text) for text in ("resid.00.mean", "ffn.01.max", "ffn.01.mean", "resid.01.mean", "ffn.02.max")
]
weights = st.lists(st.sampled_from([0.0, 0.0, 0.5, -1.0, 1.0, 2.0, 3.5]), min_size=1, max_size=8)
layers = st.lists(weights, min_size=1, max_size=len(COLUMNS))
shares = st.floats(0.01, 1)


def make_probe(column: FeatureColumn, coef: list[list[float]]) -> Probe:
    """A probe with the given weights (K, width), whose mean and scale number its neurons."""
    numbers = np.arange(len(coef[0]), dtype=np.float32)
    heads = np.array(coef, np.float32)
    standardizer = Standardizer(100 * column.site.layer + numbers, numbers + 1)
    return Probe(column, heads, np.zeros(len(coef)), standardizer, 0.1, 1, 0, 0.9)


def make_probes(coefs: list[list[float]]) -> list[Probe]:
    return [make_probe(column, [coef]) for column, coef in zip(COLUMNS, coefs, strict=False)]


def rank(probes: list[Probe], ridge: dict[FeatureColumn, NDArray[np.float32]] | None = None) -> Ranking:
    """The ranking of probes, by default beside a ridge regression in which no neuron has any importance."""
    by_column = {probe.column: probe for probe in probes}
    return Ranking.of(by_column, ridge or {column: np.zeros_like(p.importance) for column, p in by_column.items()})


def gather_matrix(selection: Selection, activations: dict[FeatureColumn, NDArray[np.floating]]) -> NDArray[np.floating]:
    """The feature matrix, gathered as the classifier gathers it."""
    return np.concatenate([activations[c][:, n] for c, n in selection.neurons.items()], axis=1)


@settings(deadline=None)
@given(weights, weights, shares)
def test_selection_is_the_smallest_that_reaches_eta(first: list[float], second: list[float], eta: float) -> None:
    """Brute force over all sets finds no smaller one; importance counts every class the same."""
    width = min(len(first), len(second))
    coef = [first[:width], second[:width]]
    totals = [sum(w * w for w in of_class) or 1 for of_class in coef]
    importance = np.array([a * a / totals[0] + b * b / totals[1] for a, b in zip(*coef, strict=True)])
    selection = rank([make_probe(COLUMNS[0], coef)]).select(eta)
    if not importance.any():
        assert len(selection) == 0
        return
    share = importance / importance.sum()
    sizes_that_reach_eta = (
        size
        for size in range(1, width + 1)
        if any(share[list(members)].sum() >= eta - 1e-9 for members in combinations(range(width), size))
    )
    selected = selection.neurons[COLUMNS[0]]
    assert len(selected) == next(sizes_that_reach_eta)
    assert share[selected].sum() >= eta - 1e-9
    assert (share[selected] > 0).all()
    assert selected.tolist() == sorted(set(selected.tolist()))
    np.testing.assert_allclose(selection.importance[COLUMNS[0]], share[selected])


def test_importance_is_summed_over_all_classes() -> None:
    """A neuron that is second for every class may rank first overall."""
    selection = rank([make_probe(COLUMNS[0], [[3, 0, 0, 2.5], [0, 3, 0, 2.5], [0, 0, 3, -2.5]])]).select(0.3)
    assert selection.neurons[COLUMNS[0]].tolist() == [3]


def test_a_probe_without_neurons_adds_no_column() -> None:
    """Only empty probes give an empty selection of depth 0."""
    selection = rank([make_probe(COLUMNS[0], [[0, 1]]), make_probe(COLUMNS[1], [[0, 0]])]).select(1.0)
    assert list(selection.neurons) == [COLUMNS[0]]
    empty = rank([make_probe(COLUMNS[1], [[0, 0]])]).select(1.0)
    assert (len(empty), empty.depth, empty.rows()) == (0, 0, [])
    assert empty.positions_in(selection).shape == (0,)


@settings(deadline=None)
@given(layers, shares, st.randoms(use_true_random=False))
def test_importance_is_the_mean_of_the_share_in_the_probes_and_the_share_in_the_ridge_regression(
    coefs: list[list[float]], eta: float, draw: random.Random
) -> None:
    """By a plain loop: every probe with a neuron counts the same, and the shares of all neurons sum to 1."""
    probes = make_probes(coefs)
    draw.shuffle(probes)
    values = (0.0, 0.5, 1.0, 3.5)
    ridge = {p.column: np.float32([draw.choice(values) for _ in range(p.coef.shape[1])]) for p in probes}
    with_neurons = [p for p in probes if p.coef.any()]
    total = sum(float(value) for of_column in ridge.values() for value in of_column)
    measured = [bool(with_neurons), bool(total)]  # what shows no neuron does not count
    expected = {}
    for p in probes:
        for neuron, weight in enumerate(p.coef[0]):
            of_probe = float(weight) ** 2 / float((p.coef**2).sum()) / len(with_neurons) if p.coef.any() else 0.0
            of_both = of_probe, float(ridge[p.column][neuron]) / (total or 1)
            expected[p.column, neuron] = sum(of_both) / (sum(measured) or 1)
    rows = rank(probes, ridge).select(1.0).rows()
    assert [row[:2] for row in rows] == sorted(key for key, share in expected.items() if share > 0)
    assert [share for *_, share in rows] == pytest.approx([expected[row[:2]] for row in rows])
    assert sum(share for *_, share in rows) == pytest.approx(float(any(measured)))
    kept = {row[:2] for row in rank(probes, ridge).select(eta).rows()}
    left_out = [share for key, share in expected.items() if key not in kept]
    assert min((expected[key] for key in kept), default=1) >= max(left_out, default=0) - 1e-9


@settings(deadline=None)
@given(
    layers, shares, st.integers(0, 3), st.sets(st.sampled_from(["ffn", "resid", "mean", "max", "first"]), max_size=2)
)
def test_a_part_of_a_selection_has_the_neurons_of_its_depth_and_names(
    coefs: list[list[float]], eta: float, depth: int, names: set[str]
) -> None:
    selection = rank(make_probes(coefs)).select(eta)
    cut = selection.up_to(depth, names)
    wanted = [c for c in selection.neurons if c.site.layer <= depth and (not names or names & set(str(c).split(".")))]
    assert cut.rows() == [row for row in selection.rows() if row[0] in wanted]
    assert (cut.eta, list(cut.neurons), list(cut.importance)) == (eta, wanted, wanted)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(layers, st.integers(1, 30))
def test_largest_eta_is_the_largest_that_keeps_at_most_the_given_count(coefs: list[list[float]], count: int) -> None:
    """By brute force over every eta at which a selection grows."""
    ranking = rank(make_probes(coefs))
    steps = np.cumsum(sorted((share for *_, share in ranking.select(1.0).rows()), reverse=True))
    etas = [eta for eta in {1.0, *(min(float(step), 1.0) for step in steps)} if len(ranking.select(eta)) <= count]
    largest = ranking.eta_for(count)
    assert largest == pytest.approx(max(etas))
    assert len(ranking.select(largest)) == len(ranking.select(max(etas))) <= count
    assert largest == 1 or len(ranking.select(largest + 1e-6)) > count


@settings(deadline=None)
@given(layers, shares, shares, st.integers(0, 2))
def test_positions_in_locates_a_smaller_selection_in_a_larger_one(
    coefs: list[list[float]], a: float, b: float, depth: int
) -> None:
    """Columns at these positions of the larger feature matrix form the smaller one, for less eta and for less depth."""
    probes = make_probes(coefs)
    ranking = rank(probes)
    larger, smaller = ranking.select(max(a, b)), ranking.select(min(a, b)).up_to(depth)
    draw = np.random.default_rng(0)
    activations = {p.column: draw.normal(size=(3, p.coef.shape[1])) for p in probes}
    positions = smaller.positions_in(larger)
    assert len(positions) == len(smaller)
    if len(smaller):
        np.testing.assert_array_equal(
            gather_matrix(larger, activations)[:, positions], gather_matrix(smaller, activations)
        )


@settings(deadline=None)
@given(layers, shares)
def test_rows_and_standardizer_follow_the_order_of_the_feature_matrix(coefs: list[list[float]], eta: float) -> None:
    """The value, mean, scale and importance of a neuron have the index of its feature."""
    probes = make_probes(coefs)
    selection = rank(probes).select(eta)
    rows = selection.rows()
    assert len(rows) == len(selection)
    if not rows:
        return
    activations = {p.column: p.standardizer.mean[None, :] for p in probes}  # each value identifies its neuron
    by_column = {p.column: p for p in probes}
    standardizer = selected_standardizer(selection, by_column)
    assert gather_matrix(selection, activations)[0].tolist() == [by_column[c].standardizer.mean[n] for c, n, _ in rows]
    assert standardizer.mean.tolist() == [by_column[c].standardizer.mean[n] for c, n, _ in rows]
    assert standardizer.scale.tolist() == [by_column[c].standardizer.scale[n] for c, n, _ in rows]
    shares = rank(probes).shares
    assert [share for *_, share in rows] == [shares[c][n] for c, n, _ in rows]
