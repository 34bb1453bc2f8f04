"""Empty databases of MLflow. Making one takes a second of a processor for its migrations, copying one takes none."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path


def create_database(file: Path) -> str:
    """Write an empty database to a file unless it exists; return its tracking URI."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(_empty_database())
    return f"sqlite:///{file}"


@functools.cache
def _empty_database() -> bytes:
    """The content of a database that MLflow has made, without models and runs."""
    from mlflow import MlflowClient

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mlflow.db"
        MlflowClient(f"sqlite:///{file}").search_experiments()
        return file.read_bytes()
