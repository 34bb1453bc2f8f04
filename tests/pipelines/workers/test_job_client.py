"""Files and variables that `spin submit` sends to a cluster, and those that it refuses to send."""

from __future__ import annotations

import hashlib
import logging
import re
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.job_submission
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipelines.workers import job_client
from pipelines.workers.job_client import PASSED, Job, JobServer, environment
from spin.errors import UserError
from tests.support.command_line import CallSpin

TREE = {
    "backbone": {"model": "some/model"},
    "data": {"train": "s3://spin/train.parquet"},
    "store": "s3://spin/store",
    "mlflow": {"model": "the reviews", "tracking_uri": "http://mlflow:5000"},
}
CLASSIFY = ("classify", "settings.yaml", "--input", "s3://spin/in", "--output", "s3://spin/out")
PLACES = hashlib.sha256(b"s3://spin/in\ns3://spin/out").hexdigest()[:8]
"""what the id of a night has for this input and output"""


class Recorder:
    """A job server that records the arguments of a submission and whose jobs fail with exit status 4."""

    recorded: dict[str, Any]

    def __init__(self, address: str | None) -> None:
        Recorder.recorded = {"address": address}

    def submit(self, name: str, entrypoint: str, **options: Any) -> str:
        Recorder.recorded |= {"name": name, "entrypoint": entrypoint, **options}
        return name

    def follow(self, id: str, write: Callable[[str], object]) -> Job:
        write("one line\n")
        return Job(id, "FAILED", "2026-03-01 00:00:00", 2.0, 4)


@pytest.fixture
def spin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call_spin: CallSpin) -> CallSpin:
    """A function that runs `spin` in a folder with settings and returns status, output and error output.

    Jobs go to a Recorder.
    """
    monkeypatch.chdir(tmp_path)
    for name in PASSED:
        monkeypatch.delenv(name, raising=False)
    Path("settings.yaml").write_text(yaml.safe_dump(TREE), encoding="utf-8")
    monkeypatch.setattr(job_client, "JobServer", Recorder)

    def run(*arguments: str) -> tuple[int, str, str]:
        Recorder.recorded = {}
        return call_spin(*arguments)

    return run


def test_submit_classify_sends_its_command_line_and_allowed_variables(
    spin: CallSpin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No credential is sent with them, and `spin submit` ends with the exit status of the job."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://s3:9000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    status, out, error = spin(
        "submit", *CLASSIFY, "--date", "2026-03-01", "--set", "seed=3", "--address", "http://head:8265"
    )
    id = f"classify-the-reviews-2026-03-01-{PLACES}"
    assert (status, out.splitlines()) == (4, [f"submitted {id}", "one line"])
    assert error.splitlines() == [f"error: {id} failed after 2 s, exit status 4"]
    assert Recorder.recorded == {
        "address": "http://head:8265",
        "name": id,
        "entrypoint": "spin classify settings.yaml --input s3://spin/in --output s3://spin/out --date 2026-03-01 "
        "--set seed=3 --set ray.address=auto",
        "files": {"settings.yaml": Path("settings.yaml").resolve()},
        "environment": {"AWS_ENDPOINT_URL": "http://s3:9000"},
        "once": True,
    }


def test_submit_classify_without_a_date_uses_the_day_of_submission(spin: CallSpin) -> None:
    """A job may start a day later. With --detach the command does not wait for it."""
    today = datetime.now(UTC).date().isoformat()
    Path("notes.txt").touch()
    status, out, _ = spin("submit", *CLASSIFY, "--detach", "--include", "notes.txt", "--env", "NOTE=a b", "--restart")
    assert (status, out) == (0, f"submitted classify-the-reviews-{today}-{PLACES}\n")
    assert Recorder.recorded["entrypoint"].endswith(f"--restart --set ray.address=auto --date {today}")
    assert sorted(Recorder.recorded["files"]) == ["notes.txt", "settings.yaml"]
    assert Recorder.recorded["environment"] == {"NOTE": "a b"}
    assert not Recorder.recorded["once"]
    assert spin("submit", *CLASSIFY, "--detach", "--set", "data.train=a.csv")[0] == 0  # classify reads no training data


