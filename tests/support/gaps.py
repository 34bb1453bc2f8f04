"""Thresholds that no rounding reaches."""

from __future__ import annotations

import numpy as np


def find_gap(values: np.ndarray, quantile: float) -> float:
    """Return the middle of the widest gap between sorted values near a quantile.

    A threshold that lies close to a value would be passed or not by rounding, which differs between processors.
    """
    ordered = np.sort(values)
    first = max(0, int((quantile - 0.1) * len(ordered)))
    near = ordered[first : int((quantile + 0.1) * len(ordered)) + 2]
    at = int(np.diff(near).argmax())
    return float(near[at : at + 2].mean())
