"""Compare the labels of a published night with those computed in float32."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pyarrow.parquet as pq

from pipelines.data.files.readers import opener_of, read_piece
from pipelines.data.files.shards import Piece
from pipelines.data.intake import plan_intake
from pipelines.nightly.report.night_report import NightReport
from pipelines.nightly.tables.night_records import RUNS
from pipelines.nightly.tables.night_tables import PREDICTIONS, NightTables, partition_of
from pipelines.nightly.tables.resume import read_listing
from pipelines.registry.versions import Registry
from pipelines.service_errors import BadFileError
from pipelines.storage.input_opener import InputOpener
from pipelines.storage.object_store import Store
from pipelines.workers.progress import progress
from spin.errors import UserError
from spin.labels.label_space import Label
from spin.settings import DataSettings, Settings

_log = logging.getLogger(__name__)
_BATCH = 1024
"""documents classified at a time"""


def check_precision(settings: Settings, registry: Registry, report: NightReport, count: int) -> tuple[int, int]:
    """How many of the first `count` predictions of a published night were compared, and how many have the same label.

    Their texts are read from the input again. Float32 labels are computed by torch in this process, with the same early
    exits. Raises UserError for a night without predictions, and where the input is not there any more.
    """
    exact = settings.backbone.model_copy(update={"dtype": "float32", "engine": "torch"})
    spin = registry.load(report.model_version, backbone=exact)
    labels = _first_labels(report, count)
    if not labels:
        raise UserError("--check: the night predicted no documents; there is nothing to compare")
    compared = agreed = 0
    with progress("check", len(labels), "documents") as advance:
        for texts, batch in _batches(settings.data, report, labels):
            agreed += sum(exact_label == label for exact_label, label in zip(spin.predict(texts), batch, strict=True))
            compared += len(texts)
            advance(len(texts))
    if not compared:
        raise UserError("--check: the input of the night has changed since it was classified; nothing can be compared")
    return compared, agreed


def _first_labels(report: NightReport, count: int) -> dict[str, Label | None]:
    """The labels of the first predictions of a night by id."""
    predictions = NightTables(Store(report.output)).open(PREDICTIONS)
    partition = partition_of(PREDICTIONS, date=report.date, model=report.model, run=report.run)
    labels: dict[str, Label | None] = {}
    for file in predictions.files(partition):
        with predictions.store.open(file.path) as source:
            rows = pq.ParquetFile(source).read(["id", "label", "labels"]).to_pylist()
        for row in rows:
            labels[row["id"]] = row["label"] if row["labels"] is None else row["labels"]
            if len(labels) == count:
                return labels
    return labels


def _batches(
    data: DataSettings, report: NightReport, labels: dict[str, Label | None]
) -> Iterator[tuple[list[str], list[Label | None]]]:
    """The texts of some ids with their labels, in batches. The first sound row with an id is the one predicted."""
    waiting, texts, batch = dict(labels), list[str](), list[Label | None]()
    files = read_listing(Store(report.output) / f"{RUNS}/{report.run}").files
    for task in plan_intake(files, data, bad={}):
        for piece in task.pieces:
            for id, text in _read_texts(piece, data):
                if id in waiting and text.strip():
                    texts.append(text)
                    batch.append(waiting.pop(id))
                if len(texts) == _BATCH or (texts and not waiting):
                    yield texts, batch
                    texts, batch = [], []
                if not waiting:
                    return
    if texts:
        yield texts, batch


def _read_texts(piece: Piece, data: DataSettings) -> Iterator[tuple[str, str]]:
    """The ids and texts of a part of a file, as far as it can be read."""
    try:
        for documents in read_piece(piece, data, opener_of(piece, InputOpener())):
            for id, text in zip(documents.ids, documents.texts, strict=True):
                if isinstance(id, str) and isinstance(text, str):
                    yield id, text
    except BadFileError:
        _log.debug("%s cannot be read; it is left out of the check", piece.uri, exc_info=True)
