"""The runs that infra/k8s creates: which commands they run, how they end, and that two nights never overlap."""

from __future__ import annotations

import re
import shlex
import zoneinfo
from pathlib import Path
from typing import Any

import typer

from jobs.cli import app
from tests.support.manifests import (
    DAY,
    RUNBOOK,
    RUNS,
    list_strings,
    load_overlay_settings,
    load_start_script,
    make_ray_jobs,
    select_kind,
)


def test_the_entrypoints_of_runs_are_valid_commands(documents: list[dict[str, Any]], tmp_path: Path) -> None:
    """They name the day and the settings that the head mounts. The name of a run contains the model and the day."""
    settings, command = load_overlay_settings(documents, tmp_path), typer.main.get_command(app)
    runs = make_ray_jobs(documents)
    assert set(runs) == set(RUNS)
    for template, run in runs.items():
        program, stage, *arguments = shlex.split(run["spec"]["entrypoint"])
        assert (program, stage) == ("spin", RUNS[template])
        parsed = command.commands[stage].make_context(stage, arguments).params  # type: ignore[attr-defined]
        assert parsed["settings"] == "/etc/spin/settings.yaml"
        if stage == "classify":
            assert parsed["date"] == DAY
            assert DAY in parsed["input"]
        assert run["metadata"]["name"] == f"{template}-{DAY}"
        assert template.partition("-")[2] == settings.mlflow.model
        assert len(run["metadata"]["name"]) <= 47 - len("-99")  # KubeRay's limit, less the number of a retry
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", run["metadata"]["name"])
        assert not [text for text in list_strings(run) if "{" in text]
        mounts = run["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
        assert {"name": "settings", "mountPath": "/etc/spin", "readOnly": True} in mounts


def test_the_vacuum_is_a_valid_command_on_the_output_of_the_nights(documents: list[dict[str, Any]]) -> None:
    command: Any = typer.main.get_command(app)
    pod = select_kind(documents, "CronJob")["vacuum-nights"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    program, group, name, *arguments = [*container["command"], *container["args"]]
    assert program == "spin"
    parsed = command.commands[group].commands[name].make_context(name, arguments).params
    night = shlex.split(make_ray_jobs(documents)["classify-tweets"]["spec"]["entrypoint"])
    assert parsed["output"] == night[night.index("--output") + 1]
    assert parsed["older_than"] >= 1
    assert parsed["dry_run"] is False


def test_a_run_is_retried_and_its_cluster_is_removed(documents: list[dict[str, Any]]) -> None:
    """Templates are suspended, so that they never run themselves."""
    runs = make_ray_jobs(documents)
    for name, template in select_kind(documents, "RayJob").items():
        assert template["spec"]["suspend"] is True
        assert runs[name]["spec"]["suspend"] is False
        assert template["spec"]["shutdownAfterJobFinishes"] is True
        assert 0 < template["spec"]["ttlSecondsAfterFinished"] <= 3600
        assert template["spec"]["backoffLimit"] == 0, "start.py knows after which status another try may help"


def test_nights_do_not_overlap(documents: list[dict[str, Any]]) -> None:
    """One runs at a time and ends before midnight even if it starts late, so that retries agree on yesterday's date."""
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
        assert pod["activeDeadlineSeconds"] > load_start_script().TRIES * run["activeDeadlineSeconds"]
        on_exit = pod["podFailurePolicy"]["rules"][0]
        assert (on_exit["action"], on_exit["onExitCodes"]["values"]) == ("FailJob", [1])
    night = crons["classify-tweets"]["spec"]
    minute, hour, *rest = night["schedule"].split()
    assert (night["timeZone"], rest) == ("Etc/UTC", ["*", "*", "*"])
    latest = int(hour) * 3600 + int(minute) * 60 + night["startingDeadlineSeconds"]
    assert latest + night["jobTemplate"]["spec"]["activeDeadlineSeconds"] < 24 * 3600


def test_commands_and_options_in_the_runbook_exist() -> None:
    group: Any = typer.main.get_command(app)
    uses = re.findall(r"spin ([a-z]+)([^`\n|#]*)", RUNBOOK)
    assert {name for name, _ in uses} >= {"run", "submit", "promote", "rollback", "history", "nights"}
    for name, arguments in uses:
        command = group.commands[name]
        if hasattr(command, "commands"):
            command = command.commands[arguments.split()[0]]
        known = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", arguments)) <= known, name
