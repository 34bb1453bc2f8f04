"""The commands that run others on a Ray cluster: `spin submit`, `jobs`, `logs` and `stop`."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from jobs import terminal
from jobs.signals import Stopped
from spin.errors import UserError
from spin.settings import MlflowSettings, Settings, load_settings, mask_credentials

if TYPE_CHECKING:
    from pipelines.workers.job_client import Job

Command = Literal["run", "extract", "probe", "train", "classify"]
Address = Annotated[
    str | None,
    typer.Option(metavar="URL", help="address of the Ray dashboard; default: RAY_API_SERVER_ADDRESS, or this machine"),
]
PASSING_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
"""parser settings of `submit`: options that it does not know belong to the submitted command"""
Id = Annotated[str, typer.Argument(metavar="ID", help="id of the job; `spin jobs` lists them")]


def submit(
    ctx: typer.Context,
    command: Annotated[Command, typer.Argument(help="command to run there; its settings file and options follow")],
    address: Address = None,
    detach: Annotated[bool, typer.Option("--detach", help="return at once instead of waiting for the end")] = False,
    include: Annotated[
        list[str],
        typer.Option(
            metavar="PATH",
            help="file, folder or glob of this folder to send with the settings file and a backbone in this folder, "
            "which are always sent; nothing else is; may be repeated",
        ),
    ] = [],  # noqa: B006
    env: Annotated[
        list[str],
        typer.Option(
            metavar="NAME[=VALUE]", help="environment variable to pass on, never a credential; may be repeated"
        ),
    ] = [],  # noqa: B006
) -> None:
    """Run a command on a cluster, show its output and end with its exit status."""
    from jobs.commands.job_files import collect_files
    from pipelines.nightly.night_date import parse_date
    from pipelines.workers.job_client import JobServer, environment

    submitted = _parse(ctx, command)
    _check_inside(submitted.settings)
    settings = load_settings(submitted.settings, submitted.overrides)
    passed = environment(env)
    _refuse_secrets(passed)
    _check_locations(settings, submitted, passed)
    options = [*ctx.args, "--set", "ray.address=auto"]
    day = parse_date(submitted.date)
    if command == "classify" and submitted.date is None:
        options += ["--date", day]  # the day on which it is submitted, not that on which it starts
    files = collect_files(submitted.settings, include, settings.backbone)
    server = JobServer(address)
    id = server.submit(
        _job_name(submitted, settings.mlflow, day),
        shlex.join(["spin", command, *options]),
        files=files,
        environment=passed,
        once=command == "classify" and not submitted.restart,
    )
    terminal.say(f"submitted {id}")
    if not detach:
        _follow(server, id)


def jobs(address: Address = None) -> None:
    """List the jobs of a cluster."""
    from pipelines.workers.job_client import JobServer

    print_jobs(JobServer(address).jobs())


def logs(
    id: Id,
    follow: Annotated[
        bool, typer.Option("--follow", help="show new output until the job ends, then end with its exit status")
    ] = False,
    address: Address = None,
) -> None:
    """Show the output of a job."""
    from pipelines.workers.job_client import JobServer

    server = JobServer(address)
    if follow:
        _follow(server, id)
    else:
        terminal.raw(server.logs(id))


def stop(id: Id, address: Address = None) -> None:
    """Stop a job; the same command, submitted again, resumes it."""
    from pipelines.workers.job_client import JobServer

    terminal.say(f"stopped {id}" if JobServer(address).stop(id) else f"{id} had ended already")


def _follow(server: Any, id: str) -> None:
    try:
        job = server.follow(id, terminal.raw)
    except (KeyboardInterrupt, Stopped) as end:
        terminal.failure(f"the job continues; `spin logs {id} --follow` watches it, `spin stop {id}` stops it")
        raise typer.Exit(getattr(end, "status", 130)) from None
    outcome = f"{id} {job.status.lower()} after {job.seconds or 0:.0f} s, exit status {job.exit_status}"
    (terminal.failure if job.exit_status else terminal.say)(outcome)
    raise typer.Exit(job.exit_status)


@dataclass(frozen=True)
class _Submitted:
    """The arguments of a command that is to run on a cluster."""

    command: str
    settings: str
    overrides: list[str]
    restart: bool
    date: str | None
    """night of `classify`, as it was given"""
    locations: dict[str, str]
    """files and folders among its options, by the option's name"""
    models: tuple[str, ...] = ()
    """versions that `classify` is given, by `--model`"""


