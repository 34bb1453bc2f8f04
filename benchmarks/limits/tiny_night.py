"""A night on a tiny random backbone: its classifier, the fresh process that runs it, and what its output tells."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.nightly.steps.classify_job import pass_layout
from pipelines.nightly.steps.counts import PassCounts
from pipelines.nightly.tables.night_history import list_nights
from pipelines.nightly.tables.night_tables import NightTables, PublishedRun
from pipelines.nightly.tables.passes import Pass
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import ShardLog, ShardOutcome

if TYPE_CHECKING:
    from tests.support.registry_fixture import RegistryFixture

WORKERS, SHARD = 2, 1_000
"""workers, and documents per shard"""
DAY = "2026-01-31"
WIDE = 192
"""width of a backbone that is small, yet takes much longer for a shard than the clock's resolution"""


def prepare(folder: Path, width: int = 16, neurons: int = 24) -> RegistryFixture:
    """Register a classifier on a backbone of some width and FFN neurons, and keep its settings in the folder."""
    from tests.support import tiny
    from tests.support.registry_fixture import RegistryFixture

    folder.mkdir(parents=True, exist_ok=True)
    backbone = tiny.save_bert(folder / "backbone", width=width, neurons=neurons)
    ray = {"workers": WORKERS, "shard_documents": SHARD}
    fixture = RegistryFixture(folder, backbone, f"sqlite:///{folder}/mlflow.db", ray=ray)
    (folder / "settings.json").write_text(fixture.settings.model_dump_json(), encoding="utf-8")
    return fixture


def night_command(folder: Path, source: str, output: str) -> list[str]:
    """The command that classifies an input by the classifier of a folder."""
    return [sys.executable, "-m", "benchmarks.limits.tiny_night", str(folder), source, output]


def read_night(out: Store) -> tuple[PublishedRun, list[ShardOutcome[PassCounts]]]:
    """The only night of an output, and the outcomes of its shards."""
    [night] = list_nights(NightTables(out))
    layout = pass_layout(Pass(name=night.run, runs=(night.run,), begun=""))
    return night, list(ShardLog(out, layout=layout).outcomes(PassCounts).values())


def _classify(folder: Path, source: str, output: str) -> None:
    """Run a night; this is what the fresh process does."""
    from jobs.cli import configure_libraries

    configure_libraries()
    from pipelines.nightly.classify import run_classify
    from pipelines.registry.versions import Registry
    from spin.settings import Settings

    settings = Settings.model_validate_json((folder / "settings.json").read_text(encoding="utf-8"))
    registry = Registry(settings)
    run_classify(settings, registry, source, output, model=f"models:/{registry.name}/1", night=DAY)


if __name__ == "__main__":
    _classify(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
