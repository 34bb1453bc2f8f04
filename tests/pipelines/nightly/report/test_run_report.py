"""The report of a nightly run, as JSON and in a real browser: the page shows the report and loads nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.nightly.observed_nights import list_metrics
from pipelines.nightly.report.night_report import REPORT, NightReport, find_report, measure_throughput, slowest_shards
from pipelines.nightly.report.run_report import render_reports, report_page
from pipelines.nightly.steps.counts import ClassifyCounts
from pipelines.storage.object_store import Store
from pipelines.storage.records import from_json, to_json
from pipelines.storage.shard_log import ShardOutcome
from tests.support.browser import open_page
from tests.support.hostile_text import HOSTILE_TEXTS

ClassifiedShard = ShardOutcome[ClassifyCounts]


def make_drift(name: str, psi: float, now: list[int], then: list[int], **more: Any) -> dict[str, Any]:
    """JSON of the drift of one quantity."""
    return {
        "name": name,
        "psi": psi,
        "limit": 0.13,
        "drifted": psi > 0.13,
        "now": now,
        "then": then,
        "moved": [],
        **more,
    }


def make_quality() -> dict[str, Any]:
    """JSON of an estimate of the labels' quality."""
    of_classes = [("late", 8000, 0.91, 0.92, 0.915), ("lovely", 3979, 0.85, 0.8, 0.824)]
    classes = [
        {
            "name": name,
            "predicted": count,
            "precision": precision,
            "recall": recall,
            "f1": {"value": f1, "low": f1 - 0.02, "high": f1 + 0.02},
        }
        for name, count, precision, recall, f1 in of_classes
    ]
    accuracy, f1 = ({"value": value, "low": value - 0.01, "high": value + 0.01} for value in (0.89, 0.87))
    return {"documents": 11979, "accuracy": accuracy, "macro_f1": f1, "classes": classes}


def make_score() -> dict[str, Any]:
    """JSON of a night that was checked in part, too little for an estimate."""
    names = {"date": "2026-02-27", "model": "tweets", "model_version": "6", "run": "2026-02-27-tweets-000004"}
    return {**names, "checked": 50, "right": 44, "estimated": {"value": 0.88, "low": 0.86, "high": 0.9}}


def make_shift(number: int, documents: list[str] | None = None, words: list[str] | None = None) -> dict[str, Any]:
    """JSON of the shift of a neuron, with the causes that are given."""
    neuron = {"column": f"ffn.0{number}.max", "neuron": 17 * number, "shift": 0.9 - 0.1 * number}
    return {**neuron, "documents": documents or [], "words": words or []}


def render_page(record: dict[str, Any]) -> str:
    """The report page of a report given as JSON."""
    return report_page(from_json(NightReport, record))


def make_shard(rows: int, uri: str = "a", seconds: float = 1, ended: float = 1, tries: int = 1) -> ClassifiedShard:
    """The outcome of a shard."""
    numbers = dict.fromkeys(("predicted", "dead", "abstained", "unlabelled", "tokens", "truncated"), 0)
    by_name: dict[str, Any] = {name: {} for name in ("reasons", "labels", "depths")}
    return ShardOutcome(ClassifyCounts(uri=uri, work="0", rows=rows, **numbers, **by_name), {}, tries, seconds, ended)


