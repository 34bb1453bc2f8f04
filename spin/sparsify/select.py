"""Sparsify: the fewest neurons that carry a share eta of each probe's importance."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from spin.heads.selection import Selection
from spin.sparsify.probe import Probe


def select(probes: Iterable[Probe], eta: float) -> Selection:
    """Select for each probe the smallest set of neurons whose importance reaches a share `eta` of the total.

    Importance is the squared weight summed over classes (SPIN, Jiao et al. 2024, section 3.2, there for one class).
    A probe without a nonzero weight adds no neuron.
    """
    neurons, importance = {}, {}
    for probe in sorted(probes, key=lambda p: p.column):
        if not probe.importance.any():
            continue
        share, before = _importance_shares(probe)
        selected = np.flatnonzero((before < eta * (1 - 1e-12)) & (share > 0))
        neurons[probe.column], importance[probe.column] = selected, share[selected]
    return Selection(neurons, importance, eta)


def largest_eta(probes: Iterable[Probe], count: int) -> float:
    """The largest eta that selects at most `count` neurons, or the smallest that selects any."""
    shares = (_importance_shares(probe) for probe in probes if probe.importance.any())
    reached = np.sort(np.concatenate([before[share > 0] for share, before in shares]))
    return 1.0 if len(reached) <= count else float(max(reached[count], np.finfo(np.float32).eps))


def _importance_shares(probe: Probe) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(width,) each neuron's share of the importance, and the share of all neurons that are more important."""
    share = probe.importance / probe.importance.sum()
    falling = np.argsort(-share, kind="stable")
    before = np.empty_like(share)
    before[falling] = np.cumsum(share[falling]) - share[falling]
    return share, before
