"""The runs that infra/k8s makes: what they start, how they end, and that two of them never meet."""

from __future__ import annotations

import re
import shlex
import zoneinfo
from pathlib import Path
from typing import Any

import pytest
import typer

from jobs.cli import app
from tests.support.manifests import (
    DAY,
    OVERLAYS,
    RUNBOOK,
    RUNS,
    list_strings,
    load_overlay_settings,
    make_ray_jobs,
    render_overlay,
    select_kind,
)


@pytest.fixture(params=OVERLAYS)
def documents(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """All that an overlay applies."""
    return render_overlay(request.param)


def test_runs_are_what_the_command_takes(documents: list[dict[str, Any]], tmp_path: Path) -> None:
    """Their entrypoints parse, name the day and the settings that the head mounts; their names bear the model's."""
    settings, command = load_overlay_settings(documents, tmp_path), typer.main.get_command(app)
    made = make_ray_jobs(documents)
    assert set(made) == set(RUNS)
    for template, run in made.items():
        program, stage, *words = shlex.split(run["spec"]["entrypoint"])
        assert (program, stage) == ("spin", RUNS[template])
        parsed = command.commands[stage].make_context(stage, words).params  # type: ignore[attr-defined]
        assert parsed["settings"] == "/etc/spin/settings.yaml"
        if stage == "classify":
            assert parsed["date"] == DAY
            assert DAY in parsed["input"]
        assert run["metadata"]["name"] == f"{template}-{DAY}"
        assert template.partition("-")[2] == settings.mlflow.model
        assert len(run["metadata"]["name"]) <= 47 - len("-99")  # KubeRay's longest, with the number of a later try
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", run["metadata"]["name"])
        assert not [text for text in list_strings(run) if "{" in text]
        mounts = run["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
        assert {"name": "settings", "mountPath": "/etc/spin", "readOnly": True} in mounts


def test_runs_end_and_leave_no_cluster(documents: list[dict[str, Any]]) -> None:
    """A template never runs; a run is tried again, has a deadline, and its cluster goes."""
    made = make_ray_jobs(documents)
    for name, template in select_kind(documents, "RayJob").items():
        assert template["spec"]["suspend"] is True
        assert made[name]["spec"]["suspend"] is False
        assert template["spec"]["shutdownAfterJobFinishes"] is True
        assert 0 < template["spec"]["ttlSecondsAfterFinished"] <= 3600
        assert template["spec"]["backoffLimit"] == 2


def test_nights_do_not_meet(documents: list[dict[str, Any]]) -> None:
    """One at a time, started late or not at all, over before the next: so yesterday stays one day."""
    crons, jobs = select_kind(documents, "CronJob"), select_kind(documents, "RayJob")
    for name, cron in crons.items():
        assert cron["spec"]["concurrencyPolicy"] == "Forbid", name
        zoneinfo.ZoneInfo(cron["spec"]["timeZone"])
        assert {"startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"} <= set(cron["spec"])
        assert cron["spec"].get("suspend", False) is (name != "classify-tweets"), name
    for name in RUNS:
        pod = crons[name]["spec"]["jobTemplate"]["spec"]
        run = jobs[name]["spec"]
        assert pod["template"]["spec"]["containers"][0]["command"] == ["python", "/start/start.py", name]
        assert pod["activeDeadlineSeconds"] > (run["backoffLimit"] + 1) * run["activeDeadlineSeconds"]
        on_exit = pod["podFailurePolicy"]["rules"][0]
        assert (on_exit["action"], on_exit["onExitCodes"]["values"]) == ("FailJob", [1])
    night = crons["classify-tweets"]["spec"]
    minute, hour, *rest = night["schedule"].split()
    assert (night["timeZone"], rest) == ("Etc/UTC", ["*", "*", "*"])
    latest = int(hour) * 3600 + int(minute) * 60 + night["startingDeadlineSeconds"]
    assert latest + night["jobTemplate"]["spec"]["activeDeadlineSeconds"] < 24 * 3600


def test_the_runbook_names_commands_that_exist() -> None:
    """And options that they have."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    found = re.findall(r"spin ([a-z]+)([^`\n|#]*)", RUNBOOK)
    assert {name for name, _ in found} >= {"run", "submit", "promote", "rollback", "history"}
    for name, words in found:
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", words)) <= known, name
