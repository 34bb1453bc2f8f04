"""The method on activations: sparsify each site, then integrate. What one machine and the benchmark call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from spin.arrays import Floats, Rows
from spin.heads.fitted import TrainingResult
from spin.heads.selection import Selection
from spin.integrate.integrate import integrate
from spin.labels.cross_validation import make_folds
from spin.labels.label_space import LabelSpace, Targets
from spin.settings import CascadeSettings, ProbeSettings, SearchSettings
from spin.sites import FeatureColumn, Site
from spin.sparsify.probe import Probe, fit_probes


def learn(
    features: Mapping[FeatureColumn, Floats],
    label_space: LabelSpace,
    y: Targets,
    train: Rows,
    valid: Rows,
    *,
    flops: Mapping[Site, float],
    metric: str = "macro_f1",
    probe: ProbeSettings | None = None,
    search: SearchSettings | None = None,
    cascade: CascadeSettings | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> tuple[list[Probe], TrainingResult]:
    """The probes of pooled activations (n, width) a column, and the classifiers that come of them.

    `y` are the targets of all n rows; rows that are neither in `train` nor in `valid` are not looked at.
    """
    probe, search = probe or ProbeSettings(), search or SearchSettings()
    folds = make_folds(label_space, y, train, valid, seed)
    probes = [
        fitted
        for columns in by_site(list(features)).values()
        for fitted in fit_probes(
            {c: features[c] for c in columns}, y, folds, label_space, metric=metric, settings=probe, device=device
        )
    ]

    def read(selection: Selection, rows: Rows) -> Floats:
        return np.concatenate([features[c][np.ix_(rows, n)] for c, n in selection.neurons.items()], axis=1)

    training_result = integrate(
        probes, read, y, folds, label_space,
        metric=metric, settings=search, cascade=cascade, class_weights=probe.class_weights, flops=flops,
        device=device, seed=seed,
    )  # fmt: skip
    return probes, training_result


def by_site(columns: Sequence[FeatureColumn]) -> dict[Site, list[FeatureColumn]]:
    """The columns of each site: poolings of one width, whose paths can be walked together."""
    found: dict[Site, list[FeatureColumn]] = {}
    for column in columns:
        found.setdefault(column.site, []).append(column)
    return found
