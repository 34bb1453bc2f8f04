"""Add labels to nights, and score these: files of every form, histories of files, and reports."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.nightly.report.night_report import REPORT
from pipelines.nightly.review.checked_labels import LABELS, add_labels, list_scores
from pipelines.nightly.review.label_file import write_review
from pipelines.nightly.review.review_sample import choose_documents
from pipelines.nightly.tables.night_records import RUNS
from pipelines.nightly.tables.night_tables import NightTables
from pipelines.storage.object_store import Store
from spin.errors import UserError
from tests.pipelines.nightly.report.test_run_report import make_report
from tests.pipelines.nightly.review.test_review_sample import make_rows, publish
from tests.support.nights import DATE, MODEL, run_night

WRONG = {f"d{n:05d}" for n in range(0, 2000, 5)}
"""documents whose label `good` is wrong"""


def write_csv(file: Path, rows: list[dict[str, Any]]) -> Path:
    with file.open("w", newline="") as sink:
        writer = csv.DictWriter(sink, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file


def fill_in(file: Path, *, skip: int = 0) -> Path:
    """Fill in the true labels of a review, but for the first `skip` documents."""
    with file.open(newline="") as source:
        rows = list(csv.DictReader(source))
    for row in rows[skip:]:
        row["true_label"] = "bad" if row["id"] in WRONG else "good"
    return write_csv(file, rows)


def label(id: str, true: str = "good", **more: str) -> dict[str, str]:
    return {"id": id, "true_label": true, **more}


def test_a_review_that_was_filled_in_scores_its_night(tmp_path: Path) -> None:
    """Strata count by their documents: by the checked ones alone the accuracy would be lower."""
    rows = [row for row in make_rows(2000) if row["label"] is not None]
    WRONG.update(f"d{n:05d}" for n in range(30))
    publish(tmp_path / "out", rows)
    out = str(tmp_path / "out")
    sample = choose_documents(out, documents=200)
    write_review(sample, tmp_path / "review.csv")
    added = add_labels(out, fill_in(tmp_path / "review.csv"))
    assert (added.added, added.empty, added.unknown) == (200, 0, 0)
    [score] = added.nights
    labelled = [row["id"] for row in rows]
    true = 1 - sum(id in WRONG for id in labelled) / len(labelled)
    checked = sample.rows["id"].to_pylist()
    right = sum(id not in WRONG for id in checked)
    assert (score.date, score.model, score.checked, score.right) == (DATE, MODEL, 200, right)
    assert score.accuracy is not None
    assert score.accuracy.low <= true <= score.accuracy.high
    assert score.accuracy.value != pytest.approx(right / 200, abs=0.003)
    assert list_scores(NightTables(Store(out))) == [score]


def test_labels_may_come_in_parts_and_be_corrected(tmp_path: Path) -> None:
    """A stratum without a label gives no estimate; the same file again changes nothing; the last label counts."""
    out = str(tmp_path / "out")
    publish(tmp_path / "out", [row for row in make_rows(2000) if row["label"] is not None])
    write_review(choose_documents(out, documents=100), tmp_path / "review.csv")
    first = add_labels(out, fill_in(tmp_path / "review.csv", skip=30))  # none of the uncertain ones
    assert (first.added, first.empty) == (70, 30)
    assert first.nights[0].accuracy is None
    assert add_labels(out, tmp_path / "review.csv").nights == first.nights
    assert len([key for key in Store(out).list(LABELS) if key.endswith(".parquet")]) == 1
    second = add_labels(out, fill_in(tmp_path / "review.csv"))
    assert second.nights[0].checked == 100
    assert second.nights[0].accuracy is not None
    with (tmp_path / "review.csv").open(newline="") as file:
        drawn = [row for row in csv.DictReader(file) if row["reason"] == "random" and row["true_label"] == "good"]
    id = drawn[0]["id"]
    right = second.nights[0].right
    corrected = add_labels(out, write_csv(tmp_path / "corrected.csv", [label(id, "bad")]))
    assert (corrected.nights[0].checked, corrected.nights[0].right) == (100, right - 1)
    before, after = second.nights[0].accuracy, corrected.nights[0].accuracy
    assert before is not None
    assert after is not None
    # the document is still one of the 70 that stand for the 1,770 that are not the least certain
    assert before.value - after.value == pytest.approx(1770 / 1800 / 70, abs=2e-4)
    again = add_labels(out, tmp_path / "review.csv")
    assert again.nights == second.nights  # as it was added last
    corrected = add_labels(out, tmp_path / "corrected.csv")
    emptied = add_labels(out, write_csv(tmp_path / "empty.csv", [label(id, "")]))
    assert emptied.nights == ()
    assert list_scores(NightTables(Store(out))) == list(corrected.nights)


def test_a_part_of_a_review_does_not_stand_for_the_night(tmp_path: Path) -> None:
    """Without the rows of a stratum, the others would be taken for all documents."""
    out = str(tmp_path / "out")
    publish(tmp_path / "out", [row for row in make_rows(2000) if row["label"] is not None])
    write_review(choose_documents(out, documents=100), tmp_path / "review.csv")
    with fill_in(tmp_path / "review.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    uncertain = [row for row in rows if row["reason"] == "uncertain"]
    [score] = add_labels(out, write_csv(tmp_path / "part.csv", uncertain)).nights
    assert (score.checked, score.accuracy) == (30, None)
    [score] = add_labels(out, write_csv(tmp_path / "all.csv", rows)).nights
    assert score.accuracy is not None


def test_two_reviews_of_a_night_add_up(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    publish(tmp_path / "out", [row for row in make_rows(2000) if row["label"] is not None])
    scores = []
    for seed in range(2):
        write_review(choose_documents(out, documents=100, seed=seed), tmp_path / "review.csv")
        scores += add_labels(out, fill_in(tmp_path / "review.csv")).nights
    assert scores[0].accuracy is not None
    assert scores[1].accuracy is not None
    assert 160 < scores[1].checked <= 170
    widths = [score.accuracy.high - score.accuracy.low for score in scores if score.accuracy is not None]
    assert widths[1] < widths[0]


def test_labels_without_a_review_count_as_drawn_at_random(tmp_path: Path) -> None:
    out = tmp_path / "out"
    publish(out, make_rows(1000))
    file = write_csv(tmp_path / "own.csv", [label(f"d{n:05d}", "good" if n % 4 else "bad") for n in range(1, 101)])
    added = add_labels(str(out), file)
    [score] = added.nights
    assert (added.added, added.unknown) == (90, 10)  # every tenth document has no label of the night
    assert score.accuracy is not None
    assert score.accuracy.value == pytest.approx(score.right / 90, abs=1e-4)
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
    assert nights([label("c")], date=DATE) == []
    assert add_labels(out.uri, write_csv(tmp_path / "labels.csv", [label("x")])).unknown == 1


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
    run_night(out, ["a", "b", "c", "d"], columns={"label": None, "labels": ["x", "y"]})
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
