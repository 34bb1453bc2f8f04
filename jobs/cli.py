"""The `spin` command: parse the command line, call one function of the pipelines, set the exit status."""

from __future__ import annotations

import importlib.metadata
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs import terminal
from jobs.commands import (
    audit_commands,
    forget_command,
    job_commands,
    label_commands,
    model_commands,
    night_commands,
    plan_command,
    predict_command,
    purge_command,
    registry_commands,
    roi_command,
)
from jobs.exit_status import CommandGroup, run_command
from jobs.extras import PipelinesCommand
from jobs.log_setup import configure_logging
from jobs.options import File, Input, Models, Output, Restart, Set, open_registry, repeat_overrides
from spin.errors import UserError
from spin.settings import Settings, load_settings

if TYPE_CHECKING:
    from pipelines.training.train import TrainReport

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


@app.command(cls=PipelinesCommand, rich_help_panel=START)
def quickstart(
    folder: Annotated[Path, typer.Option(help="folder for all files of the quickstart")] = Path("runs/quickstart"),
    full: Annotated[bool, typer.Option("--full", help="all documents instead of 12,000")] = False,
) -> None:
    """Train a model on tweets that come with the package, promote it and classify a batch, on this machine."""
    from jobs.quickstart import run_quickstart

    run_quickstart(folder, full=full)


@app.command(rich_help_panel=START)
def init(
    path: Annotated[Path | None, typer.Argument(metavar="SETTINGS", help="settings file to write")] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="print the JSON Schema of settings files instead, for editors and programs")
    ] = False,
    example: Annotated[
        bool,
        typer.Option("--example", help="also write labelled reviews and a batch to classify, with settings for them"),
    ] = False,
) -> None:
    """Write a settings file with every setting and a comment that explains it, and its JSON Schema for editors."""
    from jobs.settings_template import settings_schema, write_example, write_settings

    if schema and path is None:
        terminal.raw(settings_schema())
        return
    if example and not schema:
        path = path or Path("settings.yaml")
        reviews, batch = write_example(path)
        terminal.say(f"wrote {path}, {reviews} (labelled) and {batch} (to classify)")
        terminal.next_command("run", str(path))
        return
    if schema or path is None:
        raise UserError(
            "spin init: expected the name of a settings file to write, --example, or --schema to print the JSON Schema"
        )
    write_settings(path)
    terminal.say(f"wrote {path}; set backbone.model, data.train and store.uri, then: spin run {path}")


@app.command(cls=PipelinesCommand, rich_help_panel=TRAIN)
def run(settings: File, set: Set = [], restart: Restart = False) -> None:  # noqa: B006
    """Train a model from labelled text: extract, probe and train, one after the other."""
    loaded = load_settings(settings, set)
    from pipelines.training.workflow import run_workflow

    _print_training(run_workflow(loaded, restart=restart, on_stage=terminal.stage), loaded, settings, set)


@app.command(cls=PipelinesCommand, rich_help_panel=TRAIN)
def extract(settings: File, set: Set = [], restart: Restart = False) -> None:  # noqa: B006
    """Stage 1: run the language model on the labelled text and store the activations of its neurons."""
    loaded = load_settings(settings, set)
    from pipelines.training.workflow import run_stages

    run_stages(loaded, ["extract"], restart=restart, on_stage=terminal.stage)
    terminal.next_command("probe", settings, *repeat_overrides(set))


@app.command(cls=PipelinesCommand, rich_help_panel=TRAIN)
def probe(settings: File, set: Set = [], restart: Restart = False) -> None:  # noqa: B006
    """Stage 2: fit one sparse linear probe per site and pooling, which ranks the neurons."""
    loaded = load_settings(settings, set)
    from pipelines.training.workflow import run_stages

    run_stages(loaded, ["probe"], restart=restart, on_stage=terminal.stage)
    terminal.next_command("train", settings, *repeat_overrides(set))


