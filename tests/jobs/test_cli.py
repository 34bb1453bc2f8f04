"""The `spin` command as a person uses it, on a tiny project."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from jobs.cli import main
from jobs.settings_template import settings_template
from spin.settings import Settings, parse_settings
from tests.support import tiny


@pytest.fixture
def spin(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command, which must succeed and complain of nothing; gives standard output."""

    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["spin", *words])
        with pytest.raises(SystemExit) as left:
            main()
        out, error = capsys.readouterr()
        assert left.value.code == 0, error
        assert all(line.startswith('{"stage"') for line in error.splitlines()), error  # progress, on a slow machine
        return out

    return run


def test_init_writes_settings_that_load(spin: Any, tmp_path: Path) -> None:
    """The file is valid as it stands, and with every default uncommented says the same."""
    path = tmp_path / "settings.yaml"
    assert f"spin run {path}" in spin("init", str(path))
    written = parse_settings(yaml.safe_load(path.read_text()))
    uncommented = [line.removeprefix("# ") for line in settings_template().splitlines()[3:]]
    assert parse_settings(yaml.safe_load("\n".join(uncommented))) == written
    plain = Settings.model_validate({"backbone": {"model": "m"}, "data": {"train": "t"}, "store": "s"})
    assert written.model_dump(exclude={"backbone", "data", "store"}) == plain.model_dump(
        exclude={"backbone", "data", "store"}
    )


@pytest.mark.usefixtures("ray_session")
def test_from_text_to_an_explained_prediction(
    spin: Any, settings_tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """run, promote, models, history, classify, evaluate and explain, with relative paths, say what they did."""
    monkeypatch.chdir(tmp_path)
    rows = tiny.documents(300)
    pq.write_table(pa.Table.from_pylist(rows), "train.parquet")
    tree = {**settings_tree, "store": "store", "data": {"train": "train.parquet"}, "probe": {"penalties": 4}}
    Path("settings.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    shown = spin("run", "settings.yaml")
    assert "extract   300 documents" in shown
    assert "registered tiny version 1 as challenger" in shown
    assert "finished before" in spin("extract", "settings.yaml")
    assert "tiny version 1 is champion" in spin("promote", "settings.yaml", "--why", "the first")
    listed = spin("models", "settings.yaml")
    assert "challenger, champion" in " ".join(listed.split()) or "champion" in listed
    [moved] = spin("history", "settings.yaml").splitlines()
    assert re.search(r"^\d{4}-\S+ \S+ promote from none to 1, run [0-9a-f]{32}: the first$", moved)
    night = spin("classify", "settings.yaml", "--input", "train.parquet", "--output", "out", "--date", "2026-03-01")
    assert "300 of 300 documents by version 1" in night
    assert (tmp_path / "out" / "predictions" / "date=2026-03-01").is_dir()
    assert "version 1 on 300 documents: accuracy" in spin("evaluate", "settings.yaml", "--input", "train.parquet")
    explained = spin("explain", "settings.yaml", "--text", "the [bold] crew was lovely and warm")
    assert "the [bold] crew was lovely and warm" in explained
    assert "what spoke for and against good" in explained


def test_the_command_starts_without_the_heavy_libraries() -> None:
    """`spin --help` must answer at once: parsing needs neither torch nor Ray nor MLflow."""
    import subprocess

    code = "import sys, jobs.cli; print([m for m in ('ray', 'mlflow') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
