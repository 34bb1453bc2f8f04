"""Nights of a model that reads long texts in windows: what is not read is counted per row and per night."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.commands.classify_command import print_night
from pipelines.nightly.observed_nights import list_metrics
from pipelines.nightly.report.run_report import report_page
from pipelines.planning.estimate import estimate_night
from spin.classifier import TrainedClassifier
from spin.estimator import SpinClassifier
from spin.settings import BackboneSettings, ProbeSettings, SearchSettings, load_settings
from tests.support import tiny
from tests.support.chaos import FolderRegistry
from tests.support.night_project import NightProject

pytestmark = pytest.mark.slow

WINDOWS, CUT = "12"
ROOM, OVERLAP, LIMIT = 6, 2, 3
"""tokens of a window besides its two special ones, and what the settings call window_overlap and max_windows"""
ROWS = [
    {**row, "text": f"{row['text']} {row['text'] * (number % 3)}".replace("\t", " ")}
    for number, row in enumerate(tiny.make_documents(90, seed=3))
]


@pytest.fixture(scope="module")
def registry_fixture(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path) -> FolderRegistry:
    """A registry with a version that reads windows, and one that cuts."""
    folder = tmp_path_factory.mktemp("registry")
    quick = SearchSettings(etas=(0.9,), max_share=1, strengths=(1,), network="off", words="off")
    rows = tiny.make_documents(300)
    for number, how in ((WINDOWS, "windows"), (CUT, "cut")):
        settings = BackboneSettings(
            model=str(backbone_folder), dtype="float32", device="cpu", max_tokens=ROOM + 2,
            long_texts=how, window_overlap=OVERLAP, max_windows=LIMIT,  # type: ignore[arg-type]
        )  # fmt: skip
        probe = ProbeSettings(penalties=3, max_extra=0)
        classifier = SpinClassifier(settings, sites=["ffn.01", "resid.03"], probe=probe, search=quick)
        classifier.fit([row["text"] for row in rows], [row["label"] for row in rows]).save(folder / number)
    return FolderRegistry(folder)


@pytest.fixture
def project(project: NightProject) -> NightProject:
    project.write("a.jsonl", [*ROWS, {"id": "x", "text": " "}])
    return project


def count_windows(tokens: int) -> int:
    """The windows of a text of some tokens, by a plain loop."""
    windows, read = 1, ROOM
    while read < tokens and windows < LIMIT:
        windows, read = windows + 1, read + ROOM - OVERLAP
    return windows


@pytest.mark.parametrize("cascade", ["false", "true"])
def test_what_is_not_read_is_counted_per_row_and_per_night(project: NightProject, cascade: str) -> None:
    """The labels are those of the classifier, whatever the settings of the night say about long texts."""
    project.promote(WINDOWS)
    report = project.run_night(max_dead_fraction=0.5, set=(f"classify.cascade={cascade}", "backbone.max_tokens=9"))
    lengths = {row["id"]: len(row["text"].split()) for row in ROWS}
    room = ROOM + (LIMIT - 1) * (ROOM - OVERLAP)
    unread = {id: max(0, length - room) for id, length in lengths.items()}
    rows = project.read_rows()
    assert {row["id"]: row["unread_tokens"] for row in rows} == unread
    counts = report.counts
    assert counts.unread_tokens == sum(unread.values()) > 0
    assert counts.truncated == sum(count > 0 for count in unread.values()) < len(unread)
    windows = [count_windows(length) for length in lengths.values()]
    assert (counts.windows, set(windows)) == (sum(windows), {1, 2, 3})
    model = TrainedClassifier.load(project.registry_fixture.folder / WINDOWS, early=cascade == "true")
    assert [row["label"] for row in rows] == model.predict([row["text"] for row in ROWS])
    assert counts.tokens == int(model.features([row["text"] for row in ROWS]).n_tokens.sum())
    metrics = list_metrics(report)
    assert (metrics["windows"], metrics["unread_tokens"]) == (counts.windows, counts.unread_tokens)
    page = " ".join(report_page(report).split())
    assert (
        f"in {counts.windows} windows; {counts.truncated} texts longer than these, {counts.unread_tokens} tokens"
        in page
    )


def test_the_terminal_says_what_is_not_read(project: NightProject, capsys: pytest.CaptureFixture[str]) -> None:
    project.promote(WINDOWS)
    report = project.run_night(max_dead_fraction=0.5)
    print_night(report, str(project.folder / "out"))
    printed = " ".join(capsys.readouterr().out.split())
    assert f"longer than backbone.max_windows windows, {report.counts.unread_tokens:,} tokens not read" in printed


def test_a_model_that_cuts_leaves_the_column_empty(project: NightProject) -> None:
    project.promote(CUT)
    report = project.run_night(max_dead_fraction=0.5)
    assert {row["unread_tokens"] for row in project.read_rows()} == {None}
    assert (report.counts.windows, report.counts.unread_tokens) == (0, 0)
    assert report.counts.truncated > 0
    assert "windows" not in list_metrics(report)
    assert "truncated at the token limit" in " ".join(report_page(report).split())


def test_an_estimate_counts_the_windows_of_its_sample(project: NightProject) -> None:
    for number, expected in ((WINDOWS, [count_windows(len(row["text"].split())) for row in ROWS]), (CUT, [1])):
        project.promote(number)
        project.run_night(f"out-{number}", max_dead_fraction=0.5)
        settings = load_settings(project.folder / "settings.yaml", ("data.train=" + str(project.folder / "data"),))
        estimate = estimate_night(settings, project.registry_fixture, 1000, seconds=600)  # type: ignore[arg-type]
        assert estimate.sample.whole
        assert estimate.sample.windows_per_document == pytest.approx(sum(expected) / len(expected))
