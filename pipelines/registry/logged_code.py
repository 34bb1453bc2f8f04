"""The code of a logged model: MLflow executes what a version names, so only code that SPIN wrote may be named."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipelines.registry.packaging import BACKBONE, PYFUNC, SPIN
from spin.errors import UserError

FORMER_RELEASES: Mapping[str, str] = {}
"""names of former releases by the sha256 of their pyfunc.py, which versions that they registered still hold"""
_LOADED_BY = {"loader_module": "mlflow.pyfunc.loaders.code_model", "model_code_path": PYFUNC.name}
"""keys of MLflow's flavor that decide what is imported, with their values"""
_HARMLESS = {"cloudpickle_version", "config", "env", "python_version"}
"""keys that name no code; one that is not listed here might name a pickle, a folder of modules or another function"""
_ARTIFACTS = {"spin": SPIN, "backbone": BACKBONE}
_REMEDY = "it is not run: find out who registered it, and delete it in MLflow; `spin run` registers it again"


def require_known_code(model: Path) -> None:
    """Raise UserError unless MLflow loads a logged model by the code of this release, or of a former one, alone."""
    if os.path.lexists(model / "__pycache__"):  # Python would run what is compiled there in place of the code
        raise UserError(f"it has a folder __pycache__, expected none; {_REMEDY}")
    found = _read_flavor(model / "MLmodel")
    artifacts = {name: path for name, path in _ARTIFACTS.items() if name == "spin" or name in found["artifacts"]}
    expected = {**_LOADED_BY, "artifacts": artifacts, "streamable": False}
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise UserError(
                f"its MLmodel has {name}: {found.get(name)!r}, expected {expected.get(name)!r}, so MLflow might load "
                f"other code than that of SPIN; {_REMEDY}"
            )
    digests = {_digest(PYFUNC): "this release", **FORMER_RELEASES}
    digest = _digest(model / PYFUNC.name)
    if digest not in digests:
        known = " or ".join(f"{own[:12]} of {release}" for own, release in digests.items())
        raise UserError(f"its {PYFUNC.name} has sha256 {digest[:12]}, expected {known}; {_REMEDY}")


def _read_flavor(file: Path) -> dict[str, Any]:
    """The keys by which MLflow loads a model as a Python function, without harmless ones and without full paths."""
    try:
        flavor = yaml.safe_load(file.read_text(encoding="utf-8"))["flavors"]["python_function"]
        read = {name: value for name, value in flavor.items() if name not in _HARMLESS and value is not None}
        read["model_code_path"] = os.path.basename(flavor["model_code_path"])  # MLflow looks at the name alone
        read["artifacts"] = {name: artifact["path"] for name, artifact in flavor["artifacts"].items()}
        return read
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"its MLmodel does not say which code loads it ({error!r}); {_REMEDY}") from None


def _digest(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"its {file.name} cannot be read: {error.strerror}; {_REMEDY}") from None
