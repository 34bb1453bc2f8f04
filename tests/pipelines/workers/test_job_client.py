"""What `spin submit` sends to a cluster, and what it refuses to send."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jobs.cli import main
from pipelines.workers import job_client
from pipelines.workers.job_client import PASSED, Job, environment
from spin.errors import UserError

TREE = {
    "backbone": {"model": "some/model"},
    "data": {"train": "s3://spin/train.parquet"},
    "store": "s3://spin/store",
    "mlflow": {"model": "the reviews", "tracking_uri": "http://mlflow:5000"},
}
NIGHT = ("classify", "settings.yaml", "--input", "s3://spin/in", "--output", "s3://spin/out")
Run = Callable[..., tuple[int, str, str]]


class Recorder:
    """A job server that keeps what it is given."""

    given: dict[str, Any]

    def __init__(self, address: str | None) -> None:
        Recorder.given = {"address": address}

    def submit(self, name: str, entrypoint: str, **options: Any) -> str:
        Recorder.given |= {"name": name, "entrypoint": entrypoint, **options}
        return name

    def follow(self, id: str, write: Callable[[str], object]) -> Job:
        write("one line\n")
        return Job(id, "FAILED", "2026-03-01 00:00:00", 2.0, 4)


@pytest.fixture
def spin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in a folder with settings, with a job server that only records."""
    monkeypatch.chdir(tmp_path)
    for name in PASSED:
        monkeypatch.delenv(name, raising=False)
    Path("settings.yaml").write_text(yaml.safe_dump(TREE), encoding="utf-8")
    monkeypatch.setattr(job_client, "JobServer", Recorder)

    def run(*words: str) -> tuple[int, str, str]:
        Recorder.given = {}
        monkeypatch.setattr(sys, "argv", ["spin", *words])
        with pytest.raises(SystemExit) as left:
            main()
        out, error = capsys.readouterr()
        return int(str(left.value.code)), out, error

    return run


def test_a_night_is_sent_as_it_was_typed(spin: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its day, the cluster's address and the variables of the list, and no other; its status comes back."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://s3:9000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    status, out, _ = spin("submit", *NIGHT, "--date", "2026-03-01", "--set", "seed=3", "--address", "http://head:8265")
    assert (status, out.splitlines()[0]) == (4, "submitted classify-the-reviews-2026-03-01")
    assert out.splitlines()[1:] == ["one line", "classify-the-reviews-2026-03-01 failed after 2 s, exit status 4"]
    assert Recorder.given == {
        "address": "http://head:8265",
        "name": "classify-the-reviews-2026-03-01",
        "entrypoint": "spin classify settings.yaml --input s3://spin/in --output s3://spin/out --date 2026-03-01 "
        "--set seed=3 --set ray.address=auto",
        "folder": ".",
        "excludes": [],
        "environment": {"AWS_ENDPOINT_URL": "http://s3:9000"},
        "once": True,
    }


def test_a_night_without_a_day_is_of_the_day_it_was_sent(spin: Run) -> None:
    """Not of the one on which it starts; and it is not waited for, if so asked."""
    today = datetime.now(UTC).date().isoformat()
    status, out, _ = spin("submit", *NIGHT, "--detach", "--exclude", "raw/", "--env", "NOTE=a b", "--restart")
    assert (status, out) == (0, f"submitted classify-the-reviews-{today}\n")
    assert Recorder.given["entrypoint"].endswith(f"--restart --set ray.address=auto --date {today}")
    assert (Recorder.given["excludes"], Recorder.given["environment"]) == (["raw/"], {"NOTE": "a b"})
    assert not Recorder.given["once"]
    assert spin("submit", *NIGHT, "--detach", "--set", "data.train=a.csv")[0] == 0  # a night reads no training text


@pytest.mark.parametrize("command", ["run", "extract", "probe", "train"])
def test_training_is_sent_and_may_be_sent_again(spin: Run, command: str) -> None:
    status, _, _ = spin("submit", command, "settings.yaml", "--detach")
    assert status == 0
    assert re.fullmatch(rf"{command}-the-reviews-20\d\d-\d\d-\d\d", Recorder.given["name"])
    assert Recorder.given["entrypoint"] == f"spin {command} settings.yaml --set ray.address=auto"
    assert not Recorder.given["once"]


RELATIVE = "expected s3://… or an absolute path that all nodes share"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["promote", "settings.yaml"], "'promote' is not one of"),
        (["classify", "settings.yaml", "--input", "x"], "Missing option '--output'"),
        (["run", "settings.yaml", "--date", "2026-03-01"], "No such option: --date"),
        (["run", "/etc/settings.yaml"], "/etc/settings.yaml is not in the working directory"),
        (["run", "../settings.yaml"], "../settings.yaml is not in the working directory"),
        (["run", "other.yaml"], "no settings file at other.yaml"),
        ([*NIGHT, "--date", "2026-02-30"], "--date 2026-02-30: expected a day as YYYY-MM-DD"),
        (["run", "settings.yaml", "--set", "store=runs/a"], f"store is 'runs/a', a folder of this machine; {RELATIVE}"),
        (
            ["run", "settings.yaml", "--set", "data.train=a.csv"],
            f"data.train is 'a.csv', a folder of this machine; {RELATIVE}",
        ),
        ([*NIGHT, "--since", "nights"], f"--since is 'nights', a folder of this machine; {RELATIVE}"),
        (["run", "settings.yaml", "--set", "mlflow.tracking_uri=null"], "mlflow.tracking_uri is not set: the registry"),
        (
            ["run", "settings.yaml", "--set", "mlflow.tracking_uri=sqlite:///a.db"],
            "mlflow.tracking_uri is sqlite:///a.db: the registry would be in the job's folder",
        ),
        (["run", "settings.yaml", "--set", "mlflow.tracking_uri=http://u:p@h"], "a password stands in it"),
        (["run", "settings.yaml", "--env", "AWS_SECRET_ACCESS_KEY"], "AWS_SECRET_ACCESS_KEY: looks like a credential"),
        (["run", "settings.yaml", "--env", "HF_TOKEN=abc"], "HF_TOKEN: looks like a credential"),
        (["run", "settings.yaml", "--env", "NOT_SET_HERE"], "--env NOT_SET_HERE: is not set here"),
        (["run", "settings.yaml", "--env", "DB=postgresql://u:p@h/d"], "DB holds a password"),
    ],
)
def test_a_mistake_is_told_before_anything_is_sent(spin: Run, words: list[str], said: str) -> None:
    """In words, with status 2; no password is repeated."""
    status, _, error = spin("submit", *words)
    assert status == 2
    assert said in " ".join(error.split())
    assert "u:p@" not in error
    assert "name" not in Recorder.given


