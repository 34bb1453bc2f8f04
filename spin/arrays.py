"""Types of arrays that many modules share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
"""an array of float32 or float64"""
Rows = NDArray[np.int64]
"""row numbers of documents"""
Hashes = NDArray[np.uint64]
"""64-bit hashes of documents"""
