"""The whole method on activations in memory: sparsify each site, then integrate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from contextvars import Context, copy_context
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from spin.arrays import Floats, Rows
from spin.fit_progress import StartStep, start_silently
from spin.fitted.fitted_classifier import TrainingResult
from spin.heads.selection import Selection
from spin.integrate.fit_words import fit_words
from spin.integrate.head_fitter import HeldBack, refit
from spin.integrate.integrate import integrate
from spin.integrate.leakage import LeakageAttack
from spin.integrate.search import most_fits
from spin.labels.splits import VERY_FEW_LABELS
from spin.labels.training_data import TrainingData
from spin.settings import CascadeSettings, DecisionSettings, ProbeSettings, SearchSettings
from spin.sites import FeatureColumn, Site
from spin.sparsify.probe import Probe, fit_probes, warn_of_inexact_probes
from spin.sparsify.ridge import RidgeImportance, fit_ridge

T = TypeVar("T")
_BLOCK = 4096
"""rows of a selection that are read at once"""


def fit_classifiers(
    features: Mapping[FeatureColumn, Floats],
    data: TrainingData,
    *,
    compute: Mapping[Site, float],
    probe: ProbeSettings | None = None,
    search: SearchSettings | None = None,
    cascade: CascadeSettings | None = None,
    decision: DecisionSettings | None = None,
    texts: Sequence[str] | None = None,
    attack: LeakageAttack | None = None,
    start: StartStep = start_silently,
) -> tuple[list[Probe], list[RidgeImportance], TrainingResult]:
    """Fit a probe per feature column and a ridge regression on all, then the classifiers that integrate their neurons.

    `features` are the pooled activations (n, width) of each feature column, `compute` the share of the backbone's
    compute that reading a site takes. With the `texts` (n,) their words count, too, as the search settings say.
    `search.max_leakage` needs an `attack`. Raises UserError as `integrate` does.
    """
    settings = search or SearchSettings()
    probes = _fit_all_probes(features, data, probe or ProbeSettings(), start("probes", len(features)))
    warn_of_inexact_probes([fitted.summary() for fitted in probes])

    def read(selection: Selection, rows: Rows) -> Iterator[Floats]:
        for part in np.array_split(rows, 1 + len(rows) // _BLOCK):
            yield np.concatenate([features[c][np.ix_(part, n)] for c, n in selection.neurons.items()], axis=1)

    words = None
    if texts is not None and settings.words != "off":
        words = fit_words(lambda rows: [texts[row] for row in rows], data)
    few = len(data.rows) < VERY_FEW_LABELS and data.device == "cpu"
    with _single_thread() if few else nullcontext():
        ridge, _ = fit_ridge(lambda column, rows: features[column][rows], list(features), data)
        training_result = integrate(
            probes,
            ridge,
            read,
            data,
            settings=settings,
            cascade=cascade,
            decision=decision,
            compute=compute,
            words=words,
            attack=attack,
            progress=start("fits", most_fits(settings, list(features), len(data.folds))),
        )
    if data.not_sampled is not None:
        data, rows = data.hold_back()
        of_words = None
        if texts is not None and training_result.words is not None and len(rows):
            of_words = training_result.words.logits([texts[row] for row in rows])
        held_back = HeldBack(rows, of_words) if len(rows) else None
        training_result = refit(training_result, probes, read, data, words, held_back=held_back)
    return probes, ridge, training_result


@contextmanager
def _single_thread() -> Iterator[None]:
    """Compute in one thread: of matrices this small, several threads spend their time waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1):
            yield
    finally:
        torch.set_num_threads(threads)


def _fit_all_probes(
    features: Mapping[FeatureColumn, Floats],
    data: TrainingData,
    settings: ProbeSettings,
    progress: Callable[[int], None],
) -> list[Probe]:
    """The probes of all columns."""

    def fit_site(columns: Sequence[FeatureColumn]) -> list[Probe]:
        fitted = fit_probes({column: features[column] for column in columns}, data, settings)
        progress(len(fitted))
        return fitted

    tasks = [partial(fit_site, columns) for columns in group_by_site(list(features)).values()]
    return [probe for of_site in fit_in_threads(tasks, data.device) for probe in of_site]


def fit_in_threads(tasks: Sequence[Callable[[], T]], device: str) -> list[T]:
    """The results of tasks, such as the probes of a site each, from as many threads as torch has; one for a GPU.

    A step of a probe is too small for several threads, so that NumPy has one for each task.
    """
    contexts = [copy_context() for _ in tasks]  # by which the threads log and count as this one does
    with (
        threadpool_limits(limits=1, user_api="blas"),
        ThreadPoolExecutor(torch.get_num_threads() if device == "cpu" else 1) as threads,
    ):
        return list(threads.map(Context.run, contexts, tasks))


def group_by_site(columns: Sequence[FeatureColumn]) -> dict[Site, list[FeatureColumn]]:
    """The feature columns of each site; they have one width, so their probes are fitted together."""
    by_site: dict[Site, list[FeatureColumn]] = {}
    for column in columns:
        by_site.setdefault(column.site, []).append(column)
    return by_site