def test_a_place_that_all_nodes_share_is_taken(spin: Run, tmp_path: Path) -> None:
    """An absolute folder, in which the registry lies too."""
    places = [f"store={tmp_path}", f"data.train={tmp_path}/a.csv", "mlflow.tracking_uri=null"]
    assert spin("submit", "run", "settings.yaml", "--detach", *(w for p in places for w in ("--set", p)))[0] == 0
    assert spin("submit", "run", "settings.yaml", "--detach", "--set", "mlflow.tracking_uri=sqlite:////a/b.db")[0] == 0


def test_a_tracking_uri_of_the_environment(spin: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goes with the job; with a password in it, it does not."""
    unset = ("--set", "mlflow.tracking_uri=null")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert spin("submit", "run", "settings.yaml", "--detach", *unset)[0] == 0
    assert Recorder.given["environment"] == {"MLFLOW_TRACKING_URI": "http://mlflow:5000"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@mlflow:5000")
    status, _, error = spin("submit", "run", "settings.yaml", "--detach", *unset)
    assert status == 2
    assert "MLFLOW_TRACKING_URI holds a password" in error
    assert "secret" not in error


@given(st.from_regex(r"[A-Z_]{0,8}(SECRET|TOKEN|PASSWORD|ACCESS_KEY|API_KEY)[A-Z_]{0,8}", fullmatch=True))
def test_no_credential_is_passed(name: str) -> None:
    """By whatever name."""
    assert name not in PASSED
    with pytest.raises(UserError, match="looks like a credential"):
        environment([f"{name}=x"])


@pytest.mark.parametrize(
    ("address", "status", "said"),
    [
        ("head:8265", 2, "--address head:8265: expected the cluster's dashboard, such as http://HEAD:8265"),
        ("http://127.0.0.1:9", 5, "Ray at http://127.0.0.1:9 does not answer"),
    ],
)
def test_a_cluster_that_is_not_there(
    address: str, status: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["jobs"], ["logs", "x"], ["stop", "x"]):
        monkeypatch.setattr(sys, "argv", ["spin", *words, "--address", address])
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == status
        error = capsys.readouterr().err
        assert said in error
        assert len(error.splitlines()) == 1
