"""The import rules hold for imports by name too, which import-linter does not see."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tests.support.repository import ROOT

SOURCES = sorted(path for package in ("spin", "pipelines", "jobs") for path in (ROOT / package).rglob("*.py"))


def list_modules_imported_by_name(source: str) -> list[str]:
    """Return the names that a source passes to `import_module` or `__import__` as strings."""
    modules = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                modules.append(str(node.args[0].value))
    return modules


def test_no_module_is_imported_by_name() -> None:
    """import-linter cannot check such an import against the rules in pyproject.toml."""
    assert len(SOURCES) > 100
    imports = {str(path.relative_to(ROOT)): list_modules_imported_by_name(path.read_text("utf-8")) for path in SOURCES}
    assert {path: names for path, names in imports.items() if names} == {}


@pytest.mark.parametrize(
    ("source", "modules"),
    [
        ("x = importlib.import_module('fsspec.core')", ["fsspec.core"]),
        ("def f():\n    return __import__('ray')", ["ray"]),
        ("import ray\nx = find_spec('ray')", []),
    ],
)
def test_imports_by_name_are_detected(source: str, modules: list[str]) -> None:
    assert list_modules_imported_by_name(source) == modules


@pytest.mark.slow
def test_inference_imports_no_library_for_training() -> None:
    """Every worker process imports these modules; a library that it does not use costs each of them seconds."""
    unneeded = ("sklearn", "numba", "scipy.stats", "pandas", "mlflow")
    modules = "spin.classifier, pipelines.nightly.steps.classify_step, pipelines.training.extract_features"
    code = f"import sys, {modules}; print([name for name in {unneeded} if name in sys.modules])"
    imported = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert imported.stdout.strip() == "[]"
