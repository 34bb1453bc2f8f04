"""Labelled documents as training data: which of them may measure quality."""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data.files.input_files import list_files
from pipelines.data.labelled_corpus import read_labelled
from pipelines.nightly.report import night_texts
from pipelines.nightly.review import labelled_texts
from pipelines.nightly.review.checked_labels import add_labels
from pipelines.nightly.review.label_file import write_review
from pipelines.nightly.review.labelled_texts import export_labels
from pipelines.nightly.review.review_sample import choose_documents
from pipelines.nightly.tables.listing import Listing
from spin.errors import UserError
from spin.labels.split_groups import choose_group, hash_group, hash_text
from spin.labels.splits import assign_split
from spin.settings import Settings, parse_settings
from tests.pipelines.nightly.review.test_review_sample import publish
from tests.support.nights import prediction


def give_texts(data: object, out: object, run: str, ids: Collection[str]) -> Iterator[tuple[str, str, None]]:
    """A text of its own for each document, in place of those of an input."""
    return ((id, f"text of {id}", None) for id in ids)


def make_settings(model: str | None = None, **data: object) -> Settings:
    tree = {"train": "t", "valid_fraction": 0.45, "test_fraction": 0.45, **data}
    return parse_settings({"backbone": {"model": "m"}, "data": tree, "store": "s", "mlflow": {"model": model}})


