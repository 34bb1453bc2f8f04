"""The outputs in the notebooks are those of their code, and their commands exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from docs.notebook_outputs import NOTEBOOKS, digest_code
from tests.docs.pages import split_command
from tests.docs.test_pages import parse_command

FILES = sorted(NOTEBOOKS.glob("*.ipynb"))


def read_code_cells(path: Path) -> list[dict[str, Any]]:
    """Return the cells of a notebook that hold code."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_there_are_three_notebooks() -> None:
    assert [path.stem for path in FILES] == ["a-night", "explain-and-audit", "own-data"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_notebook_holds_the_outputs_of_its_code(path: Path) -> None:
    """Every cell was executed, in order and without an error, and not changed since: else run `make notebooks`."""
    notebook, cells = json.loads(path.read_text(encoding="utf-8")), read_code_cells(path)
    assert notebook["metadata"]["code"] == digest_code(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = [output["output_type"] for cell in cells for output in cell["outputs"]]
    assert kinds
    assert "error" not in kinds


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_command_of_a_notebook_parses(path: Path) -> None:
    for cell in read_code_cells(path):
        for line in re.findall(r"^spin [a-z]+ .*", "".join(cell["source"]), re.MULTILINE):
            parse_command(split_command(line))