@pytest.mark.parametrize("command", ["run", "extract", "probe", "train"])
def test_training_commands_can_be_submitted_repeatedly(spin: CallSpin, command: str) -> None:
    status, _, _ = spin("submit", command, "settings.yaml", "--detach")
    assert status == 0
    assert re.fullmatch(rf"{command}-the-reviews-20\d\d-\d\d-\d\d", Recorder.recorded["name"])
    assert Recorder.recorded["entrypoint"] == f"spin {command} settings.yaml --set ray.address=auto"
    assert not Recorder.recorded["once"]


RELATIVE = "expected s3://… or an absolute path that all nodes share"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["promote", "settings.yaml"], "'promote' is not one of"),
        (["classify", "settings.yaml", "--input", "x"], "Missing option '--output'"),
        (["run", "settings.yaml", "--date", "2026-03-01"], "No such option: --date"),
        (["run", "/etc/settings.yaml"], "/etc/settings.yaml is not in the working directory"),
        (["run", "../settings.yaml"], "../settings.yaml is not in the working directory"),
        (["run", "other.yaml"], "no settings file at other.yaml"),
        ([*CLASSIFY, "--date", "2026-02-30"], "--date 2026-02-30: expected a day as YYYY-MM-DD"),
        (["run", "settings.yaml", "--set", "store=runs/a"], f"store is 'runs/a', a folder of this machine; {RELATIVE}"),
        (
            ["run", "settings.yaml", "--set", "data.train=a.csv"],
            f"data.train is 'a.csv', a folder of this machine; {RELATIVE}",
        ),
        (
            ["classify", "settings.yaml", "--input", "inbox", "--output", "s3://spin/nights"],
            f"--input is 'inbox', a folder of this machine; {RELATIVE}",
        ),
        ([*CLASSIFY, "--since", "s3://spin/nights"], "No such option: --since"),
        (["run", "settings.yaml", "--set", "mlflow.tracking_uri=null"], "mlflow.tracking_uri is not set: the registry"),
        (
            ["run", "settings.yaml", "--set", "mlflow.tracking_uri=sqlite:///a.db"],
            "mlflow.tracking_uri is sqlite:///a.db: the registry would be in the job's folder",
        ),
        (["run", "settings.yaml", "--set", "mlflow.tracking_uri=http://u:p@h"], "a password stands in it"),
        (["run", "settings.yaml", "--env", "AWS_SECRET_ACCESS_KEY"], "AWS_SECRET_ACCESS_KEY: looks like a credential"),
        (["run", "settings.yaml", "--env", "HF_TOKEN=abc"], "HF_TOKEN: looks like a credential"),
        (
            ["run", "settings.yaml", "--env", "NOTE=AKIAIOSFODNN7ABCDEFG"],
            "NOTE: its value looks like a secret",
        ),
        (
            ["run", "settings.yaml", "--env", "NOTE=xoxb-123456789012-1234567890123-hushhushhush"],
            "NOTE: its value looks like a secret (Slack Token)",
        ),
        (["run", "settings.yaml", "--env", "NOT_SET_HERE"], "--env NOT_SET_HERE: is not set here"),
        (["run", "settings.yaml", "--env", "DB=postgresql://u:p@h/d"], "DB holds a password"),
        (["run", "settings.yaml", "--env", "X=http://hush@h"], "X holds a URI with a part before @"),
        ([*CLASSIFY[:3], "s3://hush@b/in", *CLASSIFY[4:]], "--input holds a URI with a part before @"),
        (["run", "settings.yaml", "--set", "store=s3://hush@b"], "--set store holds a URI with a part before @"),
        (
            ["run", "settings.yaml", "--set", "mlflow.tracking_uri=https://hush@h"],
            "--set mlflow.tracking_uri holds a URI with a part before @",
        ),
        (["run", "settings.yaml", "--include", "none"], "--include none: names no file"),
        (["run", "settings.yaml", "--include", ".env"], ".env: looks like a credential"),
        (["run", "settings.yaml", "--exclude", "raw/"], "No such option: --exclude"),
    ],
)
def test_invalid_arguments_are_reported_before_a_job_is_submitted(
    spin: CallSpin, arguments: list[str], expected: str
) -> None:
    """The status is 2, the error is one line, and no password or token is repeated."""
    Path(".env").touch()
    status, _, error = spin("submit", *arguments)
    assert status == 2
    assert expected in error
    assert len(error.splitlines()) == 1
    assert "u:p@" not in error
    assert "hush" not in error
    assert "name" not in Recorder.recorded