def make_report(**changes: Any) -> dict[str, Any]:
    """JSON of the report of a night of 12,345 documents in 30 shards, with a pause after half of them."""
    draw = np.random.default_rng(0)
    rows = [400] * 29 + [745]
    outcomes = [
        make_shard(
            count,
            uri=f"s3://inbox/{n // 10}.parquet",
            seconds=20.0 + n,
            ended=1.79e9 + 15.0 * n + 300 * (n > 15),
            tries=1 + (n == 7),
        )
        for n, count in enumerate(rows)
    ]
    moved = [make_shift(n) for n in range(5)]
    counts = {
        "rows": 12345,
        "predicted": 12300,
        "dead": 45,
        "abstained": 321,
        "unlabelled": 321,
        "tokens": 654321,
        "truncated": 77,
        "truncated_share": 0.0063,
        "reasons": {"empty_text": 2, "null_id": 13, "poison": 30},
        "labels": {"late": 8000, "lovely": 3979},
        "depths": {"6": 12300},
        "windows": 0,
        "unread_tokens": 0,
    }
    return {
        "output": "s3://nights",
        "date": "2026-03-01",
        "run": "2026-03-01-tweets-000007",
        "token": 7,
        "incremental": True,
        "model": "tweets",
        "model_version": "7",
        "fingerprint": "0123456789abcdef" * 4,
        "classes": ["late", "lovely"],
        "counts": counts,
        "seconds": 411.5,
        "files": {"taken": 3, "skipped": 40, "quarantined": 2},
        "quarantined": [{"uri": "s3://inbox/x.parquet", "reason": "it is corrupt"}],
        "shards": 30,
        "quality": make_quality(),
        "quality_withdrawn": [],
        "scored": [
            make_score(),
            {**make_score(), "date": "2026-02-28", "accuracy": {"value": 0.9, "low": 0.85, "high": 0.95}},
        ],
        "max_error": 0.05,
        "forgotten": 0,
        "throughput": {**to_json(measure_throughput(outcomes)), "mean": 30.0, "seconds": 411.5},
        "slowest": to_json(slowest_shards(outcomes, range(len(outcomes)))),
        "before": {
            "date": "2026-02-28",
            "model_version": "6",
            "counts": {**counts, "labels": {"late": 600, "lovely": 400}, "unlabelled": 0},
        },
        "drift": [
            make_drift("labels", 0.31, [8000, 3979, 321], [1000, 1000, 0]),
            make_drift("scores", 0.02, draw.integers(0, 9, 20).tolist(), [3] * 20),
            make_drift("lengths", 0.05, [5] * 22, [3] * 22),
            make_drift("unknown", 0.0, [5] * 5, [3] * 5),
            make_drift("neurons", 0.81, [3, 97], [], moved=moved),
        ],
        **changes,
    }


def read_texts(window: Any, selector: str) -> list[str]:
    """Return the visible texts of all elements that a selector matches."""
    return [" ".join(text.split()) for text in window.locator(selector).all_inner_texts()]


def test_the_page_says_why_there_is_no_estimate_of_quality() -> None:
    record = make_report(quality_withdrawn=["labels", "neurons"])
    del record["quality"]
    page = " ".join(render_page(record).split())
    assert "There is no estimate: labels and neurons drifted from training" in page
    assert "at most 5.0 % of the labels are wrong" in page
    record = make_report()
    del record["quality"], record["max_error"]
    page = " ".join(render_page(record).split())
    assert "There is no estimate: the model carries no test documents" in page
    assert "of the labels are wrong" not in page


def test_the_page_lists_the_nights_that_were_checked() -> None:
    page = " ".join(render_page(make_report()).split())
    rows = page[page.index("Nights that were checked") :].split("<tr>")[2:4]
    cells = [[re.sub("<[^>]*>", "", cell).strip() for cell in row.split("</td>")[:5]] for row in rows]
    assert cells == [
        ["2026-02-27", "6", "50", "44", "–"],
        ["2026-02-28", "6", "50", "44", "90.0 % [85.0 % – 95.0 %]"],
    ]
    assert "Nights that were checked" not in render_page(make_report(scored=[]))


def test_exits_are_named_on_the_page_and_numbered_in_json() -> None:
    """Documents that their words decide come first; the keys of the file are numbers."""
    record = make_report()
    record["counts"]["depths"] = {"10": 7_000, "-1": 5_000, "6": 300}
    record["drift"].append(make_drift("exits", 0.5, [5000, 7300], [1000, 1000]))
    page = " ".join(render_page(record).split())
    exits = ["5,000 documents exited by words.", "300 documents exited after block 6."]
    assert " ".join([*exits, "7,000 documents exited after block 10."]) in page
    assert "documents per early exit" in page
    report = json.loads(render_reports(from_json(NightReport, record))[REPORT])
    assert report["counts"]["depths"] == {"10": 7_000, "-1": 5_000, "6": 300}


