"""Compare the labels of a published night with those computed in float32."""

from __future__ import annotations

from itertools import islice

from pipelines.nightly.report.night_report import NightReport
from pipelines.nightly.report.night_texts import read_texts
from pipelines.nightly.tables.night_tables import PREDICTIONS, NightTables, read_night
from pipelines.registry.versions import Registry
from pipelines.storage.object_store import Store
from pipelines.workers.progress import progress
from spin.errors import UserError
from spin.labels.label_space import Label
from spin.settings import Settings

_BATCH = 1024
"""documents classified at a time"""


def check_precision(settings: Settings, registry: Registry, report: NightReport, count: int) -> tuple[int, int]:
    """The number of compared predictions, the first `count` of a published night, and of those with the same label.

    Their texts are read from the input again. Float32 labels are computed by torch in this process, with the same early
    exits. Raises UserError for a night without predictions, and where the input is not there any more.
    """
    decision = settings.decision
    if decision.max_error is not None:  # the band is that of the night, for whose precision alone it is proven
        decision = registry.load(report.model_version).decision
    exact = settings.backbone.model_copy(update={"dtype": "float32", "engine": "torch"})
    spin = registry.load(report.model_version, backbone=exact, decision=decision)
    labels = _first_labels(report, count)
    if not labels:
        raise UserError("--check: the night predicted no documents; there is nothing to compare")
    compared = agreed = 0
    with progress("check", len(labels), "documents") as advance:
        texts = read_texts(settings.data, Store(report.output), report.run, labels)
        while batch := list(islice(texts, _BATCH)):
            given = spin.predict([text for _, text in batch])
            agreed += sum(label == labels[id] for label, (id, _) in zip(given, batch, strict=True))
            compared += len(batch)
            advance(len(batch))
    if not compared:
        raise UserError("--check: the input of the night has changed since it was classified; nothing can be compared")
    return compared, agreed


def _first_labels(report: NightReport, count: int) -> dict[str, Label | None]:
    """The labels of the first predictions of a night by id."""
    tables, columns = NightTables(Store(report.output)), ["id", "label", "labels"]
    batches = read_night(tables, PREDICTIONS, columns, date=report.date, model=report.model, run=report.run)
    rows = islice((row for batch in batches for row in batch.to_pylist()), count)
    return {row["id"]: row["label"] if row["labels"] is None else row["labels"] for row in rows}
