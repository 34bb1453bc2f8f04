"""A small corpus is divided so that every worker has some of it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data import spool
from pipelines.data.files import shards
from pipelines.training.extract_features import load_features, run_extract
from tests.support import small_training, tiny

N = 600
DOCUMENTS = tiny.make_documents(N, ("good", "bad", "plain"))


def write_corpus(folder: Path, ending: str) -> str:
    path = folder / f"corpus.{ending}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(DOCUMENTS), path)
    elif ending == "jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in DOCUMENTS))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(DOCUMENTS[0]))
            writer.writeheader()
            writer.writerows(DOCUMENTS)
    return str(path)


@pytest.mark.parametrize("extract", ["all", "two_pass"])
@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_a_small_corpus_has_several_shards_by_default(
    ending: str, extract: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their number does not depend on that of the workers."""
    for module in (shards, spool):
        monkeypatch.setattr(module, "LEAST_DOCUMENTS", 50)
    tiny.save_bert(tmp_path / "bert")
    settings = small_training.make_settings(
        tmp_path,
        tmp_path / "store",
        data={"train": write_corpus(tmp_path, ending)},
        ray={"workers": 0},
        search={"documents": 300},
        extract=extract,
    )
    plan, manifest = run_extract(settings)
    assert 10 <= len(plan.derived.shards) <= 14
    assert max(outcome.counts.rows for outcome in manifest.results.shards) <= 60
    assert sum(outcome.counts.rows for outcome in manifest.results.shards) == N
    extracted = sum(outcome.counts.extracted for outcome in manifest.results.shards)
    assert extracted == (N if extract == "all" else 300)
    more = settings.model_copy(update={"ray": settings.ray.model_copy(update={"workers": 7})})
    assert load_features(more)[0] == plan
