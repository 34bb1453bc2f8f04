"""Fixtures that all tests share, and the option `--fast`."""

from __future__ import annotations

import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import pytest

import spin.backbone.engine_choice
import spin.backbone.engine_trial
import spin.backbone.local_cache
import spin.labels.cross_validation
import spin.labels.splits
from jobs.cli import configure_libraries
from tests.support import command_line, tiny
from tests.support.browser import launch_chromium
from tests.support.registry_databases import create_database

configure_libraries()
# a busy machine may take longer for an example than Hypothesis allows
hypothesis.settings.register_profile("spin", parent=hypothesis.settings.default, deadline=None)
hypothesis.settings.load_profile("spin")
# `engine: auto` chooses torch in tests, because OpenVINO compiles for a second; tests of OpenVINO name it
spin.backbone.engine_choice.OPENVINO_FAMILIES = frozenset()
# a trial of an engine runs a process for some seconds; test_engine_trial.py restores the real function
real_judge_engine = spin.backbone.engine_trial.judge_engine
spin.backbone.engine_trial.judge_engine = lambda request: spin.backbone.engine_trial.Verdict(
    "agrees", "not tried in tests"
)
# cross-validation with three fits in place of ten; the fixture `all_folds` restores the real numbers
FOLDS = spin.labels.cross_validation._SPLITS, spin.labels.cross_validation._REPEATS
spin.labels.cross_validation._SPLITS, spin.labels.cross_validation._REPEATS = 3, 1
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# nights wait for the disk for a fifth of their time; the tests of power cuts and full disks replace this function
os.fsync = lambda descriptor: None
MLFLOW = os.environ.setdefault("SPIN_TEST_MLFLOW", os.environ.pop("MLFLOW_TRACKING_URI", ""))
"""the URI of the server that infra/mlflow/run.sh started, also in child processes; all other tests use SQLite"""


SLOW_FIXTURES = {"ray_session", "s3_server", "mlflow_server", "browser", "site"}
"""`--fast` leaves out tests that use one of these fixtures or have one of the markers below"""
SLOW_MARKERS = ("s3", "mlflow", "server", "real", "ray", "wheel", "slow")
_SLOW_FILE = re.compile(r"^pytestmark = .*pytest\.mark\.slow", re.MULTILINE)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--fast`."""
    parser.addoption(
        "--fast",
        action="store_true",
        help="only tests that need no server, no Ray, no browser and no real weights, and are not marked slow",
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Under `--fast`, do not even import a file that is slow as a whole: its libraries may load for seconds."""
    if config.getoption("--fast") and collection_path.suffix == ".py":
        return bool(_SLOW_FILE.search(collection_path.read_text(encoding="utf-8"))) or None
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Under `--fast`, deselect the tests that use a slow fixture or bear a slow marker; else run their files first.

    With `--dist loadfile`, a long file that starts last would leave the other processes without work.
    """
    for item in items:
        if item.get_closest_marker("apt") and not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
            item.add_marker(pytest.mark.skip(reason="no apt-get and dpkg-deb, which Debian has"))
    slow = {item for item in items if _is_slow(item)}
    if config.getoption("--fast"):
        config.hook.pytest_deselected(items=list(slow))
        items[:] = [item for item in items if item not in slow]
    else:
        slow_files = {item.path for item in slow}
        items.sort(key=lambda item: item.path not in slow_files)


def _is_slow(item: pytest.Item) -> bool:
    fixtures = set(getattr(item, "fixturenames", ()))
    return bool(SLOW_FIXTURES & fixtures) or any(item.get_closest_marker(name) for name in SLOW_MARKERS)


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty cache folder for this session, except for models converted from GGUF, which all sessions share."""
    shared, folder = spin.backbone.local_cache.cache_folder() / "gguf", tmp_path_factory.mktemp("cache")
    shared.mkdir(parents=True, exist_ok=True)
    (folder / "gguf").symlink_to(shared)
    os.environ["SPIN_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="module")
def all_folds() -> Iterator[None]:
    """Let cross-validation have as many folds as users get, for the rest of a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spin.labels.cross_validation, "_SPLITS", FOLDS[0])
        patch.setattr(spin.labels.cross_validation, "_REPEATS", FOLDS[1])
        yield


@pytest.fixture(scope="module")
def many_labels() -> Iterator[None]:
    """Let 1,000 labels be enough for a single division, for the rest of a module."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (spin.labels.splits, spin.labels.cross_validation):
            patch.setattr(module, "CROSS_VALIDATION_BELOW", 1_000)
        yield


@pytest.fixture
def gate_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the gate predict in this process, for tests whose subject is not the fresh one that it starts."""
    import pipelines.registry.promotion.gate
    from tests.support.registry_fixture import predict_in_this_process

    monkeypatch.setattr(pipelines.registry.promotion.gate, "predict_in_subprocess", predict_in_this_process)


@pytest.fixture
def call_spin(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> command_line.CallSpin:
    """A function that runs `spin` with some words; returns its exit status, its output and its errors."""
    return partial(command_line.call_spin, monkeypatch, capsys)


@pytest.fixture(scope="session")
def backbone_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT."""
    return tiny.save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def plain_deviations() -> Iterator[None]:
    """Standard deviations as they are, not shrunk as few rows are: the few rows of a test stand for many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spin.labels.standardizer.FEW_ROWS", 0)
        yield


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    """One Ray for the tests of a module, with four logical CPUs: with fewer, pools and helper actors wait forever.

    It ends with them: its daemons would take a tenth of the processors for as long as other tests run.
    """
    import ray

    os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3_server() -> str:
    """The bucket of the S3 server that infra/s3/run.sh started."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    if not endpoint:
        message = "no S3 server: run the tests with `make test`, which starts the one in infra/s3"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return "s3://spin"


@pytest.fixture(scope="session")
def mlflow_server() -> str:
    """The tracking URI of the MLflow server that infra/mlflow/run.sh started; a server elsewhere is never used."""
    if not MLFLOW.startswith("http://127.0.0.1:"):
        message = "no MLflow server: run the tests with `make test`, which starts the one in infra/mlflow"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return MLFLOW


@pytest.fixture(scope="session")
def sqlite_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tracking URI of an SQLite database, shared because creating one takes longer than training a model."""
    return create_database(tmp_path_factory.mktemp("mlflow") / "mlflow.db")


@pytest.fixture(scope="module", params=["sqlite", pytest.param("server", marks=pytest.mark.mlflow)])
def tracking_uri(request: pytest.FixtureRequest) -> str:
    """The tracking URI of SQLite, then of the MLflow server. Other tests register models there too."""
    return str(request.getfixturevalue("sqlite_uri" if request.param == "sqlite" else "mlflow_server"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, for one module at a time: while it is open, nothing else can run an event loop."""
    yield from launch_chromium()


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.s3)])
def store_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of an empty store: a folder, then a prefix on the S3 server."""
    if request.param == "folder":
        return str(tmp_path / "store")
    return f"{request.getfixturevalue('s3_server')}/{uuid.uuid4().hex}"


@pytest.fixture
def settings_tree(backbone_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """Settings of a tiny project, as a YAML file holds them. The corpus does not exist yet."""
    return {
        "backbone": {"model": str(backbone_folder), "dtype": "float32", "device": "cpu"},
        "data": {"train": str(tmp_path / "train.parquet")},
        "store": str(tmp_path / "store"),
        "mlflow": {"model": "tiny"},
        "ray": {"workers": 0, "shard_documents": 60},
    }
