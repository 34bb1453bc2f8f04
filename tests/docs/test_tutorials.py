"""The code blocks of the tutorials run, in the order of a reader, on a tiny corpus and a tiny language model."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import spin.classifier
from jobs.cli import main
from spin import SpinClassifier
from spin.settings import ProbeSettings, SearchSettings
from tests.docs.pages import blocks, spin_lines, words
from tests.support import tiny
from tests.support.repository import ROOT

TUTORIALS = ROOT / "docs" / "tutorials"
BACKBONE = "sentence-transformers/all-MiniLM-L6-v2"
"""the language model that the tutorials name; a tiny one takes its place"""
QUICK = SearchSettings(etas=(0.5,), strengths=(1,), l1=(), head="linear")
NOT_RUN = {
    "spin rollback": "no version was champion before",
    "--shadow": "there is one version alone",
    "s3://": "there is no object store",
}
"""parts of command lines that are not run, and why; test_pages.py checks that they parse"""


@pytest.fixture(scope="module", autouse=True)
def quick_training() -> Iterator[None]:
    """Training with default settings tries few candidates: the tutorials show how it is called, not how good it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spin.classifier, "ProbeSettings", lambda: ProbeSettings(penalties=3, max_extra=0))
        patch.setattr(spin.classifier, "SearchSettings", lambda: QUICK)
        yield


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path) -> Path:
    """A folder as a reader has it: labelled reviews, a batch to classify, and a classifier that was saved."""
    folder = tmp_path_factory.mktemp("tutorials")
    rows = tiny.documents(1650)
    write_rows(folder / "reviews.jsonl", rows)
    (folder / "inbox" / "2026-11-24").mkdir(parents=True)
    batch = [{"id": row["id"], "text": row["text"]} for row in tiny.documents(150, seed=1)]
    write_rows(folder / "inbox" / "2026-11-24" / "batch.jsonl", batch)
    classifier = SpinClassifier(str(backbone_folder), sites=["resid"])
    classifier.fit([row["text"] for row in rows], [row["label"] for row in rows]).save(folder / "model")
    return folder


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def run_python(page: str, backbone: Path) -> dict[str, Any]:
    """Run the Python blocks of a tutorial from top to bottom; returns the names that they define."""
    names: dict[str, Any] = {}
    for code in blocks(TUTORIALS / page, "python"):
        exec(compile(code.replace(BACKBONE, str(backbone)), page, "exec"), names)
    return names


@pytest.mark.parametrize("page", ["learn.md", "explain.md"])
def test_python_runs_from_top_to_bottom(
    project: Path, backbone_folder: Path, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    assert run_python(page, backbone_folder)["spin"].classes == ("bad", "good")


def test_every_tutorial_with_python_is_run() -> None:
    """Here, in the story below, or on export in tests/spin/test_export.py."""
    with_python = {page.name for page in TUTORIALS.glob("*.md") if blocks(page, "python")}
    assert with_python == {"learn.md", "explain.md", "classify.md", "export-and-serve.md"}


def test_examples_run(project: Path, backbone_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that need no Ray: learn, explain and export."""
    folder = project / "example"
    data = ["--data", str(project / "reviews.jsonl"), "--backbone", str(backbone_folder), "--documents", "1650"]
    run_example("learn.py", [*data, "--folder", str(folder)])
    run_example("explain.py", [str(folder), "--html", str(project / "pages" / "why.html")])
    run_example("export_and_serve.py", [str(folder), "--to", str(project / "exported")])
    out = capsys.readouterr().out
    assert out.count(" right, ") == 3
    assert out.count("(PyTorch: ") == 2
    assert "<html" in (project / "pages" / "why.html").read_text(encoding="utf-8")


def run_example(script: str, arguments: list[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / script))["main"](arguments)


class Reader:
    """Someone who follows the tutorials in a project and types the commands."""

    def __init__(self, folder: Path, backbone: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.backbone, self.capsys = folder, backbone, capsys

    def type(self, line: str) -> str:
        """Run a command line, which must succeed, and return what it prints."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", words(line))
            with pytest.raises(SystemExit) as left:
                main()
        out, error = self.capsys.readouterr()
        assert left.value.code == 0, f"{line}: {error}"
        return out

    def follow(self, page: str) -> dict[str, str]:
        """Run the commands of a tutorial in order, but for NOT_RUN; returns their output by command line."""
        lines = [line for line in spin_lines(TUTORIALS / page) if not any(part in line for part in NOT_RUN)]
        return {line: self.type(line) for line in lines}

    def write_settings(self) -> None:
        """Write the settings of the tutorial, for the tiny language model and few workers."""
        [code] = blocks(TUTORIALS / "learn.md", "yaml")
        tree = yaml.safe_load(code)
        tree["backbone"] = {"model": str(self.backbone), "dtype": "float32", "device": "cpu"}
        tree["sites"], tree["ray"] = ["resid"], {"workers": 2, "shard_documents": 600}
        tree["search"] = QUICK.model_dump(mode="json")
        (self.folder / "settings.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")


@pytest.fixture
def reader(
    project: Path,
    backbone_folder: Path,
    ray_session: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Reader:
    monkeypatch.chdir(project)
    return Reader(project, backbone_folder, capsys)


def test_the_story_of_the_tutorials(reader: Reader, backbone_folder: Path) -> None:
    """Learn, promote, classify, read the night, explain; then the examples that need a trained project."""
    assert "wrote settings.yaml" in reader.type("spin init settings.yaml")
    reader.write_settings()
    assert "registered reviews version 1 as challenger" in reader.type("spin run settings.yaml")
    promoted = reader.follow("promote.md")
    assert "version 1 is champion" in promoted['spin promote settings.yaml --why "the first model"']
    night, measured = reader.follow("classify.md").values()
    assert "150 of 150 documents by version 1" in night
    assert "good" in measured
    assert run_python("classify.md", backbone_folder)["predictions"].num_rows == 150
    reader.follow("explain.md")
    assert "<html" in Path("why.html").read_text(encoding="utf-8")
    run_path(ROOT / "examples" / "classify_every_night.py", "settings.yaml", "inbox/2026-11-24", "nights")
    run_path(ROOT / "examples" / "promote_and_roll_back.py", "settings.yaml")
    out = reader.capsys.readouterr().out
    assert "150 rows, 150 predicted, 0 dead letters" in out
    assert "champion: 1" in out


def run_path(script: Path, *arguments: str) -> None:
    runpy.run_path(str(script))["main"](*arguments)
