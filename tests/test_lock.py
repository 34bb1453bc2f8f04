"""The lock holds what the project needs, at the tested versions, with digests, and nothing that hardware decides."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support.repository import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FLOORS = {"ray": "2.55", "transformers": "5.5", "mlflow": "3.16.1", "filelock": "3.20.1", "pyarrow": "23.0.1"}
"""versions before which there are known ways to run foreign code"""


def list_requirements() -> list[Requirement]:
    """What the project and its extras require, but other extras of it."""
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    requirements = [Requirement(text) for group in groups for text in group]
    return [each for each in requirements if each.name != PROJECT["name"]]


def read_lock() -> dict[str, tuple[str, int]]:
    """The version and the number of digests of each package."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    entries = re.findall(
        r"^([\w.-]+)(?:\[[\w,-]+\])?==(\S+) ;[^\n]*((?:\n    --hash=sha256:[0-9a-f]{64}(?: \\)?)*)", text, re.MULTILINE
    )
    return {canonicalize_name(name): (version, hashes.count("--hash=")) for name, version, hashes in entries}


def test_the_lock_holds_all_that_is_required_with_digests() -> None:
    lock = read_lock()
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    assert len(lock) == sum(line[:1].isalpha() for line in lines), "each entry is a version"
    assert not [name for name, (_, digests) in lock.items() if not digests]
    assert not [name for name in lock if re.match(r"torch$|triton|nvidia-|cuda-", name)]
    for requirement in list_requirements():
        name = canonicalize_name(requirement.name)
        if name != "torch":
            assert requirement.specifier.contains(lock[name][0], prereleases=True), requirement


def test_the_lock_has_the_versions_of_the_constraints() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    locked = {name: version for name, (version, _) in read_lock().items() if name != "setuptools"}  # pip never lists it
    assert {canonicalize_name(name): version for name, version in pinned.items()} == locked


@pytest.mark.parametrize("name", FLOORS)
def test_no_range_allows_a_version_that_is_known_to_run_foreign_code(name: str) -> None:
    ranges = [each.specifier for each in list_requirements() if each.name == name]
    assert ranges
    for allowed in ranges:
        [floor] = [Version(part.version) for part in allowed if part.operator == ">="]
        assert floor >= Version(FLOORS[name])