def test_the_page_shows_the_numbers_of_the_report(browser: Any, tmp_path: Path) -> None:
    """It has counts that add up and the drift; reasons and shards are listed with the largest first."""
    with open_page(browser, tmp_path, render_page(make_report())) as window:
        page_text = window.locator("body").inner_text()
        sums = read_texts(window, ".sum > *")
        assert sums[:5] == ["12,345 documents", "=", "12,300 predicted", "+", "45 dead letters"]
        assert sums[5:] == ["89.0 % accuracy [88.0 % – 90.0 %]", "87.0 % macro-F1 [86.0 % – 88.0 %]", "97.4 % coverage"]
        for phrase in (
            "tweets, night of 2026-03-01",
            "version 7 · run 2026-03-01-tweets-000007 · fingerprint 0123456789ab",
            "Drift from training: distribution of the labels, means of the selected neurons",
            "Files: 3 read, 2 quarantined, 40 skipped",
            "Not listed: 1 more, which are in the table inputs.",
            "654,321 tokens; 77 texts truncated",
            "321 documents without a label",
            "12,300 documents exited after block 6",
            "30.0 documents per second over 411.5 s",
            "s3://inbox/x.parquet",
            "it is corrupt",
        ):
            assert phrase in page_text, phrase
        sections = {name: window.locator("main section section", has_text=name).first for name in ("Labels", "Drift")}
        assert [" ".join(row.split()) for row in sections["Labels"].locator("tbody tr").all_inner_texts()] == [
            "late 65.0 % this night 60.0 % night of 2026-02-28 50.0 % reference",
            "lovely 32.3 % this night 40.0 % night of 2026-02-28 50.0 % reference",
            "no label 2.6 % this night 0.0 % night of 2026-02-28 0.0 % reference",
        ]
        verdicts = read_texts(sections["Drift"], "table >> nth=0 >> tbody tr td:last-child")
        assert verdicts == ["drifted", "no drift", "no drift", "no drift", "drifted, 3 of 100"]
        assert read_texts(sections["Drift"], "table >> nth=1 >> tbody tr >> nth=0") == ["ffn.00.max[0] +0.90 σ"]
        assert read_texts(window, "tr:has-text('poison') ~ tr") == ["null_id 13", "empty_text 2"]
        assert read_texts(window, "tr:has-text('s3://inbox/2.parquet') >> nth=0") == [
            "000029 s3://inbox/2.parquet 745 49.0 15.2 1"
        ]


def test_the_page_names_the_causes_of_drift(browser: Any, tmp_path: Path) -> None:
    """Documents and words have a column where any are named; the page fits on a narrow screen with long ids."""
    long = "https://example.org/" + "a/" * 80
    for words, headings in (([], "neuron shift documents"), (["storm", "late"], "neuron shift documents words")):
        moved = [make_shift(0, ["d1", long], words), make_shift(1, ["d2"]), make_shift(2)]
        record = make_report(drift=[make_drift("neurons", 0.81, [2, 98], [], moved=moved)])
        for width in (1280, 390):
            with open_page(browser, tmp_path, render_page(record), width=width) as window:
                section = window.locator("main section section", has_text="Neurons that moved most")
                listed = read_texts(section, "table >> nth=1 >> tr")
                assert listed == [
                    headings,
                    f"ffn.00.max[0] +0.90 σ d1, {long}{' storm, late' if words else ''}",
                    "ffn.01.max[17] +0.80 σ d2",
                    "ffn.02.max[34] +0.70 σ",
                ]
                assert ("The words are more frequent in the farthest tenth" in section.inner_text()) == bool(words)
                assert window.evaluate("document.documentElement.scrollWidth") <= width
    page = render_page(make_report())
    assert "farthest" not in page


def test_a_report_of_another_format_counts_as_none(tmp_path: Path) -> None:
    """Whether a part of it or of its drift is missing."""
    run, record = Store(str(tmp_path)), make_report()
    run.write_json("report.json", record)
    assert find_report(run) == from_json(NightReport, record)
    del record["drift"][-1]["moved"][0]["shift"]
    run.write_json("report.json", record)
    assert find_report(run) is None
    run.write_json("report.json", {name: value for name, value in make_report().items() if name != "counts"})
    assert find_report(run) is None


def make_agreement(confusion: dict[str, dict[str, int]], **changes: Any) -> dict[str, Any]:
    """JSON of the agreement with a shadow, from the counts by label of the model and label of the shadow."""
    compared = sum(sum(row.values()) for row in confusion.values())
    agreed = sum(row.get(name, 0) for name, row in confusion.items())
    counts = {"compared": compared, "agreed": agreed, "failed": 2, "agreement": agreed / compared}
    return {"version": "8", "multilabel": False, **counts, "confusion": confusion, **changes}


