"""`make soak`: histories of nights for an hour, or for as many minutes as `--minutes` says; prints a summary.

For half of the time, a driver of each kind is overtaken by each kind of command, at operations that are drawn. The rest
goes to histories that Hypothesis makes up, each time with another seed. The first violation ends the soak with its
history.
"""

from __future__ import annotations

import argparse
import logging
import random
import time
from collections.abc import Callable

from tests.pipelines.nightly.test_histories import (
    OVERTAKEN,
    OVERTAKEN_PASS,
    OVERTAKING,
    NightHistories,
    count_operations,
    overtake,
    run_histories,
)

_BATCH = 10
"""histories per seed"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--steps", type=int, default=40, help="steps per history")
    parser.add_argument("--seed", type=int, default=0, help="draws the operations at which a driver is overtaken")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    began = time.monotonic()
    overtaken = _overtake(random.Random(options.seed), began + 30 * options.minutes)
    histories = _repeat(lambda: run_histories(_BATCH, options.steps), began + 60 * options.minutes)
    print(_summary(overtaken, histories, options.steps, time.monotonic() - began))


def _overtake(draw: random.Random, end: float) -> int:
    """Let drivers be overtaken until a time, or at all operations; return how often."""
    places = [
        (name, operations, command)
        for name in OVERTAKING
        for command in (OVERTAKEN, OVERTAKEN_PASS, None)
        for operations in range(count_operations(command))
    ]
    draw.shuffle(places)
    for number, place in enumerate(places):
        if time.monotonic() > end:
            return number
        overtake(*place)
    return len(places)


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