@app.command(cls=PipelinesCommand, rich_help_panel=TRAIN)
def train(settings: File, set: Set = [], restart: Restart = False) -> None:  # noqa: B006
    """Stage 3: fit the classifier on the salient neurons, measure it on the test documents and register it."""
    loaded = load_settings(settings, set)
    from pipelines.training.workflow import run_workflow

    report = run_workflow(loaded, first="train", restart=restart, on_stage=terminal.stage)
    _print_training(report, loaded, settings, set)


def _print_training(report: TrainReport, settings: Settings, file: str, overrides: Sequence[str]) -> None:
    """Print a training, and the command that makes its version the champion unless it is."""
    terminal.trained(report)
    if open_registry(settings).champion() != report.registered.version:
        terminal.next_command("promote", file, *repeat_overrides(overrides))


@app.command(cls=PipelinesCommand, rich_help_panel=USE)
def classify(
    settings: File,
    input: Input,
    output: Output,
    model: Models = [],  # noqa: B006
    shadow: Annotated[
        str | None,
        typer.Option(
            metavar="ALIAS|models:/NAME/N",
            help="second version that classifies the same documents, only to report how often the two agree",
        ),
    ] = None,
    date: Annotated[
        str | None, typer.Option(metavar="YYYY-MM-DD", help="date of the night; default: today in UTC")
    ] = None,
    incremental: Annotated[
        bool,
        typer.Option(
            "--incremental", help="skip files that a published night of another date of this output has taken"
        ),
    ] = False,
    restart: Annotated[
        bool,
        typer.Option(
            "--restart",
            help="begin a new run of the date; the published night stays visible until the new run replaces it",
        ),
    ] = False,
    check: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="also classify N of the documents in float32 and compare the labels"),
    ] = None,
    set: Set = [],  # noqa: B006
) -> None:
    """Classify a batch of documents with one model or several; run again after a failure, it resumes."""
    loaded = load_settings(settings, set)
    from jobs.commands.classify_command import ClassifyOptions
    from jobs.commands.classify_command import classify as classify_with_models

    options = ClassifyOptions(input, output, date, incremental, restart, check)
    classify_with_models(loaded, model, shadow, options)


def _add(panel: str, function: Callable[..., None], *, needs_pipelines: bool = True, **options: Any) -> None:
    """Make a command of a function of another module, listed under a heading of `spin --help`."""
    app.command(cls=PipelinesCommand if needs_pipelines else None, rich_help_panel=panel, **options)(function)


_add(TRAIN, purge_command.purge)
app.add_typer(night_commands.app, rich_help_panel=USE)
_add(USE, label_commands.review)
app.add_typer(label_commands.app, rich_help_panel=USE)
_add(USE, plan_command.plan)
_add(USE, model_commands.evaluate)
_add(USE, predict_command.predict, needs_pipelines=False)
_add(USE, model_commands.explain, needs_pipelines=False)
_add(USE, model_commands.neurons)
_add(USE, model_commands.export, needs_pipelines=False)
_add(REGISTRY, registry_commands.models)
_add(REGISTRY, registry_commands.promote)
_add(REGISTRY, registry_commands.rollback)
_add(REGISTRY, registry_commands.history)
app.add_typer(audit_commands.app, rich_help_panel=TRUST)
_add(TRUST, roi_command.roi)
_add(TRUST, forget_command.forget)
_add(CLUSTER, job_commands.submit, context_settings=job_commands.PASSING_ON)
_add(CLUSTER, job_commands.jobs)
_add(CLUSTER, job_commands.logs)
_add(CLUSTER, job_commands.stop)


def main() -> None:
    """Run the command and end the process with its exit status; see `run_command` for errors."""
    silence_libraries()
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


def silence_libraries() -> None:
    """Keep progress bars, telemetry and warnings of libraries out of the output."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    warnings.simplefilter("ignore")


if __name__ == "__main__":
    main()