def test_the_id_of_a_night_holds_its_input_and_output(spin: CallSpin, tmp_path: Path) -> None:
    """In any spelling; another input or output is another job."""

    def submitted(source: str, output: str) -> str:
        assert spin("submit", "classify", "settings.yaml", "--input", source, "--output", output, "--detach")[0] == 0
        return str(Recorder.recorded["name"])

    first = submitted("s3://spin/in", "s3://spin/out")
    assert re.fullmatch(r"classify-the-reviews-20\d\d-\d\d-\d\d-[0-9a-f]{8}", first)
    assert submitted("s3://spin/in/", "s3://spin/out//") == first
    others = [("s3://spin/in2", "s3://spin/out"), ("s3://spin/in", "s3://spin/out2"), ("s3://spin/out", "s3://spin/in")]
    local = submitted(f"{tmp_path}/a", f"{tmp_path}/b")
    assert local == submitted(f"{tmp_path}/./a/", f"file://{tmp_path}/c/../b")
    assert len({first, local, *(submitted(*places) for places in others)}) == 5


class FakeClient:
    """Ray's client: keeps the jobs that were submitted, with the files of their folders, and ends them as told."""

    jobs: dict[str, SimpleNamespace] = {}  # noqa: RUF012
    files: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, address: str) -> None:
        self.address = address

    def submit_job(self, *, entrypoint: str, submission_id: str, runtime_env: dict[str, Any]) -> None:
        folder = Path(runtime_env.pop("working_dir"))
        FakeClient.files = {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}
        assert set(runtime_env) == {"env_vars"}
        FakeClient.jobs[submission_id] = SimpleNamespace(
            submission_id=submission_id,
            status=SimpleNamespace(value="RUNNING"),
            start_time=len(FakeClient.jobs),
            end_time=None,
            driver_exit_code=None,
        )

    def list_jobs(self) -> list[SimpleNamespace]:
        return list(FakeClient.jobs.values())


@pytest.fixture
def real_spin(spin: CallSpin, monkeypatch: pytest.MonkeyPatch) -> CallSpin:
    """As `spin`, but jobs go through the real JobServer to a FakeClient."""
    monkeypatch.setattr(job_client, "JobServer", JobServer)
    monkeypatch.setattr(ray.job_submission, "JobSubmissionClient", FakeClient)
    monkeypatch.setattr(FakeClient, "jobs", {})
    return spin


def test_a_night_is_submitted_once_and_another_input_is_another_night(real_spin: CallSpin) -> None:
    """While it runs the status is 3, after it succeeded 2; after a failure it gets the next number."""
    words = ["submit", *CLASSIFY, "--date", "2026-03-01", "--detach"]
    other = [word.replace("s3://spin/in", "s3://spin/in2") for word in words]
    id = f"classify-the-reviews-2026-03-01-{PLACES}"
    assert real_spin(*words)[:2] == (0, f"submitted {id}\n")
    status, _, error = real_spin(*words)
    assert status == 3
    assert f"job {id} is on its way" in error
    assert real_spin(*other)[0] == 0
    FakeClient.jobs[id].status.value = "FAILED"
    assert real_spin(*words)[:2] == (0, f"submitted {id}-2\n")
    FakeClient.jobs[f"{id}-2"].status.value = "SUCCEEDED"
    status, _, error = real_spin(*words)
    assert status == 2
    assert f"job {id}-2 has succeeded" in error
    assert len(FakeClient.jobs) == 3


