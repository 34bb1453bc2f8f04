"""Splits: which documents train, which validate and which test."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Rows

SPLITS = ("train", "valid", "test")
DROPPED = "dropped"
"""stands in place of a split: the document serves for nothing, as its text tests under another id, or is frozen"""
CROSS_VALIDATION_BELOW = 5_000
"""number of labelled documents to train and validate below which cross-validation makes the choices"""
FEW_LABELS = 1_000
"""number of them below which strengths of regularisation are not compared at every depth"""
VERY_FEW_LABELS = 300
"""number of them below which cross-validation is repeated: a second division makes its choices steadier"""


def assign_split(group: object, seed: int, valid_fraction: float, test_fraction: float) -> str:
    """The split of a document by a hash of its group alone, so that more data never moves a document.

    The documents of a group stay together; see `split_groups`. Every class is divided in the same proportions in
    expectation, because the hash does not depend on the class.
    """
    digest = hashlib.blake2b(f"{seed}:{group}".encode(errors="surrogatepass"), digest_size=8).digest()
    share = int.from_bytes(digest) / 2**64
    if share < test_fraction:
        return "test"
    return "valid" if share < test_fraction + valid_fraction else "train"


def certifies(group: object) -> bool:
    """Whether test documents are of the half that proves promises and estimates quality, by a hash of their group.

    A document without a group stands for itself, by its id. The gate compares versions by the other half. A version
    that it has chosen does too well on the documents by which it was chosen, and on those of their groups, so these
    prove nothing about it.
    """
    return bool(hashlib.blake2b(f"certificate:{group}".encode(errors="surrogatepass"), digest_size=1).digest()[0] & 1)


def in_split(splits: Sequence[str], *names: str) -> NDArray[np.bool_]:
    """(n,) whether each document is in one of the named splits."""
    return np.fromiter((split in names for split in splits), bool, len(splits))


def rows_in_split(splits: Sequence[str], *names: str) -> Rows:
    """The row numbers of the documents in one of the named splits, ascending."""
    return np.flatnonzero(in_split(splits, *names))


def needs_cross_validation(splits: Sequence[str]) -> bool:
    """Whether so few documents train and validate that they form one pool for cross-validation."""
    return sum(split in ("train", "valid") for split in splits) < CROSS_VALIDATION_BELOW
