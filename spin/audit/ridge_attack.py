"""The attacker's model: a ridge regression from stored numbers to what texts hold."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from spin.arrays import Floats

_PENALTIES = np.geomspace(1e-5, 1, 11)
"""penalties that are tried, as shares of the sum of squares of all standardised numbers"""


def predict_targets(known: Floats, targets: Floats, judged: Floats) -> Floats:
    """(m, v) the targets of numbers (m, d), by a regression on numbers (n, d) whose targets (n, v) are known.

    The penalty is the one with the least leave-one-out error over all targets.
    """
    regression = make_pipeline(StandardScaler(), RidgeCV(alphas=_PENALTIES * known.size))
    predicted: Floats = regression.fit(known, targets).predict(judged)
    return predicted.reshape(len(judged), -1)
