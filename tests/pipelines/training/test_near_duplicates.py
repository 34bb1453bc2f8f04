"""From the files to the report: near-identical texts are never on two sides of a split that SPIN makes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.commands.train_commands import print_training
from pipelines.data.training_labels import Labels, SplitOverlap
from pipelines.training.extract_features import load_features
from pipelines.training.train import TrainReport
from pipelines.training.workflow import run_stages, run_workflow
from spin.errors import UserError
from spin.settings import Settings, parse_settings
from tests.support import tiny

pytestmark = pytest.mark.slow

Row = dict[str, Any]


def vary(row: Row, id: str) -> Row:
    """A near-identical document under another id."""
    return {**row, "id": id, "text": f"RT @someone: {row['text'].upper()}!! http://t.co/{id}"}


def make_rows(count: int) -> list[Row]:
    """Documents of which no two are near-identical."""
    return [{**row, "text": f"{row['text']} {number}"} for number, row in enumerate(tiny.make_documents(count))]


@pytest.fixture
def make_project(tmp_path: Path, backbone_folder: Path, sqlite_uri: str) -> Callable[..., Settings]:
    """Settings of a tiny project with these documents, which is named and stored by its number."""
    number = 0

    def make(rows: Sequence[Row], **data: Any) -> Settings:
        nonlocal number
        number += 1
        pq.write_table(pa.Table.from_pylist(list(rows)), tmp_path / f"{number}.parquet")
        return parse_settings(
            {
                "backbone": {"model": str(backbone_folder), "dtype": "float32", "device": "cpu"},
                "data": {"train": str(tmp_path / f"{number}.parquet"), **data},
                "store": str(tmp_path / f"store-{number}"),
                "mlflow": {"model": tmp_path.name.replace("_", "-"), "tracking_uri": sqlite_uri},
                "registry": {"include_backbone": False},
                "ray": {"workers": 0, "shard_documents": 500},
                "sites": ["ffn.01"],
                "probe": {"penalties": 3, "max_extra": 0},
                "search": {"etas": [0.9], "strengths": [1], "network": "off"},
                "train": {"baselines": False},
            }
        )

    return make


def read_splits(project: Settings) -> dict[str, str]:
    """The split of each document by id, after the extract stage."""
    run_stages(project, ["extract"])
    labels = Labels.of(load_features(project)[2], project)
    return dict(zip(labels.ids, labels.splits, strict=True))


def test_near_identical_documents_are_used_in_the_same_way(make_project: Callable[..., Settings]) -> None:
    """All splits are used, and documents that are added later move none."""
    rows = make_rows(600)
    copies = [vary(row, f"{row['id']}-copy") for row in rows]
    splits = read_splits(make_project([*copies, *rows]))
    assert [splits[row["id"]] for row in rows] == [splits[f"{row['id']}-copy"] for row in rows]
    assert set(splits.values()) == {"train", "valid", "test"}
    fewer = read_splits(make_project(rows[:400]))
    assert {id: splits[id] for id in fewer} == fewer


def test_documents_with_one_value_of_the_group_column_are_used_in_the_same_way(
    make_project: Callable[..., Settings],
) -> None:
    """The column is a part of the plan, and no feature shard holds a text or a value of it."""
    rows = [{**row, "author": f"writer {number // 10}"} for number, row in enumerate(make_rows(600))]
    project = make_project(rows, group="author")
    splits = read_splits(project)
    by_author: dict[str, set[str]] = {}
    for row in rows:
        by_author.setdefault(row["author"], set()).add(splits[row["id"]])
    assert {len(used) for used in by_author.values()} == {1}
    assert set(splits.values()) == {"train", "valid", "test"}
    with pytest.raises(UserError, match=r"extract: .*data\.group is null, was \"author\""):
        load_features(project.model_copy(update={"data": project.data.model_copy(update={"group": None})}))
    stored = [path.read_bytes() for path in (Path(project.store.uri) / "features").rglob("*") if path.is_file()]
    assert len(stored) > 2
    assert not any(word in data for data in stored for word in (b"writer 1", rows[0]["text"].encode()))


def train_after_freezing(
    make_project: Callable[..., Settings], column: str | None
) -> tuple[TrainReport, Settings, int]:
    """Train a second version on near-identical copies of the first one's test documents, and on the others.

    Returns its report, its settings and how many documents of the frozen evaluation set there are. With a split column
    all train, except for seven copies of the others, which test.
    """
    rows = make_rows(500)
    first = make_project(rows)
    run_workflow(first)
    frozen = {id for id, split in read_splits(first).items() if split == "test"}
    train, test = ({}, {}) if column is None else ({column: "train"}, {column: "test"})
    again = [{**vary(row, f"{row['id']}-again"), **train} for row in rows if row["id"] in frozen]
    others = [{**row, **train} for row in rows if row["id"] not in frozen]
    copies = [{**vary(row, f"{row['id']}-copy"), **test} for row in others[:7]]
    second = make_project([*again, *others, *copies], split=column)
    second = second.model_copy(update={"seed": 1})
    return run_workflow(second), second, len(frozen)


def test_texts_of_the_frozen_evaluation_set_train_under_no_id(make_project: Callable[..., Settings]) -> None:
    """A second version with another seed would train on most of them."""
    report, project, frozen = train_after_freezing(make_project, None)
    splits = read_splits(project)
    dropped = sum(split != "test" for id, split in splits.items() if id.endswith("-again"))
    assert frozen / 2 < dropped <= frozen
    assert report.results.overlap == SplitOverlap(dropped, 0)
    assert sum(report.results.counts.values()) == len(splits) - dropped


def test_the_report_says_what_a_split_column_shares_and_what_was_left_out(
    make_project: Callable[..., Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    """The column keeps its word, except for copies of what tests; report.json, terminal and model card say so."""
    report, project, frozen = train_after_freezing(make_project, "split")
    assert report.results.counts == {"train": 500 - frozen - 7, "valid": 0, "test": 7}
    written = json.loads((Path(project.store.uri) / "report.json").read_text())
    assert written["overlap"] == {"dropped": frozen + 7, "test_groups": 0}
    assert report.results.notes == (
        f"{frozen + 7} documents are left out of training: a near-identical text is among the test documents, or in "
        "the model's frozen evaluation set",
    )
    assert written["notes"] == list(report.results.notes)
    print_training(report)
    printed = capsys.readouterr().out.splitlines()
    assert [note for note in report.results.notes if note not in printed] == []
    assert f"- {frozen + 7} documents are left out" in (Path(project.store.uri) / "model" / "MODEL_CARD.md").read_text()
