"""`spin submit`, `jobs`, `logs` and `stop`: the other commands, on a cluster."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from jobs import terminal
from spin.errors import UserError
from spin.settings import Settings, load_settings

Command = Literal["run", "extract", "probe", "train", "classify"]
Address = Annotated[
    str | None,
    typer.Option(metavar="URL", help="the dashboard; by default RAY_API_SERVER_ADDRESS, or here"),
]
PASSING_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
"""how `submit` is to be parsed: what is not its own is the other command's"""
Id = Annotated[str, typer.Argument(metavar="ID", help="`spin jobs` lists them")]


def submit(
    ctx: typer.Context,
    command: Annotated[Command, typer.Argument(help="what to do there; its settings file and options follow")],
    address: Address = None,
    detach: Annotated[bool, typer.Option("--detach", help="do not wait until it is over")] = False,
    exclude: Annotated[list[str], typer.Option(metavar="PATTERN", help="not sent, as what .gitignore names")] = [],  # noqa: B006
    env: Annotated[list[str], typer.Option(metavar="NAME[=VALUE]", help="passed on too; never a credential")] = [],  # noqa: B006
) -> None:
    """Run a command on a cluster, show what it prints and leave with its exit status."""
    from pipelines.nightly.classify import parse_date
    from pipelines.workers.job_client import JobServer, environment

    given = _parse(ctx, command)
    _check_inside(given["settings"])
    settings = load_settings(given["settings"], given["set"])
    passed = environment(env)
    _check_places(settings, given, command, passed)
    options = [*ctx.args, "--set", "ray.address=auto"]
    day = parse_date(given.get("date"))
    if command == "classify" and given["date"] is None:
        options += ["--date", day]  # the day on which it is submitted, not that on which it starts
    server = JobServer(address)
    id = server.submit(
        f"{command}-{re.sub(r'[^A-Za-z0-9._-]+', '-', settings.mlflow.model)}-{day}",
        shlex.join(["spin", command, *options]),
        folder=".",
        excludes=exclude,
        environment=passed,
        once=command == "classify" and not given["restart"],
    )
    terminal.say(f"submitted {id}")
    if not detach:
        _follow(server, id)


def jobs(address: Address = None) -> None:
    """List the jobs of a cluster."""
    from pipelines.workers.job_client import JobServer

    terminal.jobs(JobServer(address).jobs())


def logs(
    id: Id,
    follow: Annotated[bool, typer.Option("--follow", help="until it is over; then leave with its exit status")] = False,
    address: Address = None,
) -> None:
    """Show what a job has printed."""
    from pipelines.workers.job_client import JobServer

    server = JobServer(address)
    if follow:
        _follow(server, id)
    else:
        terminal.raw(server.logs(id))


def stop(id: Id, address: Address = None) -> None:
    """End a job; the same command, submitted again, resumes."""
    from pipelines.workers.job_client import JobServer

    terminal.say(f"stopped {id}" if JobServer(address).stop(id) else f"{id} was over already")


def _follow(server: Any, id: str) -> None:
    try:
        job = server.follow(id, terminal.raw)
    except KeyboardInterrupt:
        terminal.say(f"the job goes on; `spin logs {id} --follow` watches it, `spin stop {id}` ends it")
        raise typer.Exit(130) from None
    terminal.say(f"{id} {job.status.lower()} after {job.seconds or 0:.0f} s, exit status {job.exit_status}")
    raise typer.Exit(job.exit_status)


def _parse(ctx: typer.Context, command: str) -> dict[str, Any]:
    """The command's own arguments, as it would parse them itself; its mistakes are told here, not by the job."""
    group: Any = ctx.find_root().command
    return dict(group.commands[command].make_context(command, list(ctx.args), parent=ctx.find_root()).params)


def _check_inside(path: str) -> None:
    if Path(path).is_absolute() or not Path(path).resolve().is_relative_to(Path.cwd()):
        raise UserError(f"{path} is not in the working directory, which is what the cluster gets; start in its folder")


def _check_places(settings: Settings, given: dict[str, Any], command: str, passed: dict[str, str]) -> None:
    """Raise UserError for a place that every process of the cluster would look for in a folder of its own."""
    places: dict[str, Any] = {"store": settings.store}
    if command != "classify":
        places["data.train"] = settings.data.train
    places |= {f"--{name}": given[name] for name in ("input", "output", "since") if given.get(name)}
    for name, uri in places.items():
        if "://" not in uri and not Path(uri).is_absolute():
            raise UserError(f"{name} is '{uri}', in a folder here; expected s3://… or an absolute path on all nodes")
    tracking = settings.mlflow.tracking_uri or passed.get("MLFLOW_TRACKING_URI")
    if tracking is None and "://" not in settings.store:
        return  # the registry is in the store
    if tracking is None or not tracking.startswith(("http://", "https://", "postgresql", "mysql", "sqlite:////")):
        raise UserError(
            f"mlflow.tracking_uri is {tracking or 'not set'}: the registry would lie in the job's folder and go with "
            "it; expected a server, such as http://mlflow:5000"
        )
