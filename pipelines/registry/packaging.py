"""Write the folder that is registered, a pyfunc that MLflow loads and serves, and compute digests of folders."""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from pipelines.storage.stage_plan import fingerprint
from spin.backbone.digest import list_model_files
from spin.backbone.loading import find_backbone
from spin.classifier import TrainedClassifier
from spin.errors import UserError
from spin.fitted import persistence
from spin.pages.model_card import CARD, card_text
from spin.settings import Settings

SPIN = "artifacts/spin"
"""folder of the artifact in a bundle"""
BACKBONE = "artifacts/backbone"
"""folder of the backbone in a bundle that includes it"""
REFERENCE = "reference.safetensors"
"""file of an artifact with the profiles of the training data, for drift"""
PYFUNC = Path(__file__).with_name("pyfunc.py")
"""the code by which MLflow loads a bundle, which holds a copy of this name"""
REQUIREMENTS = (
    "filelock",
    "jinja2",
    "markupsafe",
    "mlflow",
    "numba",
    "numpy",
    "pandas",
    "pyarrow",
    "pydantic",
    "pydantic-core",
    "pyyaml",
    "rich",
    "safetensors",
    "scikit-learn",
    "scipy",
    "spin-neurons",
    "threadpoolctl",
    "tokenizers",
    "torch",
    "transformers",
)
"""distributions that a bundle imports when it is loaded"""
EXAMPLE = ("This is a short text.", "Here is another one, which is a little longer.")
"""texts of the input example: no documents of a corpus, since whoever may read a version may read them"""
DESCRIPTION_LIMIT = 5000
"""characters that MLflow's databases hold of a version's description"""

_log = logging.getLogger(__name__)


def write_bundle(folder: Path, artifact: Path, settings: Settings, model: Any) -> None:
    """Write an artifact as a pyfunc from code, with the backbone's files unless `registry.include_backbone` is off.

    `model` is the `mlflow.models.Model` to save. Raises UserError where the backbone of the settings is not the one
    that the artifact was trained on.
    """
    import mlflow
    import pandas as pd

    spin = TrainedClassifier.load(artifact)
    parts = {"spin": list(artifact.iterdir())}
    if settings.registry.include_backbone:
        backbone, _ = find_backbone(settings.backbone, expect_digest=spin.backbone_digest)
        parts["backbone"] = list_model_files(backbone, include_code=settings.backbone.trust_remote_code)
    with tempfile.TemporaryDirectory() as staged:
        for name, files in parts.items():
            (Path(staged) / name).mkdir()
            for file in files:
                _link(file.resolve(), Path(staged) / name / file.name)
        mlflow.pyfunc.save_model(
            folder,
            mlflow_model=model,
            python_model=str(PYFUNC),
            artifacts={name: str(Path(staged) / name) for name in parts},
            model_config={"choose": settings.choose},
            signature=_signature(spin.label_space.multilabel),
            input_example=pd.DataFrame({"text": list(EXAMPLE)}),
            # a local version label such as +cpu is on no package index
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in _requirements(spin)],
        )


def _requirements(spin: TrainedClassifier) -> tuple[str, ...]:
    """The distributions that the bundle of a classifier needs."""
    return (*REQUIREMENTS, "openvino") if spin.settings.dtype == "int8" else REQUIREMENTS


def _link(file: Path, to: Path) -> None:
    """Hard-link a file, else copy it: MLflow copies the staged folder and follows no symbolic link out of it."""
    try:
        to.hardlink_to(file)
    except OSError:  # another file system, or a file of another user
        _log.debug("cannot hard-link %s, so it is copied", file, exc_info=True)
        shutil.copyfile(file, to)


def _signature(multilabel: bool) -> Any:
    """The `mlflow.models.ModelSignature` of pyfunc.py."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array

    label = Array(DataType.string) if multilabel else DataType.string
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string, "text")]),
        outputs=Schema(
            [
                ColSpec(label, "label", required=False),
                ColSpec(DataType.double, "score"),
                ColSpec(DataType.string, "explanation", required=False),
            ]
        ),
        params=ParamSchema(
            [ParamSpec("threshold", DataType.double, 0.0), ParamSpec("explain", DataType.boolean, False)]
        ),
    )


def version_description(artifact: Path) -> str:
    """The model card without its metadata, cut at the end of a line to MLflow's limit; empty where there is none."""
    card = artifact / CARD
    return cut_card(card_text(card.read_text(encoding="utf-8")) if card.is_file() else "", DESCRIPTION_LIMIT)


def cut_card(text: str, limit: int) -> str:
    """The text of a model card; one that exceeds a limit is cut at the end of a line, with a note where the rest is."""
    if len(text) <= limit:
        return text
    more = f"\n\n… the rest is in {SPIN}/{CARD}"
    return text.removesuffix(more)[: limit - len(more)].rpartition("\n")[0] + more


def load_bundle(folder: Path) -> TrainedClassifier:
    """The classifier of a bundle as MLflow serves it, with the backbone that the bundle includes, without its code."""
    config = yaml.safe_load((folder / "MLmodel").read_text(encoding="utf-8"))
    choose = config["flavors"]["python_function"]["config"]["choose"]
    weights = folder / BACKBONE if (folder / BACKBONE).is_dir() else None
    return TrainedClassifier.load(folder / SPIN, weights=weights, choose=choose)


def fetch_weights(folder: Path) -> None:
    """Bring the weights of a bundle that includes none to this machine, where a process without a network finds them.

    Raises UserError where they are missing or differ from those of the training.
    """
    if not (folder / BACKBONE).is_dir():
        metadata = persistence.read_metadata(folder / SPIN)
        find_backbone(metadata.backbone, expect_digest=metadata.backbone_digest)


def folder_digest(folder: Path) -> str:
    """sha256 over the names and contents of a folder's files. Raises UserError for anything but plain files in it."""
    return fingerprint(file_digests(folder))


def file_digests(folder: Path) -> dict[str, str]:
    """sha256 of each file of a folder, by its path there. Raises UserError for anything but plain files in it."""
    digests: dict[str, str] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise UserError(f"the artifact holds {name}, which is not a plain file; promote another version")
        if path.is_file():
            with path.open("rb") as file:
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests
