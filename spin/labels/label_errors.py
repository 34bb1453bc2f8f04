"""Label errors: documents whose given label the predictions of a model that has not seen them contradict."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats


def find_suspects(probabilities: Floats, y: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which labels (n,) probabilities (n, K) of a model without these rows contradict (Northcutt et al. 2021).

    A class is confident where its probability is at least its mean over the rows with that label. A label is suspect if
    the most probable of a row's confident classes is another one.
    """
    given = y[:, None] == np.arange(probabilities.shape[1])
    counts = given.sum(0)
    thresholds = np.where(counts > 0, (probabilities * given).sum(0) / np.maximum(counts, 1), np.inf)
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)
    return (confident.max(1) >= 0) & (confident.argmax(1) != y)