def test_ray_is_given_a_folder_with_the_files_alone(real_spin: CallSpin) -> None:
    """Links are sent as the files that they lead to, and no copy is left on this machine."""
    for name in (".env", "notes.txt", "data/x.csv", "other.csv"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(name)
    Path("data/link.txt").symlink_to("../notes.txt")
    before = {path.name for path in Path(tempfile.gettempdir()).glob("spin-submit-*")}
    assert real_spin("submit", "run", "settings.yaml", "--include", "data", "--detach")[0] == 0
    expected = {"data/x.csv": "data/x.csv", "data/link.txt": "notes.txt"}
    assert FakeClient.files == {"settings.yaml": Path("settings.yaml").read_text(), **expected}
    assert {path.name for path in Path(tempfile.gettempdir()).glob("spin-submit-*")} <= before


def test_the_client_of_ray_writes_no_lines_of_its_own(real_spin: CallSpin) -> None:
    """Two of its loggers have levels of their own; the third, of a private module, takes the one of `ray`."""
    assert real_spin("jobs")[0] == 0
    names = ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging")
    assert {logging.getLogger(f"ray.{name}").getEffectiveLevel() for name in names} == {logging.ERROR}


def test_a_token_in_the_address_is_not_shown(monkeypatch: pytest.MonkeyPatch, spin: CallSpin) -> None:
    monkeypatch.setattr(job_client, "JobServer", JobServer)
    for address in ("http://hush@127.0.0.1:9", "hush://hush@head"):
        status, _, error = spin("jobs", "--address", address)
        assert status in (2, 5)
        assert "***@" in error
        assert "hush@" not in error


def test_absolute_local_paths_are_accepted(spin: CallSpin, tmp_path: Path) -> None:
    """All nodes may share such a folder; the registry may be in it too."""
    settings = [f"store={tmp_path}", f"data.train={tmp_path}/a.csv", "mlflow.tracking_uri=null"]
    assert (
        spin(
            "submit", "run", "settings.yaml", "--detach", *(word for setting in settings for word in ("--set", setting))
        )[0]
        == 0
    )
    assert spin("submit", "run", "settings.yaml", "--detach", "--set", "mlflow.tracking_uri=sqlite:////a/b.db")[0] == 0


def test_the_tracking_uri_in_the_environment_is_sent_unless_it_holds_a_password(
    spin: CallSpin, monkeypatch: pytest.MonkeyPatch
) -> None:
    unset = ("--set", "mlflow.tracking_uri=null")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert spin("submit", "run", "settings.yaml", "--detach", *unset)[0] == 0
    assert Recorder.recorded["environment"] == {"MLFLOW_TRACKING_URI": "http://mlflow:5000"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@mlflow:5000")
    status, _, error = spin("submit", "run", "settings.yaml", "--detach", *unset)
    assert status == 2
    assert "MLFLOW_TRACKING_URI holds a password" in error
    assert "secret" not in error


@given(st.from_regex(r"[A-Z_]{0,8}(SECRET|TOKEN|PASSWORD|ACCESS_KEY|API_KEY)[A-Z_]{0,8}", fullmatch=True))
def test_variables_named_like_credentials_are_refused(name: str) -> None:
    assert name not in PASSED
    with pytest.raises(UserError, match="looks like a credential"):
        environment([f"{name}=x"])


@pytest.mark.parametrize(
    ("address", "status", "expected"),
    [
        ("head:8265", 2, "--address head:8265: expected the cluster's dashboard, such as http://HEAD:8265"),
        ("http://127.0.0.1:9", 5, "Ray at http://127.0.0.1:9 does not answer"),
    ],
)
def test_commands_report_an_unreachable_cluster_in_one_line(
    address: str, status: int, expected: str, call_spin: CallSpin
) -> None:
    for command in (["jobs"], ["logs", "x"], ["stop", "x"]):
        found, _, error = call_spin(*command, "--address", address)
        assert (found, expected in error) == (status, True)
        assert len(error.splitlines()) == 1
