"""Executes the notebooks of `docs/notebooks` and stores their outputs in them. `make notebooks` runs it.

Two of them read the project of the quickstart. What they write is in `runs/notebook`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "docs" / "notebooks"


def main() -> None:
    """Execute every notebook in its own folder. Raises CellExecutionError for a cell that fails."""
    import nbformat  # of the extra `docs`, which the digest does not need
    from nbclient import NotebookClient

    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # for cells that run `spin`
    shutil.rmtree(ROOT / "runs" / "notebook", ignore_errors=True)  # a second night would not be classified again
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        client = NotebookClient(notebook, timeout=None, record_timing=False, coalesce_streams=True)
        client.execute(cwd=str(NOTEBOOKS))
        for cell in notebook.cells:
            if cell.cell_type == "code":  # progress and warnings are of this machine
                cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        notebook.metadata["code"] = digest_code(notebook)
        nbformat.write(notebook, path)


def digest_code(notebook: dict[str, Any]) -> str:
    """Return a digest of the code of a notebook, which is stored with the outputs that the code has given."""
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return hashlib.blake2b("\0".join(code).encode(), digest_size=8).hexdigest()


if __name__ == "__main__":
    main()
