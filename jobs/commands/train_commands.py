"""The commands that train: `spin run` and its stages `extract`, `probe` and `train`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs import terminal
from jobs.options import File, Restart, Set, open_registry, repeat_overrides
from spin.settings import Settings, load_settings

if TYPE_CHECKING:
    from pipelines.training.train import TrainReport


def run(settings: File, set: Set = [], restart: Restart = False) -> None:  # noqa: B006
    """Train a model from labelled text: extract, probe and train, one after the other."""
    loaded = load_settings(settings, set)
    from pipelines.training.workflow import run_workflow

    _print_training(run_workflow(loaded, restart=restart, on_stage=terminal.stage), loaded, settings, set)


def extract(settings: File, set: Set = [], restart: Restart = False) -> None:  # noqa: B006
    """Stage 1: run the language model on the labelled text and store the activations of its neurons."""
    loaded = load_settings(settings, set)
    from pipelines.training.workflow import run_stages

    run_stages(loaded, ["extract"], restart=restart, on_stage=terminal.stage)
    terminal.next_command("probe", settings, *repeat_overrides(set))


def probe(settings: File, set: Set = [], restart: Restart = False) -> None:  # noqa: B006
    """Stage 2: fit one sparse linear probe per site and pooling, which ranks the neurons."""
    loaded = load_settings(settings, set)
    from pipelines.training.workflow import run_stages

    run_stages(loaded, ["probe"], restart=restart, on_stage=terminal.stage)
    terminal.next_command("train", settings, *repeat_overrides(set))


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
