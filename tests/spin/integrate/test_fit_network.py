"""The network learns interactions, stops in time, and is the same however its rows are held."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from spin.heads.calibration import log_loss
from spin.heads.design import Design
from spin.heads.feature_rows import FeatureRows
from spin.heads.linear_head import LinearHead
from spin.heads.network_head import NetworkHead
from spin.integrate import fit_network as module
from spin.integrate.fit_linear import fit_linear
from spin.integrate.fit_network import fit_network
from spin.labels.label_space import LabelSpace
from spin.process_group import ProcessGroup
from tests.spin.integrate.test_fit_linear import matrix


def make_design(n: int = 1000, *, exclusive: bool = True, seed: int = 0) -> Design:
    """One feature with a linear effect and two that act through the sign of their product."""
    draw = np.random.default_rng(seed)
    X = draw.normal(size=(n, 6)).astype(np.float32)
    product = 4 * X[:, 1] * X[:, 2] + X[:, 0] > 0
    has = np.stack([~product, product] if exclusive else [product, X[:, 0] > 0], axis=1)
    return Design(FeatureRows(X), has, np.full((n, 1), 1 / n, np.float32), exclusive, ProcessGroup())


def loss(design: Design, head: LinearHead) -> float:
    label_space = LabelSpace(("a", "b"), multilabel=not design.exclusive)
    return log_loss(head.logits(matrix(design)), design.has.argmax(1) if design.exclusive else design.has, label_space)


@pytest.fixture(scope="module")
def design() -> Design:
    """A design of 1,000 rows and two exclusive classes."""
    return make_design()


@pytest.mark.slow
@pytest.mark.parametrize("exclusive", [True, False])
def test_it_learns_an_interaction_that_a_linear_head_misses(exclusive: bool) -> None:
    """On unseen rows, where it is also right about the linear effect."""
    design, unseen = make_design(exclusive=exclusive), make_design(exclusive=exclusive, seed=1)
    [linear] = fit_linear(design, [10.0])
    network, epochs = fit_network(design, 0, epochs=30)
    assert epochs == 30
    accuracies = [((h.logits(matrix(unseen)) > 0) == unseen.has).mean(0) for h in (linear, network)]
    assert accuracies[0][0] < 0.7
    assert accuracies[1].min() > 0.8
    assert loss(unseen, network) < 0.95 * loss(unseen, linear)


def test_the_same_seed_gives_the_same_network(design: Design) -> None:
    """Equal bit for bit; another seed gives another network."""
    first, second, other = (fit_network(design, seed, epochs=2)[0].logits(matrix(design)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, second)
    assert np.any(first != other)


def test_it_is_the_mean_of_several_networks(design: Design) -> None:
    """Whose logits are computed here one after another, from the weights that were fitted."""
    networks = module._Networks(design, 0)
    networks.run_epoch()
    X, parts = torch.from_numpy(matrix(design)), []
    for m in range(module.NETWORKS):
        units = slice(m * module.WIDTH, (m + 1) * module.WIDTH)
        hidden = torch.relu(X @ networks.inner[units].T + networks.inner_bias[units])
        parts.append((hidden @ networks.outer[m] + networks.outer_bias[m]).detach().numpy())
    np.testing.assert_allclose(networks.head().logits(matrix(design)), np.mean(parts, 0), rtol=1e-4, atol=1e-5)
    assert np.abs(parts[0] - parts[1]).max() > 0.01


@pytest.mark.parametrize("dropout", ["_INPUT_DROPOUT", "_HIDDEN_DROPOUT"])
def test_features_and_hidden_units_are_dropped(design: Design, dropout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In fitting; without dropout the same random order and weights give another network."""
    expected = fit_network(design, 0, epochs=1)[0].logits(matrix(design))
    monkeypatch.setattr(module, dropout, 0.0)
    assert np.abs(fit_network(design, 0, epochs=1)[0].logits(matrix(design)) - expected).max() > 1e-3


def test_rows_without_weight_do_not_count(design: Design) -> None:
    """Other targets in such rows give the same network."""
    weights = np.where(np.arange(1000)[:, None] < 500, 1 / 500, 0).astype(np.float32)
    weighted = replace(design, weights=weights)
    flipped = replace(weighted, has=np.where(weights > 0, design.has, ~design.has))
    expected, actual = (fit_network(each, 0, epochs=2)[0].logits(matrix(design)) for each in (weighted, flipped))
    np.testing.assert_allclose(expected, actual, atol=1e-5)


@pytest.mark.parametrize(
    ("losses", "checks", "best_epoch"),
    [
        ([4.0, 3.0, 4.0, 4.0, 4.0, 4.0, 0.0], 6, 2),  # four epochs without improvement
        ([4.0, 4.0, 4.0, 3.0, 4.0, 4.0, 4.0, 2.0, 3.0, 3.0, 3.0, 3.0], 12, 8),  # each improvement comes in time
    ],
)
def test_it_stops_after_four_epochs_without_improvement(losses: list[float], checks: int, best_epoch: int) -> None:
    """The head with the least loss is returned, the one of as many epochs."""
    design, judged = make_design(100), []
    to_return = iter(losses)

    def judge(head: NetworkHead) -> float:
        judged.append(head.logits(matrix(design)))
        return next(to_return)

    head, epochs = fit_network(design, 0, judge=judge)
    assert (len(judged), epochs) == (checks, best_epoch)
    np.testing.assert_array_equal(head.logits(matrix(design)), judged[best_epoch - 1])
    refitted, _ = fit_network(design, 0, epochs=best_epoch)
    np.testing.assert_array_equal(refitted.logits(matrix(design)), head.logits(matrix(design)))


@pytest.mark.slow
def test_a_judge_on_held_out_rows_prevents_overfitting() -> None:
    """Where there is nothing to learn, the judged network is less wrong on unseen rows than one fitted to the end."""
    draw = np.random.default_rng(0)

    def make_noise() -> Design:
        y = draw.integers(0, 2, 60)
        X = draw.normal(size=(60, 20)).astype(np.float32)
        has, weights = y[:, None] == np.arange(2), np.full((60, 1), 1 / 60, np.float32)
        return Design(FeatureRows(X), has, weights, True, ProcessGroup())

    design, valid, unseen = make_noise(), make_noise(), make_noise()
    judged, epochs = fit_network(design, 0, judge=lambda head: loss(valid, head))
    unjudged, _ = fit_network(design, 0, epochs=200)
    assert epochs < 40
    assert loss(unseen, judged) < loss(unseen, unjudged)


def test_features_in_a_file_give_the_same_network(design: Design, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are picked from it in any order."""
    monkeypatch.setattr("spin.heads.feature_rows.MOST_IN_MEMORY", 0)
    on_disk = replace(design, features=FeatureRows.collect(design.features.blocks(), len(design.features)))
    assert not on_disk.features.in_memory
    expected, actual = (fit_network(each, 0, epochs=2)[0].logits(matrix(design)) for each in (design, on_disk))
    np.testing.assert_array_equal(expected, actual)
    assert np.abs(expected).max() > 0.1


@pytest.mark.parametrize(("rows", "batch"), [(1000, 32), (4000, 80), (10_000, 128), (40_000, 200)])
def test_an_epoch_has_from_50_to_200_batches(rows: int, batch: int) -> None:
    """So few rows are gone through in small steps, and a million rows take no more steps than a sample."""
    batches = [of_batch for of_batch, _, _ in module._Networks(make_design(rows), 0)._batches()]
    assert {len(of_batch) for of_batch in batches[:-1]} == {batch}
    assert sorted(np.concatenate(batches)) == [*range(rows)]
