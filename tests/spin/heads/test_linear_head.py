"""Both kinds of heads explain their logits as sums, and are the same when they are stored or exported."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spin.heads.linear_head import LinearHead
from spin.heads.network_head import NetworkHead
from tests.spin.heads.test_network_head import make_head

X = np.random.default_rng(1).normal(size=(30, 6)).astype(np.float32)


@pytest.fixture(params=[LinearHead, NetworkHead], ids=lambda kind: kind.name)
def head(request: pytest.FixtureRequest) -> LinearHead:
    """A head of each kind: three classes, six features."""
    network = make_head(0, features=6)
    return network if request.param is NetworkHead else LinearHead(network.coef, network.intercept)


def test_logits_are_the_bias_and_what_each_feature_adds(head: LinearHead) -> None:
    classes = np.arange(30) % 3
    slopes = head.slopes_of(X, classes)
    of_class = head.logits(X)[np.arange(30), classes]
    np.testing.assert_allclose(head.bias[classes] + (X * slopes).sum(1), of_class, atol=1e-4)
    np.testing.assert_allclose(head.slopes(X[1])[1], slopes[1], atol=1e-6)
    np.testing.assert_allclose(head.logits(np.zeros((1, 6), np.float32))[0], head.bias, atol=1e-6)


def test_a_stored_head_and_its_graph_give_the_same_logits(head: LinearHead) -> None:
    stored = type(head).from_tensors(head.to_tensors())
    np.testing.assert_array_equal(stored.logits(X), head.logits(X))
    assert all(values.dtype == np.float32 for values in head.to_tensors().values())
    with torch.inference_mode():
        np.testing.assert_allclose(head.graph()(torch.from_numpy(X)).numpy(), head.logits(X), atol=1e-4)
