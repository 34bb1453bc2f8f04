"""A model version that version 0.1 registered: its files, and what it is expected to predict."""

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
from tests.support.registry_fixture import training_record
from tests.support.repository import ROOT

BUNDLE = ROOT / "tests" / "fixtures" / "version_0_1"
"""all that version 0.1 logged of a version, as MLflow loads it; its pyfunc.py stays byte for byte as it was"""


@dataclass(frozen=True)
class Expected:
    """What version 0.1 itself predicted with the model."""

    texts: list[str]
    labels: list[str]
    probabilities: list[list[float]]
    """one row per text; the classes are `bad` and `good`"""


def expected() -> Expected:
    return Expected(**json.loads(BUNDLE.with_name("version_0_1_predictions.json").read_text(encoding="utf-8")))


def copy_bundle(folder: Path) -> Path:
    """A copy of the version's files: MLflow and Python write into the folder that they load from."""
    return Path(shutil.copytree(BUNDLE, folder))


def register_bundle(registry: Registry, bundle: Path, frozen: EvaluationSet) -> str:
    """Register a folder that was packaged before as a version, under the digests that the registry checks."""

    def copy(folder: Path, *_: Any) -> None:
        shutil.copytree(bundle, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packaging, "write_bundle", copy)
        return registry.register(bundle / packaging.SPIN, training_record(frozen)).version
