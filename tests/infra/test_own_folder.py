"""The test servers trust a folder only if nobody else can have put files into it: they source one, also as root."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.repository import ROOT

SCRIPTS = ["s3/up.sh", "s3/down.sh", "mlflow/up.sh", "mlflow/down.sh"]


def plant(folder: Path) -> Path:
    """Make a folder as somebody could who waits for a server to start there; return what its code would write."""
    (folder / "pg").mkdir(parents=True)
    hit = folder.parent / "hit"
    for name in ("created", "ceph.conf", "pg/postmaster.pid"):
        (folder / name).touch()
    (folder / "secrets").write_text(f"touch {hit}\n")
    return hit


def run_script(script: str, folder: Path, home: Path) -> subprocess.CompletedProcess[str]:
    """Run a script on a folder, with an `mlflow` of its own and without the means to install or start anything."""
    tools = home / "tools"
    tools.mkdir()
    for name in (
        "mlflow",
        "python",
        "apt-get",
        "sudo",
        "initdb",
        "ceph-mon",
        "ceph-osd",
        "radosgw",
        "ceph",
        "monmaptool",
    ):
        (tools / name).write_text("#!/bin/sh\nexit 9\n")
        (tools / name).chmod(0o755)
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "MLFLOW": str(tools / "mlflow"), "HOME": str(home)}
    command = ["bash", str(ROOT / "infra" / script), "-d", str(folder)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_server_refuses_a_folder_that_others_can_write_to(script: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    hit = plant(folder)
    folder.chmod(0o777)
    done = run_script(script, folder, tmp_path)
    assert done.returncode == 1
    assert (
        done.stderr == f"{folder} can be written to by others (mode 777): delete it, or name another folder with -d\n"
    )
    assert not hit.exists()
    assert (folder / "secrets").exists()


@pytest.mark.parametrize("end", ["", "/", "//"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_server_refuses_a_link(script: str, end: str, tmp_path: Path) -> None:
    """It may lead to a folder that is ours, in which the script would delete what has the names of its own files."""
    hit = plant(tmp_path / "ours")
    (tmp_path / "data").symlink_to(tmp_path / "ours")
    done = run_script(script, f"{tmp_path / 'data'}{end}", tmp_path)
    assert (done.returncode, "is a link; name the folder itself" in done.stderr) == (1, True)
    assert not hit.exists()
    assert (tmp_path / "ours" / "secrets").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to somebody else")
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_server_refuses_a_folder_of_somebody_else(script: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    hit = plant(folder)
    os.chown(folder, 65534, 65534)
    folder.chmod(0o700)
    done = run_script(script, folder, tmp_path)
    assert (done.returncode, "belongs to user 65534, not to 0" in done.stderr) == (1, True)
    assert not hit.exists()


@pytest.mark.parametrize("script", ["s3/up.sh", "mlflow/up.sh"])
def test_a_server_makes_its_folder_for_itself_alone(script: str, tmp_path: Path) -> None:
    run_script(script, tmp_path / "new" / "data", tmp_path)
    mode = (tmp_path / "new" / "data").stat().st_mode & 0o777
    assert mode & 0o066 == 0
