"""`suspects.parquet` lists documents whose label was flipped before those whose label is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import terminal
from pipelines.training.train import TrainReport
from pipelines.training.workflow import run_workflow
from spin.settings import parse_settings
from tests.support import tiny

FLIPPED = 15


def train(folder: Path, uri: str, documents: list[dict[str, Any]]) -> TrainReport:
    pq.write_table(pa.Table.from_pylist(documents), folder / "train.parquet")
    tree = {
        "backbone": {"model": str(tiny.save_bert(folder / "bert")), "dtype": "float32", "device": "cpu"},
        "data": {"train": str(folder / "train.parquet"), "split": "split"},
        "store": str(folder / "store"),
        "mlflow": {"model": folder.name, "tracking_uri": uri},
        "registry": {"include_backbone": False},
        "ray": {"workers": 0, "shard_documents": 100},
        "sites": ["resid.00", "ffn.01"],
        "probe": {"penalties": 3, "max_extra": 0},
        "search": {"etas": [0.9], "max_share": 0.5, "strengths": [1], "l1": [], "head": "linear"},
        "train": {"baselines": False},
    }
    return run_workflow(parse_settings(tree))


@pytest.mark.parametrize("lists", [False, True])
def test_flipped_labels_are_listed_first(
    tmp_path: Path, sqlite_uri: str, capsys: pytest.CaptureFixture[str], lists: bool
) -> None:
    """With id, label, prediction and margin; the report and the terminal say how many there are."""
    splits = ["train"] * 280 + ["valid"] * 60 + ["test"] * 60
    made = zip(tiny.make_documents(400), splits, strict=True)
    documents: list[dict[str, Any]] = [
        {**d, "label": [d["label"]] if lists else d["label"], "split": split} for d, split in made
    ]
    classes = sorted({str(d["label"]): d["label"] for d in documents}.values())
    right = {d["id"]: d["label"] for d in documents}
    for document in documents[:FLIPPED]:
        document["label"] = classes[(classes.index(document["label"]) + 1) % len(classes)]
    report = train(tmp_path, sqlite_uri, documents)
    table = pq.read_table(tmp_path / "store" / "suspects.parquet")
    assert table.schema.names == ["id", "label", "prediction", "margin"]
    rows = table.to_pylist()
    assert [row["margin"] for row in rows] == sorted((row["margin"] for row in rows), reverse=True)
    given = {document["id"]: document["label"] for document in documents}
    assert all(row["label"] == given[row["id"]] != row["prediction"] for row in rows if row["margin"] > 0)
    flipped = {document["id"] for document in documents[:FLIPPED]}
    found = [row for row in rows[:FLIPPED] if row["id"] in flipped]
    assert len(found) >= 6, "by chance it would be fewer than one"
    assert sum(row["prediction"] == right[row["id"]] for row in found) >= 0.7 * len(found)
    assert json.loads((tmp_path / "store" / "report.json").read_text())["suspects"] == len(rows)
    terminal.trained(report)
    assert f"{len(rows):,} of 340 labels are contradicted" in capsys.readouterr().out
