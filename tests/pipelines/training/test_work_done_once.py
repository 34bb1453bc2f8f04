"""`spin run` and a night read the input no more often than necessary, and hash each file of weights once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data.files import formats
from pipelines.nightly import classify
from pipelines.registry.versions import Registry
from pipelines.storage.request_counting import Traffic, count_input_reads
from pipelines.training import extract_features, workflow
from pipelines.workers.map_shards import ShardWork, map_shards
from spin.backbone import digest
from spin.settings import Settings, parse_settings
from tests.support import tiny
from tests.support.night_project import replace_map_shards

pytestmark = pytest.mark.slow

DOCUMENTS, TEXT_BYTES = 300, 20_000


class Work:
    """Counts the bytes read from the input, by stage, and how often each file of weights is hashed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads: dict[str, Traffic] = {}
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

    def count_corpus_reads(self, name: str, size: int) -> float:
        """How often the whole input was read."""
        return self.reads[name].read / size


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
            "mlflow": {"model": "tiny", "tracking_uri": f"sqlite:///{folder}/mlflow.db"},
            "registry": {"include_backbone": include_backbone},
            "ray": {"workers": 0, "shard_documents": 100},
            "sites": ["ffn.01"],
            "probe": {"penalties": 3, "max_extra": 0},
            "search": {"etas": [0.9], "strengths": [1], "l1": [], "head": "linear"},
        }
    )


@pytest.mark.parametrize(("name", "include_backbone"), [("train.parquet", False), ("train.jsonl", True)])
def test_spin_run_and_nights_read_and_hash_only_what_they_need(
    work: Work, tmp_path: Path, name: str, include_backbone: bool
) -> None:
    """`spin run` reads the corpus twice in extract, and once in probe and in train. A night reads it once.

    Extract reads the corpus twice on purpose. The first read checks every row, its text included, before the backbone
    runs: a mistake in the last row must not show after hours of work. The second read gives the texts to the backbone.
    The intake of a night reads small files once; classifying then reads the spool, which holds what they held.

    Each file of weights is hashed once. If the registered version includes the backbone, its files are hard-linked,
    which changes their ctime: the first night after that hashes them once more, and the next night does not.
    """
    settings, size = make_settings(tmp_path, name, include_backbone=include_backbone), write_corpus(tmp_path / name)
    workflow.run_workflow(settings)
    sample = (
        0 if name.endswith(".parquet") else formats._SAMPLES * formats._SAMPLE / size
    )  # JSONL is sampled to plan the shards
    assert work.count_corpus_reads("extract", size) == pytest.approx(1 + sample, abs=0.1)
    assert work.count_corpus_reads("extract step", size) == pytest.approx(1, abs=0.1)
    assert work.count_corpus_reads("probe", size) == pytest.approx(1, abs=0.1)  # its words
    assert work.count_corpus_reads("train", size) == pytest.approx(1, abs=0.1)
    files = digest.list_model_files(tmp_path / "bert")
    assert work.hashes == {path.name: 1 for path in files}

    run_night(work, settings, tmp_path / "nights", "2026-01-31")
    assert work.count_corpus_reads("classify step", size) < 1.1  # of the spool, which is compressed
    assert work.count_corpus_reads("intake step", size) == pytest.approx(1, abs=0.1)
    hashes = dict(work.hashes)
    assert hashes.keys() == {path.name for path in files}
    assert max(hashes.values()) <= (2 if include_backbone else 1)
    run_night(work, settings, tmp_path / "nights", "2026-02-01")
    assert work.hashes == hashes


def run_night(work: Work, settings: Settings, output: Path, date: str) -> None:
    """Classify the corpus with the registered version."""
    run_classify = work.count_reads("night", classify.run_classify)
    run_classify(settings, Registry(settings), settings.data.train, str(output), model="models:/tiny/1", night=date)
