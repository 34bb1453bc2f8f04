"""Outputs of version 0.2 are refused, and converted to tables without a loss."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from pipelines.nightly.tables.night_history import FileState, list_nights, read_predictions, taken_files
from pipelines.nightly.tables.night_tables import (
    DEAD_LETTERS,
    DISAGREEMENTS,
    INPUTS,
    PREDICTIONS,
    NightTables,
    read_rows,
)
from pipelines.nightly.tables.old_layout import has_old_layout, import_old_layout, refuse_old_layout
from pipelines.storage.object_store import Store
from spin.errors import UserError
from tests.support.nights import MODEL, published_ids, run_night

CLASSES = ["good", "bad"]
LABEL, LABELS = pa.string(), pa.list_(pa.string())


def old_predictions(label: pa.DataType) -> pa.Schema:
    return pa.schema(
        [
            ("id", pa.string()),
            ("label", label),
            ("score", pa.float32()),
            ("scores", pa.list_(pa.float32())),
            ("depth", pa.int32()),
            ("model_version", pa.string()),
        ]
    )


def old_disagreements(label: pa.DataType) -> pa.Schema:
    return pa.schema(
        [
            ("id", pa.string()),
            ("label", label),
            ("score", pa.float32()),
            ("shadow_label", label),
            ("shadow_score", pa.float32()),
            ("model_version", pa.string()),
            ("shadow_version", pa.string()),
        ]
    )


OLD_DEAD_LETTERS = pa.schema(
    [
        ("id", pa.string()),
        ("file", pa.string()),
        ("first", pa.int64()),
        ("row", pa.int64()),
        ("reason", pa.string()),
        ("message", pa.string()),
        ("text", pa.string()),
    ]
)


def old_prediction(id: str, label: str | list[str] | None) -> dict[str, Any]:
    return {"id": id, "label": label, "score": 0.75, "scores": [0.75, 0.25], "depth": 3, "model_version": "7"}


def write_old_night(
    out: Store,
    date: str,
    parts: Sequence[tuple[str, Sequence[Mapping[str, Any]], pa.Schema]],
    *,
    model: str = MODEL,
    published: bool = True,
) -> None:
    """Write a night as version 0.2 left it: parts in hive folders, a manifest of format 5 and `latest`."""
    run, written = f"{date}-001", []
    for number, (kind, rows, schema) in enumerate(parts):
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), buffer, compression="zstd")
        key = f"{kind}/date={date}/part-001-{number:06d}.parquet"
        out.write(key, buffer.getvalue())
        part = {"key": key, "of": f"parts/{number:06d}.{kind}.parquet", "bytes": len(buffer.getvalue()), "sha256": "0"}
        written.append(part)
    file = {"uri": f"{date}.jsonl", "kind": "jsonl", "size": 70, "version": "v1"}
    manifest = {
        "stage": "classify",
        "fingerprint": "0",
        "date": date,
        "run": run,
        "format": 5,
        "output": out.uri,
        "model": model,
        "model_version": "7",
        "classes": CLASSES,
        "seconds": 1.0,
        "inputs": [file],
        "skipped": [],
        "quarantined": [{"uri": "broken.csv", "reason": "no header"}],
        "counts": {"rows": 3},
        "parts": written,
        "shards": [
            {"rows": 2, "uri": file["uri"], "predicted": 2, "tries": 1, "files": {}},
            {"rows": 1, "uri": file["uri"], "predicted": 0, "tries": 1, "files": {}},
        ],
    }
    out.write_json(f"_runs/{run}/plan.json", {"stage": "classify", "facts": {}, "detail": {}})
    out.write_json(f"_runs/{run}/manifest.json", manifest)
    out.write_json(f"_runs/{date}.json", {"run": run})
    if published:
        out.write_json(f"_runs/{run}/published.json", {"at": date})
        out.write(f"_runs/{run}/report.html", b"<p>")
        out.write_json("latest", {"date": date, "run": run, "manifest": f"_runs/{run}/manifest.json"})


def night_of(*ids: str) -> list[tuple[str, Sequence[Mapping[str, Any]], pa.Schema]]:
    return [("predictions", [old_prediction(id, "good") for id in ids], old_predictions(LABEL))]


@pytest.fixture
def out(store_uri: str) -> Store:
    """An empty output."""
    return Store(store_uri)


def test_an_output_of_version_0_2_is_refused(out: Store) -> None:
    refuse_old_layout(out)
    write_old_night(out, "2026-03-01", night_of("a"))
    with pytest.raises(UserError, match="spin nights import"):
        refuse_old_layout(out)
    out.delete("latest")
    out.delete("_runs/2026-03-01.json")
    assert has_old_layout(out), "the hive folders alone are enough"
    out.delete("predictions")
    write_old_night(out, "2026-03-02", [], published=False)
    assert has_old_layout(out), "a night that was begun is enough"


def test_an_output_with_tables_is_not_refused(out: Store) -> None:
    run_night(out, ["a"])
    refuse_old_layout(out)


def test_files_of_a_table_in_folders_of_dates_are_not_the_old_layout(tmp_path: Path) -> None:
    """Other programs that compact a table write them. An import that did not end is still one, and keeps them."""
    out = Store(str(tmp_path / "out"))
    run_night(out, ["a"])
    DeltaTable(f"{out.uri}/predictions").optimize.z_order(["id"])
    assert any(name.startswith("date=") for name in out.list_names("predictions"))
    refuse_old_layout(out)
    out.write("latest", b"2026-03-01-001")
    import_old_layout(out)
    assert [row["id"] for row in read_predictions(out.uri)] == ["a"]


def test_nights_are_converted_row_by_row(out: Store) -> None:
    letter = {"id": "d", "file": "f", "first": 0, "row": 4, "reason": "null_text", "message": "m", "text": None}
    scores = {"model_version": "7", "shadow_version": "8"}
    single = {"id": "b", "label": "good", "score": 0.75, "shadow_label": "bad", "shadow_score": 0.5, **scores}
    several = {"id": "c", "label": ["good", "bad"], "score": 0.75, "shadow_label": [], "shadow_score": 0.5, **scores}
    write_old_night(
        out,
        "2026-03-01",
        [
            ("predictions", [old_prediction("a", "good")], old_predictions(LABEL)),
            ("dead_letters", [letter], OLD_DEAD_LETTERS),
            ("predictions", [old_prediction("b", None)], old_predictions(LABEL)),
            ("disagreements", [single], old_disagreements(LABEL)),
        ],
    )
    write_old_night(
        out,
        "2026-03-02",
        [
            ("predictions", [old_prediction("c", ["good", "bad"]), old_prediction("d", [])], old_predictions(LABELS)),
            ("disagreements", [several], old_disagreements(LABELS)),
        ],
        model="it's multi",
    )
    report = import_old_layout(out)
    tables = NightTables(out)
    assert report.imported == tuple(night.run for night in list_nights(tables))
    assert report.dropped == ()
    rows = read_rows(tables.open(PREDICTIONS), {}).sort_by("id").to_pylist()
    assert [(row["id"], row["label"], row["labels"]) for row in rows] == [
        ("a", "good", None),
        ("b", None, None),
        ("c", None, ["good", "bad"]),
        ("d", None, []),
    ]
    assert all(dict(row["scores"]) == {"good": 0.75, "bad": 0.25} for row in rows)
    assert {(row["score"], row["depth"], row["model_version"]) for row in rows} == {(0.75, 3, "7")}
    assert read_rows(tables.open(DEAD_LETTERS), {}).to_pylist() == [letter]
    differing = read_rows(tables.open(DISAGREEMENTS), {}).sort_by("id").to_pylist()
    assert [(row["id"], row["label"], row["shadow_label"]) for row in differing] == [
        ("b", "good", "bad"),
        ("c", None, None),
    ]
    assert (differing[1]["labels"], differing[1]["shadow_labels"]) == (["good", "bad"], [])
    inputs = read_rows(tables.open(INPUTS), {"date": "2026-03-01"}).sort_by("uri").to_pylist()
    assert [(row["uri"], row["rows"], row["status"], row["reason"]) for row in inputs] == [
        ("2026-03-01.jsonl", 3, "taken", None),
        ("broken.csv", 0, "quarantined", "no header"),
    ]


def test_the_files_of_imported_nights_count_as_taken(out: Store) -> None:
    write_old_night(out, "2026-03-01", night_of("a"))
    import_old_layout(out)
    file = FileState("2026-03-01.jsonl", 70, "v1")
    assert taken_files(NightTables(out), model=MODEL, date="2026-03-02", files=[file]) == {file}
    assert read_predictions(out.uri)[0]["id"] == "a"


def test_nothing_of_the_old_layout_is_left(out: Store) -> None:
    write_old_night(out, "2026-03-01", night_of("a"))
    write_old_night(out, "2026-03-02", night_of("b"), published=False)
    out.write("report.html", b"<p>")
    report = import_old_layout(out)
    assert report.dropped == ("2026-03-02",)
    refuse_old_layout(out)
    [run] = report.imported
    left = {key for key in out.list() if "/_delta_log/" not in key and f"/{run}/" not in key}
    assert left == {"report.html"}
    assert out.read(f"_runs/{run}/report.html") == b"<p>"
    assert import_old_layout(out).imported == (run,), "nothing is left to do"


@pytest.mark.parametrize("step", ["write", "create", "delete"])
def test_an_import_that_is_cut_off_anywhere_can_be_repeated(
    step: str, out: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends before its n-th change of the store, for every n; the next import leaves every row once."""
    if not out.local:
        pytest.skip("the order of steps is the same in an object store")
    number, cut = 0, True
    while cut:
        output = out / str(number)
        write_old_night(output, "2026-03-01", night_of("a", "b"))
        write_old_night(output, "2026-03-02", night_of("c"))
        original, left = getattr(Store, step), [number]

        def interrupted(
            self: Store, *args: Any, original: Any = original, left: list[int] = left, **options: Any
        ) -> Any:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return original(self, *args, **options)

        cut = False
        with monkeypatch.context() as patch:
            patch.setattr(Store, step, interrupted)
            try:
                import_old_layout(output)
            except KeyboardInterrupt:
                cut = True
        if cut:
            assert has_old_layout(output)
            import_old_layout(output)
        assert published_ids(NightTables(output)) == {("2026-03-01", MODEL): ["a", "b"], ("2026-03-02", MODEL): ["c"]}
        assert not has_old_layout(output)
        number += 1
    assert number > 2