def _parse(ctx: typer.Context, command: str) -> _Submitted:
    """Return the arguments of the submitted command, parsed here so that a mistake is reported before it is sent."""
    group: Any = ctx.find_root().command
    parsed = group.commands[command].make_context(command, list(ctx.args), parent=ctx.find_root()).params
    return _Submitted(
        command=command,
        settings=parsed["settings"],
        overrides=parsed["set"],
        restart=parsed["restart"],
        date=parsed.get("date"),
        locations={f"--{name}": parsed[name] for name in ("input", "output") if parsed.get(name)},
        models=tuple(parsed["model"]) if command == "classify" else (),
    )


def _job_name(submitted: _Submitted, mlflow: MlflowSettings, day: str) -> str:
    """The id of a job, before a number is added: command, models and day, of a night also a hash of where it works.

    So other models, or another input or output, are another job, and the same night is not submitted twice.
    """
    from pipelines.registry.versions import model_name

    model = "-".join(sorted({model_name(each) or mlflow.name for each in submitted.models or ("",)}))
    name = f"{submitted.command}-{re.sub(r'[^A-Za-z0-9._-]+', '-', model)}-{day}"
    if submitted.command != "classify":
        return name
    from pipelines.storage.filesystem import normalize_uri

    places = "\n".join(normalize_uri(submitted.locations[option]) for option in ("--input", "--output"))
    return f"{name}-{hashlib.sha256(places.encode()).hexdigest()[:8]}"


def _refuse_secrets(passed: dict[str, str]) -> None:
    """Raise UserError for a variable whose value looks like a secret, since the description of a job shows it."""
    from jobs.commands.secret_scanner import find_secret_variable

    for name, value in passed.items():
        if (kind := find_secret_variable(name, value)) is not None:
            raise UserError(
                f"{name}: its value looks like a secret ({kind}), which a job's description would show; jobs are given "
                "none, the nodes have theirs"
            )


def _check_inside(path: str) -> None:
    if Path(path).is_absolute() or not Path(path).resolve().is_relative_to(Path.cwd()):
        raise UserError(
            f"{path} is not in the working directory, which is sent to the cluster; run spin submit in its folder"
        )


def _check_locations(settings: Settings, submitted: _Submitted, passed: dict[str, str]) -> None:
    """Raise UserError for a location that is relative, which every node of the cluster would resolve differently.

    A location with a part before @ is refused too, since the description of a job shows it.
    """
    from pipelines.workers.job_client import check_user_part

    for override in submitted.overrides:
        check_user_part(f"--set {override.partition('=')[0]}", override.partition("=")[2])
    locations = {"store": settings.store.uri, **submitted.locations}
    if submitted.command != "classify":
        locations["data.train"] = settings.data.train
    for name, uri in locations.items():
        check_user_part(name, uri)
        if "://" not in uri and not Path(uri).is_absolute():
            raise UserError(
                f"{name} is '{uri}', a folder of this machine; expected s3://… or an absolute path that all nodes share"
            )
    tracking = settings.mlflow.tracking_uri or passed.get("MLFLOW_TRACKING_URI")
    check_user_part("mlflow.tracking_uri", tracking or "")
    if tracking is None and "://" not in settings.store.uri:
        return  # the registry is in the store
    if tracking is None or not tracking.startswith(("http://", "https://", "postgresql", "mysql", "sqlite:////")):
        raise UserError(
            f"mlflow.tracking_uri is {mask_credentials(tracking or 'not set')}: the registry would be in the job's "
            "folder and deleted with it; expected a server, such as http://mlflow:5000"
        )


def print_jobs(jobs: Sequence[Job]) -> None:
    """Print the jobs of a cluster, the newest first."""
    if not jobs:
        terminal.say("no jobs; `spin submit` starts one")
        return
    table = terminal.new_table(["job"], ["seconds", "exit status"])
    for name in ("status", "started (UTC)"):
        table.add_column(name, no_wrap=True)
    for job in jobs:
        figures = ("" if value is None else f"{value:.0f}" for value in (job.seconds, job.exit_status))
        table.add_row(job.id, *figures, job.status.lower(), job.started)
    terminal.show(table)
