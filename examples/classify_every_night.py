"""Classify a batch as a night, and read it as its readers do: all of a night or none of it.

    python examples/classify_every_night.py [SETTINGS INPUT OUTPUT]

SETTINGS is the file of a project with a champion, such as that of `make quickstart`. A scheduler would run
`spin classify SETTINGS --input INPUT --output OUTPUT --incremental` and look at its exit status.
"""

from __future__ import annotations

import sys
from collections import Counter

import pyarrow as pa
from deltalake import DeltaTable

from pipelines.nightly.classify import run_classify
from pipelines.registry.versions import Registry
from spin import load_settings


def main(
    settings: str = "runs/quickstart/settings.yaml",
    source: str = "runs/quickstart/tonight.parquet",
    output: str = "runs/example/nights",
) -> None:
    loaded = load_settings(settings)
    report = run_classify(loaded, Registry(loaded), source, output)
    counts = report.counts
    print(f"{report.date}: {counts.rows:,} rows, {counts.predicted:,} predicted, {counts.dead:,} dead letters")

    night = DeltaTable(f"{output}/predictions").scan(columns=["label"], predicate=f"date = '{report.date}'")
    labels = Counter(pa.table(night)["label"].to_pylist())
    print(", ".join(f"{label} {count:,}" for label, count in labels.most_common()))


if __name__ == "__main__":
    main(*sys.argv[1:])
