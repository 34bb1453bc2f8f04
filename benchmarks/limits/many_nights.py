"""An output of many nights: what it takes to open it, and to publish one more."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

from benchmarks.section_page import Part, table
from pipelines.data.intake import FileOutcome
from pipelines.nightly.tables.night_history import list_nights
from pipelines.nightly.tables.night_records import begin_run, finish_run, lease_model
from pipelines.nightly.tables.night_tables import INPUTS, PREDICTIONS, NightTables
from pipelines.nightly.tables.publication import (
    claim_nights,
    publish_night,
    write_empty_predictions,
    write_inputs,
)
from pipelines.storage.delta_table import LOG
from pipelines.storage.object_store import Store

NIGHTS, QUICK_NIGHTS = 1_000, 30
EARLY = 10
"""the night with which the last one is compared"""
_WINDOW = 10
"""nights that are measured at a time: the tables write a checkpoint every ten commits"""
_MOST = 1.5
"""promise: seconds of the last nights per second of the early ones"""
_FIRST_DAY, _MODEL = date(2024, 1, 1), "limits"


@dataclass(frozen=True)
class NightCosts:
    """What the nights around one take, in seconds."""

    number: int
    """of the last of these nights"""
    opened: float
    """to open the predictions and list the nights"""
    published: float
    """to claim and publish a night"""


def measure(folder: Path, *, quick: bool) -> list[NightCosts]:
    """Publish nights without documents in one output on this disk, each a day after the one before.

    A copy of the output stays young. At the end both get further nights in turns, so that both meet the same machine.
    """
    young, old = folder / "young", folder / "old"
    count = QUICK_NIGHTS if quick else NIGHTS
    for number in range(count - _WINDOW):
        if number == EARLY:
            shutil.copytree(old, young)
        if number % _WINDOW == 0:
            _age_logs(old, _WINDOW)
        publish_empty_night(NightTables(Store(str(old))), number)
    nights = [(young, EARLY), (old, count - _WINDOW)]
    costs = [[(_publish(out, first + step), _open(out)) for out, first in nights] for step in range(_WINDOW)]
    medians = [
        [statistics.median(values) for values in zip(*of_output, strict=True)] for of_output in zip(*costs, strict=True)
    ]
    return [
        NightCosts(first + _WINDOW, opened, published)
        for (_, first), (published, opened) in zip(nights, medians, strict=True)
    ]


def _publish(out: Path, number: int) -> float:
    start = time.perf_counter()
    publish_empty_night(NightTables(Store(str(out))), number)
    return time.perf_counter() - start


def _open(out: Path) -> float:
    start = time.perf_counter()
    assert list_nights(NightTables(Store(str(out))))
    return time.perf_counter() - start


def _age_logs(out: Path, days: int) -> None:
    """Make the logs of all tables older, as the tables delete entries by their age."""
    for file in out.glob(f"*/{LOG}/*"):
        modified = file.stat().st_mtime - 86_400 * days
        os.utime(file, (modified, modified))


def publish_empty_night(tables: NightTables, number: int) -> None:
    """Claim, write and publish a night of one input file without documents."""
    day = str(_FIRST_DAY + timedelta(days=number))
    with lease_model(tables.out, _MODEL) as lease:
        claim = claim_nights(tables, _MODEL, lease)
        run = begin_run(tables.out, date=day, model=_MODEL, model_version="1", claim=claim)
        inputs = write_inputs(tables, run, claim, [FileOutcome(f"{day}.jsonl", 1, "1", 0)])
        files = {PREDICTIONS: [write_empty_predictions(tables, run, claim)], INPUTS: [inputs]}
        publish_night(tables, finish_run(tables.out, run, files), claim=claim)


def section(results: Sequence[NightCosts]) -> Part:
    """Milliseconds to open an output and to publish a night, early and late."""
    early, late = results
    rows = [[f"{each.number:,}", f"{1000 * each.opened:.1f}", f"{1000 * each.published:.0f}"] for each in results]
    text = [
        table(["night", "ms to open the output", "ms to claim and publish"], rows),
        f"Medians of {_WINDOW} nights without documents, one a day, in two outputs on a disk, in turns.\n",
    ]
    opened, published = late.opened / early.opened, late.published / early.published
    return "\n".join(text), [
        (opened <= _MOST, f"opening an output takes {opened:.2f} × as long at night {late.number:,}"),
        (published <= _MOST, f"publishing a night takes {published:.2f} × as long at night {late.number:,}"),
    ]
