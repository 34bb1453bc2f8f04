"""A model version that SPIN 0.1 registered: its files and expected predictions."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines.registry import packaging
from pipelines.registry.evaluation_set import EvaluationSet
from pipelines.registry.versions import Registry
from tests.support.registry_fixture import build_training_record
from tests.support.repository import ROOT

BUNDLE = ROOT / "tests" / "fixtures" / "version_0_1"
"""the files that SPIN 0.1 logged, as MLflow loads them; its pyfunc.py must never change"""


@dataclass(frozen=True)
class Expected:
    """Predictions that SPIN 0.1 made with the model."""

    texts: list[str]
    labels: list[str]
    probabilities: list[list[float]]
    """one row per text; the classes are `bad` and `good`"""


def load_expected() -> Expected:
    return Expected(**json.loads(BUNDLE.with_name("version_0_1_predictions.json").read_text(encoding="utf-8")))


def copy_bundle(folder: Path) -> Path:
    """Copy the version's files, since MLflow and Python write into the folder that they load from."""
    return Path(shutil.copytree(BUNDLE, folder))


def register_bundle(registry: Registry, bundle: Path, evaluation_set: EvaluationSet) -> str:
    """Register an existing bundle as a new version, with the digests that the registry checks."""

    def copy(folder: Path, *_: Any) -> None:
        shutil.copytree(bundle, folder, ignore=shutil.ignore_patterns("__pycache__"))  # Python may have written it

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packaging, "write_bundle", copy)
        return registry.register(bundle / packaging.SPIN, build_training_record(evaluation_set)).version