def test_mlflow_has_the_figures_of_a_night() -> None:
    """Shares are of all rows; what a night has no figure of is left out."""
    agreement = make_agreement({"late": {"late": 75, "lovely": 25}})
    metrics = list_metrics(from_json(NightReport, make_report(shadow=agreement)))
    counts = make_report()["counts"]
    names = ("rows", "predicted", "abstained", "dead", "tokens", "truncated")
    assert {name: metrics[name] for name in names} == {name: counts[name] for name in names}
    assert metrics["dead_rate"] == 45 / 12345
    assert metrics["depth_6"] == 12300 / 12345
    assert (metrics["documents_per_s"], metrics["quarantined_files"]) == (30.0, 2)
    assert (metrics["psi_labels"], metrics["psi_neurons"]) == (0.31, 0.81)
    assert (metrics["estimated_accuracy"], metrics["estimated_macro_f1_low"]) == (0.89, 0.86)
    assert metrics["shadow_agreement"] == 0.75
    assert "windows" not in metrics
    assert "shadow_agreement" not in list_metrics(from_json(NightReport, make_report()))


def test_the_report_compares_the_shadow_class_by_class(browser: Any, tmp_path: Path) -> None:
    """Classes and label pairs with the most disagreements come first; without a shadow there is no such section."""
    agreement = make_agreement(
        {"late": {"late": 7900, "lovely": 60, "": 40}, "lovely": {"lovely": 3970, "late": 7}, "": {"": 321}}
    )
    for width in (1280, 390):
        with open_page(browser, tmp_path, render_page(make_report(shadow=agreement)), width=width) as window:
            section = window.locator("main section section", has_text="Version 8 scored the same documents")
            assert (
                "It agrees on 99.1\u202f% of 12,298 documents. The documents on which the two differ"
                in section.inner_text()
            )
            assert "It failed on 2 documents." in section.inner_text()
            assert read_texts(section, "table >> nth=0 >> tr") == [
                "class version 7 version 8 both",
                "late 8,000 7,907 7,900",
                "lovely 3,977 4,030 3,970",
                "no label 321 361 321",
            ]
            assert read_texts(section, "table >> nth=1 >> tbody tr") == [
                "late lovely 60",
                "late no label 40",
                "lovely late 7",
            ]
            assert window.evaluate("document.documentElement.scrollWidth") <= width
    multilabel = make_agreement({"late": {"late": 9, "": 2}, "": {"lovely": 3}}, multilabel=True)
    with open_page(browser, tmp_path, render_page(make_report(shadow=multilabel))) as window:
        section = window.locator("main section section", has_text="Version 8 scored the same documents")
        assert read_texts(section, "table >> nth=0 >> tbody tr") == ["lovely 0 3 0", "late 11 9 9"]
        assert read_texts(section, "table >> nth=1 >> tbody tr") == ["not given lovely 3", "late not given 2"]
    assert "Shadow" not in render_page(make_report())


def test_charts_are_visible_and_show_a_pause(browser: Any, tmp_path: Path) -> None:
    """The page fits on a wide and on a narrow screen without scrolling sideways."""
    for width in (1280, 390):
        with open_page(browser, tmp_path, render_page(make_report()), width=width, scheme="dark") as window:
            box = window.locator(".pace svg").bounding_box()
            assert box["width"] > 0.7 * min(width, 1000)
            assert box["height"] > 60
            heights = [rect.bounding_box()["height"] for rect in window.locator(".pace rect").all()]
            assert len(heights) == 60
            assert max(heights) > 60
            assert sum(height == 0 for height in heights) > 10
            bars = [rect.bounding_box()["width"] for rect in window.locator("tr:has-text('late') .bar rect").all()]
            assert bars[0] > bars[1] > bars[2] > 20
            assert window.evaluate("document.documentElement.scrollWidth") <= width


def test_what_scrolls_sideways_shows_it_and_keeps_its_first_column(browser: Any, tmp_path: Path) -> None:
    """A table fades at the edge beyond which there is more; one that fits does not."""
    fade, scroll = "e => getComputedStyle(e).getPropertyValue('--beyond')", "e => e.scrollBy(1000, 0)"
    for width, fades in ((390, True), (1280, False)):
        with open_page(browser, tmp_path, render_page(make_report()), width=width) as window:
            table = window.locator("main section section", has_text="Slowest shards").locator(".scroll")
            left = table.locator("td").first.bounding_box()["x"]
            assert (table.evaluate(fade) != "0px") == fades
            table.evaluate(scroll)
            window.wait_for_function(
                "e => getComputedStyle(e).getPropertyValue('--beyond') == '0px'", arg=table.element_handle()
            )
            assert table.locator("td").first.bounding_box()["x"] == left


