"""Nights without a model: the real nightly job with a step that labels texts by a rule, in this process."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data.files.shards import Shard
from pipelines.data.spool import CheckedRows
from pipelines.nightly import classify, classify_pass, finish, night_driver
from pipelines.nightly.command_result import CommandResult
from pipelines.nightly.night_models import ChosenVersion, NightModel, RequestedModel
from pipelines.nightly.report.night_report import NightReport
from pipelines.nightly.steps.classify_job import ClassifyJob
from pipelines.nightly.steps.classify_step import ClassifyStep, _count, _with_kept
from pipelines.nightly.steps.counts import ClassifyCounts
from pipelines.nightly.steps.pass_features import PieceFeatures
from pipelines.nightly.tables import publication
from pipelines.nightly.tables.night_history import list_nights
from pipelines.nightly.tables.night_records import LEASES
from pipelines.nightly.tables.night_tables import DEAD_LETTERS, INPUTS, PREDICTIONS, NightTables
from pipelines.nightly.tables.night_tables import read_rows as read_table
from pipelines.registry.version_records import LoggedData
from pipelines.storage.object_store import Store
from pipelines.storage.retrying import retry_unavailable
from pipelines.storage.shard_log import Attempt, StepResult
from pipelines.workers.weights_cache import with_engine
from spin.fitted.persistence import ClassifierMetadata
from spin.settings import Settings, parse_settings

Row = dict[str, Any]
DATE, NEXT, LAST = "2026-03-01", "2026-03-02", "2026-03-03"


class FakeStep(ClassifyStep):
    """Labels a text with its first word, without a model, and records the shards that it computes."""

    computed: list[str] = []  # noqa: RUF012

    def __init__(self, job: ClassifyJob, settings: Settings) -> None:
        self.job, self.data, self.keep_text = job, settings.data, settings.classify.dead_letter_text
        nothing = PieceFeatures(("",) * len(job.models), None)
        self.features, self.shadowed = Mock(compute=lambda *_, **__: nothing), None

    def check(self) -> None:
        """Nothing can fail."""

    def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[Any]:
        result = super().__call__(shard, attempt)
        if result.files:
            self.computed.append(shard.name)
        return result

    def _result(
        self, number: int, shard: Shard, documents: CheckedRows, dead: dict[int, Any], *_: Any
    ) -> StepResult[ClassifyCounts]:
        rows = [row for row in range(len(documents)) if row not in dead]
        labels = [text.split()[0] for text in documents.texts_of(rows)]
        predictions = pa.table(
            {
                "id": pa.array([documents.ids[row] for row in rows], pa.string()),
                "label": pa.array(labels, pa.string()),
                "score": pa.array([0.5] * len(rows), pa.float32()),
                "scores": pa.array([[(label, 0.5)] for label in labels], pa.map_(pa.string(), pa.float32())),
                "depth": pa.array([3] * len(rows), pa.int32()),
                "model_version": pa.repeat(self.job.models[number].run.model_version, len(rows)),
            }
        )
        tables = {
            PREDICTIONS: _with_kept(predictions, documents, rows),
            DEAD_LETTERS: self._dead_letters(documents, dead),
        }
        return StepResult(self._to_files(number, tables), _count(shard, documents, dead, labels))


WAKING = {
    "before it claims": (classify, "claim_nights"),
    "while it plans": (classify, "choose_runs"),
    "before the intake": (classify_pass, "take_in"),
    "after the intake": (classify_pass, "plan_shards"),
    "while it classifies": (FakeStep, "_find_dead"),
    "before its records": (finish, "write_records"),
    "before it publishes": (night_driver, "publish_night"),
    "between side tables and predictions": (publication, "_commit_predictions"),
}
"""functions, as arguments of `before_call`, before which a driver may be suspended"""
PUBLISHING = ("before it publishes", "between side tables and predictions")
"""those of them at which its run is finished"""


class FakeRegistry:
    """A registry with any number of versions of one model, which logs nights."""

    def __init__(self, name: str = "tiny", backbone: str = "0") -> None:
        self.name, self.champion, self.backbone = name, "1", backbone
        self.logged: list[tuple[Mapping[str, float], LoggedData]] = []
        """metrics and data of the nights"""

    def resolve(self, model: str | None = None) -> str:
        return self.champion if model is None else model.rpartition("/")[2]

    def log_night(
        self, tags: Mapping[str, str], metrics: Mapping[str, float], reports: Mapping[str, bytes], data: LoggedData
    ) -> None:
        self.logged.append((metrics, data))


def pretend_to_download(chosen: ChosenVersion, folder: Path, given: Settings) -> NightModel:
    """A model of which nothing but its backbone matters."""
    (folder / "model").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (folder / "model" / name).write_bytes(b"{}")
    digest = getattr(chosen.registry, "backbone", "0") * 64
    metadata = ClassifierMetadata.model_construct(
        classes=("good", "bad"), multilabel=False, backbone=given.backbone, backbone_digest=digest
    )
    night = with_engine(given, "classify")
    return NightModel(chosen.registry, chosen.version, metadata, folder, night, night.decision)


class FakeNights:
    """A folder or S3 prefix with input files, and nights that classify them."""

    def __init__(self, uri: str) -> None:
        self.store, self.registry = Store(uri), FakeRegistry()
        self.source, self.output = f"{uri}/data", f"{uri}/out"
        self.tables = NightTables(Store(self.output))
        self.metrics: Mapping[str, Any] = {}
        """where figures of nights are exported to"""

    @property
    def out(self) -> Store:
        """The output."""
        return self.tables.out

    def write(self, name: str, rows: Sequence[Row] | bytes, *, folder: str = "data") -> None:
        """Write an input file of the format that its name ends in."""
        self.store.write(f"{folder}/{name}", rows if isinstance(rows, bytes) else to_bytes(name, rows))

    def run(
        self,
        date: str | None = DATE,
        *,
        source: str | None = None,
        output: str | None = None,
        registry: FakeRegistry | None = None,
        documents: int = 4,
        data: Mapping[str, Any] | None = None,
        limits: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> NightReport:
        """Run a night; the options are those of `run_classify`."""
        return classify.run_classify(
            self.settings(documents, data, limits),
            registry or self.registry,  # type: ignore[arg-type]
            source or self.source,
            output or self.output,
            night=date,
            **options,
        )

    def run_several(
        self,
        *registries: FakeRegistry,
        date: str | None = DATE,
        documents: int = 4,
        data: Mapping[str, Any] | None = None,
        limits: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> CommandResult:
        """Run a night of several models; the options are those of `classify_nights`."""
        return classify.classify_nights(
            self.settings(documents, data, limits),
            [RequestedModel(registry) for registry in registries],  # type: ignore[arg-type]
            self.source,
            self.output,
            night=date,
            **options,
        )

    def settings(self, documents: int, data: Mapping[str, Any] | None, limits: Mapping[str, Any] | None) -> Settings:
        """The settings of a night in this process."""
        tree = {
            "backbone": {"model": "nowhere", "engine": "torch", "device": "cpu"},
            "data": {"train": "nowhere", **(data or {})},
            "store": "nowhere",
            "ray": {"workers": 0, "shard_documents": documents, "retry_seconds": 0.5},
            "classify": {"max_bad_files": 0.9, "max_dead_fraction": 0.9, **(limits or {})},
            "metrics": self.metrics,
        }
        return parse_settings(tree)

    def ids(self, model: str = "tiny") -> dict[str, list[str]]:
        """The ids of the predictions of a model by date, sorted; an id that is there twice is listed twice."""
        predictions = self.tables.open(PREDICTIONS)
        return {
            night.date: sorted(read_table(predictions, {"date": night.date, "model": model})["id"].to_pylist())
            for night in list_nights(self.tables)
            if night.model == model
        }

    def predictions(self, date: str = DATE) -> list[Row]:
        """The predictions of a date."""
        rows: list[Row] = read_table(self.tables.open(PREDICTIONS), {"date": date}).to_pylist()
        return rows

    def dead_letters(self, date: str = DATE) -> list[Row]:
        """The dead letters of the published runs of a date."""
        rows: list[Row] = read_table(self.tables.open(DEAD_LETTERS), {"date": date}).to_pylist()
        return rows

    def inputs(self, date: str = DATE) -> dict[str, str]:
        """The status of each input file of the published runs of a date, by its name."""
        rows = read_table(self.tables.open(INPUTS), {"date": date}).to_pylist()
        return {row["uri"].rpartition("/")[2]: row["status"] for row in rows}

    def expire_lease(self, model: str = "tiny") -> None:
        """Delete the lease on a model, as if its holder had been silent for too long; which may renew it meanwhile."""
        retry_unavailable(self.out)(lambda: self.out.delete_many(self.out.list(f"{LEASES}/{model}")))


def to_bytes(name: str, rows: Sequence[Row]) -> bytes:
    """Rows as a file of the format that a name ends in."""
    if name.endswith(".parquet"):
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(list(rows)), sink, row_group_size=4)
        return sink.getvalue()
    if name.endswith(".csv"):
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def make_rows(*ids: str, text: str = "good day") -> list[Row]:
    """A row with an id each."""
    return [{"id": id, "text": text} for id in ids]


def use_fake_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nights of this process run without a model."""
    monkeypatch.setattr(FakeStep, "computed", [])
    monkeypatch.setattr(classify_pass, "ClassifyStep", FakeStep)
    monkeypatch.setattr(classify, "download_model", pretend_to_download)


@contextmanager
def before_call(target: Any, name: str, action: Callable[[], Any], *, once: bool = True) -> Any:
    """Call a function before another one is called, by default before its first call."""
    original = getattr(target, name)
    calls: Counter[str] = Counter()

    def acting(*args: Any, **options: Any) -> Any:
        calls[name] += 1
        if calls[name] == 1 or not once:
            action()
        return original(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, name, acting)
        yield calls
