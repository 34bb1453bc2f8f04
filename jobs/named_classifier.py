"""The classifier that a command line names: a saved one, a version of a registry, or the one of a settings file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.extras import require_pipelines
from jobs.options import open_registry
from spin.errors import UserError
from spin.settings import Settings, load_settings

if TYPE_CHECKING:
    from pipelines.registry.versions import Registry
    from spin.classifier import TrainedClassifier

Name = Annotated[
    str,
    typer.Argument(
        metavar="SETTINGS|FOLDER|models:/NAME@ALIAS",
        help="settings file, the folder of a saved classifier, or a version of the registry in MLFLOW_TRACKING_URI",
    ),
]


@dataclass(frozen=True)
class RegisteredVersion:
    """The version of a settings file that a classifier was loaded from."""

    settings: Settings
    registry: Registry
    number: str


@contextmanager
def open_named(
    name: str, model: str | None, overrides: Sequence[str], command: str
) -> Iterator[tuple[TrainedClassifier, RegisteredVersion | None]]:
    """Yield the classifier that a `Name` names, and where it comes from if that is a settings file.

    Raises UserError for `--model` and `--set` without a settings file, and where packages for a registry are missing.
    """
    registered = name.startswith("models:/")
    if not registered and not Path(name).is_dir():
        settings = load_settings(name, overrides)
        require_pipelines(f"{command} with a registered model")
        registry = open_registry(settings)
        number = registry.resolve(model)
        yield registry.load(number), RegisteredVersion(settings, registry, number)
        return
    if model is not None or overrides:
        given = f"--model {model}" if model is not None else f"--set {overrides[0]}"
        raise UserError(
            f"{given} is for registered models that a settings file names, and {name} is a classifier; name such a file"
        )
    if registered:
        require_pipelines(f"{command} with a registered model")
    from pipelines.registry.open_model import open_classifier

    with open_classifier(name) as classifier:
        yield classifier, None
