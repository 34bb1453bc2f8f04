"""Classify a batch as a night, and read it as its readers do: all of a night or none of it.

    python examples/classify_every_night.py [SETTINGS INPUT OUTPUT]

SETTINGS is the file of a project with a champion, such as that of `make quickstart`. A scheduler would run
`spin classify SETTINGS --input INPUT --output OUTPUT --since OUTPUT` and look at its exit status.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

from pipelines.nightly.classify import run_classify
from pipelines.registry.versions import Registry
from spin import load_settings


def main(
    settings: str = "runs/quickstart/settings.yaml",
    source: str = "runs/quickstart/tonight.parquet",
    output: str = "runs/example/nights",
) -> None:
    loaded = load_settings(settings)
    run_classify(loaded, Registry(loaded), source, output)

    nights = Path(output)
    latest = json.loads((nights / "latest").read_text())
    manifest = json.loads((nights / latest["manifest"]).read_text())
    labels: Counter[str] = Counter()
    for part in manifest["parts"]:
        if part["key"].startswith("predictions/"):
            labels.update(pq.ParquetFile(nights / part["key"]).read(["label"])["label"].to_pylist())
    counts = manifest["counts"]
    print(
        f"{latest['date']}: {counts['rows']:,} rows, {counts['predicted']:,} predicted, {counts['dead']:,} dead letters"
    )
    print(", ".join(f"{label} {count:,}" for label, count in labels.most_common()))


if __name__ == "__main__":
    main(*sys.argv[1:])
