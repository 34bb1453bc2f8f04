"""`spin review` and `spin labels`: from a night of a real model to its score and to training data."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from spin.estimator import SpinClassifier
from spin.settings import BackboneSettings, SearchSettings
from tests.support import tiny
from tests.support.chaos import FolderRegistry
from tests.support.command_line import run_spin
from tests.support.night_project import NightProject, run_shards_here

pytestmark = pytest.mark.slow

ROWS = [{"id": f"n{number}", **row} for number, row in enumerate(tiny.make_documents(120, seed=3))]


@pytest.fixture
def project(tmp_path: Path, backbone_folder: Path, monkeypatch: pytest.MonkeyPatch) -> NightProject:
    """A night of 120 documents."""
    run_shards_here(monkeypatch)
    (tmp_path / "registry").mkdir()
    settings = BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu")
    quick = SearchSettings(etas=(0.9,), max_share=1, strengths=(1,), network="off", words="off")
    rows = tiny.make_documents(200)
    spin = SpinClassifier(settings, sites=["ffn.01"], search=quick)
    spin.fit([row["text"] for row in rows], [row["label"] for row in rows]).save(tmp_path / "registry/1")
    project = NightProject(tmp_path, FolderRegistry(tmp_path / "registry"), backbone_folder)
    project.write("a.jsonl", [{"id": row["id"], "text": row["text"]} for row in ROWS])
    project.run_night()
    return project


def test_from_a_review_to_training_data(
    project: NightProject, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = project.folder, str(project.folder / "out")
    settings, review = str(folder / "settings.yaml"), str(folder / "review.csv")

    def spin(*words: str, status: int = 0) -> str:
        return run_spin(capsys, monkeypatch, *words, status=status)

    assert "has no labels; `spin review` draws documents" in spin("labels", "show", "--output", out)
    assert "has no labels; `spin labels add`" in spin(
        "labels", "export", settings, "--output", out, "--to", str(folder / "train.parquet"), status=2
    )
    options = ("--documents", "50", "--settings", settings, "--to", review)
    printed = spin("review", "--output", out, *options)
    assert "review    50 documents of the night of 2026-03-01 of tiny: " in printed
    assert f"spin labels add {review} --output {out}" in printed

    by_id = {row["id"]: row for row in ROWS}
    with open(review, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == [by_id[row["id"]]["text"] for row in rows]
    for row in rows:
        row["true_label"] = by_id[row["id"]]["label"]
    with open(review, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)

    added = spin("labels", "add", review, "--output", out)
    assert "labels    50 added, 0 rows without a label" in added
    right = sum(row["label"] == row["true_label"] for row in rows)
    assert f"2026-03-01  tiny 1  {right} of 50  " in added
    [score] = json.loads(spin("labels", "show", "--output", out, "--json"))
    assert (score["checked"], score["right"]) == (50, right)
    every = {row["id"]: row["label"] for row in project.read_rows()}
    true = sum(every[id] == by_id[id]["label"] for id in every) / len(every)
    assert score["accuracy"]["low"] <= true <= score["accuracy"]["high"]

    exported = spin("labels", "export", settings, "--output", out, "--to", str(folder / "train.parquet"))
    assert "wrote 50 labelled documents" in exported
    table = pq.read_table(folder / "train.parquet")
    assert table.column_names == ["id", "text", "label", "split"]
    assert {row["id"]: (row["text"], row["label"]) for row in table.to_pylist()} == {
        row["id"]: (by_id[row["id"]]["text"], by_id[row["id"]]["label"]) for row in rows
    }
    report = project.run_night(date="2026-03-02")
    assert [(night.date, night.checked, night.right) for night in report.scored] == [("2026-03-01", 50, right)]


def test_input_that_is_gone_is_counted(
    project: NightProject, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, settings = str(project.folder / "out"), str(project.folder / "settings.yaml")
    (project.folder / "data/a.jsonl").unlink()
    review = str(project.folder / "review.parquet")
    options = ("--documents", "10", "--settings", settings, "--to", review)
    printed = run_spin(capsys, monkeypatch, "review", "--output", out, *options)
    assert "the input of 10 of them is not there any more" in printed
    assert pq.read_table(review)["text"].null_count == 10


def test_another_kind_of_file_is_refused_before_anything_is_read(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = run_spin(capsys, monkeypatch, "review", "--output", "nowhere", "--to", "review.xlsx", status=2)
    assert "--to review.xlsx: expected a name that ends with .csv or .parquet" in error


@pytest.mark.parametrize("command", [("review",), ("labels", "export", "settings.yaml")])
def test_files_of_people_are_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    """A review that was filled in, or a corpus; a path that cannot be written is named before anything is read, too."""
    (tmp_path / "done.csv").write_text("id,true_label\na,good\n")
    for name, message in (
        ("done.csv", "done.csv exists already; name another file, or delete it"),
        ("no/review.csv", f"there is no directory {tmp_path / 'no'}"),
        ("", "is a directory; name a file in it"),
    ):
        to = str(tmp_path / name)
        assert message in run_spin(capsys, monkeypatch, *command, "--output", "nowhere", "--to", to, status=2)
    assert (tmp_path / "done.csv").read_text() == "id,true_label\na,good\n"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "review.csv").touch()
    assert "review.csv exists already" in run_spin(capsys, monkeypatch, "review", "--output", "nowhere", status=2)
