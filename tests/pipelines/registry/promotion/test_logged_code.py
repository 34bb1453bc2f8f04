"""The code of a version: only that of SPIN is run, and it sees neither credentials nor a network."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.registry import logged_code, packaging
from pipelines.registry.logged_code import require_known_code
from pipelines.registry.promotion import promote, subprocess_predict
from pipelines.registry.promotion.gate import check_loads
from pipelines.registry.promotion.isolation import without_network
from pipelines.registry.promotion.subprocess_predict import predict_in_subprocess
from spin.errors import UserError
from tests.support import tiny
from tests.support.hanging import run_in_fresh_process
from tests.support.registry_fixture import TEXTS, RegistryFixture

pytestmark = pytest.mark.slow

SECRETS = {"AWS_SECRET_ACCESS_KEY": "key of the store", "MLFLOW_TRACKING_PASSWORD": "password of the registry"}


PYFUNC_DIGEST = "c8ac48f800d47617321176166a2e798433a716e37f6d92d380418e52879521de"  # pragma: allowlist secret


@pytest.fixture(scope="module")
def registry_fixture(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path, sqlite_uri: str) -> Any:
    return RegistryFixture(tmp_path_factory.mktemp("registry"), backbone_folder, sqlite_uri)


@pytest.fixture(scope="module")
def bundle(registry_fixture: RegistryFixture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The logged model of the version; no test changes it."""
    return registry_fixture.registry.download_model("1", tmp_path_factory.mktemp("bundle"))


def register_changed(registry_fixture: RegistryFixture, change: Callable[[Path], Any]) -> None:
    """Change the files of the version, and its digest too, as anyone who may write to the registry can."""

    def change_with_digest(model: Path) -> None:
        change(model)
        client = registry_fixture.registry.tracking.client
        client.set_model_version_tag(registry_fixture.name, "1", "spin.model", packaging.folder_digest(model))

    registry_fixture.change(change_with_digest)


def add_lines(code: Path, mark: Path) -> None:
    """Add two lines that write the credentials of whoever runs them to a file."""
    stolen = f"{{name: os.environ.get(name) for name in {list(SECRETS)}}}"
    lines = f"\nimport os, pathlib\npathlib.Path({str(mark)!r}).write_text(repr({stolen}))\n"
    code.write_text(code.read_text(encoding="utf-8") + lines, encoding="utf-8")


