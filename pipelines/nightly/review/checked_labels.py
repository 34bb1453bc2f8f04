"""Labels that people have given to documents of nights: store them, and score the nights by them."""

from __future__ import annotations

import hashlib
import io
import json
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.forgotten_ids import ForgottenIds, read_forgotten
from pipelines.nightly.night_date import parse_date
from pipelines.nightly.report.night_report import ScoredNight, find_report
from pipelines.nightly.review.given_labels import GivenLabels, is_multilabel, read_given
from pipelines.nightly.review.label_file import LabelRow, read_label_file
from pipelines.nightly.tables.night_history import list_nights
from pipelines.nightly.tables.night_records import ABANDONED, RUNS, is_run_of
from pipelines.nightly.tables.night_tables import NightTables, PublishedRun
from pipelines.storage.object_store import Store
from pipelines.storage.parquet import to_parquet
from pipelines.storage.records import from_json, to_json
from spin.errors import UserError
from spin.monitor.spot_check import CheckedSample, estimate_accuracy
from spin.pages.number_format import counted

LABELS = "_labels"
"""folder of an output with the labels that were added, and the scores of nights by them"""
_SCORES = f"{LABELS}/nights"
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("true_labels", pa.list_(pa.string())),
        ("date", pa.string()),
        ("model", pa.string()),
        ("reason", pa.string()),
        ("population", pa.int64()),
        ("probability", pa.float64()),
        ("seed", pa.int64()),
    ]
)
_ADDED = b"added"
"""key of the file's metadata with the time at which its labels were added"""
_NAMED = 10
"""unknown classes that a message names"""


@dataclass(frozen=True)
class AddedLabels:
    """The labels of a file by what became of them."""

    added: int
    """labels of documents that a night has given a label"""
    empty: int
    """rows without a label"""
    unknown: int
    """labels of documents that no night has given one"""
    nights: tuple[ScoredNight, ...]
    """the nights with labels of the file, scored anew"""
    foreign: tuple[str, ...] = ()
    """classes that the model of a night does not have, sorted: labels with one of them count as wrong"""


def add_labels(
    output: str, file: Path, *, date: str | None = None, model: str | None = None, new_classes: Collection[str] = ()
) -> AddedLabels:
    """Store the labels in a CSV or Parquet file, and score the nights that they belong to.

    The file has the columns `id` and `true_label`, and what `spin review` has written beside them. Rows without a run,
    a date and a model are of the night of `date` and `model`, by default of all published nights that have the
    document. Adding a file twice changes nothing; of several labels for a document, the last one counts. Raises
    UserError for a file that cannot be read or lacks a column, and before anything is stored for a class that the model
    of a night does not have, unless it is among `new_classes`, for no or several classes where it gives one, and if all
    labels are of documents without a night.
    """
    date = date and parse_date(date)
    tables, rows = NightTables(Store(output)), read_label_file(file)
    gone = set(read_forgotten(tables.out).find(row.id for row in rows))
    rows = [row for at, row in enumerate(rows) if at not in gone]
    nights = list_nights(tables)
    if not nights:
        raise UserError(f"{output} has no published night; `spin classify` makes one")
    known: set[str] = set()
    found, touched = [], []
    for night in nights:
        own = list(_rows_of(night, rows, date, model))
        given = read_given(tables, night, {row.id for row in own}).classes if own else {}
        own = [row for row in own if row.id in given]
        known |= {row.id for row in own}
        if own:
            found.append(own)
        if any(row.true_labels is not None for row in own):
            touched.append(night)
            check_class_counts(tables, night, own, str(file))
            _check_classes(tables, night, own, new_classes, file)
    labelled = [row for row in rows if row.true_labels is not None]
    added = sum(row.id in known for row in labelled)
    if labelled and not added:
        raise _no_night_of(labelled, output, file, date, model)
    for own in found:
        _store(tables.out, own)
    if found:  # `spin forget` stores its hashes before it removes labels: whichever comes last removes them
        remove_labels(tables.out, read_forgotten(tables.out))
    stored = read_labels(tables.out) if touched else {}
    labels = [(night, stored.get((night.date, night.model), [])) for night in touched]
    scored = [
        _score(tables, night, given) for night, given in labels if any(row.true_labels is not None for row in given)
    ]
    return AddedLabels(
        added=added,
        empty=len(rows) - len(labelled),
        unknown=len(labelled) - added,
        nights=tuple(score for score, _ in scored),
        foreign=tuple(sorted({name for _, names in scored for name in names})),
    )


def _no_night_of(rows: Sequence[LabelRow], output: str, file: Path, date: str | None, model: str | None) -> UserError:
    """The error for labels none of which is of a document of a night."""
    night = (rows[0].run,) if rows[0].run else (rows[0].date or date, rows[0].model or model)
    example = " of ".join([f"'{rows[0].id}'", *filter(None, night)])
    return UserError(
        f"{file}: no published night gave a label to any of the {counted(len(rows), 'document')} with a true label, "
        f"such as {example}; expected ids, dates and models of nights that `spin nights list --output "
        f"{shlex.quote(output)}` names"
    )


