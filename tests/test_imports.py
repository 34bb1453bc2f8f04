"""Arrows point one way: jobs to pipelines to spin; each service's library behind its one module."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("spin", "pipelines", "jobs")
ALLOWED: dict[str, tuple[str, ...]] = {
    "pipelines": ("pipelines", "jobs"),
    "jobs": ("jobs",),
    "ray": ("pipelines",),
    "mlflow": tuple(f"pipelines.{name}" for name in ("tracking", "registry", "bundle", "pyfunc", "gate", "stranger")),
    **dict.fromkeys(("fsspec", "s3fs", "botocore", "boto3", "aiobotocore"), ("pipelines.store",)),
    **dict.fromkeys(("infra", "benchmarks", "tests"), ()),
}
"""who may import a package: modules, or all modules of a package; what is not named here anyone may"""


def imports(source: str, package: str) -> set[str]:
    """Every module that a source imports, wherever the statement stands: in a function or for type checks too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            found.add(".".join([*above, *([node.module] if node.module else [])]))
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                found.add(str(node.args[0].value))
    return found


def wrong_arrows(module: str, source: str) -> list[str]:
    """The imports that `module` may not have."""
    found = []
    for imported in sorted(imports(source, module.rpartition(".")[0])):
        allowed = ALLOWED.get(imported.split(".")[0])
        if allowed is not None and not {module, module.split(".")[0]} & set(allowed):
            found.append(f"{module} imports {imported}")
    return found


SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_arrow_points_the_wrong_way(path: Path) -> None:
    """Every source of the three packages, lazy imports included."""
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    assert wrong_arrows(module, path.read_text(encoding="utf-8")) == []


def test_sources_are_found() -> None:
    """The rule above is not satisfied by reading nothing, and the modules that it excepts exist."""
    modules = {".".join(p.relative_to(ROOT).with_suffix("").parts) for p in SOURCES}
    assert len(modules) > 30
    assert {m for of in ALLOWED.values() for m in of if "." in m} <= modules


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("spin.head", "import ray", ["spin.head imports ray"]),
        ("spin.head", "def f():\n    from mlflow.pyfunc import x", ["spin.head imports mlflow.pyfunc"]),
        ("spin.head", "if TYPE_CHECKING:\n    from pipelines.store import S", ["spin.head imports pipelines.store"]),
        ("spin.head", "import jobs.cli as c, s3fs", ["spin.head imports jobs.cli", "spin.head imports s3fs"]),
        ("spin.head", "x = importlib.import_module('fsspec.core')", ["spin.head imports fsspec.core"]),
        ("spin.head", "from . import probe\nfrom .lasso import x\nimport raymond", []),
        ("pipelines.train", "import jobs", ["pipelines.train imports jobs"]),
        ("pipelines.train", "import ray, mlflow", ["pipelines.train imports mlflow"]),
        ("pipelines.corpus", "import fsspec", ["pipelines.corpus imports fsspec"]),
        ("pipelines.store", "import fsspec, s3fs\nfrom botocore.exceptions import E", []),
        ("pipelines.pyfunc", "import mlflow", []),
        ("pipelines.promotion", "def f():\n    import mlflow", ["pipelines.promotion imports mlflow"]),
        ("pipelines.train", "from benchmarks import run", ["pipelines.train imports benchmarks"]),
        ("jobs.cli", "import ray.data\nimport pipelines.road", ["jobs.cli imports ray.data"]),
        ("jobs.cli", "import infra", ["jobs.cli imports infra"]),
    ],
)
def test_a_wrong_arrow_is_seen(module: str, source: str, wrong: list[str]) -> None:
    """The check itself finds what it should, and no more."""
    assert wrong_arrows(module, source) == wrong
