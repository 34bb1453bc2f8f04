"""Choose the documents of a night whose labels are most worth checking, so that they still stand for all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.nightly.report.night_report import find_report
from pipelines.nightly.tables.night_history import find_newest_night, list_nights
from pipelines.nightly.tables.night_records import RUNS
from pipelines.nightly.tables.night_tables import (
    DISAGREEMENTS,
    PREDICTIONS,
    NightTables,
    PublishedRun,
    read_night,
)
from pipelines.storage.object_store import Store
from spin.arrays import Floats
from spin.errors import UserError

UNCERTAIN, DRIFTED, DISPUTED, RANDOM = "uncertain", "drifted", "disputed", "random"
"""why a document was chosen: its label is among the least certain, it drives a neuron that drifted, a shadow disagrees,
or by chance"""
_SHARES = {UNCERTAIN: 0.3, DRIFTED: 0.1, DISPUTED: 0.2}
"""of the chosen documents, at most; the others are random"""
_COLUMNS = ("id", "label", "labels", "score", "scores")


@dataclass(frozen=True)
class ReviewSample:
    """Documents to check, and the night that they are from."""

    night: PublishedRun
    rows: pa.Table
    """id, label, labels and score as in the predictions, `reason`, and `population`: documents that it stands for"""


def choose_documents(
    output: str, *, documents: int, date: str | None = None, model: str | None = None, seed: int = 0
) -> ReviewSample:
    """Choose documents of a night with a label, by default of the newest.

    All documents with a label fall into four strata: the least certain ones, and those that the report names as causes
    of drift, all of which are chosen; those on which a shadow disagrees; and the others. Of the last two, documents are
    drawn at random, and each row has the number of documents of its stratum: so accuracy can be estimated without bias
    (`spin.monitor.spot_check`). Raises UserError if there is no such night, or no document with a label.
    """
    tables = NightTables(Store(output))
    night = _find_night(tables, date, model)
    disputed, drifted = _disputed_ids(tables, night), _drifted_ids(tables, night)
    counts = _allot(documents, len(drifted), len(disputed) > 0)
    kept = {name: _Smallest(counts[name]) for name in (UNCERTAIN, DRIFTED)}
    # which documents are chosen whole, and are in no other stratum, is only known in the end
    kept |= {name: _Smallest(counts[name] + counts[UNCERTAIN] + counts[DRIFTED]) for name in (DISPUTED, RANDOM)}
    draw, sizes = np.random.default_rng(seed), dict.fromkeys((DISPUTED, RANDOM), 0)
    for rows in _labelled_rows(tables, night):
        is_disputed, is_drifted = (
            pc.is_in(rows["id"], ids).to_numpy(zero_copy_only=False) for ids in (disputed, drifted)
        )
        keys = draw.random(len(rows))
        kept[UNCERTAIN].add(_certainty(rows), rows)
        for name, mask in ((DRIFTED, is_drifted), (DISPUTED, is_disputed), (RANDOM, ~is_disputed)):
            # which causes of drift are chosen does not depend on the seed, so that reviews add up
            kept[name].add(np.zeros(mask.sum()) if name == DRIFTED else keys[mask], rows.filter(pa.array(mask)))
        sizes[DISPUTED] += int(is_disputed.sum())
        sizes[RANDOM] += int((~is_disputed).sum())
    if not sum(sizes.values()):
        raise UserError(f"the night of {night.date} of {night.model} has no document with a label; nothing to review")
    return ReviewSample(night, _join(kept, counts, sizes, disputed))


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


def _allot(documents: int, drifted: int, any_disputed: bool) -> dict[str, int]:
    """The number of documents that are wanted of each stratum."""
    counts = {name: round(share * documents) for name, share in _SHARES.items()}
    counts[DRIFTED] = min(drifted, counts[DRIFTED])
    if not any_disputed:
        counts[DISPUTED] = 0
    return {**counts, RANDOM: documents - sum(counts.values())}


def _join(
    kept: Mapping[str, _Smallest], counts: Mapping[str, int], sizes: Mapping[str, int], disputed: pa.Array
) -> pa.Table:
    """The chosen rows of all strata in that order, each with the size of its stratum; `sizes` count whole ones too."""
    parts, whole = [], pa.array([], pa.string())
    for name in (UNCERTAIN, DRIFTED):
        rows = _leave_out(kept[name].rows, whole)
        parts.append(_describe(rows, name, len(rows)))
        whole = pa.concat_arrays([whole, *(rows["id"].chunks if len(rows) else [])])
    of_shadow = int(pc.sum(pc.is_in(whole, disputed)).as_py() or 0)
    taken = {DISPUTED: of_shadow, RANDOM: len(whole) - of_shadow}
    for name in (DISPUTED, RANDOM):
        rows = _leave_out(kept[name].rows, whole).slice(0, counts[name])
        parts.append(_describe(rows, name, sizes[name] - taken[name]))
    return pa.concat_tables([part for part in parts if len(part)])


def _leave_out(rows: pa.Table, ids: pa.Array) -> pa.Table:
    return rows.filter(pc.invert(pc.is_in(rows["id"], ids))) if len(rows) else rows


def _describe(rows: pa.Table, reason: str, population: int) -> pa.Table:
    """The columns of a review for rows of one stratum."""
    if not len(rows):
        return rows
    rows = rows.select(["id", "label", "labels", "score"]).append_column("reason", pa.repeat(reason, len(rows)))
    return rows.append_column("population", pa.repeat(pa.scalar(population, pa.int64()), len(rows)))


def _labelled_rows(tables: NightTables, night: PublishedRun) -> Iterator[pa.Table]:
    """The predictions of a night with a label, in the order of its files, some rows at a time."""
    for batch in read_night(tables, PREDICTIONS, _COLUMNS, date=night.date, model=night.model, run=night.run):
        rows = pa.Table.from_batches([batch])
        yield rows.filter(pc.or_(pc.is_valid(rows["label"]), pc.is_valid(rows["labels"])))


def _certainty(rows: pa.Table) -> Floats:
    """(n,) the probability of a label; in a multi-label task the distance of the least certain class from one half."""
    if not len(rows) or rows["labels"].null_count == len(rows):
        return np.asarray(rows["score"].to_numpy(), np.float64)
    of_class = rows["scores"].combine_chunks()
    values = of_class.items.to_numpy(zero_copy_only=False).astype(np.float64)
    return np.asarray(np.minimum.reduceat(np.abs(values - 0.5), of_class.offsets.to_numpy()[:-1]))


def _disputed_ids(tables: NightTables, night: PublishedRun) -> pa.Array:
    """The ids on which a shadow disagrees; none for a night without one."""
    batches = read_night(tables, DISAGREEMENTS, ["id"], date=night.date, model=night.model, run=night.run)
    return pa.concat_arrays([pa.array([], pa.string()), *(batch["id"] for batch in batches)])


def _drifted_ids(tables: NightTables, night: PublishedRun) -> pa.Array:
    """The ids that the report of a night names as causes of drift."""
    report = find_report(tables.out / f"{RUNS}/{night.run}")
    moved = () if report is None else (shift for drift in report.drift for shift in drift.moved)
    return pa.array(sorted({id for shift in moved for id in shift.documents}), pa.string())
