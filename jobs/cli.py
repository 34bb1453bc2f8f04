"""The `spin` command: register the commands of `jobs.commands`, run one, and end with its exit status."""

from __future__ import annotations

import importlib.metadata
import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import typer

from jobs import start_commands, terminal
from jobs.commands import (
    audit_commands,
    classify_command,
    forget_commands,
    job_commands,
    label_commands,
    model_commands,
    night_commands,
    planning_commands,
    registry_commands,
    train_commands,
)
from jobs.exit_status import CommandGroup, run_command
from jobs.extras import PipelinesCommand
from jobs.log_setup import configure_logging
from spin.errors import UserError

START, TRAIN, USE = "Start here", "Train a model", "Use a model"
REGISTRY, TRUST, CLUSTER = "Choose the model that is used", "Know what a model is worth", "Run on a cluster"

app = typer.Typer(
    name="spin",
    cls=CommandGroup,
    help="Classify text with the salient inner neurons of a frozen language model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _print_version(asked: bool) -> None:
    if asked:
        terminal.say(importlib.metadata.version("spin-neurons"))
        raise typer.Exit


@app.callback()
def main_options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="print the version and exit")
    ] = False,
    log: Annotated[
        str,
        typer.Option(
            metavar="auto|json",
            help="json: progress and log on standard error as JSON lines; auto: as text, on a terminal with a bar",
        ),
    ] = "auto",
) -> None:
    """Classify text with the salient inner neurons of a frozen language model."""
    if log not in ("auto", "json"):
        raise UserError(f"--log {log}: expected auto or json")
    configure_logging(as_json=log == "json")


def add_command(panel: str, function: Callable[..., None], *, needs_pipelines: bool = True, **options: Any) -> None:
    """Make a command of a function, listed under a heading of `spin --help`; its docstring is its help."""
    app.command(cls=PipelinesCommand if needs_pipelines else None, rich_help_panel=panel, **options)(function)


add_command(START, start_commands.quickstart)
add_command(START, start_commands.init, needs_pipelines=False)
add_command(TRAIN, train_commands.run)
add_command(TRAIN, train_commands.extract)
add_command(TRAIN, train_commands.probe)
add_command(TRAIN, train_commands.train)
add_command(TRAIN, forget_commands.purge)
add_command(USE, classify_command.classify)
app.add_typer(night_commands.app, rich_help_panel=USE)
add_command(USE, label_commands.review)
app.add_typer(label_commands.app, rich_help_panel=USE)
add_command(USE, planning_commands.plan)
add_command(USE, model_commands.evaluate)
add_command(USE, model_commands.predict, needs_pipelines=False)
add_command(USE, model_commands.explain, needs_pipelines=False)
add_command(USE, model_commands.neurons)
add_command(USE, model_commands.export, needs_pipelines=False)
add_command(REGISTRY, registry_commands.models)
add_command(REGISTRY, registry_commands.promote)
add_command(REGISTRY, registry_commands.rollback)
add_command(REGISTRY, registry_commands.history)
app.add_typer(audit_commands.app, rich_help_panel=TRUST)
add_command(TRUST, planning_commands.roi)
add_command(TRUST, forget_commands.forget)
add_command(CLUSTER, job_commands.submit, context_settings=job_commands.PASSING_ON)
add_command(CLUSTER, job_commands.jobs)
add_command(CLUSTER, job_commands.logs)
add_command(CLUSTER, job_commands.stop)


def main() -> None:
    """Run the command and end the process with its exit status; see `run_command` for errors."""
    configure_libraries()
    if not sys.stdout.isatty() and (len(sys.argv) < 3 or "--help" in sys.argv):
        _print_help_without_boxes()
    run_command(app)


def _print_help_without_boxes() -> None:
    """Let Typer print its panels without lines, since standard output is a pipe or a file."""
    import typer.rich_utils  # loads for a fifth of a second
    from rich.box import Box
    from rich.panel import Panel

    blank = Box("    \n" * 8)
    typer.rich_utils.Panel = partial(Panel, box=blank)  # type: ignore[misc, assignment]


def configure_libraries() -> None:
    """Set what libraries read when they load: no progress bars, telemetry or warnings, and threads that wait asleep."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    # torch's threads wait for each other in a loop, for the time slices of a processor that another program uses: one
    # such program made trainings four times as long
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    warnings.simplefilter("ignore")


if __name__ == "__main__":
    main()
