"""The commands that train: `spin run` and its stages `extract`, `probe` and `train`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs import terminal
from jobs.options import File, Restart, Set, open_registry, repeat_overrides
from jobs.printing.training import print_stage, print_training
from spin.settings import load_settings

if TYPE_CHECKING:
    from pipelines.training.workflow import TrainingStage


def run(settings: File, set: Set = [], restart: Restart = False) -> None:  # noqa: B006
    """Train a model from labelled text: extract, probe and train, one after the other."""
    _run_to_the_end("extract", settings, set, restart=restart)


def extract(settings: File, set: Set = [], restart: Restart = False) -> None:  # noqa: B006
    """Stage 1: run the language model on the labelled text and store the activations of its neurons."""
    _run_stage("extract", "probe", settings, set, restart=restart)


def probe(settings: File, set: Set = [], restart: Restart = False) -> None:  # noqa: B006
    """Stage 2: fit one sparse linear probe per site and pooling, which ranks the neurons."""
    _run_stage("probe", "train", settings, set, restart=restart)


def train(settings: File, set: Set = [], restart: Restart = False) -> None:  # noqa: B006
    """Stage 3: fit the classifier on the salient neurons, measure it on the test documents and register it."""
    _run_to_the_end("train", settings, set, restart=restart)


def _run_stage(stage: TrainingStage, following: str, file: str, overrides: Sequence[str], *, restart: bool) -> None:
    """Run one stage and print the command of the next one."""
    loaded = load_settings(file, overrides)
    from pipelines.training.workflow import run_stages

    run_stages(loaded, [stage], restart=restart, on_stage=print_stage)
    terminal.next_command(following, file, *repeat_overrides(overrides))


def _run_to_the_end(first: TrainingStage, file: str, overrides: Sequence[str], *, restart: bool) -> None:
    """Run the stages from one on, and print the command that makes the version the champion unless it is."""
    loaded = load_settings(file, overrides)
    from pipelines.training.workflow import run_workflow

    report = run_workflow(loaded, first=first, restart=restart, on_stage=print_stage)
    print_training(report)
    if open_registry(loaded).champion() != report.registered.version:
        terminal.next_command("promote", file, *repeat_overrides(overrides))
