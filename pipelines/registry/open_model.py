"""The classifier that a command names: a saved folder, or a version in a registry that settings need not name."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from spin.classifier import SpinClassifier
from spin.errors import UserError
from spin.settings import Settings, parse_settings

_URI = "MLFLOW_TRACKING_URI"


@contextmanager
def opened(model: str, settings: Settings | None = None) -> Iterator[SpinClassifier]:
    """The classifier of a folder that `SpinClassifier.save` wrote, of `models:/NAME@alias` or of `models:/NAME/N`.

    Settings name the registry and the backbone, and decide as they do for a night. Without, a folder is as it was
    saved, and a version as MLflow serves it, with the backbone that lies in it; it may go when the context ends.
    A folder needs no extra: MLflow and the file systems are imported for registered versions alone.
    Raises UserError for one that is not there.
    """
    with tempfile.TemporaryDirectory() as scratch:
        if not model.startswith("models:/"):
            yield _saved(Path(model), settings)
        elif settings is not None:
            from pipelines.registry.versions import Registry

            registry = Registry(settings)
            yield registry.load(registry.resolve(model))
        else:
            yield _served(model, Path(scratch))


def _saved(folder: Path, settings: Settings | None) -> SpinClassifier:
    if not folder.is_dir():
        raise UserError(
            f"no folder {folder}; expected one that holds a classifier, models:/NAME@alias or models:/NAME/N"
        )
    if settings is None:
        return SpinClassifier.load(folder)
    return SpinClassifier.load(folder, backbone=settings.backbone, choose=settings.choose, decision=settings.decision)


def _served(model: str, scratch: Path) -> SpinClassifier:
    from pipelines.registry import packaging
    from pipelines.registry.versions import Registry

    if not os.environ.get(_URI):
        raise UserError(f"{model}: no registry is named; set {_URI}, or name a settings file with --settings")
    name = model.removeprefix("models:/").partition("@")[0].partition("/")[0]
    tree = {"backbone": {"model": "none"}, "data": {"train": "none"}, "store": "none", "mlflow": {"model": name}}
    registry = Registry(parse_settings(tree, model))
    folder = registry.download_model(registry.resolve(model), scratch)
    about = yaml.safe_load((folder / "MLmodel").read_text(encoding="utf-8"))
    choose = about["flavors"]["python_function"]["config"]["choose"]
    backbone = (folder / packaging.SPIN).with_name("backbone")
    weights = backbone if backbone.is_dir() else None
    return SpinClassifier.load(folder / packaging.SPIN, weights=weights, choose=choose)
