"""Draw the documents of a night whose labels people check, so that they stand for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.nightly.report.night_report import find_report
from pipelines.nightly.review.given_labels import find_chances, read_labelled
from pipelines.nightly.tables.night_history import find_newest_night, list_nights
from pipelines.nightly.tables.night_records import RUNS
from pipelines.nightly.tables.night_tables import DISAGREEMENTS, NightTables, PublishedRun, read_night
from pipelines.storage.object_store import Store
from spin.arrays import Floats
from spin.errors import UserError
from spin.monitor.spot_check import LEAST_DOUBT, MOST_DOUBT, measure_doubt

UNCERTAIN, DRIFTED, DISPUTED, RANDOM = "uncertain", "drifted", "disputed", "random"
"""why a document was drawn: its label is uncertain, it drives a neuron that drifted, a shadow disagrees, or by chance.
The random ones alone are a uniform sample of the documents with a label"""


@dataclass(frozen=True)
class ReviewSample:
    """Documents to check, and the night that they are from."""

    night: PublishedRun
    seed: int
    """of the draw"""
    rows: pa.Table
    """id, label, labels and score as in the predictions, `reason`, `probability` of being drawn, and `population`: the
    documents with a label of the night"""


def choose_documents(
    output: str, *, documents: int, date: str | None = None, model: str | None = None, seed: int = 0
) -> ReviewSample:
    """Draw documents of a night with a label, by default of the newest.

    Each is drawn with a known probability in proportion to the doubt about its label: so accuracy can be estimated
    without bias (`spin.monitor.spot_check`). The doubt is greatest about documents on which a shadow disagrees, and
    about those that the report names as causes of drift, whatever their scores. With more documents the same seed draws
    those of before and others. The rows are in random order. Raises UserError if there is no such night, or no document
    with a label.

    This is priority sampling (Duffield et al., Journal of the ACM, 2007): of all documents with their number between 0
    and 1, those are drawn whose number is smallest in relation to the doubt. Given the first one that is left out, the
    probability is that of a number below.
    """
    tables = NightTables(Store(output))
    night = _find_night(tables, date, model)
    disputed, drifted = _disputed_ids(tables, night), _drifted_ids(tables, night)
    kept, population = _Smallest(documents + 1), 0
    for rows in read_labelled(tables, night):
        doubtful = pc.is_in(rows["id"], pa.concat_arrays([disputed, drifted])).to_numpy()
        doubt = np.where(doubtful, MOST_DOUBT, measure_doubt(find_chances(rows)))
        order, chance = _number(seed, rows["id"].to_pylist()).T
        rows = rows.select(["id", "label", "labels", "score"]).append_column("doubt", pa.array(doubt))
        kept.add(order / doubt, rows.append_column("chance", pa.array(chance)))
        population += len(rows)
    if not population:
        raise UserError(f"the night of {night.date} of {night.model} has no document with a label; nothing to review")
    limit = kept.keys[documents] if population > documents else np.inf
    rows = _describe(kept.rows.slice(0, documents), limit, disputed, drifted)
    rows = rows.append_column("population", pa.array(np.full(len(rows), population)))
    return ReviewSample(night, seed, rows.take(pa.array(np.random.default_rng(seed).permutation(len(rows)))))


def _describe(rows: pa.Table, limit: float, disputed: pa.Array, drifted: pa.Array) -> pa.Table:
    """The drawn rows with the reason and the probability, by the least key that was not drawn."""
    doubt, chance = (rows[name].to_numpy() for name in ("doubt", "chance"))
    probability, least = np.minimum(1, limit * doubt), min(1, limit * LEAST_DOUBT)
    is_random = chance < least / probability  # so every document is drawn as a random one with the probability `least`
    is_drifted, is_disputed = (pc.is_in(rows["id"], ids).to_numpy() for ids in (drifted, disputed))
    reason = np.select([is_random, is_drifted, is_disputed], [RANDOM, DRIFTED, DISPUTED], UNCERTAIN)
    rows = rows.drop_columns(["doubt", "chance"]).append_column("reason", pa.array(reason))
    digits = [float(f"{p:.6g}") for p in probability]  # as many as spreadsheets keep
    return rows.append_column("probability", pa.array(digits, pa.float64()))


def _number(seed: int, ids: Sequence[str]) -> Floats:
    """(n, 2) two numbers between 0 and 1 for each document, which the seed and its id alone decide."""
    digests = (blake2b(f"{seed}:{id}".encode(), digest_size=16).digest() for id in ids)
    return np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2) / 2.0**64


def _find_night(tables: NightTables, date: str | None, model: str | None) -> PublishedRun:
    """The published night of a date and model, by default the newest.

    Raises UserError if there is none, or if nights of several models could be meant.
    """
    nights = [night for night in list_nights(tables) if date in (None, night.date) and model in (None, night.model)]
    newest = find_newest_night(nights)
    if newest is None:
        wanted = "".join(f" of {each}" for each in (date, model) if each is not None)
        raise UserError(f"{tables.out.uri} has no published night{wanted}; `spin classify` makes one")
    models = [night.model for night in nights if night.date == newest.date]
    if len(models) > 1:
        raise UserError(f"{tables.out.uri} has nights of {newest.date} by {', '.join(models)}; choose one with --model")
    return newest


class _Smallest:
    """The rows with the smallest keys of all that were added."""

    def __init__(self, count: int) -> None:
        self.count, self.rows = count, pa.table({})
        self.keys: Floats = np.empty(0)

    def add(self, keys: Floats, rows: pa.Table) -> None:
        """Add rows with a key (n,) each."""
        keys = np.concatenate([self.keys, keys])
        rows = pa.concat_tables([self.rows, rows]) if len(self.rows) else rows
        order = np.argsort(keys, kind="stable")[: self.count]
        self.keys, self.rows = keys[order], rows.take(pa.array(order))


def _disputed_ids(tables: NightTables, night: PublishedRun) -> pa.Array:
    """The ids on which a shadow disagrees; none for a night without one."""
    batches = read_night(tables, DISAGREEMENTS, ["id"], date=night.date, model=night.model, run=night.run)
    return pa.concat_arrays([pa.array([], pa.string()), *(batch["id"] for batch in batches)])


def _drifted_ids(tables: NightTables, night: PublishedRun) -> pa.Array:
    """The ids that the report of a night names as causes of drift."""
    report = find_report(tables.out / f"{RUNS}/{night.run}")
    moved = () if report is None else (shift for drift in report.drift for shift in drift.moved)
    return pa.array(sorted({id for shift in moved for id in shift.documents}), pa.string())