def test_promote_runs_no_code_that_a_version_brings(
    registry_fixture: RegistryFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It predicts as before, so every other check would pass."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    register_changed(registry_fixture, lambda model: add_lines(model / "pyfunc.py", tmp_path / "stolen"))
    try:
        with pytest.raises(UserError, match=r"loads: its pyfunc.py has sha256 \w{12}, expected \w{12} of this release"):
            promote.promote(registry_fixture.registry, "1", "why not", force=True)
        [check] = check_loads(registry_fixture.registry, "1").failed  # what a rollback asks for
        assert check.measured.startswith("its pyfunc.py has sha256")
    finally:
        register_changed(registry_fixture, lambda model: None)
    assert not (tmp_path / "stolen").exists()
    assert registry_fixture.registry.champion() is None


def change_flavor(model: Path, **changes: Any) -> None:
    tree = yaml.safe_load((model / "MLmodel").read_text(encoding="utf-8"))
    tree["flavors"]["python_function"] |= changes
    (model / "MLmodel").write_text(yaml.safe_dump(tree), encoding="utf-8")


@pytest.mark.parametrize(
    "changes",
    [
        {"loader_module": "antigravity"},
        {"loader_module": "mlflow.pyfunc.model", "model_code_path": None, "python_model": "python_model.pkl"},
        {"code": "code"},
        {"model_code_path": "elsewhere/other.py"},
        {"predict_fn": "__init__"},
        {"python_model": "python_model.pkl"},
        {"data": "artifacts"},
        {"artifacts": {"spin": {"path": "../spin"}}},
        {"artifacts": {"spin": {"path": "artifacts/spin"}, "more": {"path": "artifacts/more"}}},
        {"artifacts": None},
    ],
    ids=str,
)
def test_a_version_that_names_other_code_is_refused(bundle: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    model = Path(shutil.copytree(bundle, tmp_path / "model"))
    require_known_code(model)
    change_flavor(model, **changes)
    with pytest.raises(
        UserError, match=r"^its MLmodel .*; it is not run: find out who registered it, and delete it in MLflow"
    ):
        require_known_code(model)


@pytest.mark.parametrize("content", ["flavors: {}", "[", "flavors: {python_function: []}", None])
def test_a_model_without_a_readable_flavor_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "MLmodel").write_text(content)
    with pytest.raises(UserError, match="^its MLmodel does not say which code loads it"):
        require_known_code(tmp_path)


def test_the_code_of_a_release_stays_known() -> None:
    """Else versions that the release registered could be neither promoted nor made the champion again."""
    digest = hashlib.sha256(packaging.PYFUNC.read_bytes()).hexdigest()
    assert digest == PYFUNC_DIGEST, "add the former digest to FORMER_RELEASES if it was released, and change this one"


def test_compiled_code_beside_that_of_a_version_is_not_run(bundle: Path, tmp_path: Path) -> None:
    """No digest is taken of it, and Python would run it in place of the code that was looked at."""
    model = shutil.copytree(bundle, tmp_path / "model")
    (model / "__pycache__").mkdir()
    (model / "__pycache__" / "pyfunc.cpython-311.pyc").write_bytes(b"other code")
    with pytest.raises(UserError, match="it has a folder __pycache__, expected none"):
        require_known_code(model)


def test_code_of_a_former_release_is_known_by_its_digest(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(shutil.copytree(bundle, tmp_path / "model"))
    (model / "pyfunc.py").write_text("released = True\n")
    with pytest.raises(UserError, match=r"its pyfunc\.py has sha256"):
        require_known_code(model)
    digest = logged_code._digest(model / "pyfunc.py")
    monkeypatch.setattr(logged_code, "FORMER_RELEASES", {digest: "1.0.0"})
    require_known_code(model)
    (model / "pyfunc.py").unlink()
    with pytest.raises(UserError, match=r"its pyfunc\.py cannot be read"):
        require_known_code(model)


_REPORT = """
    import json, pathlib, socket
    found = {{"environment": dict(os.environ), "network": True, "parent": True}}
    try:
        socket.create_connection(("127.0.0.1", {port}), timeout=10).close()
    except OSError:
        found["network"] = False
    try:
        pathlib.Path("/proc/{parent}/environ").read_bytes()
    except OSError:
        found["parent"] = False
    pathlib.Path({report!r}).write_text(json.dumps(found))
    os._exit(7)
"""


@pytest.fixture
def report(
    bundle: Path, registry_fixture: RegistryFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """What code in the fresh process finds: its variables, whether it has a network, and those of this process."""
    for name, value in {**SECRETS, "LC_TIME": "C", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    with socket.create_server(("127.0.0.1", 0)) as server:
        file, port = tmp_path / "report.json", server.getsockname()[1]
        code = _REPORT.format(port=port, parent=os.getpid(), report=str(file))
        run_in_fresh_process(code, tmp_path / "code", monkeypatch)
        with pytest.raises(UserError, match="its process ended with status 7"):
            predict_in_subprocess(bundle, TEXTS, registry_fixture.settings)
    return dict(json.loads(file.read_text()))


def test_logged_code_sees_no_credentials(report: dict[str, Any]) -> None:
    seen = report["environment"]
    assert [name for name in seen if name.startswith(("AWS_", "PG")) or "PASSWORD" in name or "TOKEN" in name] == []
    assert not set(SECRETS.values()) & set(seen.values())
    assert {name: seen[name] for name in ("LC_TIME", "OMP_NUM_THREADS")} == {"LC_TIME": "C", "OMP_NUM_THREADS": "1"}
    assert seen["PATH"] == os.environ["PATH"]


@pytest.mark.skipif(without_network([]) == [], reason="this machine does not let a process give up its network")
def test_logged_code_reaches_no_network(report: dict[str, Any]) -> None:
    """Nor the variables of the process that started it."""
    assert (report["network"], report["parent"]) == (False, False)


def test_a_machine_that_cannot_take_the_network_away_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In a container that forbids namespaces, and where there is no `unshare`; the command is run all the same."""
    refused = subprocess.CompletedProcess([], 1, "", "unshare: Operation not permitted\n")
    monkeypatch.setattr("subprocess.run", lambda *_, **__: refused)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert without_network(["true"]) == ["true"]
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert without_network(["true"]) == ["true"]
    reasons = [
        record.getMessage().rpartition("in /proc, since this machine cannot take them away: ")[2]
        for record in caplog.records
    ]
    assert reasons == ["unshare: Operation not permitted", "there is no `unshare`"]


def test_weights_that_a_version_does_not_hold_are_fetched_before_its_code_runs(
    tmp_path: Path, sqlite_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that runs the code has no network to fetch them."""
    steps: list[str] = []
    folder = tiny.save_bert(tmp_path / "bert")
    fixture = RegistryFixture(tmp_path, folder, sqlite_uri, registry={"include_backbone": False})
    model = fixture.registry.download_model("1", tmp_path)
    find = packaging.find_backbone
    monkeypatch.setattr(packaging, "find_backbone", lambda *a, **b: (steps.append("weights"), find(*a, **b))[1])
    monkeypatch.setattr(subprocess_predict, "without_network", lambda _: (steps.append("code"), ["true"])[1])
    with pytest.raises(UserError, match="its process ended with status 0"):
        predict_in_subprocess(model, TEXTS, fixture.settings)
    assert steps == ["weights", "code"]
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="no directory"):
        predict_in_subprocess(model, TEXTS, fixture.settings)
    assert steps == ["weights", "code", "weights"]
