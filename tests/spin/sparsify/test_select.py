"""Selection: the fewest neurons of each probe that carry the share, in the order of the feature matrix."""

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
from spin.sparsify.select import largest_eta, select

COLUMNS = [
    FeatureColumn.parse(text) for text in ("resid.00.mean", "ffn.01.max", "ffn.01.mean", "resid.01.mean", "ffn.02.max")
]
weights = st.lists(st.sampled_from([0.0, 0.0, 0.5, -1.0, 1.0, 2.0, 3.5]), min_size=1, max_size=8)
layers = st.lists(weights, min_size=1, max_size=len(COLUMNS))
shares = st.floats(0.01, 1)


def probe_of(column: FeatureColumn, coef: list[list[float]]) -> Probe:
    """A probe of given weights (K, width); mean and scale number its neurons."""
    numbers = np.arange(len(coef[0]), dtype=np.float32)
    heads = np.array(coef, np.float32)
    standardizer = Standardizer(100 * column.site.layer + numbers, numbers + 1)
    return Probe(column, heads, np.zeros(len(coef)), standardizer, 0.1, 1, 0, 0.9)


def probes_of(coefs: list[list[float]]) -> list[Probe]:
    return [probe_of(column, [coef]) for column, coef in zip(COLUMNS, coefs, strict=False)]


def matrix_of(selection: Selection, activations: dict[FeatureColumn, NDArray[np.floating]]) -> NDArray[np.floating]:
    """The feature matrix as it is gathered everywhere."""
    return np.concatenate([activations[c][:, n] for c, n in selection.neurons.items()], axis=1)


@settings(deadline=None)
@given(weights, weights, shares)
def test_selection_is_the_smallest_that_reaches_eta(first: list[float], second: list[float], eta: float) -> None:
    """No smaller set of neurons reaches the share, by brute force over all sets; importance is over all classes."""
    width = min(len(first), len(second))
    coef = [first[:width], second[:width]]
    importance = np.array([a * a + b * b for a, b in zip(*coef, strict=True)])
    found = select([probe_of(COLUMNS[0], coef)], eta)
    if not importance.any():
        assert len(found) == 0
        return
    share = importance / importance.sum()
    reaching = (
        size
        for size in range(1, width + 1)
        if any(share[list(of)].sum() >= eta - 1e-9 for of in combinations(range(width), size))
    )
    kept = found.neurons[COLUMNS[0]]
    assert len(kept) == next(reaching)
    assert share[kept].sum() >= eta - 1e-9
    assert (share[kept] > 0).all()
    assert kept.tolist() == sorted(set(kept.tolist()))
    np.testing.assert_allclose(found.importance[COLUMNS[0]], share[kept])


def test_importance_is_summed_over_all_classes() -> None:
    """A neuron that is second for every class may be the first of all."""
    found = select([probe_of(COLUMNS[0], [[3, 0, 0, 2.5], [0, 3, 0, 2.5], [0, 0, 3, -2.5]])], 0.3)
    assert found.neurons[COLUMNS[0]].tolist() == [3]


def test_a_probe_without_neurons_gives_none() -> None:
    """An empty probe has no column at all; nothing but empty probes is an empty selection of no depth."""
    found = select([probe_of(COLUMNS[0], [[0, 1]]), probe_of(COLUMNS[1], [[0, 0]])], 1.0)
    assert list(found.neurons) == [COLUMNS[0]]
    nothing = select([probe_of(COLUMNS[1], [[0, 0]])], 1.0)
    assert (len(nothing), nothing.depth, nothing.rows()) == (0, 0, [])
    assert nothing.positions_in(found).shape == (0,)


@settings(deadline=None)
@given(
    layers,
    shares,
    st.integers(0, 3),
    st.sets(st.sampled_from(["ffn", "resid", "mean", "max", "first"]), max_size=2),
    st.randoms(use_true_random=False),
)
def test_a_part_is_what_its_probes_alone_would_give(
    coefs: list[list[float]], eta: float, depth: int, names: set[str], draw: random.Random
) -> None:
    """Cutting a selection is selecting from the probes of the kept columns, in whatever order the probes come."""
    probes = probes_of(coefs)
    draw.shuffle(probes)
    cut = select(probes, eta).part(depth, names)
    mine = [p for p in probes if p.column.site.layer <= depth]
    if names:
        mine = [p for p in mine if names & set(str(p.column).split("."))]
    alone = select(mine, eta)
    assert cut.rows() == alone.rows()
    assert (cut.eta, list(cut.neurons)) == (eta, sorted(cut.neurons))
    assert cut.depth <= depth


@settings(deadline=None)
@given(layers, shares, st.randoms(use_true_random=False))
def test_only_the_wanted_features_are_kept(coefs: list[list[float]], eta: float, draw: random.Random) -> None:
    """Row by row, in order; a site.pooling of which nothing is wanted is gone."""
    selection = select(probes_of(coefs), eta)
    assume(len(selection))
    wanted = np.array([draw.random() < 0.4 for _ in range(len(selection))], bool)
    kept = selection.keep(wanted)
    expected = [row for row, mine in zip(selection.rows(), wanted, strict=True) if mine]
    assert kept.rows() == expected
    assert list(kept.neurons) == list(dict.fromkeys(column for column, *_ in expected))
    assert list(kept.importance) == list(kept.neurons)
    assert kept.eta == eta


