"""Membership inference: whether the loss of a document tells that a classifier was trained on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score

from spin.arrays import Floats


@dataclass(frozen=True)
class Membership:
    """The success of an attack that tells training documents from others by their losses (Yeom et al. 2018)."""

    auroc: float
    """probability that a training document has a lower loss than another one; 0.5 tells nothing"""
    train_loss: float
    """mean log loss of the training documents"""
    test_loss: float
    """mean log loss of documents that nothing was learned from"""
    train_documents: int
    test_documents: int

    @classmethod
    def of(cls, train: Floats, test: Floats) -> Membership:
        """The success by the losses (n,) of training documents and (m,) of others."""
        truth = np.repeat([True, False], [len(train), len(test)])
        auroc = float(roc_auc_score(truth, -np.concatenate([train, test])))
        return cls(auroc, float(train.mean()), float(test.mean()), len(train), len(test))
