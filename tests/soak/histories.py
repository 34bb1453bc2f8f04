"""`make soak`: histories of nights for an hour, or for as many minutes as `--minutes` says; prints a summary.

First a driver is overtaken at each of its operations by each kind of command. The rest of the time goes to histories
that Hypothesis makes up, each time with another seed. The first violation ends the soak with its history.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable

from tests.pipelines.nightly.test_histories import (
    OVERTAKEN,
    OVERTAKEN_PASS,
    OVERTAKING,
    NightHistories,
    overtake_at_all_operations,
    run_histories,
)

_BATCH = 50
"""histories per seed"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--steps", type=int, default=40, help="steps per history")
    parser.add_argument("--stride", type=int, default=1, help="operations between two at which a driver is overtaken")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    began = time.monotonic()
    commands = (OVERTAKEN, OVERTAKEN_PASS, None)
    overtaken = sum(overtake_at_all_operations(name, options.stride, each) for name in OVERTAKING for each in commands)
    histories = _repeat(lambda: run_histories(_BATCH, options.steps), began + 60 * options.minutes)
    print(_summary(overtaken, histories, options.steps, time.monotonic() - began))


def _repeat(run: Callable[[], object], end: float) -> int:
    """Run batches until a time; return the number of histories."""
    histories = 0
    while time.monotonic() < end or not histories:
        run()
        histories += _BATCH
        print(f"{histories:,} histories, {NightHistories.statuses.total():,} commands", flush=True)
    return histories


def _summary(overtaken: int, histories: int, steps: int, seconds: float) -> str:
    """A table in Markdown."""
    rows = {
        "operations at which a driver was overtaken": overtaken,
        f"histories of up to {steps} steps": histories,
        "commands": NightHistories.statuses.total(),
        **{f"… that ended with {outcome}": n for outcome, n in sorted(NightHistories.statuses.items())},
        "rows lost, doubled or in two nights": 0,
    }
    lines = [f"| {name} | {number:,} |" for name, number in rows.items()]
    return "\n".join([f"\n{seconds / 60:.0f} minutes\n", "|  |  |", "| --- | ---: |", *lines])


if __name__ == "__main__":
    main()
