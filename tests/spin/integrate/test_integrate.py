"""What the stack of a chosen candidate consists of."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from spin.arrays import Floats
from spin.heads.stack import Source, Stack
from spin.integrate.integrate import CandidateFitter
from spin.process_group import ProcessGroup

LOGITS: dict[Source, Floats] = {"neurons": np.eye(4, 2), "words": np.eye(4, 2)[::-1]}


@pytest.mark.parametrize(
    ("words", "network", "expected"),
    [
        (0.5, 0.5, {"neurons", "words", "network"}),
        (0.001, 0.5, {"neurons", "network"}),
        (0.5, 0.001, {"neurons", "words"}),
    ],
)
def test_a_source_that_adds_nothing_beside_the_network_is_left_out(
    words: float, network: float, expected: set[Source]
) -> None:
    """The words of a candidate may tell something beside the neurons, and nothing once the network is there."""
    weights: dict[str, float] = {"neurons": 1.0, "words": words, "network": network}

    def fit_stack(sources: Mapping[Source, Floats]) -> Stack:
        return Stack((0.0, 0.0), **{name: weights[name] for name in sources})

    fitter = cast(Any, object.__new__(CandidateFitter))
    fitter.group = ProcessGroup()
    fitter.search = SimpleNamespace(sources=lambda logits, words: dict(LOGITS), fit_stack=fit_stack)
    fitter._has_network = lambda candidate: True
    fitter._fit_network = lambda held_out: (np.eye(4, 2), 3)
    candidate = SimpleNamespace(reads_words=True, stack=fit_stack(LOGITS))
    stack, epochs, sources = fitter._stack(candidate, SimpleNamespace(logits=()))
    assert set(sources) == expected
    assert {name for name in weights if stack.weight(name)} == expected
    assert epochs == (3 if "network" in expected else 0)
