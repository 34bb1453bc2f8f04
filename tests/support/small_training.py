"""A corpus and settings of trainings that run every stage in this process, on a tiny random backbone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spin.settings import Settings, parse_settings
from tests.support import tiny
from tests.support.registry_databases import create_database


def write_corpus(folder: Path, documents: int, classes: Sequence[str]) -> None:
    """Write labelled documents and a backbone to a folder."""
    tiny.save_bert(folder / "bert")
    table = pa.Table.from_pylist(tiny.make_documents(documents, tuple(classes)))
    pq.write_table(table, folder / "train.parquet", row_group_size=100)


def make_settings(folder: Path, store: Path, **changes: Any) -> Settings:
    """Settings for the corpus in a folder, in shards of 100 documents."""
    tree = {
        "backbone": {"model": str(folder / "bert"), "dtype": "float32", "device": "cpu"},
        "data": {"train": str(folder / "train.parquet")},
        "store": str(store),
        "mlflow": {"model": "tiny", "tracking_uri": create_database(Path(f"{store}.db"))},
        "ray": {"workers": 0, "shard_documents": 100},
        "probe": {"penalties": 4},
    }
    return parse_settings({**tree, **changes})
