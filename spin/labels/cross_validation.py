"""On which rows a model is fitted and on which its choices are judged: one division, or many where labels are few."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import RepeatedStratifiedKFold

from spin.arrays import Rows
from spin.labels.label_space import LabelSpace, Targets
from spin.labels.splits import CROSS_VALIDATION_BELOW

_SPLITS, _REPEATS = 5, 2
_PARTS = 20
"""of the validation rows of one division, each left out once to see how far a score is luck"""


@dataclass(frozen=True)
class Fold:
    """Row numbers of the documents that train and of those that judge."""

    train: Rows
    valid: Rows


def make_folds(label_space: LabelSpace, y: Targets, train: Rows, valid: Rows, seed: int) -> tuple[Fold, ...]:
    """The training and validation rows as they are, or repeated stratified cross-validation of both.

    The latter below `CROSS_VALIDATION_BELOW` rows.

    `y` are the targets of all rows. Five parts, twice; fewer parts where a class has fewer documents.
    """
    if len(train) + len(valid) >= CROSS_VALIDATION_BELOW:
        return (Fold(train, valid),)
    pool = np.sort(np.concatenate([train, valid]))
    strata = label_space.strata(y[pool])
    smallest = label_space.indicator(y[pool]).sum(0).min()
    parts = RepeatedStratifiedKFold(n_splits=int(np.clip(smallest, 2, _SPLITS)), n_repeats=_REPEATS, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a multi-label stratum may be smaller than its class
        return tuple(Fold(pool[fit], pool[judge]) for fit, judge in parts.split(pool, strata))


def labelled(folds: Sequence[Fold]) -> Rows:
    """All rows that the folds hold, in order."""
    return np.sort(np.concatenate([folds[0].train, folds[0].valid]))


def leaving_out(count: int) -> Iterator[Rows]:
    """The validation rows of one division without each of their parts; all of them, where there are too few for two."""
    parts = min(_PARTS, count)
    for part in range(parts):
        yield np.flatnonzero(np.arange(count) % parts != part) if parts > 1 else np.arange(count)


def standard_error(differences: NDArray[np.floating], folds: Sequence[Fold]) -> NDArray[np.floating]:
    """Of a difference between two scores, by differences (R, …): of each fold, or of one fold `leaving_out` each part.

    Folds are corrected for training rows that overlap (Nadeau & Bengio 2003), the parts of one fold are a grouped
    jackknife (Efron & Tibshirani 1993, chapter 11).
    """
    if len(folds) == 1:
        return np.sqrt((len(differences) - 1) * differences.var(0))
    judged = len(folds[0].valid) / len(folds[0].train)
    return np.sqrt((1 / len(folds) + judged) * differences.var(0, ddof=1))
