"""Folds: on which rows a model is fitted and on which its choices are judged."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats, Rows
from spin.labels.label_space import LabelSpace, Targets
from spin.labels.splits import CROSS_VALIDATION_BELOW

_SPLITS, _REPEATS = 5, 2
_JACKKNIFE_PARTS = 20
"""parts of the validation rows of a single fold; each is left out once to estimate a standard error"""


@dataclass(frozen=True)
class Fold:
    """Row numbers of the documents that train and of those that validate."""

    train: Rows
    valid: Rows


def make_folds(label_space: LabelSpace, y: Targets, train: Rows, valid: Rows, seed: int) -> tuple[Fold, ...]:
    """The given division as a single fold, or below `CROSS_VALIDATION_BELOW` rows repeated cross-validation.

    Cross-validation pools the rows of `train` and `valid` and stratifies by class: five folds, repeated twice, with
    fewer folds where a class has fewer documents. `y` are the targets of all rows.
    """
    from sklearn.model_selection import RepeatedStratifiedKFold

    if len(train) + len(valid) >= CROSS_VALIDATION_BELOW:
        return (Fold(train, valid),)
    pool = np.sort(np.concatenate([train, valid]))
    strata = label_space.strata(y[pool])
    smallest = label_space.indicator(y[pool]).sum(0).min()
    splitter = RepeatedStratifiedKFold(
        n_splits=int(np.clip(smallest, 2, _SPLITS)), n_repeats=_REPEATS, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a multi-label stratum may be smaller than its class
        return tuple(
            Fold(pool[train_part], pool[valid_part]) for train_part, valid_part in splitter.split(pool, strata)
        )


def labelled_rows(folds: Sequence[Fold]) -> Rows:
    """All rows that train or validate, in order."""
    return np.sort(np.concatenate([folds[0].train, folds[0].valid]))


def jackknife_rows(count: int) -> Iterator[Rows]:
    """The positions of `count` validation rows without each of 20 parts in turn; all of them if there are too few."""
    parts = min(_JACKKNIFE_PARTS, count)
    for part in range(parts):
        yield np.flatnonzero(np.arange(count) % parts != part) if parts > 1 else np.arange(count)


def standard_error(differences: Floats, folds: Sequence[Fold]) -> NDArray[np.floating]:
    """The standard error (…) of a difference between two scores, from its resampled values (R, …).

    With several folds the values are one per fold, corrected for overlapping training rows (Nadeau & Bengio 2003).
    With a single fold they are one per part that `jackknife_rows` leaves out: a grouped jackknife (Efron & Tibshirani
    1993, chapter 11).
    """
    if len(folds) == 1:
        return np.sqrt((len(differences) - 1) * differences.var(0))
    valid_share = len(folds[0].valid) / len(folds[0].train)
    return np.sqrt((1 / len(folds) + valid_share) * differences.var(0, ddof=1))
