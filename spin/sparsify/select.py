"""Which neurons are kept: the fewest that carry a share eta of each probe's importance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from spin.heads.selection import Selection
from spin.sites import FeatureColumn
from spin.sparsify.probe import Probe


def select(probes: Iterable[Probe], eta: float) -> Selection:
    """For each probe the smallest set of neurons whose importance reaches a share `eta` of the total.

    Importance is the squared weight summed over classes (SPIN, Jiao et al. 2024, section 3.2, there for one class).
    A probe that kept no neuron gives none.
    """
    neurons, importance = {}, {}
    for probe in sorted(probes, key=lambda p: p.column):
        if not probe.importance.any():
            continue
        share, before = _shares(probe)
        kept = np.flatnonzero((before < eta * (1 - 1e-12)) & (share > 0))
        neurons[probe.column], importance[probe.column] = kept, share[kept]
    return Selection(neurons, importance, eta)


def largest_eta(probes: Iterable[Probe], count: int) -> float:
    """The largest eta that selects at most `count` neurons, or the smallest that selects any."""
    reached = np.sort(np.concatenate([b[s > 0] for s, b in (_shares(p) for p in probes if p.importance.any())]))
    return 1.0 if len(reached) <= count else float(max(reached[count], np.finfo(np.float32).eps))


def _shares(probe: Probe) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(width,) each neuron's share of the importance, and the share of all that are more important than it."""
    share = probe.importance / probe.importance.sum()
    falling = np.argsort(-share, kind="stable")
    before = np.empty_like(share)
    before[falling] = np.cumsum(share[falling]) - share[falling]
    return share, before


def standardization(
    selection: Selection, probes: Mapping[FeatureColumn, Probe]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Mean and scale (p,) of the selected features, as the probes measured them on the training rows."""
    pairs = [(probes[c].mean[n], probes[c].scale[n]) for c, n in selection.neurons.items()]
    return np.concatenate([mean for mean, _ in pairs]), np.concatenate([scale for _, scale in pairs])


def alignment(selection: Selection, probes: Mapping[FeatureColumn, Probe], floor: float | None) -> NDArray[np.float32]:
    """How loudly each feature (p,) may speak in the head: a weight of its site times one of the neuron in its probe.

    The site's is the square of its probe's validation score above `floor`, that of knowing nothing, as a share of the
    best site's, or 1 without a floor; the neuron's is the size of its weights as a share of its probe's, the square
    root of its importance. The head's penalty acts on the features so scaled, as in the adaptive lasso (Zou 2006).
    """
    gains = {c: 1.0 if floor is None else max(probes[c].valid_score - floor, 0.0) for c in selection.neurons}
    best = max(gains.values(), default=0.0)
    parts = [
        (0.05 + 0.95 * (gains[c] / best) ** 2 if best else 1.0) * np.sqrt(share)
        for c, share in selection.importance.items()
    ]
    return np.concatenate(parts).astype(np.float32) if parts else np.empty(0, np.float32)