@pytest.mark.slow
def test_documents_that_validate_and_test_measure_the_accuracy_of_the_night(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were those that a review chose for their low scores among them, accuracy would be 7 points lower."""
    monkeypatch.setattr(labelled_texts, "read_documents", give_texts)
    draw = np.random.default_rng(7)
    scores = 0.5 + 0.5 * draw.random(20_000) ** (1 / 3)
    right = dict(zip((f"d{n:05d}" for n in range(len(scores))), draw.random(len(scores)) < scores, strict=True))
    rows = [prediction(id, score=p, scores={"good": p, "bad": 1 - p}) for id, p in zip(right, scores, strict=True)]
    publish(tmp_path / "out", rows)
    write_review(choose_documents(str(tmp_path / "out"), documents=1500), tmp_path / "review.csv")
    _fill_in(tmp_path / "review.csv", lambda id: "good" if right[id] else "bad")
    add_labels(str(tmp_path / "out"), tmp_path / "review.csv")

    settings = make_settings()
    assert export_labels(settings, str(tmp_path / "out"), tmp_path / "labelled.parquet") == (1500, 0)
    exported = pq.read_table(tmp_path / "labelled.parquet").to_pylist()
    measuring = [row for row in exported if _split(row, settings) != "train"]
    assert len(measuring) > 400
    accuracy = np.mean([row["label"] == "good" for row in measuring])
    true = np.mean(list(right.values()))
    assert abs(accuracy - true) < 2.5 * np.sqrt(true * (1 - true) / len(measuring))


def test_documents_of_a_night_that_abstained_measure_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A review holds the documents that got a label, the easier ones: quality and promises would look too good."""
    monkeypatch.setattr(labelled_texts, "read_documents", give_texts)
    out, settings = tmp_path / "out", make_settings()
    for date, abstained in (("2026-03-01", []), ("2026-03-02", [prediction("x", label=None)])):
        publish(out, [prediction(f"{date} {n}") for n in range(40)] + abstained, date=date)
        write_review(choose_documents(str(out), date=date, documents=40), tmp_path / f"{date}.csv")
        _fill_in(tmp_path / f"{date}.csv", lambda id: "good")
        add_labels(str(out), tmp_path / f"{date}.csv")
    export_labels(settings, str(out), tmp_path / "labelled.parquet")
    splits = {row["id"]: _split(row, settings) for row in pq.read_table(tmp_path / "labelled.parquet").to_pylist()}
    assert {split for id, split in splits.items() if id.startswith("2026-03-02")} == {"train"}
    assert {split for id, split in splits.items() if id.startswith("2026-03-01")} > {"train"}


def _fill_in(file: Path, true_label: Callable[[str], str]) -> None:
    """Fill in the true labels of a review by the ids of its documents."""
    with file.open(newline="") as source:
        checked = list(csv.DictReader(source))
    with file.open("w", newline="") as sink:
        writer = csv.DictWriter(sink, list(checked[0]))
        writer.writeheader()
        writer.writerows(row | {"true_label": true_label(row["id"])} for row in checked)


def _split(row: dict[str, str], settings: Settings) -> str:
    """The split that a training gives a document: by its column, else by the hash of its text."""
    data = settings.data
    fractions = data.valid_fraction, data.test_fraction
    return row.get("split") or assign_split(hash_text(row["text"]), settings.seed, *fractions)


def test_labels_that_no_review_asked_for_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be those of errors that people have come across."""
    monkeypatch.setattr(labelled_texts, "read_documents", give_texts)
    ids = [f"d{n}" for n in range(30)]
    publish(tmp_path / "out", [prediction(id) for id in ids])
    (tmp_path / "labels.csv").write_text("id,true_label\n" + "".join(f"{id},bad\n" for id in ids))
    add_labels(str(tmp_path / "out"), tmp_path / "labels.csv")
    export_labels(make_settings(split="part"), str(tmp_path / "out"), tmp_path / "labelled.parquet")
    assert pq.read_table(tmp_path / "labelled.parquet")["part"].to_pylist() == ["train"] * 30


def test_a_text_lies_on_one_side_of_the_split_under_all_its_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second id of each text was labelled on request, and would train on what the first one tests."""

    def give_same_texts(data: object, out: object, run: str, ids: Collection[str]) -> Iterator[tuple[str, str, None]]:
        return ((id, f"Text of {id[1:]}{'!' * (id[0] == 'b')}", None) for id in ids)

    monkeypatch.setattr(labelled_texts, "read_documents", give_same_texts)
    publish(tmp_path / "out", [prediction(f"{copy}{n}") for n in range(40) for copy in "ab"])
    rows = "".join(f"{copy}{n},bad,{'random,0.5' * (copy == 'a') or ','}\n" for n in range(40) for copy in "ab")
    (tmp_path / "labels.csv").write_text("id,true_label,reason,probability\n" + rows)
    add_labels(str(tmp_path / "out"), tmp_path / "labels.csv")
    export_labels(make_settings(), str(tmp_path / "out"), tmp_path / "labelled.parquet")
    exported = {row["id"]: row["split"] for row in pq.read_table(tmp_path / "labelled.parquet").to_pylist()}
    assert set(exported.values()) == {"train", "valid", "test"}
    assert all(exported[f"a{n}"] == exported[f"b{n}"] for n in range(40))


def test_the_labels_of_one_model_are_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several models, classes with the same documents would be mixed: that of the settings, or one that is named."""
    monkeypatch.setattr(labelled_texts, "read_documents", give_texts)
    out, file = str(tmp_path / "out"), tmp_path / "labelled.parquet"
    for model in ("tones", "topics", "unlabelled"):
        publish(tmp_path / "out", [prediction("a"), prediction("b")], model=model)

    def export(configured: str | None = None, **options: str) -> list[dict[str, str]]:
        export_labels(make_settings(configured), out, file, **options)
        return [{"id": row["id"], "label": row["label"]} for row in pq.read_table(file).to_pylist()]

    (tmp_path / "labels.csv").write_text("id,true_label\na,bad\n")
    add_labels(out, tmp_path / "labels.csv", model="tones")
    assert export() == export("unlabelled") == [{"id": "a", "label": "bad"}]
    (tmp_path / "labels.csv").write_text("id,true_label\nb,good\n")
    add_labels(out, tmp_path / "labels.csv", model="topics")
    for configured in (None, "unlabelled"):
        with pytest.raises(UserError, match=r"nights of tones, topics have labels; choose .* with --model$"):
            export(configured)
    assert export("topics") == export(model="topics") == [{"id": "b", "label": "good"}]
    assert export("topics", model="tones") == [{"id": "a", "label": "bad"}]
    with pytest.raises(UserError, match=r"has no labels of unlabelled; `spin labels add`"):
        export(model="unlabelled")


def test_labels_are_lists_where_the_night_gives_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training on names would make a task of one class per document of it, even if each label is of one class."""
    monkeypatch.setattr(labelled_texts, "read_documents", give_texts)
    out, file = str(tmp_path / "out"), tmp_path / "labelled.parquet"
    listed = {"label": None, "labels": ["good"]}
    publish(tmp_path / "out", [prediction("a", label=None), prediction("b", **listed)])
    (tmp_path / "labels.csv").write_text("id,true_label\nb,bad\n")
    add_labels(out, tmp_path / "labels.csv")
    export_labels(make_settings(), out, file)
    assert pq.read_table(file)["label"].to_pylist() == [["bad"]]
    (tmp_path / "labels.csv").write_text("id,true_label\nb,[]\n")
    add_labels(out, tmp_path / "labels.csv")
    export_labels(make_settings(), out, file)
    assert pq.read_table(file)["label"].type == pa.list_(pa.string())
    publish(tmp_path / "out", [prediction("b")])  # by a version that gives one class
    with pytest.raises(UserError, match=r"out: the label of 'b' is \[\]; topics, .* gives every document one class"):
        export_labels(make_settings(), out, file)


def test_nothing_is_written_without_a_text_or_under_another_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, settings = str(tmp_path / "out"), make_settings()
    publish(tmp_path / "out", [prediction("a"), prediction("b")])
    (tmp_path / "labels.csv").write_text("id,true_label\na,bad\nb,  \n")
    assert add_labels(out, tmp_path / "labels.csv").added == 1, "a blank cell is no label"
    with pytest.raises(UserError, match=r"labelled.csv: expected a name that ends with .parquet"):
        export_labels(settings, out, tmp_path / "labelled.csv")
    monkeypatch.setattr(labelled_texts, "read_documents", lambda *_: iter(()))
    with pytest.raises(UserError, match="the input of all 1 labelled documents of .* is gone"):
        export_labels(settings, out, tmp_path / "labelled.parquet")
    assert not list(tmp_path.glob("labelled.*"))


@pytest.mark.slow
def test_a_training_with_groups_reads_what_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents of an author stay together, by the hash that divides those of the training; input may lack authors."""
    authors = {f"d{n}": f"author {n // 2}" for n in range(60)}
    (tmp_path / "in").mkdir()
    rows = [{"id": id, "text": f"text of {id}", "author": author} for id, author in authors.items()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in/a.parquet")
    (tmp_path / "in/b.csv").write_text("id,text\nx,a text without an author\n")
    files = tuple(list_files(str(tmp_path / "in")))
    taken = {file.uri for file in files}
    monkeypatch.setattr(night_texts, "_find_input", lambda out, run: ({}, Listing(files, {}), taken))
    out, file = str(tmp_path / "out"), tmp_path / "labelled.parquet"
    publish(tmp_path / "out", [prediction(id) for id in [*authors, "x"]])
    drawn = "".join(f"{id},bad,{'random,0.5' * (n % 2) or ','}\n" for n, id in enumerate(authors))
    (tmp_path / "labels.csv").write_text(f"id,true_label,reason,probability\nx,good,,\n{drawn}")
    add_labels(out, tmp_path / "labels.csv")

    settings = make_settings(group="author", split="split")
    assert export_labels(settings, out, file) == (61, 0)
    exported = {row["id"]: (row["author"], row["split"]) for row in pq.read_table(file).to_pylist()}
    fractions = settings.data.valid_fraction, settings.data.test_fraction
    by_hash = {id: assign_split(hash_group(author), settings.seed, *fractions) for id, author in authors.items()}
    assert exported == {id: (authors[id], by_hash[id]) for id in authors} | {"x": (None, "train")}
    assert set(by_hash.values()) == {"train", "valid", "test"}
    corpus = read_labelled(list_files(str(file)), settings.data)
    assert dict(zip(corpus.ids, corpus.groups, strict=True)) == {
        id: choose_group(hash_text(f"text of {id}"), author) for id, author in authors.items()
    } | {"x": hash_text("a text without an author")}


def test_a_document_of_two_nights_has_the_label_of_the_latest_or_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier text stands in for one that is gone only if it was given the same label, in whatever order."""
    first, second = "2026-03-01", "2026-03-02"
    given = {
        first: {"both": ["bad"], "only second": ["bad"], "changed": ["bad"], "same": ["bad", "good"], "once": ["bad"]},
        second: {"both": ["good"], "only second": ["good"], "changed": ["good"], "same": ["good", "bad"]},
    }
    gone = {first: ["only second"], second: ["changed", "same"]}

    def give_texts_left(data: object, out: object, run: str, ids: Collection[str]) -> Iterator[tuple[str, str, None]]:
        return ((id, f"text of {run[:10]}", None) for id in ids if id not in gone[run[:10]])

    monkeypatch.setattr(labelled_texts, "read_documents", give_texts_left)
    for date, labels in given.items():
        publish(tmp_path / "out", [prediction(id, label=None, labels=["good"]) for id in labels], date=date)
        table = pa.table({"id": list(labels), "true_label": list(labels.values())})
        pq.write_table(table, tmp_path / "labels.parquet")
        add_labels(str(tmp_path / "out"), tmp_path / "labels.parquet", date=date)
    assert export_labels(make_settings(), str(tmp_path / "out"), tmp_path / "labelled.parquet") == (4, 1)
    exported = pq.read_table(tmp_path / "labelled.parquet").to_pylist()
    assert {row["id"]: (row["text"], row["label"]) for row in exported} == {
        "both": (f"text of {second}", ["good"]),
        "only second": (f"text of {second}", ["good"]),
        "same": (f"text of {first}", ["good", "bad"]),
        "once": (f"text of {first}", ["bad"]),
    }
