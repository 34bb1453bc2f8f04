"""The classifier that a command line names: a saved one, a version of a registry, or the one of a settings file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.extras import require_pipelines
from jobs.options import open_registry
from spin.errors import UserError
from spin.settings import Settings, load_settings, parse_settings

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

_PREFIX = "models:/"
_URI = "MLFLOW_TRACKING_URI"


@dataclass(frozen=True)
class RegisteredVersion:
    """The version of a settings file that a classifier was loaded from."""

    registry: Registry
    number: str


@contextmanager
def open_named(
    name: str, model: str | None, overrides: Sequence[str], command: str
) -> Iterator[tuple[TrainedClassifier, RegisteredVersion | None]]:
    """Yield the classifier that a `Name` names, and where it comes from if that is a settings file.

    Raises UserError for `--model` and `--set` without a settings file, and where packages for a registry are missing.
    """
    registered = name.startswith(_PREFIX)
    if not registered and not Path(name).is_dir():
        settings = load_settings(name, overrides)
        require_pipelines(f"{command} with a registered model")
        registry = open_registry(settings)
        number = registry.resolve(model)
        yield registry.load(number), RegisteredVersion(registry, number)
        return
    if model is not None or overrides:
        given = f"--model {model}" if model is not None else f"--set {overrides[0]}"
        raise UserError(
            f"{given} is for registered models that a settings file names, and {name} is a classifier; name such a file"
        )
    if registered:
        require_pipelines(f"{command} with a registered model")
    with open_classifier(name) as classifier:
        yield classifier, None


@contextmanager
def open_classifier(model: str, settings: Settings | None = None) -> Iterator[TrainedClassifier]:
    """Yield the classifier of a folder that `SpinClassifier.save` wrote, of `models:/NAME@alias` or `models:/NAME/N`.

    Settings name the registry and the backbone and decide as in a night. Without settings, a folder is used as it was
    saved, and a version as MLflow serves it, with the backbone that it includes; the files of a version are removed
    when the context ends. Raises UserError where there is no such model.
    """
    if not model.startswith(_PREFIX):
        yield _open_folder(Path(model), settings)
    elif settings is not None:
        registry = open_registry(settings)
        yield registry.load(registry.resolve(model))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            yield _open_served(model, Path(scratch))


def _open_folder(folder: Path, settings: Settings | None) -> TrainedClassifier:
    from spin.classifier import TrainedClassifier

    if not folder.is_dir():
        raise UserError(
            f"no folder {folder}; expected one that `SpinClassifier.save` wrote, or a version that `spin run` "
            "registered, as models:/NAME@alias or models:/NAME/N"
        )
    if settings is None:
        return TrainedClassifier.load(folder)
    return TrainedClassifier.load(
        folder, backbone=settings.backbone, choose=settings.choose, decision=settings.decision
    )


def _open_served(model: str, scratch: Path) -> TrainedClassifier:
    """Return a version of the registry that the environment names."""
    from pipelines.registry.packaging import load_bundle

    if not os.environ.get(_URI):
        raise UserError(f"{model}: no registry is named; set {_URI}, or name a settings file with --settings")
    name = model.removeprefix(_PREFIX).partition("@")[0].partition("/")[0]
    tree = {"backbone": {"model": "none"}, "data": {"train": "none"}, "store": "none", "mlflow": {"model": name}}
    registry = open_registry(parse_settings(tree, model))
    return load_bundle(registry.download_model(registry.resolve(model), scratch))
