"""Nights of a real model in this process, without Ray, over input files that a test writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipelines.nightly import classify, classify_pass, pass_intake
from pipelines.nightly.report.night_report import NightReport
from pipelines.nightly.tables.night_history import PredictionRow, list_nights, read_predictions
from pipelines.nightly.tables.night_tables import DEAD_LETTERS, PREDICTIONS, NightTables, read_rows
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import ShardLog
from pipelines.workers.map_shards import ShardWork, map_shards
from spin.settings import load_settings
from tests.support.chaos import FolderRegistry

DATE = "2026-03-01"
Row = dict[str, Any]


class NightProject:
    """A folder with input files, a registry whose champion is version 1, and nights that classify the files."""

    def __init__(self, folder: Path, registry_fixture: FolderRegistry, backbone: Path) -> None:
        self.folder, self.registry_fixture, self.backbone = folder, registry_fixture, backbone
        (folder / "data").mkdir()
        self.promote("1")

    def promote(self, number: str) -> None:
        (self.registry_fixture.folder / "champion").write_text(number)

    def write(self, name: str, rows: list[Row]) -> None:
        (self.folder / "data" / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run_night(
        self,
        out: str = "out",
        documents: int = 40,
        *,
        date: str = DATE,
        incremental: bool = False,
        shadow: str | None = None,
        restart: bool = False,
        set: tuple[str, ...] = (),
        **limits: float,
    ) -> NightReport:
        tree: dict[str, Any] = {
            "backbone": {"model": str(self.backbone), "dtype": "float32", "device": "cpu"},
            "data": {"train": "nowhere"},
            "store": "nowhere",
            "mlflow": {"model": "tiny"},
            "ray": {"shard_documents": documents},
            "classify": limits,
        }
        settings_file = self.folder / "settings.yaml"
        settings_file.write_text(json.dumps(tree))
        source, output = str(self.folder / "data"), str(self.folder / out)
        options: dict[str, Any] = {"night": date, "shadow": shadow, "incremental": incremental, "restart": restart}
        settings = load_settings(settings_file, set)
        return classify.run_classify(settings, self.registry_fixture, source, output, **options)  # type: ignore[arg-type]

    def read_predictions(self, out: str = "out") -> list[PredictionRow]:
        return read_predictions(str(self.folder / out))

    def read_rows(self, out: str = "out", date: str = DATE) -> list[Row]:
        """The rows of the predictions of a date, with all columns."""
        tables = NightTables(Store(str(self.folder / out)))
        return read_rows(tables.open(PREDICTIONS), {"date": date}).to_pylist()

    def read_dead_letters(self, out: str = "out") -> list[Row]:
        tables = NightTables(Store(str(self.folder / out)))
        return read_rows(tables.open(DEAD_LETTERS), {"date": DATE}).to_pylist()

    def list_published_runs(self) -> list[str]:
        """The runs in the output that readers can see."""
        return [night.run for night in list_nights(NightTables(Store(str(self.folder / "out"))))]


def run_shards_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nights compute their shards in this process."""
    replace_map_shards(monkeypatch, lambda *args, **keywords: map_shards(*args, **{**keywords, "here": True}))


def replace_map_shards(monkeypatch: pytest.MonkeyPatch, function: Callable[..., Any]) -> None:
    """Let another function map the steps of nights."""
    for module in (pass_intake, classify_pass):
        monkeypatch.setattr(module, "map_shards", function)


class Stop(BaseException):
    """The process of a night ends here."""


@contextmanager
def stopped_at_third_shard() -> Iterator[None]:
    """Within the context a night ends before it has committed the third shard that it classifies."""
    commit = ShardLog.commit

    def commit_two(shard_log: ShardLog, name: str, *args: Any, **keywords: Any) -> Any:
        if shard_log.layout.folder and name == "000002":
            raise Stop
        return commit(shard_log, name, *args, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardLog, "commit", commit_two)
        with pytest.raises(Stop):
            yield


def call_before_stage(stage: str, action: Callable[[ShardLog], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Call a function with the shard log of a stage before that stage computes anything."""

    def act_and_map(work: ShardWork[Any], *args: Any, **keywords: Any) -> Any:
        if work.stage == stage:
            action(work.open_log())
        return map_shards(work, *args, **{**keywords, "here": True})

    replace_map_shards(monkeypatch, act_and_map)
