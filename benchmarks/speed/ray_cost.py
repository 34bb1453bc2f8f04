"""Rounds of `spin extract` with Ray against a plain loop over the same shards, with two threads each."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.limits.overhead import ONE_WIDE, PLAIN_WIDE, SHARD, Way, prepare, seconds

_SHARDS = {False: 10, True: 2}
"""by whether the run is quick; at least two, since what Ray adds lies between them"""


def measure(folder: Path, rounds: int, *, quick: bool) -> dict[Way, list[float]]:
    """Seconds per round of the plain loop and of Ray, which take turns; in a folder that is removed afterwards."""
    folder = folder.resolve()  # workers run in folders of their own
    shutil.rmtree(folder, ignore_errors=True)
    settings = prepare(folder, _SHARDS[quick] * SHARD)
    measured: dict[Way, list[float]] = {PLAIN_WIDE: [], ONE_WIDE: []}
    for number in range(rounds):
        for way in (PLAIN_WIDE, ONE_WIDE)[:: -1 if number % 2 else 1]:
            measured[way].append(seconds(way, settings, folder))
        print(" | ".join(f"{way}: {times[-1]:.1f} s" for way, times in measured.items()), flush=True)
    shutil.rmtree(folder)
    return measured
