"""`suspects.parquet` lists documents whose label was flipped before those whose label is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.commands.train_commands import print_training
from pipelines.training.train import TrainReport
from pipelines.training.workflow import run_workflow
from spin.errors import UserError
from spin.settings import Settings, parse_settings
from tests.support import tiny

pytestmark = pytest.mark.slow

FLIPPED = 15


def make_settings(folder: Path, uri: str, *, keep_texts: bool) -> Settings:
    """Settings of a training on `train.parquet` in a folder, which also has the backbone."""
    tree = {
        "backbone": {"model": str(folder / "bert"), "dtype": "float32", "device": "cpu"},
        "data": {"train": str(folder / "train.parquet"), "split": "split"},
        "store": str(folder / "store"),
        "mlflow": {"model": folder.name, "tracking_uri": uri},
        "registry": {"include_backbone": False},
        "ray": {"workers": 0, "shard_documents": 100},
        "sites": ["resid.00", "ffn.01"],
        "probe": {"penalties": 3, "max_extra": 0},
        "search": {"etas": [0.9], "max_share": 0.5, "strengths": [1], "network": "off"},
        "train": {"baselines": False, "keep_texts": keep_texts},
    }
    return parse_settings(tree)


def train(folder: Path, uri: str, documents: list[dict[str, Any]], *, keep_texts: bool) -> TrainReport:
    tiny.save_bert(folder / "bert")
    pq.write_table(pa.Table.from_pylist(documents), folder / "train.parquet")
    return run_workflow(make_settings(folder, uri, keep_texts=keep_texts))


@pytest.mark.parametrize(("lists", "keep_texts"), [(False, False), (True, True)])
def test_flipped_labels_are_listed_first(
    tmp_path: Path, sqlite_uri: str, capsys: pytest.CaptureFixture[str], lists: bool, keep_texts: bool
) -> None:
    """With id, label, prediction and margin; the report and the terminal say how many there are.

    Texts are stored, here and in `neurons.json`, only where they are kept, and another training keeps them or not.
    """
    splits = ["train"] * 280 + ["valid"] * 60 + ["test"] * 60
    made = zip(tiny.make_documents(400), splits, strict=True)
    documents: list[dict[str, Any]] = [
        {**d, "label": [d["label"]] if lists else d["label"], "split": split} for d, split in made
    ]
    classes = sorted({str(d["label"]): d["label"] for d in documents}.values())
    right = {d["id"]: d["label"] for d in documents}
    for document in documents[:FLIPPED]:
        document["label"] = classes[(classes.index(document["label"]) + 1) % len(classes)]
    report = train(tmp_path, sqlite_uri, documents, keep_texts=keep_texts)
    table = pq.read_table(tmp_path / "store" / "suspects.parquet")
    assert table.schema.names == ["id", "label", "prediction", "margin", *(["text"] if keep_texts else [])]
    rows = table.to_pylist()
    assert [row["margin"] for row in rows] == sorted((row["margin"] for row in rows), reverse=True)
    given = {document["id"]: document["label"] for document in documents}
    assert all(row["label"] == given[row["id"]] != row["prediction"] for row in rows if row["margin"] > 0)
    flipped = {document["id"] for document in documents[:FLIPPED]}
    found = [row for row in rows[:FLIPPED] if row["id"] in flipped]
    assert len(found) >= 6, "by chance it would be fewer than one"
    assert sum(row["prediction"] == right[row["id"]] for row in found) >= 0.7 * len(found)
    assert json.loads((tmp_path / "store" / "report.json").read_text())["suspects"] == len(rows)
    print_training(report)
    assert f"{len(rows):,} of 340 labels contradicted" in capsys.readouterr().out
    texts = {document["id"]: document["text"] for document in documents}
    top = [top for row in json.loads((tmp_path / "store/model/neurons.json").read_text()) for top in row["top"]]
    assert top
    assert rows
    for document in (*rows, *top):
        assert document.get("text") == (texts[document["id"]] if keep_texts else None)
    assert ("keep_texts" in (tmp_path / "store/model/plan.json").read_text()) == keep_texts, (
        "the default plan is as before"
    )
    with pytest.raises(UserError, match=f"keep_texts is {'absent, was true' if keep_texts else 'true, was absent'}"):
        run_workflow(make_settings(tmp_path, sqlite_uri, keep_texts=not keep_texts), first="train")
