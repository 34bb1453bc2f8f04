"""Add labels to nights, and score these: files of every form, histories of files, and reports."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data.forgotten_ids import add_forgotten
from pipelines.nightly.report.night_report import REPORT
from pipelines.nightly.review import checked_labels
from pipelines.nightly.review.checked_labels import LABELS, add_labels, list_scores, read_labels, remove_labels
from pipelines.nightly.review.label_file import write_review
from pipelines.nightly.review.review_sample import choose_documents
from pipelines.nightly.tables.night_records import RUNS
from pipelines.nightly.tables.night_tables import NightTables
from pipelines.storage.object_store import Store
from spin.errors import UserError
from tests.pipelines.nightly.report.test_run_report import make_report
from tests.pipelines.nightly.review.test_review_sample import make_rows, publish
from tests.support.fake_nights import before_call
from tests.support.nights import DATE, MODEL, prediction, run_night

WRONG = frozenset(f"d{n:05d}" for n in (*range(30), *range(0, 2000, 5)))
"""documents whose label `good` is wrong"""


def write_csv(file: Path, rows: list[dict[str, Any]]) -> Path:
    with file.open("w", newline="") as sink:
        writer = csv.DictWriter(sink, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file


def read_csv(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as source:
        return list(csv.DictReader(source))


def fill_in(file: Path, *, skip: int = 0, wrong: Collection[str] = WRONG) -> Path:
    """Fill in the true labels of a review, but for the first `skip` documents."""
    rows = read_csv(file)
    for row in rows[skip:]:
        row["true_label"] = "bad" if row["id"] in wrong else "good"
    return write_csv(file, rows)


def label(id: str, true: str = "good", **more: str) -> dict[str, str]:
    return {"id": id, "true_label": true, **more}


@pytest.mark.slow
def test_reviews_that_were_filled_in_score_their_night(tmp_path: Path) -> None:
    """By the checked ones alone the accuracy would be lower: uncertain documents are drawn more often."""
    draw = np.random.default_rng(5)
    chances = 0.5 + 0.49 * draw.random(2000) ** 0.25
    rows = [prediction(f"d{n:05d}", score=p, scores={"good": p, "bad": 1 - p}) for n, p in enumerate(chances)]
    publish(tmp_path / "out", rows)
    wrong = {row["id"] for row, at in zip(rows, draw.random(2000), strict=True) if at > row["score"] - 0.05}
    true, values, shares = 1 - len(wrong) / 2000, [], []
    for seed in range(30):
        folder = tmp_path / str(seed)
        shutil.copytree(tmp_path / "out", folder)
        write_review(choose_documents(str(folder), documents=200, seed=seed), tmp_path / "review.csv")
        added = add_labels(str(folder), fill_in(tmp_path / "review.csv", wrong=wrong))
        assert (added.added, added.empty, added.unknown) == (200, 0, 0)
        [score] = added.nights
        assert (score.date, score.model, score.checked) == (DATE, MODEL, 200)
        assert list_scores(NightTables(Store(str(folder)))) == [score]
        assert score.accuracy is not None
        values.append(score.accuracy)
        shares.append(score.right / score.checked)
    assert sum(each.low <= true <= each.high for each in values) >= 27
    assert np.mean([each.value for each in values]) == pytest.approx(true, abs=0.012)
    assert np.mean(shares) < true - 0.02


def test_labels_may_come_in_parts_and_be_corrected(tmp_path: Path) -> None:
    """What was checked stands for the rest; the same file again changes nothing; the last label counts."""
    out = str(tmp_path / "out")
    publish(tmp_path / "out", [row for row in make_rows(2000) if row["label"] is not None])
    write_review(choose_documents(out, documents=100), tmp_path / "review.csv")
    first = add_labels(out, fill_in(tmp_path / "review.csv", skip=30))
    assert (first.added, first.empty) == (70, 30)
    assert first.nights[0].accuracy is not None
    assert add_labels(out, tmp_path / "review.csv").nights == first.nights
    assert len([key for key in Store(out).list(LABELS) if key.endswith(".parquet")]) == 1
    second = add_labels(out, fill_in(tmp_path / "review.csv"))
    assert second.nights[0].checked == 100
    assert second.nights[0].accuracy is not None
    assert second.nights[0].accuracy.width < first.nights[0].accuracy.width
    drawn = read_csv(tmp_path / "review.csv")
    row = next(row for row in drawn if row["true_label"] == "good")
    right = second.nights[0].right
    corrected = add_labels(out, write_csv(tmp_path / "corrected.csv", [label(row["id"], "bad")]))
    assert (corrected.nights[0].checked, corrected.nights[0].right) == (100, right - 1)
    before, after = second.nights[0].accuracy, corrected.nights[0].accuracy
    assert after is not None
    # the document still counts by about the inverse of its probability
    share = (1 / float(row["probability"])) / sum(1 / float(each["probability"]) for each in drawn)
    assert before.value - after.value == pytest.approx(share, rel=0.2)
    again = add_labels(out, tmp_path / "review.csv")
    assert again.nights == second.nights  # as it was added last
    corrected = add_labels(out, tmp_path / "corrected.csv")
    emptied = add_labels(out, write_csv(tmp_path / "empty.csv", [label(row["id"], "")]))
    assert emptied.nights == ()
    assert list_scores(NightTables(Store(out))) == list(corrected.nights)


def test_a_part_of_a_review_does_not_stand_for_the_night(tmp_path: Path) -> None:
    """Without the rows that stand for most documents, the others would be taken for all."""
    out = str(tmp_path / "out")
    publish(tmp_path / "out", [row for row in make_rows(2000) if row["label"] is not None])
    write_review(choose_documents(out, documents=100), tmp_path / "review.csv")
    rows = read_csv(fill_in(tmp_path / "review.csv"))
    uncertain = [row for row in rows if row["reason"] == "uncertain"]
    [score] = add_labels(out, write_csv(tmp_path / "part.csv", uncertain)).nights
    assert (score.checked, score.accuracy) == (len(uncertain), None)
    [score] = add_labels(out, write_csv(tmp_path / "all.csv", rows)).nights
    assert score.accuracy is not None


def test_a_review_needs_no_reasons(tmp_path: Path) -> None:
    """People may delete the columns that only tell them something; the probabilities still count."""
    scores = []
    for name, columns in (("all", None), ("few", ("id", "true_label", "probability", "seed"))):
        out = str(tmp_path / name)
        publish(tmp_path / name, [row for row in make_rows(2000) if row["label"] is not None])
        write_review(choose_documents(out, documents=100), tmp_path / "review.csv")
        rows = read_csv(fill_in(tmp_path / "review.csv"))
        rows = [{column: row[column] for column in columns or row} for row in rows]
        scores += add_labels(out, write_csv(tmp_path / "review.csv", rows)).nights
    assert scores[0].accuracy is not None
    assert scores[0].accuracy == scores[1].accuracy


def test_reviews_of_a_night_add_up(tmp_path: Path) -> None:
    """Of other seeds as independent samples, of the same seed as one that is larger, in whatever order they come."""
    out = str(tmp_path / "out")
    publish(tmp_path / "out", [row for row in make_rows(2000) if row["label"] is not None])
    reviews = [(100, 0), (100, 1), (200, 1)]
    for documents, seed in reviews:
        file = tmp_path / f"{documents}-{seed}.csv"
        write_review(choose_documents(out, documents=documents, seed=seed), file)
        fill_in(file)
    scores = [add_labels(out, tmp_path / f"{n}-{seed}.csv").nights[0] for n, seed in reviews]
    estimates = [score.accuracy for score in scores if score.accuracy is not None]
    assert 180 < scores[1].checked < 200  # some are in both
    assert 270 < scores[2].checked < 300
    assert estimates[0].width > estimates[1].width > estimates[2].width
    [again] = add_labels(out, tmp_path / "100-1.csv").nights
    assert again == scores[2]


def write_old_review(file: Path, strata: dict[str, tuple[Sequence[int], int]], *, skip: str = "") -> Path:
    """Write a review as it was before there were probabilities: documents and the size of each stratum."""
    return write_csv(
        file,
        [
            {
                "id": (id := f"d{n:05d}"),
                "true_label": "" if reason == skip else "bad" if id in WRONG else "good",
                "reason": reason,
                "population": population,
                "date": DATE,
                "model": MODEL,
            }
            for reason, (numbers, population) in strata.items()
            for n in numbers
        ],
    )


def test_reviews_that_were_made_without_probabilities_count(tmp_path: Path) -> None:
    """Their documents were drawn uniformly from each stratum. A later review adds to them."""
    out = str(tmp_path / "out")
    publish(tmp_path / "out", [prediction(f"d{n:05d}", score=0.9) for n in range(1000)])
    strata = {"uncertain": (range(30), 30), "disputed": (range(31, 131, 5), 270), "random": (range(300, 370), 700)}
    [score] = add_labels(out, write_old_review(tmp_path / "old.csv", strata, skip="disputed")).nights
    assert (score.checked, score.accuracy) == (100, None)
    [score] = add_labels(out, write_old_review(tmp_path / "old.csv", strata)).nights
    right = {reason: np.mean([f"d{n:05d}" not in WRONG for n in numbers]) for reason, (numbers, _) in strata.items()}
    assert score.accuracy is not None
    expected = 0.03 * right["uncertain"] + 0.27 * right["disputed"] + 0.7 * right["random"]
    assert score.accuracy.value == pytest.approx(expected, abs=1e-4)
    write_review(choose_documents(out, documents=100), tmp_path / "review.csv")
    [later] = add_labels(out, fill_in(tmp_path / "review.csv")).nights
    assert later.accuracy is not None
    assert later.accuracy.width < score.accuracy.width
    assert later.checked > 190


def test_labels_without_a_review_count_as_drawn_at_random(tmp_path: Path) -> None:
    out = tmp_path / "out"
    publish(out, make_rows(1000))
    numbers = range(3, 1000, 10)
    file = write_csv(tmp_path / "own.csv", [label(f"d{n:05d}", "good" if n % 3 else "bad") for n in (*numbers, 10)])
    added = add_labels(str(out), file)
    [score] = added.nights
    assert (added.added, added.unknown) == (100, 1)  # every tenth document has no label of the night
    assert score.accuracy is not None
    assert score.accuracy.value == pytest.approx(score.right / 100, abs=0.01)  # the scores of these are like all
    assert 0 < score.accuracy.low < score.accuracy.high < 1


def test_labels_find_the_nights_that_they_belong_to(tmp_path: Path) -> None:
    out = Store(str(tmp_path / "out"))
    run_night(out, ["a", "b"])
    run_night(out, ["b", "c"], date="2026-03-02")
    run_night(out, ["a"], model="tones")

    def nights(rows: list[dict[str, str]], **options: str) -> list[tuple[str, str, int]]:
        added = add_labels(out.uri, write_csv(tmp_path / "labels.csv", rows), **options)
        return [(score.date, score.model, score.checked) for score in added.nights]

    assert nights([label("b")]) == [(DATE, MODEL, 1), ("2026-03-02", MODEL, 1)]
    assert nights([label("a")], model="tones") == [(DATE, "tones", 1)]
    assert nights([label("a", model=MODEL, date=DATE)]) == [(DATE, MODEL, 2)]
    assert add_labels(out.uri, write_csv(tmp_path / "labels.csv", [label("x"), label("c")])).unknown == 1


def test_labels_none_of_which_belongs_to_a_document_are_refused(tmp_path: Path) -> None:
    """They are lost otherwise, with status 0: as where a spreadsheet has rewritten the ids."""
    out = Store(str(tmp_path / "out"))
    run_night(out, ["a"])
    for options, named in (
        ({}, r"'b'"),
        ({"date": "2026-03-02"}, r"'b' of 2026-03-02"),
        ({"model": "tones"}, r"'b' of tones"),
    ):
        rows = [label("b"), label("a" if options else "c")]
        message = rf"any of the 2 documents with a true label, such as {named}; expected .* `spin nights list --output"
        with pytest.raises(UserError, match=message):
            add_labels(out.uri, write_csv(tmp_path / "labels.csv", rows), **options)
    assert out.list(LABELS) == []
    assert add_labels(out.uri, write_csv(tmp_path / "labels.csv", [label("b", "")])).added == 0


@pytest.mark.parametrize("date", ["11/24/2026", "24.11.2026"])
def test_a_review_counts_whatever_a_spreadsheet_makes_of_its_dates(tmp_path: Path, date: str) -> None:
    """The column `run` names its night, also once another run has replaced it."""
    out = Store(str(tmp_path / "out"))
    for model in (MODEL, "tones"):
        publish(tmp_path / "out", make_rows(20), model=model)
        publish(tmp_path / "out", make_rows(20), model=model, date="2026-03-02")
    write_review(choose_documents(out.uri, documents=10, date=DATE, model=MODEL), tmp_path / "review.csv")
    publish(tmp_path / "out", make_rows(20))
    rows = [row | {"date": date} for row in read_csv(fill_in(tmp_path / "review.csv"))]
    [score] = add_labels(out.uri, write_csv(tmp_path / "review.csv", rows)).nights
    assert (score.date, score.model, score.checked) == (DATE, MODEL, 10)
    without = [{name: value for name, value in row.items() if name != "run"} for row in rows]
    with pytest.raises(UserError, match=rf"the row of '{rows[0]['id']}': date {date}: expected a day as YYYY-MM-DD"):
        add_labels(out.uri, write_csv(tmp_path / "review.csv", without))
    with pytest.raises(UserError, match=f"--date {date}: expected a day as YYYY-MM-DD"):
        add_labels(out.uri, write_csv(tmp_path / "labels.csv", [label("d00001")]), date=date)


def test_labels_of_a_replaced_night_count_for_the_new_one(tmp_path: Path) -> None:
    """A night that was done again is scored when labels are added; until then it has no score."""
    out = Store(str(tmp_path / "out"))
    tables = NightTables(out)
    run_night(out, ["a", "b"])
    file = write_csv(tmp_path / "labels.csv", [label("a"), label("b", "bad")])
    assert add_labels(out.uri, file).nights[0].right == 1
    run_night(out, ["a", "b"], columns={"label": "bad"})
    assert list_scores(tables) == []
    [score] = add_labels(out.uri, file).nights
    assert (score.checked, score.right) == (2, 1)
    assert list_scores(tables) == [score]


def test_several_classes_are_compared_as_sets(tmp_path: Path) -> None:
    out = Store(str(tmp_path / "out"))
    columns = {"label": None, "labels": ["x", "y"], "scores": {"x": 0.9, "y": 0.8, "z": 0.1}}
    run_night(out, ["a", "b", "c", "d"], columns=columns)
    rows = [label("a", '["y", "x"]'), label("b", '["x"]'), label("c", "[]"), label("d", "x")]
    [score] = add_labels(out.uri, write_csv(tmp_path / "labels.csv", rows)).nights
    assert (score.checked, score.right) == (4, 1)
    table = pa.table({"id": ["a", "b", "c"], "true_label": [["x", "y"], ["x", "y"], None]})
    pq.write_table(table, tmp_path / "labels.parquet")
    [score] = add_labels(out.uri, tmp_path / "labels.parquet").nights
    assert (score.checked, score.right) == (4, 2)


def test_ids_and_classes_that_look_like_numbers_stay_text(tmp_path: Path) -> None:
    out = Store(str(tmp_path / "out"))
    run_night(out, ["007", "010"], columns={"label": "1"})
    [score] = add_labels(out.uri, write_csv(tmp_path / "labels.csv", [label("007", "1"), label("010", "01")])).nights
    assert (score.checked, score.right) == (2, 1)


def test_ids_and_classes_of_parquet_are_those_of_nights(tmp_path: Path) -> None:
    """Of a column of numbers or truth values, the night that read it has written them as `text_values` says."""
    out, file = Store(str(tmp_path / "out")), tmp_path / "labels.parquet"
    uuid = UUID("00000000-0000-0000-0000-000000000001")
    run_night(out, ["1", "2.5", str(uuid)], columns={"label": "true"})
    run_night(out, ["3"], model="tones", columns={"label": None, "labels": ["1"], "scores": {"1": 0.9}})
    pq.write_table(pa.table({"id": [1.0, 2.5], "true_label": [True, False]}), file)
    [score] = add_labels(out.uri, file).nights
    assert (score.checked, score.right) == (2, 1)
    pq.write_table(pa.table({"id": pa.array([uuid.bytes], pa.uuid()), "true_label": ["true"]}), file)
    [score] = add_labels(out.uri, file).nights
    assert (score.checked, score.right) == (3, 2)
    pq.write_table(pa.table({"id": [3.0], "true_label": [[1.0]]}), file)
    assert [score.right for score in add_labels(out.uri, file).nights] == [1]
    pq.write_table(pa.table({"id": [3.0], "true_label": [[float("nan")]]}), file)
    with pytest.raises(UserError, match="the label of '3' is a list with a value that is no name; expected only names"):
        add_labels(out.uri, file)


def test_a_score_has_what_the_night_had_estimated(tmp_path: Path) -> None:
    out = Store(str(tmp_path / "out"))
    night = run_night(out, ["a"])
    report = make_report(run=night.name)
    out.write_json(f"{RUNS}/{night.name}/{REPORT}", report)
    added = add_labels(out.uri, write_csv(tmp_path / "labels.csv", [label("a", "Late")]), new_classes=["Late"])
    assert added.foreign == ("Late",)
    added = add_labels(out.uri, write_csv(tmp_path / "labels.csv", [label("a", "late")]))
    assert added.foreign == ()
    [score] = added.nights
    assert score.estimated is not None
    assert score.estimated.value == report["quality"]["accuracy"]["value"]
    assert score.model_version == "7"
    stored = out.read_json(f"{LABELS}/nights/{night.name}.json")
    assert stored["estimated"] == report["quality"]["accuracy"]


@pytest.mark.parametrize("gone", [["b"], ["a", "b"]])
def test_labels_of_documents_that_are_forgotten_meanwhile_are_not_kept(tmp_path: Path, gone: list[str]) -> None:
    """The hashes of their ids are stored after they were read, and the labels of then are removed."""
    out = Store(str(tmp_path / "out"))
    run_night(out, ["a", "b"])
    file = write_csv(tmp_path / "labels.csv", [label("a"), label("b")])

    def forget() -> None:
        assert remove_labels(out, add_forgotten(out, gone)) == 0

    with before_call(checked_labels, "_store", action=forget):
        added = add_labels(out.uri, file)
    assert [score.checked for score in added.nights] == [2 - len(gone)] * (len(gone) < 2)
    assert list_scores(NightTables(out)) == list(added.nights)
    rows = [row.id for rows in read_labels(out).values() for row in rows]
    assert set(rows) == {"a", "b"} - {*gone}


def test_labels_may_be_separated_by_semicolons(tmp_path: Path) -> None:
    """As spreadsheets write them where the comma divides a number."""
    out = Store(str(tmp_path / "out"))
    run_night(out, ["a", "b"], columns={"label": "good"})
    (tmp_path / "labels.csv").write_text('\ufeffid;true_label\r\na;good\r\nb;"bad, very"\r\n')
    [score] = add_labels(out.uri, tmp_path / "labels.csv").nights
    assert (score.checked, score.right) == (2, 1)


def test_a_class_that_the_model_does_not_have_is_refused(tmp_path: Path) -> None:
    """The message names the nearest class. Nothing is stored, also of the other labels in the file."""
    out = Store(str(tmp_path / "out"))
    night = run_night(out, ["a", "b"])
    out.write_json(f"{RUNS}/{night.name}/{REPORT}", make_report(run=night.name))
    file = write_csv(tmp_path / "labels.csv", [label("a", "late"), label("b", "Late"), label("c", "other")])
    with pytest.raises(UserError, match=r"labels\.csv: 'Late' \(did you mean 'late'\?\): .* --new-class NAME$"):
        add_labels(out.uri, file)
    assert out.list(LABELS) == []
    assert add_labels(out.uri, file, new_classes=["Late"]).added == 2


@pytest.mark.parametrize("classes", ["[]", '["good", "bad"]'])
def test_no_and_several_classes_are_refused_where_a_night_gives_one(tmp_path: Path, classes: str) -> None:
    out = Store(str(tmp_path / "out"))
    run_night(out, ["a", "b", "c"])
    rows = [label("a"), label("b", '["bad"]'), label("c", classes)]
    message = (
        rf"labels\.csv: the label of 'c' is {re.escape(classes)}; {MODEL}, the model of the night of {DATE}, gives"
    )
    with pytest.raises(UserError, match=message):
        add_labels(out.uri, write_csv(tmp_path / "labels.csv", rows))
    assert out.list(LABELS) == []
    assert add_labels(out.uri, write_csv(tmp_path / "labels.csv", rows[:2])).added == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "labels.csv",
            "id,label\na,good\n",
            "has no column 'true_label'; it has id, label, expected id and true_label",
        ),
        ("labels.csv", "", "cannot be read: .*expected CSV or Parquet"),
        ("labels.csv", 'id,true_label,population\na,good,"9,800"\n', "population is '9,800'; expected a whole number"),
        (
            "labels.csv",
            "id,true_label,reason,probability\na,good,random,0.00\n",
            "probability is 0.0; expected a number above 0, at most 1",
        ),
        ("labels.parquet", "no Parquet", "cannot be read"),
        ("missing.csv", None, "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    out = Store(str(tmp_path / "out"))
    run_night(out, ["a"])
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        add_labels(out.uri, tmp_path / name)
    assert out.list(LABELS) == []


def test_an_output_without_a_night_takes_no_labels(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "labels.csv", [label("a")])
    with pytest.raises(UserError, match="no published night; `spin classify` makes one"):
        add_labels(str(tmp_path / "out"), file)