def test_a_night_that_lost_a_part_is_not_imported(out: Store) -> None:
    """Nothing is deleted, and the message says how to leave the night out."""
    write_old_night(out, "2026-03-01", night_of("a"))
    write_old_night(out, "2026-03-02", night_of("b"))
    [key] = out.list("predictions/date=2026-03-01")
    out.delete(key)
    before = out.list()
    with pytest.raises(UserError, match=r"delete _runs/2026-03-01\.json"):
        import_old_layout(out)
    assert out.list() == before
    out.delete("_runs/2026-03-01.json")
    import_old_layout(out)
    assert published_ids(NightTables(out)) == {("2026-03-02", MODEL): ["b"]}


def test_a_manifest_of_another_format_is_refused(out: Store) -> None:
    write_old_night(out, "2026-03-01", night_of("a"))
    manifest = out.read_json("_runs/2026-03-01-001/manifest.json")
    out.write_json("_runs/2026-03-01-001/manifest.json", {**manifest, "format": 4})
    with pytest.raises(UserError, match="format 4, expected 5"):
        import_old_layout(out)


def test_a_night_with_a_part_of_another_size_is_not_imported(out: Store) -> None:
    """A part that was cut off is not taken for all of its rows, and nothing is deleted."""
    write_old_night(out, "2026-03-01", night_of("a"))
    [key] = out.list("predictions/date=2026-03-01")
    out.write(key, b"PAR1")
    with pytest.raises(UserError, match=f"{key} is missing or has another size"):
        import_old_layout(out)
    assert out.read(key) == b"PAR1"


def test_a_part_without_one_score_per_class_is_refused(out: Store) -> None:
    rows = [{**old_prediction("a", "good"), "scores": [0.75]}]
    write_old_night(out, "2026-03-01", [("predictions", rows, old_predictions(LABEL))])
    with pytest.raises(UserError, match="1 scores in 1 rows; expected 2 per row"):
        import_old_layout(out)


def test_an_import_that_was_cut_off_does_not_report_its_nights_as_dropped(
    out: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a published night, what says that it was published is deleted after what names the night."""
    write_old_night(out, "2026-03-01", night_of("a"))
    original, deleted = Store.delete, []

    def delete_one_of_runs(store: Store, key: str) -> None:
        if key.startswith("_runs/"):
            deleted.append(key)
            assert len(deleted) == 1, "cut off"
        original(store, key)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "delete", delete_one_of_runs)
        with pytest.raises(AssertionError, match="cut off"):
            import_old_layout(out)
    assert import_old_layout(out).dropped == ()
