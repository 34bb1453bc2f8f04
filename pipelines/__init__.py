"""Training and classifying on many machines: object stores, Ray workers, the registry and the nightly job.

Needs the extra `pipelines`; the method alone is the package `spin`.
"""

import os
import sys
from itertools import takewhile

from spin_neurons import ROOT, find_conflict

if conflict := find_conflict(takewhile(lambda folder: os.path.abspath(folder) != ROOT, sys.path), ["spin"]):
    raise ImportError(conflict)