def test_labels_stand_at_their_bars(browser: Any, tmp_path: Path) -> None:
    """On a wide screen beside them, on a narrow one above them."""
    for width in (1280, 390):
        with open_page(browser, tmp_path, render_page(make_report()), width=width) as window:
            for share in window.locator("tr:has-text('late') .shares p").all():
                bar, name = share.locator(".bar").bounding_box(), share.locator(".name").bounding_box()
                beside = abs(bar["y"] + bar["height"] / 2 - name["y"] - name["height"] / 2) < 3
                above = bar["x"] == name["x"] and 0 <= bar["y"] - name["y"] - name["height"] < 6
                assert (beside, above) == (width == 1280, width == 390)
            begin, end = (each.bounding_box() for each in window.locator(".ends span").all())
            chart = window.locator(".pace").bounding_box()
            assert (begin["x"], end["x"] + end["width"]) == (chart["x"], chart["x"] + chart["width"])


def test_no_text_becomes_markup(browser: Any, tmp_path: Path) -> None:
    """Labels, files and reasons are shown literally, and no script runs."""
    counts = make_report()["counts"] | {
        "labels": dict.fromkeys(HOSTILE_TEXTS, 5),
        "reasons": dict.fromkeys(HOSTILE_TEXTS, 5),
    }
    quarantined = [{"uri": text, "reason": text} for text in HOSTILE_TEXTS]
    agreement = make_agreement({text: {text: 5, HOSTILE_TEXTS[0]: 1} for text in HOSTILE_TEXTS})
    causes = make_drift("neurons", 0.81, [1, 9], [], moved=[make_shift(0, HOSTILE_TEXTS, HOSTILE_TEXTS)])
    record = make_report(
        counts=counts, classes=HOSTILE_TEXTS, quarantined=quarantined, drift=[causes], shadow=agreement
    )
    with open_page(browser, tmp_path, render_page(record)) as window:
        for selector in ("tbody th bdi", "tbody td bdi"):
            assert {" ".join(text.split()) for text in HOSTILE_TEXTS} <= set(read_texts(window, selector))


def test_an_empty_night_has_a_report(browser: Any, tmp_path: Path) -> None:
    """The page states that no document was read."""
    counts: dict[str, Any] = {
        name: {} if isinstance(count, dict) else 0 for name, count in make_report()["counts"].items()
    }
    files = {"taken": 0, "skipped": 0, "quarantined": 0}
    nothing: dict[str, Any] = {"throughput": None, "slowest": [], "quarantined": [], "drift": [], "files": files}
    record = make_report(counts=counts, shards=0, before=None, seconds=0.0, **nothing)
    with open_page(browser, tmp_path, render_page(record)) as window:
        page_text = window.locator("body").inner_text()
        assert "No document was read." in page_text
        assert "There are no dead letters, and no file was quarantined." in page_text


def test_the_json_report_holds_everything_that_the_page_shows() -> None:
    """The page next to it refers to no other resource."""
    reports = render_reports(from_json(NightReport, make_report()))
    assert json.loads(reports["report.json"]) == make_report()
    assert not re.search(r"<script|<link|<img|@import|url\(|\bsrc=|\bhref=", reports["report.html"].decode())


def test_a_report_survives_a_json_round_trip() -> None:
    """`before` and `shadow` are absent if there is no earlier night and no shadow."""
    agreement = {**make_agreement({"late": {"late": 9, "": 1}}), "agreement": 0.9}
    no_agreement = {"version": "8", "multilabel": False, "compared": 0, "agreed": 0, "failed": 2, "confusion": {}}
    for changes in ({}, {"before": None}, {"shadow": agreement}, {"shadow": no_agreement}):
        record = {name: value for name, value in make_report(**changes).items() if value is not None}
        assert json.loads(json.dumps(to_json(from_json(NightReport, record)))) == record


def test_the_slowest_shards_come_first() -> None:
    slowest = slowest_shards([make_shard(0, seconds=seconds) for seconds in range(1, 20)], range(19))
    assert [shard.seconds for shard in slowest] == [19, 18, 17, 16, 15, 14, 13, 12]
