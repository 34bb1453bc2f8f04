"""Folds: on which rows a model is fitted and on which its choices are judged."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats, Hashes, Rows
from spin.errors import UserError
from spin.labels.label_space import LabelSpace, Targets
from spin.labels.splits import CROSS_VALIDATION_BELOW, FEW_LABELS, VERY_FEW_LABELS

_SPLITS, _REPEATS = 5, 2
_TRIES = 50
"""random divisions of groups into folds that are tried until each fold trains on every class"""
_JACKKNIFE_PARTS = 20
"""parts of the validation rows of a single fold; each is left out once to estimate a standard error"""


@dataclass(frozen=True)
class Fold:
    """Row numbers of the documents that train and of those that validate, both ascending."""

    train: Rows
    valid: Rows


def make_folds(
    label_space: LabelSpace, y: Targets, train: Rows, valid: Rows, seed: int, groups: Hashes | None = None
) -> tuple[Fold, ...]:
    """The given division as a single fold, or below `CROSS_VALIDATION_BELOW` rows cross-validation.

    Cross-validation pools the rows of `train` and `valid` and stratifies by class into five folds. Below `FEW_LABELS`
    rows there are fewer where a class has fewer documents, so that each validates on every class; below
    `VERY_FEW_LABELS` they are repeated once. `y` are the targets of all rows (n, …), and `groups` (n,) their groups,
    which are not divided. Raises UserError if no division into groups lets each fold train on every class.
    """
    if len(train) + len(valid) >= CROSS_VALIDATION_BELOW:
        return (Fold(train, valid),)
    pool = np.sort(np.concatenate([train, valid]))
    few = len(pool) < FEW_LABELS
    strata, indicator = label_space.strata(y[pool]), label_space.indicator(y[pool])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a multi-label stratum may be smaller than its class
        if groups is None or len(np.unique(groups[pool])) == len(pool):
            parts = _divide_rows(strata, indicator, few, seed)
        else:
            parts = _divide_groups(strata, indicator, groups[pool], few, seed)
    return tuple(Fold(pool[train_part], pool[valid_part]) for train_part, valid_part in parts)


def _divide_rows(strata: Rows, indicator: NDArray[np.bool_], few: bool, seed: int) -> list[tuple[Rows, Rows]]:
    """The positions that train and validate in each fold, for rows that stand for themselves."""
    from sklearn.model_selection import RepeatedStratifiedKFold

    most = min(_SPLITS, int(np.bincount(strata).max()))
    splits = max(2, min(int(indicator.sum(0).min()), most)) if few else most
    splitter = RepeatedStratifiedKFold(n_splits=splits, n_repeats=_repeats(len(strata)), random_state=seed)
    return list(splitter.split(strata, strata))


def _divide_groups(
    strata: Rows, indicator: NDArray[np.bool_], groups: Hashes, few: bool, seed: int
) -> list[tuple[Rows, Rows]]:
    """The positions that train and validate in each fold, with all rows of a group on the same side.

    Stratified as far as groups allow. A random division may leave a class to the validation rows alone. It is drawn
    again then, and if that does not help with more folds, which keep two groups apart more easily.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    fewest = min(len(np.unique(groups[has])) for has in indicator.T)
    most = min(_SPLITS, len(np.unique(groups)), int(np.bincount(strata).max()))
    draw = np.random.RandomState(seed)
    repeats = _repeats(len(groups))
    for n_splits in range(max(2, min(fewest, most)) if few else most, most + 1):
        parts: list[tuple[Rows, Rows]] = []
        for _ in range(_TRIES):
            splitter = StratifiedGroupKFold(n_splits=n_splits, shuffle=True, random_state=draw)
            division = list(splitter.split(strata, strata, groups))
            if all(len(valid) and indicator[train].any(0).all() for train, valid in division):
                parts += division
            if len(parts) == repeats * n_splits:
                return parts
    raise UserError(
        f"cross-validation: found no division of {len(groups)} documents in {len(np.unique(groups))} groups that lets "
        "every class be learned without any of its groups; label documents of more groups, or change data.group"
    )


def _repeats(documents: int) -> int:
    return _REPEATS if documents < VERY_FEW_LABELS else 1


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
    valid_share = sum(len(fold.valid) for fold in folds) / sum(len(fold.train) for fold in folds)
    return np.sqrt((1 / len(folds) + valid_share) * differences.var(0, ddof=1))