def check_class_counts(tables: NightTables, night: PublishedRun, rows: Sequence[LabelRow], where: str) -> None:
    """Raise UserError, with `where` first, for no or several classes where the night gives each document one."""
    wrong = next((row for row in rows if row.true_labels is not None and len(row.true_labels) != 1), None)
    if wrong is not None and not is_multilabel(tables, night):
        raise UserError(
            f"{where}: the label of '{wrong.id}' is {json.dumps(wrong.true_labels)}; {night.model}, the model of the "
            f"night of {night.date}, gives every document one class. Give it the name of one by `spin labels add`"
        )


def _check_classes(
    tables: NightTables, night: PublishedRun, rows: Sequence[LabelRow], new_classes: Collection[str], file: Path
) -> None:
    """Raise UserError for labels with a class that neither the model of a night has, as its report says, nor is new."""
    report = find_report(tables.out / f"{RUNS}/{night.run}")
    names = {name for row in rows for name in row.true_labels or ()}
    unknown = [] if report is None else sorted(names - {*report.classes, *new_classes})
    if report is None or not unknown:
        return
    near = {name: get_close_matches(name, report.classes, n=1) for name in unknown}
    shown = [f"'{name}'" + (f" (did you mean '{near[name][0]}'?)" if near[name] else "") for name in unknown]
    more = f" and {len(unknown) - _NAMED:,} more" if len(unknown) > _NAMED else ""
    raise UserError(
        f"{file}: {', '.join(shown[:_NAMED])}{more}: {night.model}, the model of the night of {night.date}, has no "
        f"such class; it has {', '.join(report.classes)}. Correct the label, or add the class with --new-class NAME"
    )


def list_scores(tables: NightTables, model: str | None = None, *, most: int | None = None) -> list[ScoredNight]:
    """The published nights that were scored, of one model or of all, by date and model; at most the last `most`."""
    stored = set(tables.out.list_names(_SCORES))
    if not stored:  # as in most nights, which are spared a look into the tables
        return []
    names = [f"{night.run}.json" for night in list_nights(tables) if model in (None, night.model)]
    keys = [f"{_SCORES}/{name}" for name in names if name in stored]
    keys = keys if most is None else keys[-most:]
    scored = [from_json(ScoredNight, json.loads(data)) for data in tables.out.read_many(keys).values()]
    return sorted(scored, key=lambda night: (night.date, night.model))


def _rows_of(night: PublishedRun, rows: Sequence[LabelRow], date: str | None, model: str | None) -> Iterator[LabelRow]:
    """The rows that may be of a night, with its date and model."""
    for row in rows:
        named = (row.date or date) in (None, night.date) and (row.model or model) in (None, night.model)
        if named if row.run is None else _is_run_of(row.run, night):
            yield replace(row, date=night.date, model=night.model)


def _is_run_of(run: str, night: PublishedRun) -> bool:
    """Whether a run, published or not, is one of the date and model of a night."""
    return run[:10] == night.date and is_run_of(run, [night.model])


def remove_labels(out: Store, forgotten: ForgottenIds, *, dry_run: bool = False) -> int:
    """Remove the labels of forgotten documents, and return how many; with `dry_run`, only count them."""
    removed = 0
    for key, labels in _read_files(out).items():
        gone = forgotten.find(labels["id"].to_pylist())
        removed += len(gone)
        if gone and not dry_run:
            remaining = np.ones(len(labels), bool)
            remaining[gone] = False
            if remaining.any():
                # under a name of its own: the same labels may have been added at another time
                _write_file(out, labels.filter(pa.array(remaining)), salt=labels.schema.metadata[_ADDED])
            out.delete_many([key])
    return removed


def rescore_nights(tables: NightTables) -> None:
    """Score the nights that have a score by the labels that are left.

    So has a night of whose date and model a run with a score was given up: `spin forget` gives up the run that it
    writes again, whichever of its attempts has published the new one.
    """
    out, scored = tables.out, {name.removesuffix(".json") for name in tables.out.list_names(_SCORES)}
    labels = read_labels(out) if scored else {}
    given_up = {key.split("/")[1] for key in out.read_many([f"{RUNS}/{run}/{ABANDONED}" for run in sorted(scored)])}
    for night in list_nights(tables):
        former = {run for run in given_up if _is_run_of(run, night)}
        outdated = scored & {night.run, *former}
        if not outdated:
            continue
        rows = labels.get((night.date, night.model), [])
        if any(row.true_labels is not None for row in rows):
            _score(tables, night, rows)
            outdated.discard(night.run)
        out.delete_many([f"{_SCORES}/{run}.json" for run in sorted(outdated)])


def _store(out: Store, rows: Sequence[LabelRow]) -> None:
    """Store labels with the time at which they were added."""
    added = datetime.now(UTC).isoformat(timespec="microseconds")
    _write_file(
        out, pa.Table.from_pylist([asdict(row) for row in rows], _SCHEMA.with_metadata({_ADDED: added.encode()}))
    )


