"""Open the classifier that a command names: a saved folder, or a version in a registry."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spin.classifier import TrainedClassifier
from spin.errors import UserError
from spin.settings import Settings, parse_settings

# The registry's modules are imported where a version is opened: a saved folder needs neither MLflow nor a store.

_PREFIX = "models:/"
_URI = "MLFLOW_TRACKING_URI"


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
        from pipelines.registry.versions import Registry

        registry = Registry(settings)
        yield registry.load(registry.resolve(model))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            yield _open_served(model, Path(scratch))


def _open_folder(folder: Path, settings: Settings | None) -> TrainedClassifier:
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
    """A version of the registry that the environment names."""
    from pipelines.registry.packaging import load_bundle
    from pipelines.registry.versions import Registry

    if not os.environ.get(_URI):
        raise UserError(f"{model}: no registry is named; set {_URI}, or name a settings file with --settings")
    name = model.removeprefix(_PREFIX).partition("@")[0].partition("/")[0]
    tree = {"backbone": {"model": "none"}, "data": {"train": "none"}, "store": "none", "mlflow": {"model": name}}
    registry = Registry(parse_settings(tree, model))
    return load_bundle(registry.download_model(registry.resolve(model), scratch))
