"""The command starts only with the packages of SPIN itself, and names the command that adds an extra to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import spin_neurons
from pipelines.workers.ray_cluster import cluster
from spin.errors import UserError
from spin.settings import RaySettings
from tests.support.repository import ROOT

START = "import sys; from spin_neurons import main; sys.argv = ['spin', '--version']; main()"


def run_python(*arguments: str, path: list[Path], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with these folders before all others that it looks for modules in."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, "-P", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)


@pytest.mark.parametrize("file", ["spin.py", "pipelines/__init__.py", "jobs.py"])
@pytest.mark.parametrize("theirs_first", [True, False])
def test_a_package_with_a_name_of_ours_ends_the_start_with_one_line(
    file: str, theirs_first: bool, tmp_path: Path
) -> None:
    """The line names both files, whichever of the two hides the other."""
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    path = [tmp_path, ROOT] if theirs_first else [ROOT, tmp_path]
    done = run_python("-c", START, path=path, cwd=tmp_path)
    name = file.partition("/")[0].removesuffix(".py")
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path / file} and {ROOT / name / '__init__.py'} of SPIN are both `{name}`, ")


def test_folders_of_data_are_no_packages(tmp_path: Path) -> None:
    for name in ("jobs", "pipelines", "spin"):
        (tmp_path / name).mkdir()
    assert run_python("-c", START, path=[tmp_path, ROOT], cwd=tmp_path).returncode == 0


def test_a_distribution_that_was_installed_over_ours_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the developer tool `spin` of PyPI is, which pip writes into the same folder."""
    monkeypatch.setattr(spin_neurons, "ROOT", str(tmp_path))
    record = tmp_path / "spin-0.15.dist-info" / "RECORD"
    record.parent.mkdir()
    record.write_text("spin_tool/__init__.py,,\n", encoding="utf-8")
    assert spin_neurons.find_conflict([str(tmp_path)]) is None
    record.write_text("spin/__init__.py,,\n", encoding="utf-8")
    line = spin_neurons.find_conflict([str(tmp_path)])
    assert line is not None
    assert line.startswith(f"{record} and {tmp_path / 'spin' / '__init__.py'} of SPIN")


def test_a_script_beside_a_module_named_spin_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "spin.py").touch()
    done = run_python("-c", "import pipelines", path=[tmp_path, ROOT], cwd=tmp_path)
    assert done.stderr.splitlines()[-1].startswith(f"ImportError: {tmp_path / 'spin.py'} and {ROOT / 'spin'}")


def test_workers_do_not_start_where_they_would_find_other_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray puts the working directory of the driver before all others. What is named `jobs` there is not looked for."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pipelines.py").touch()
    message = r"look for modules in the working directory first: .*/pipelines\.py and /"
    with pytest.raises(UserError, match=message), cluster(RaySettings()):
        pass


def test_an_extra_is_added_from_where_spin_was_installed_from(tmp_path: Path) -> None:
    """From a wheel or a checkout that is still there, else by the name that it is published under."""
    wheel, by_name = tmp_path / "a wheel.whl", "pip install 'spin-neurons[otel]'"
    source = json.dumps({"url": wheel.as_uri(), "archive_info": {}})
    assert spin_neurons._install_from(source, "otel") == by_name
    wheel.touch()
    assert spin_neurons._install_from(source, "otel") == f"pip install '{wheel}[otel]'"
    source = json.dumps({"url": tmp_path.as_uri(), "dir_info": {"editable": True}})
    assert spin_neurons._install_from(source, "otel") == f"pip install --editable '{tmp_path}[otel]'"
    assert spin_neurons._install_from(None, "otel") == by_name
    source = json.dumps({"url": "https://example.org/spin.whl"})
    assert spin_neurons._install_from(source, "otel") == by_name
