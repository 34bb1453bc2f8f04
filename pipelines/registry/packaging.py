"""What is registered: a folder that MLflow loads as a pyfunc and serves, and the digest of all that lies in it."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipelines.storage.stage_plan import fingerprint
from spin.backbone.digest import list_model_files
from spin.backbone.loading import find_backbone
from spin.classifier import SpinClassifier
from spin.errors import UserError
from spin.pages.model_card import CARD, card_text
from spin.settings import Settings

SPIN = "artifacts/spin"
"""where an artifact lies in a bundle"""
REFERENCE = "reference.safetensors"
"""the file of an artifact with the profiles that nights are compared with"""
REQUIREMENTS = (
    "mlflow",
    "numba",
    "numpy",
    "pandas",
    "pyarrow",
    "pydantic",
    "pyyaml",
    "safetensors",
    "scikit-learn",
    "scipy",
    "spin-neurons",
    "tokenizers",
    "torch",
    "transformers",
)
"""what a bundle needs to load"""
_DESCRIPTION = 5000
"""characters of a version's description in MLflow's databases"""


def write_bundle(folder: Path, artifact: Path, settings: Settings, example: Sequence[str], model: Any) -> None:
    """Write an artifact as a pyfunc from code, with the backbone's files unless `registry.include_backbone` is off.

    `model` is the `mlflow.models.Model` that it describes. Raises UserError for a backbone that is not the artifact's.
    """
    import mlflow
    import pandas as pd

    spin = SpinClassifier.load(artifact)
    parts = {"spin": list(artifact.iterdir())}
    if settings.registry.include_backbone:
        found, _ = find_backbone(settings.backbone, expect_digest=spin.backbone_digest)
        parts["backbone"] = list_model_files(found, include_code=settings.backbone.trust_remote_code)
    with tempfile.TemporaryDirectory() as staged:
        for name, files in parts.items():
            (Path(staged) / name).mkdir()
            for file in files:
                _link(file.resolve(), Path(staged) / name / file.name)
        mlflow.pyfunc.save_model(
            folder,
            mlflow_model=model,
            python_model=str(Path(__file__).with_name("pyfunc.py")),
            artifacts={name: str(Path(staged) / name) for name in parts},
            model_config={"choose": settings.choose},
            signature=_signature(spin.label_space.multilabel),
            input_example=pd.DataFrame({"text": list(example)}),
            # a build's own mark, such as +cpu, is on no index
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in REQUIREMENTS],
        )


def _link(file: Path, to: Path) -> None:
    """MLflow copies what is staged, but follows no symbolic link out of it."""
    try:
        to.hardlink_to(file)
    except OSError:  # another file system, or a file of another user
        shutil.copyfile(file, to)


def _signature(multilabel: bool) -> Any:
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


def description(artifact: Path) -> str:
    """The model card without its metadata, as far as MLflow's databases have room for it; empty if there is none."""
    card = artifact / CARD
    text = card_text(card.read_text(encoding="utf-8")) if card.is_file() else ""
    if len(text) <= _DESCRIPTION:
        return text
    more = f"\n\n… the rest is in {SPIN}/{CARD}"
    return text[: _DESCRIPTION - len(more)].rpartition("\n")[0] + more


def digest(folder: Path) -> str:
    """sha256 over the names and contents of a folder's files. Raises UserError for what is no plain file in it."""
    digests: dict[str, str] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise UserError(f"the artifact holds {name}, which is not a plain file; promote another version")
        if path.is_file():
            with path.open("rb") as file:
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return fingerprint(digests)