@settings(max_examples=300, deadline=None)
@given(layers, st.integers(1, 30))
def test_largest_eta_is_the_largest_that_keeps_few_enough(coefs: list[list[float]], count: int) -> None:
    """By brute force: of all etas at which a selection grows, the last before it is too large."""
    probes = [p for p in probes_of(coefs) if p.importance.any()]
    if not probes:
        return
    found = largest_eta(probes, count)
    steps = sorted({float(x) for p in probes for x in np.cumsum(np.sort(p.importance / p.importance.sum())[::-1])})
    etas = [eta for eta in {1.0, *(min(step, 1.0) for step in steps)} if len(select(probes, eta)) <= count]
    if len(probes) > count:  # each gives one at least, however small the share
        assert (len(select(probes, found)), etas) == (len(probes), [])
        return
    assert found == pytest.approx(max(etas))
    assert len(select(probes, found)) == len(select(probes, max(etas))) <= count
    assert found == 1 or len(select(probes, found + 1e-6)) > count


@settings(deadline=None)
@given(layers, shares, st.lists(st.floats(0, 1), min_size=5, max_size=5), st.floats(0, 1))
def test_alignment_equals_a_plain_loop(coefs: list[list[float]], eta: float, scores: list[float], floor: float) -> None:
    """Feature by feature: the site's gain over knowing nothing, and the size of the neuron's weights in its probe."""
    probes = [replace(p, valid_score=score) for p, score in zip(probes_of(coefs), scores, strict=False)]
    selection, by_column = select(probes, eta), {p.column: p for p in probes}
    gains = [max(by_column[column].valid_score - floor, 0) for column in selection.neurons]
    expected = []
    for column, neuron, _ in selection.rows():
        probe = by_column[column]
        gain = max(probe.valid_score - floor, 0)
        loudness = 0.05 + 0.95 * (gain / max(gains)) ** 2 if max(gains) > 0 else 1.0
        total = sum(float(w) ** 2 for w in probe.coef.flat)
        expected.append(loudness * (sum(float(w) ** 2 for w in probe.coef[:, neuron]) / total) ** 0.5)
    found = align(selection, by_column, floor)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_best_site_speaks_loudest() -> None:
    """A site at the floor or below keeps a twentieth of the best one's voice; where none is above it, all speak."""
    probes = {p.column: p for p in probes_of([[1], [1], [1], [1]])}
    for column, score in zip(COLUMNS, (0.9, 0.5, 0.3, 0.7), strict=False):
        probes[column] = replace(probes[column], valid_score=score)
    selection = select(probes.values(), 1)
    found = dict(zip(selection.neurons, align(selection, probes, 0.5).tolist(), strict=True))
    assert [found[c] for c in COLUMNS[:4]] == pytest.approx([1, 0.05, 0.05, 0.05 + 0.95 / 4])
    assert align(selection, probes, 0.95).tolist() == [1, 1, 1, 1]
    assert align(selection, probes, None).tolist() == [1, 1, 1, 1]


@settings(deadline=None)
@given(layers, shares, shares, st.integers(0, 2))
def test_within_finds_a_selection_in_a_larger_one(coefs: list[list[float]], a: float, b: float, depth: int) -> None:
    """The columns of the smaller feature matrix, taken out of the larger one: less eta and less depth alike."""
    probes = probes_of(coefs)
    larger, smaller = select(probes, max(a, b)), select(probes, min(a, b)).part(depth)
    draw = np.random.default_rng(0)
    activations = {p.column: draw.normal(size=(3, p.coef.shape[1])) for p in probes}
    where = smaller.positions_in(larger)
    assert len(where) == len(smaller)
    if len(smaller):
        np.testing.assert_array_equal(matrix_of(larger, activations)[:, where], matrix_of(smaller, activations))


@settings(deadline=None)
@given(layers, shares)
def test_rows_and_scaler_follow_the_feature_matrix(coefs: list[list[float]], eta: float) -> None:
    """Row by row: the neuron's values, mean, scale and importance stand where its feature stands."""
    probes = probes_of(coefs)
    selection = select(probes, eta)
    rows = selection.rows()
    assert len(rows) == len(selection)
    if not rows:
        return
    activations = {p.column: p.standardizer.mean[None, :] for p in probes}  # a neuron's value here says which one it is
    by_column = {p.column: p for p in probes}
    standardizer = selected_standardizer(selection, by_column)
    assert matrix_of(selection, activations)[0].tolist() == [by_column[c].standardizer.mean[n] for c, n, _ in rows]
    assert standardizer.mean.tolist() == [by_column[c].standardizer.mean[n] for c, n, _ in rows]
    assert standardizer.scale.tolist() == [by_column[c].standardizer.scale[n] for c, n, _ in rows]
    totals = {c: p.importance.sum() for c, p in by_column.items()}
    np.testing.assert_allclose([i for *_, i in rows], [by_column[c].importance[n] / totals[c] for c, n, _ in rows])
