"""The package is built, checked, and run in an environment that contains only the base install."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.registry.packaging import REQUIREMENTS
from tests.support.repository import ROOT

pytestmark = pytest.mark.wheel

NOT_BASE = {"ray", "mlflow", "s3fs", "boto3", "botocore", "aiobotocore", "sqlalchemy", "pandas", "tenacity"}
"""distributions that the base install must not install; fsspec is not listed, because torch depends on it"""
EXAMPLE = """
import sys
from spin import Settings, SpinClassifier, SpinError, load_settings, stretches
from spin.settings import BackboneSettings, ProbeSettings, SearchSettings

backbone, folder = sys.argv[1:]
texts = [f"the film was {word} and warm" if n % 2 else f"the crew was {word} and late"
         for n, word in enumerate(["fine", "cold", "great", "dull"] * 20)]
labels = ["good" if n % 2 else "bad" for n in range(80)]
spin = SpinClassifier(
    BackboneSettings(model=backbone),
    sites=["resid"],
    poolings=["mean"],
    probe=ProbeSettings(penalties=2, max_extra=0),
    search=SearchSettings(etas=(0.5,), strengths=(1.0,), network="off"),
).fit(texts, labels)
spin.save(folder)
loaded = SpinClassifier.load(folder)
print(loaded.predict(["the film was warm", "the crew was late"]).tolist())
explanation = loaded.explain("the film was warm")
print([explanation.text[start:end] for start, end, _ in stretches(explanation.words)])
"""


def read_project_version() -> str:
    """Return the version in pyproject.toml."""
    version: str = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    return version


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution and the wheel."""
    folder = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)])
    return folder


@pytest.fixture(scope="module")
def environment(distributions: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The `bin` folder of a virtual environment with the wheel and its base dependencies; deleted afterwards."""
    folder = tmp_path_factory.mktemp("empty") / "venv"
    run([sys.executable, "-m", "venv", str(folder)])
    [wheel] = distributions.glob("*.whl")
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    run([str(folder / "bin" / "pip"), "install", "--quiet", "--no-compile", *constraints, str(wheel)])
    yield folder / "bin"
    shutil.rmtree(folder)


def run(command: list[str], *, cwd: Path | None = None, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command without PYTHONPATH; fails unless it ends with the expected status."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=variables)
    assert done.returncode == status, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def test_distributions_are_valid_and_the_wheel_holds_its_data_files(distributions: Path) -> None:
    """PyPI accepts metadata and description. The wheel has type markers, templates and styles, but no tests."""
    files = sorted(distributions.iterdir())
    assert {path.suffix for path in files} == {".whl", ".gz"}
    run([sys.executable, "-m", "twine", "check", "--strict", *map(str, files)])
    [wheel] = distributions.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"{package}/py.typed" for package in ("spin", "pipelines", "jobs", "spin_neurons")} <= names
    data = [
        p
        for package in ("spin", "pipelines")
        for suffix in ("j2", "css", "jsonl")
        for p in (ROOT / package).rglob(f"*.{suffix}")
    ]
    assert {path.relative_to(ROOT).as_posix() for path in data} <= names
    assert not [name for name in names if name.partition("/")[0] in ("tests", "benchmarks", "infra")]


def test_the_base_install_runs_the_method_without_pipelines(
    distributions: Path, environment: Path, backbone_folder: Path, tmp_path: Path
) -> None:
    """It trains, saves, loads, predicts and explains. Commands that need the extra print how to install it."""
    packages = json.loads(run([str(environment / "pip"), "list", "--format", "json"]).stdout)
    names = {entry["name"].lower() for entry in packages}
    assert "spin-neurons" in names
    assert names & NOT_BASE == set()
    example = tmp_path / "example.py"
    example.write_text(EXAMPLE, encoding="utf-8")
    done = run([str(environment / "python"), str(example), str(backbone_folder), str(tmp_path / "saved")], cwd=tmp_path)
    assert done.stdout.splitlines() == ["['good', 'bad']", "['the', 'film', 'was', 'warm']"]
    command, page = str(environment / "spin"), tmp_path / "page.html"
    assert "Train a model" in run([command, "--help"], cwd=tmp_path).stdout
    assert run([command, "--version"], cwd=tmp_path).stdout == f"{read_project_version()}\n"
    run([command, "init", "settings.yaml"], cwd=tmp_path)
    run([command, "explain", "saved", "--text", "the film was warm", "--html", str(page)], cwd=tmp_path)
    assert "film" in page.read_text("utf-8")
    for words in (["run", "settings.yaml"], ["models", "settings.yaml"]):
        [line] = run([command, *words], cwd=tmp_path, status=2).stderr.splitlines()
        assert line.startswith(f"error: spin {words[0]} needs ray, mlflow, ")
        [wheel] = distributions.glob("*.whl")  # the command works as it is printed
        assert line.endswith(f"run: pip install '{wheel}[pipelines]'")


def test_a_served_version_requires_neither_ray_nor_s3_clients(
    distributions: Path, environment: Path, tmp_path: Path
) -> None:
    """Beside the base, the logged requirements of a registered version install mlflow and pandas."""
    versions = {name: importlib.metadata.version(name).partition("+")[0] for name in REQUIREMENTS}
    versions["spin-neurons"] = read_project_version()  # an editable install keeps the version of its day
    requirements = [f"{name}=={version}" for name, version in versions.items()]
    report = tmp_path / "report.json"
    options = ["--quiet", "--dry-run", "--report", str(report), "--find-links", str(distributions)]
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    run([str(environment / "pip"), "install", *options, *constraints, *requirements])
    resolved = {entry["metadata"]["name"].lower() for entry in json.loads(report.read_text("utf-8"))["install"]}
    assert {"mlflow", "pandas"} <= resolved
    assert resolved & {"ray", "s3fs", "boto3", "botocore", "aiobotocore"} == set()
