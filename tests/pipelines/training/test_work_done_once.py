"""`spin run` and a night read the input no more often than necessary, and hash each file of weights once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.limits.input_reads import count_reads
from pipelines.data.corpus import CorpusSpool
from pipelines.nightly import classify
from pipelines.registry.versions import Registry
from pipelines.storage.object_store import Store
from pipelines.training import extract_features, workflow
from pipelines.workers.map_shards import ShardWork, map_shards
from spin.backbone import digest
from spin.settings import Settings, parse_settings
from tests.support import tiny
from tests.support.input_reads import InputReads, count_input_reads
from tests.support.night_project import replace_map_shards
from tests.support.registry_databases import create_database

pytestmark = pytest.mark.slow

DOCUMENTS, TEXT_BYTES = 300, 20_000


class Work:
    """Counts the bytes read from the input, by stage, and how often each file of weights is hashed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads: dict[str, InputReads] = {}
        self.hashes: Counter[str] = Counter()
        hash_file = digest.hash_file

        def counted_hash(path: Path) -> str:
            self.hashes[path.name] += 1
            return hash_file(path)

        monkeypatch.setattr(digest, "hash_file", counted_hash)
        monkeypatch.setattr(digest, "_SETTLED_NS", 0)  # the weights were written a moment ago
        for stage in ("extract", "probe", "train"):
            run = getattr(workflow, f"run_{stage}")
            monkeypatch.setattr(workflow, f"run_{stage}", self.count_reads(stage, run))
        monkeypatch.setattr(extract_features, "map_shards", self.map_shards)
        replace_map_shards(monkeypatch, self.map_shards)

    def count_reads(self, name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function so that its reads of the input are counted under a name."""

        def counted_run(*args: Any, **options: Any) -> Any:
            with count_input_reads() as self.reads[name]:
                return run(*args, **options)

        return counted_run

    def map_shards(self, work: ShardWork[Any], *args: Any, **options: Any) -> Any:
        """Count the reads of a step, which runs in this process."""
        return self.count_reads(f"{work.stage} step", map_shards)(work, *args, **options)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Work:
    """Counts of work that all runs in this process without Ray, with an empty cache of digests."""

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("ray.init", fail)
    monkeypatch.setenv("SPIN_CACHE", str(tmp_path / "cache"))
    return Work(monkeypatch)


def write_corpus(path: Path) -> int:
    """Write labelled documents whose texts are nearly all of the file, and return the size of the file in bytes."""
    rows = tiny.make_documents(DOCUMENTS)
    for number, row in enumerate(rows):
        row["text"] += " " + f"{number:05d}" * (TEXT_BYTES // 5)
    if path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    else:
        table = pa.Table.from_pylist(rows)
        pq.write_table(table, path, row_group_size=100, compression="none", use_dictionary=False)
    return path.stat().st_size


def make_settings(folder: Path, name: str, *, include_backbone: bool) -> Settings:
    """Settings of a project with three shards, a small search, and weights that no other test has hashed."""
    return parse_settings(
        {
            "backbone": {"model": str(tiny.save_bert(folder / "bert")), "dtype": "float32", "device": "cpu"},
            "data": {"train": str(folder / name)},
            "store": str(folder / "store"),
            "mlflow": {"model": "tiny", "tracking_uri": create_database(folder / "mlflow.db")},
            "registry": {"include_backbone": include_backbone},
            "ray": {"workers": 0, "shard_documents": 100},
            "sites": ["ffn.01"],
            "probe": {"penalties": 3, "max_extra": 0},
            "search": {"etas": [0.9], "strengths": [1], "network": "off"},
        }
    )


def note_size(spool: CorpusSpool, sizes: list[int], delete: Callable[..., None], *args: Any, **options: Any) -> None:
    """Note the bytes of a spool before it is deleted."""
    sizes.append(sum(item.size for item in spool.store.list_objects("spool")))
    delete(spool, *args, **options)


@pytest.mark.parametrize(("name", "include_backbone"), [("train.parquet", False), ("train.jsonl", True)])
def test_spin_run_and_nights_read_and_hash_only_what_they_need(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, include_backbone: bool
) -> None:
    """`spin run` and a night read the corpus once, and from then on their spools, which hold what was checked.

    Every row is checked, its text included, before the backbone runs: a mistake in the last row must not show after
    hours of work. A spool is compressed.

    Each file of weights is hashed once. If the registered version includes the backbone, its files are hard-linked,
    which changes their ctime: the first night after that hashes them once more, and the next night does not.
    """
    settings, size = make_settings(tmp_path, name, include_backbone=include_backbone), write_corpus(tmp_path / name)
    spools: list[int] = []
    monkeypatch.setattr(CorpusSpool, "delete", partialmethod(note_size, spools, CorpusSpool.delete))
    with count_reads() as reads:
        workflow.run_workflow(settings)
    spool = spools[-1]
    assert reads["input"] == pytest.approx(size, rel=0.01)
    assert reads["spool"] == 3 * spool > 0  # by the backbone, by the words in probe, and in train
    assert Store.of(settings).list("spool") == []
    assert work.reads["extract"].bytes == pytest.approx(size, rel=0.01)
    assert work.reads["extract step"].bytes == work.reads["probe"].bytes == work.reads["train"].bytes == spool
    files = digest.list_model_files(tmp_path / "bert")
    assert work.hashes == {path.name: 1 for path in files}

    run_night(work, settings, tmp_path / "nights", "2026-01-31")
    assert work.reads["classify step"].bytes < size  # of the spool, which is compressed
    assert work.reads["intake step"].bytes == size
    hashes = dict(work.hashes)
    assert hashes.keys() == {path.name for path in files}
    assert max(hashes.values()) <= (2 if include_backbone else 1)
    run_night(work, settings, tmp_path / "nights", "2026-02-01")
    assert work.hashes == hashes


def run_night(work: Work, settings: Settings, output: Path, date: str) -> None:
    """Classify the corpus with the registered version."""
    run_classify = work.count_reads("night", classify.run_classify)
    run_classify(settings, Registry(settings), settings.data.train, str(output), model="models:/tiny/1", night=date)
