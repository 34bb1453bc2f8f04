"""A small corpus is divided so that every worker has some of it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data import spool
from pipelines.data.files import shards
from pipelines.training.extract_features import load_features, open_corpus, run_extract
from tests.support import small_training, tiny

N = 600
DOCUMENTS = list(enumerate(tiny.make_documents(N, ("good", "bad", "plain"))))


def write_corpus(folder: Path, ending: str, *, wide: bool) -> str:
    path, documents = folder / f"corpus.{ending}", [{**row, "about": 500 * f"{n:04d}" * wide} for n, row in DOCUMENTS]
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(documents), path)
    elif ending == "jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in documents))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(documents[0]))
            writer.writeheader()
            writer.writerows(documents)
    return str(path)


@pytest.mark.parametrize("extract", ["all", "two_pass"])
@pytest.mark.parametrize(
    ("ending", "wide"), [("parquet", False), ("jsonl", False), ("csv", False), ("jsonl", True), ("csv", True)]
)
def test_a_small_corpus_has_several_shards_by_default(
    ending: str, wide: bool, extract: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their number depends neither on that of the workers nor on columns that are not read.

    The texts of each are read together, as its features are, whatever the parts of the spool.
    """
    for module in (shards, spool):
        monkeypatch.setattr(module, "LEAST_DOCUMENTS", 50)
    tiny.save_bert(tmp_path / "bert")
    settings = small_training.make_settings(
        tmp_path,
        tmp_path / "store",
        data={"train": write_corpus(tmp_path, ending, wide=wide)},
        ray={"workers": 0},
        search={"documents": 300},
        extract=extract,
    )
    manifest = run_extract(settings)
    plan, _, _ = load_features(settings)
    extracted = N if extract == "all" else 300
    assert manifest.results.counts.extracted == extracted
    assert [shard.documents for shard in plan.derived.shards] == 12 * [50]
    assert [shard.documents for shard in plan.derived.unread] == extracted // 50 * [50]
    more = settings.model_copy(update={"ray": settings.ray.model_copy(update={"workers": 7})})
    stored, _, features = load_features(more)
    assert stored == plan
    if extract == "all":
        texts = open_corpus(settings, plan).text_blocks(np.arange(0, N, 3))
        values = features.column_blocks(next(iter(features.columns)), np.arange(0, N, 3))
        assert [len(block) for block in texts] == [len(block) for block in values]
