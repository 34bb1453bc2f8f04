"""The import rules hold for imports by name too, which import-linter does not see."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tests.support.repository import ROOT

SOURCES = sorted(path for package in ("spin", "pipelines", "jobs") for path in (ROOT / package).rglob("*.py"))


def modules_imported_by_name(source: str) -> list[str]:
    """What a source hands to `import_module` or `__import__` as a string."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                found.append(str(node.args[0].value))
    return found


def test_nothing_is_imported_by_name() -> None:
    """An import by name would go round the rules in pyproject.toml."""
    assert len(SOURCES) > 100
    found = {str(path.relative_to(ROOT)): modules_imported_by_name(path.read_text("utf-8")) for path in SOURCES}
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("x = importlib.import_module('fsspec.core')", ["fsspec.core"]),
        ("def f():\n    return __import__('ray')", ["ray"]),
        ("import ray\nx = find_spec('ray')", []),
    ],
)
def test_an_import_by_name_is_seen(source: str, found: list[str]) -> None:
    assert modules_imported_by_name(source) == found


@pytest.mark.parametrize(
    "module", ["spin.classifier", "pipelines.nightly.classify_step", "pipelines.training.extract_features"]
)
def test_inference_imports_no_library_for_training(module: str) -> None:
    """Every worker process imports these modules; a library that it does not use costs each of them seconds."""
    unneeded = ("sklearn", "numba", "scipy.stats", "pandas", "mlflow")
    code = f"import sys, {module}; print([name for name in {unneeded} if name in sys.modules])"
    imported = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert imported.stdout.strip() == "[]"
