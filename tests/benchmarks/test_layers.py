"""Rows that weigh layers: their weights are what a plain loop computes, and each finds what it is made to find."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.method.attention import BATCH, AttentionHead, TokenStates, _predict, draw_batches
from benchmarks.method.layers import Gate, _places, _spread
from spin.heads.selection import Selection
from spin.sites import FeatureColumn


def test_the_features_of_a_block_stand_together_and_share_its_weight() -> None:
    columns = [FeatureColumn.parse(text) for text in ("ffn.01.max", "ffn.01.mean", "resid.01.mean", "ffn.02.mean")]
    columns = sorted(columns)
    selection = Selection(
        {c: np.arange(n) for c, n in zip(columns, (2, 1, 3, 4), strict=True)}, {c: np.zeros(9) for c in columns}, 0.5
    )
    assert _places(selection) == {1: slice(0, 6), 2: slice(6, 10)}
    weights = np.repeat(np.float32([0.5, 1.5]), (6, 4))
    fewer = selection.up_to(1)
    assert _spread(weights, selection, fewer).tolist() == [0.5] * 6
    assert _spread(weights[:6], fewer, selection).tolist() == [0.5] * 6 + [np.float32(0.1)] * 4


def test_a_gate_joins_what_each_layer_knows() -> None:
    """Each of two layers knows half of the documents, and nothing of the others; a third knows nothing at all."""
    draw = np.random.default_rng(0)
    y = draw.integers(0, 2, 2000)
    knows = draw.random(2000) < 0.5
    right = np.where(y[:, None] == np.arange(2), 4.0, -4.0)
    noise = draw.normal(size=(3, 2000, 2)) * 1.5
    logits = (np.stack([knows, ~knows, 0 * knows])[..., None] * right + noise).astype(np.float32)
    gate = Gate(3, 2)
    gate.fit(logits[:, :1000], y[:1000])
    joined, shares = gate.predict(logits[:, 1000:])
    accuracy = (joined.argmax(1) == y[1000:]).mean()
    assert accuracy > max((of_layer.argmax(1) == y[1000:]).mean() for of_layer in logits[:, 1000:]) + 0.1
    used = shares.mean(1) * np.abs(gate.scale.detach().numpy())
    assert used[2] < 0.2 * used[:2].min()
    np.testing.assert_allclose(shares.sum(0), 1, atol=1e-5)


def test_attention_with_no_query_is_the_mean_and_padding_does_not_count() -> None:
    draw = np.random.default_rng(0)
    values = draw.normal(size=(9, 2, 4)).astype(np.float16)
    states = TokenStates(values, np.array([0, 2, 9]), {5: 0, 7: 1})
    rows = np.array([7, 5])
    head = AttentionHead(2, 3, 4).eval()
    torch.nn.init.normal_(head.weight)
    mean, scale = states.measure(rows)
    np.testing.assert_allclose(mean, values.astype(np.float64).mean(0), atol=1e-5)
    np.testing.assert_allclose(scale, values.astype(np.float64).std(0), atol=1e-5)
    batch, mask = states.batch(rows, mean, scale)
    assert mask.sum(1).tolist() == [7, 2]
    expected = []
    for start, end in ((2, 9), (0, 2)):
        pooled = ((torch.from_numpy(values[start:end]).float() - mean) / scale).mean(0)
        expected.append([float((pooled * head.weight[:, k]).sum().detach()) for k in range(3)])
    np.testing.assert_allclose(head(batch, mask).detach().numpy(), expected, atol=1e-4)


def test_logits_are_those_of_their_rows_whatever_the_order_of_the_batches() -> None:
    draw = np.random.default_rng(0)
    starts = np.concatenate([[0], np.cumsum(draw.integers(1, 9, 300))])
    states = TokenStates(
        draw.normal(size=(starts[-1], 2, 4)).astype(np.float16), starts, {3 * i: i for i in range(300)}
    )
    rows = 3 * np.sort(draw.permutation(300)[:200])
    head = AttentionHead(2, 3, 4).eval()
    torch.nn.init.normal_(head.weight)
    torch.nn.init.normal_(head.query)
    mean, scale = states.measure(rows)
    logits = _predict(head, states, rows, mean, scale)
    alone = [head(*states.batch(rows[at : at + 1], mean, scale)).detach().numpy()[0] for at in range(200)]
    np.testing.assert_allclose(logits, alone, atol=1e-4)
    drawn = draw_batches(states.lengths(rows), BATCH, 16)
    assert sorted(np.concatenate(drawn).tolist()) == list(range(200))
    assert max(map(len, drawn)) == 64


def test_attention_finds_the_token_that_shows_the_class() -> None:
    """One of ten tokens does; the mean over all of them shows it ten times less."""
    draw = np.random.default_rng(0)
    y = draw.integers(0, 2, 400)
    states = draw.normal(size=(400, 10, 1, 4)).astype(np.float32)
    states[:, 3, 0, 0] = 4.0  # marks the token
    states[:, 3, 0, 1] = np.where(y == 1, 1.5, -1.5)
    head, mask = AttentionHead(1, 2, 4), torch.ones(400, 10, dtype=torch.bool)
    optimiser = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(150):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(head(torch.from_numpy(states), mask), torch.from_numpy(y)).backward()
        optimiser.step()
    accuracy = (head.eval()(torch.from_numpy(states), mask).argmax(1).numpy() == y).mean()
    assert accuracy > 0.97