def _write_file(out: Store, labels: pa.Table, salt: bytes = b"") -> None:
    """Write labels under a name that follows from them: the same ones are stored once, as the last that were added."""
    digest = hashlib.sha256(json.dumps(labels.to_pylist()).encode() + salt).hexdigest()[:32]
    out.write(f"{LABELS}/{digest}.parquet", to_parquet(labels))


def _read_files(out: Store) -> dict[str, pa.Table]:
    """The files of labels by key."""
    keys = [key for key in out.list(LABELS) if key.endswith(".parquet")]
    return {key: pq.read_table(io.BytesIO(data)) for key, data in out.read_many(keys).items()}


def read_labels(out: Store) -> dict[tuple[str, str], list[LabelRow]]:
    """The rows of nights by date and model, one per document and draw, with the last label of the document."""
    files = sorted(_read_files(out).values(), key=lambda table: table.schema.metadata[_ADDED])
    nights: dict[tuple[str, str], dict[tuple[str, int | None], LabelRow]] = {}
    last: dict[tuple[str, str, str], tuple[str, ...]] = {}
    for row in (row for table in files for row in table.to_pylist()):
        labels = None if row["true_labels"] is None else tuple(row["true_labels"])
        if labels is not None:
            last[row["date"], row["model"], row["id"]] = labels
        added = LabelRow(**(row | {"true_labels": labels}))
        of_night = nights.setdefault((row["date"], row["model"]), {})
        before = of_night.get((added.id, added.seed), added)
        of_night[added.id, added.seed] = _choose_draw(before, added)
    return {
        night: [replace(row, true_labels=last.get((*night, row.id))) for row in rows.values()]
        for night, rows in nights.items()
    }


def _choose_draw(before: LabelRow, added: LabelRow) -> LabelRow:
    """The row that says how a document was drawn, of two with the same seed: a draw of more documents has all others.

    Rows without a draw say nothing.
    """
    return max(added, before, key=lambda row: (row.was_drawn, row.probability or 0))


def _score(tables: NightTables, night: PublishedRun, rows: Sequence[LabelRow]) -> tuple[ScoredNight, set[str]]:
    """Score a night by the rows of its labels, and store the score under the name of its run.

    Returns the score and the classes in its labels that the model does not have, as far as its report is there.
    """
    given = read_given(tables, night, {row.id for row in rows})
    rows = [row for row in rows if row.id in given.classes]
    labels = {row.id: row.true_labels for row in rows if row.true_labels is not None}
    right = {id: given.classes[id] == frozenset(names) for id, names in labels.items()}
    report = find_report(tables.out / f"{RUNS}/{night.run}")
    quality = None if report is None else report.quality
    score = ScoredNight(
        date=night.date,
        model=night.model,
        model_version="" if report is None else report.model_version,
        run=night.run,
        checked=len(right),
        right=sum(right.values()),
        accuracy=estimate_accuracy(given.documents, given.expected, list(_find_samples(rows, right, given))),
        estimated=None if quality is None else quality.accuracy,
    )
    tables.out.write_json(f"{_SCORES}/{night.run}.json", to_json(score))
    classes = {name for names in labels.values() for name in names}
    return score, set() if report is None else classes - set(report.classes)


def _find_samples(rows: Sequence[LabelRow], right: Mapping[str, bool], given: GivenLabels) -> Iterator[CheckedSample]:
    """The checked documents of each draw; where there is none, those with a label count as drawn uniformly."""
    draws: dict[tuple[int | None, bool], list[LabelRow]] = {}
    for row in rows:
        if row.was_drawn:
            draws.setdefault((row.seed, row.probability is not None), []).append(row)
    if not draws:
        yield _check(dict.fromkeys(right, len(right) / max(1, given.documents)), right, given)
    for (_, known), drawn in draws.items():
        if known:
            yield _check({row.id: float(row.probability or 0) for row in drawn}, right, given)
        elif probabilities := _find_probabilities(drawn, right, given.documents):
            yield _check(probabilities, right, given)


def _check(probabilities: Mapping[str, float], right: Mapping[str, bool], given: GivenLabels) -> CheckedSample:
    """The documents of a draw that have a label, by the probabilities of all its documents."""
    ids = [id for id in probabilities if id in right]
    values = np.array([(probabilities[id], given.chances[id], right[id]) for id in ids]).reshape(-1, 3)
    return CheckedSample(len(probabilities), values[:, 0], values[:, 1], values[:, 2].astype(bool))


def _find_probabilities(rows: Sequence[LabelRow], right: Mapping[str, bool], documents: int) -> dict[str, float]:
    """The probabilities by id of a review without them, whose documents were drawn uniformly from each stratum.

    Empty if a stratum has no label, or if they are not those of all documents.
    """
    found, total = dict[str, float](), 0
    for reason in {row.reason for row in rows}:
        population = max(row.population or 0 for row in rows if row.reason == reason)
        own = [row.id for row in rows if row.reason == reason and row.id in right]
        found |= dict.fromkeys(own, min(1.0, len(own) / max(1, population)))
        total += population if own else 0
    return found if total == documents else {}
