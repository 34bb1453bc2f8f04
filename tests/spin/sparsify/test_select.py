"""Selection keeps the fewest neurons of each probe that carry the share, in the order of the feature matrix."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from spin.heads.selection import Selection
from spin.integrate.feature_matrix import align, selected_standardizer
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
    selection = Ranking.by_probes([make_probe(COLUMNS[0], coef)]).select(eta)
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
    selection = Ranking.by_probes([make_probe(COLUMNS[0], [[3, 0, 0, 2.5], [0, 3, 0, 2.5], [0, 0, 3, -2.5]])]).select(
        0.3
    )
    assert selection.neurons[COLUMNS[0]].tolist() == [3]


def test_a_probe_without_neurons_adds_no_column() -> None:
    """Only empty probes give an empty selection of depth 0."""
    selection = Ranking.by_probes([make_probe(COLUMNS[0], [[0, 1]]), make_probe(COLUMNS[1], [[0, 0]])]).select(1.0)
    assert list(selection.neurons) == [COLUMNS[0]]
    empty = Ranking.by_probes([make_probe(COLUMNS[1], [[0, 0]])]).select(1.0)
    assert (len(empty), empty.depth, empty.rows()) == (0, 0, [])
    assert empty.positions_in(selection).shape == (0,)


@settings(deadline=None)
@given(
    layers,
    shares,
    st.integers(0, 3),
    st.sets(st.sampled_from(["ffn", "resid", "mean", "max", "first"]), max_size=2),
    st.randoms(use_true_random=False),
)
def test_a_part_of_a_selection_equals_the_selection_from_its_probes(
    coefs: list[list[float]], eta: float, depth: int, names: set[str], draw: random.Random
) -> None:
    """Cutting a selection is the same as selecting from the remaining probes, in whatever order these come."""
    probes = make_probes(coefs)
    draw.shuffle(probes)
    cut = Ranking.by_probes(probes).select(eta).up_to(depth, names)
    remaining = [p for p in probes if p.column.site.layer <= depth]
    if names:
        remaining = [p for p in remaining if names & set(str(p.column).split("."))]
    alone = Ranking.by_probes(remaining).select(eta)
    assert cut.rows() == alone.rows()
    assert (cut.eta, list(cut.neurons)) == (eta, sorted(cut.neurons))
    assert cut.depth <= depth


@settings(deadline=None)
@given(layers, shares, st.randoms(use_true_random=False))
def test_keep_returns_the_wanted_features_in_order(coefs: list[list[float]], eta: float, draw: random.Random) -> None:
    """A column without a wanted feature is left out."""
    selection = Ranking.by_probes(make_probes(coefs)).select(eta)
    assume(len(selection))
    wanted = np.array([draw.random() < 0.4 for _ in range(len(selection))], bool)
    kept = selection.keep(wanted)
    expected = [row for row, is_wanted in zip(selection.rows(), wanted, strict=True) if is_wanted]
    assert kept.rows() == expected
    assert list(kept.neurons) == list(dict.fromkeys(column for column, *_ in expected))
    assert list(kept.importance) == list(kept.neurons)
    assert kept.eta == eta


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(layers, st.integers(1, 30))
def test_largest_eta_is_the_largest_that_keeps_at_most_the_given_count(coefs: list[list[float]], count: int) -> None:
    """By brute force over every eta at which a selection grows."""
    probes = [p for p in make_probes(coefs) if p.importance.any()]
    if not probes:
        return
    ranking = Ranking.by_probes(probes)
    largest = ranking.largest_eta(count)
    steps = sorted({float(x) for p in probes for x in np.cumsum(np.sort(p.importance / p.importance.sum())[::-1])})
    etas = [eta for eta in {1.0, *(min(step, 1.0) for step in steps)} if len(ranking.select(eta)) <= count]
    if len(probes) > count:  # each probe gives at least one neuron, however small the share
        assert (len(ranking.select(largest)), etas) == (len(probes), [])
        return
    assert largest == pytest.approx(max(etas))
    assert len(ranking.select(largest)) == len(ranking.select(max(etas))) <= count
    assert largest == 1 or len(ranking.select(largest + 1e-6)) > count


@settings(deadline=None)
@given(layers, shares, st.lists(st.floats(0, 1), min_size=5, max_size=5), st.floats(0, 1))
def test_alignment_equals_a_plain_loop(coefs: list[list[float]], eta: float, scores: list[float], floor: float) -> None:
    """Per feature: the gain of its site over the floor, and the share of the neuron in its probe's weights."""
    probes = [replace(p, valid_score=score) for p, score in zip(make_probes(coefs), scores, strict=False)]
    selection, by_column = Ranking.by_probes(probes).select(eta), {p.column: p for p in probes}
    gains = [max(by_column[column].valid_score - floor, 0) for column in selection.neurons]
    expected = []
    for column, neuron, _ in selection.rows():
        probe = by_column[column]
        gain = max(probe.valid_score - floor, 0)
        loudness = 0.05 + 0.95 * (gain / max(gains)) ** 2 if max(gains) > 0 else 1.0
        total = sum(float(w) ** 2 for w in probe.coef.flat)
        expected.append(loudness * (sum(float(w) ** 2 for w in probe.coef[:, neuron]) / total) ** 0.5)
    actual = align(selection, by_column, floor)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_alignment_scales_sites_by_their_gain_over_the_floor() -> None:
    """A site at the floor or below keeps a twentieth of the best site's scale.

    Without any gain all scales are equal.
    """
    probes = {p.column: p for p in make_probes([[1], [1], [1], [1]])}
    for column, score in zip(COLUMNS, (0.9, 0.5, 0.3, 0.7), strict=False):
        probes[column] = replace(probes[column], valid_score=score)
    selection = Ranking.by_probes(probes.values()).select(1)
    scale_by_column = dict(zip(selection.neurons, align(selection, probes, 0.5).tolist(), strict=True))
    assert [scale_by_column[c] for c in COLUMNS[:4]] == pytest.approx([1, 0.05, 0.05, 0.05 + 0.95 / 4])
    assert align(selection, probes, 0.95).tolist() == [1, 1, 1, 1]
    assert align(selection, probes, None).tolist() == [1, 1, 1, 1]


@settings(deadline=None)
@given(layers, shares, shares, st.integers(0, 2))
def test_positions_in_locates_a_smaller_selection_in_a_larger_one(
    coefs: list[list[float]], a: float, b: float, depth: int
) -> None:
    """Columns at these positions of the larger feature matrix form the smaller one, for less eta and for less depth."""
    probes = make_probes(coefs)
    ranking = Ranking.by_probes(probes)
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
    selection = Ranking.by_probes(probes).select(eta)
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
    totals = {c: p.importance.sum() for c, p in by_column.items()}
    np.testing.assert_allclose([i for *_, i in rows], [by_column[c].importance[n] / totals[c] for c, n, _ in rows])
