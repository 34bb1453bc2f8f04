"""Probes and heads on activations of the size of a backbone with eight billion parameters.

The activations are random, with a few neurons per layer that follow the classes. A fraction of the layers is measured,
from which the whole is extrapolated: probes are fitted layer by layer, and the ridge regression adds up over layers.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.limits.process_memory import run_watched
from benchmarks.section_page import Part, table
from pipelines.data.corpus import Corpus, CorpusSpool
from pipelines.data.feature_pool import Places
from pipelines.data.feature_store import LABELS, FeatureShards, add_places
from pipelines.data.spool import PartSize
from pipelines.data.training_labels import Labels, Sample
from pipelines.storage.object_store import Store
from pipelines.storage.parquet import to_parquet
from pipelines.training.fit_heads import HeadsJob, fit_heads
from pipelines.training.fit_probes import ProbesJob, fit_columns, read_probe, read_ridge
from spin.activations.feature_table import features_table
from spin.activations.features import Features
from spin.fit import group_by_site
from spin.labels.label_space import LabelSpace
from spin.labels.splits import assign_split
from spin.settings import Settings, parse_settings
from spin.sites import FeatureColumn, Site

LAYERS, OF_LAYERS = 8, 32
"""layers that are measured, and that the backbone has"""
WIDTHS = {"ffn": 14_336, "resid": 4_096}
POOLINGS = ("mean", "max")
DOCUMENTS, SHARD, CLASSES = 20_000, 500, 3
_SIGNAL_NEURONS, _SIGNAL = 40, 0.5
"""neurons of a column that follow a class, and by how many standard deviations"""


@dataclass(frozen=True)
class LargeBackboneCost:
    """What fitting probes and heads takes, each in a fresh process."""

    layers: int
    seconds: dict[str, float]
    """of `probes` (with the ridge regression) and of `heads`"""
    peak: dict[str, float]
    """peak resident memory in MB, likewise"""
    own: dict[str, float]
    """peak anonymous memory in MB"""
    stored: float
    """GB of features"""


def measure(folder: Path, *, quick: bool) -> LargeBackboneCost:
    """Write the activations, then fit probes and heads and measure both."""
    shape = (1, 1_500, 8) if quick else (LAYERS, DOCUMENTS, 1)
    write_features(folder, *shape)
    seconds, peak, own = {}, {}, {}
    for part in ("probes", "heads"):
        command = [sys.executable, "-m", "benchmarks.limits.large_backbone", part, str(folder)]
        start = time.perf_counter()
        watch = run_watched(command, f"{part} of the large backbone")
        seconds[part] = time.perf_counter() - start
        peak[part], own[part] = watch.peak["driver"], watch.own["driver"]
    stored = sum(file.stat().st_size for file in (folder / "features").iterdir())
    return LargeBackboneCost(shape[0], seconds, peak, own, stored / 1e9)


def section(cost: LargeBackboneCost) -> Part:
    """Seconds and memory of both parts, and the seconds of all layers."""
    factor = OF_LAYERS / cost.layers
    rows = [
        [part, f"{cost.seconds[part]:,.0f}", f"{factor * cost.seconds[part] / 3600:.1f}", f"{cost.peak[part]:,.0f}",
         f"{cost.own[part]:,.0f}"]
        for part in ("probes", "heads")
    ]  # fmt: skip
    text = [
        table(["", "s", f"all {OF_LAYERS} layers, h", "peak, MB", "own, MB"], rows),
        f"{cost.layers} of {OF_LAYERS} layers of {WIDTHS['ffn']:,} FFN neurons and {WIDTHS['resid']:,} residual ones "
        f"under {len(POOLINGS)} poolings, {DOCUMENTS:,} documents of {CLASSES} classes, random activations of which "
        f"{_SIGNAL_NEURONS} per column follow the classes; {cost.stored:.1f} GB in shards of {SHARD} documents. One "
        "process of one thread. Probes: with the ridge regression; they are fitted site by site. Heads: the search and "
        "the heads that it chose, without refit. All layers: extrapolated in proportion. Peak: the peak resident "
        "memory of the process (VmHWM of Linux); own: anonymous memory, measured ten times per second.\n",
    ]
    largest = max(cost.peak.values())
    return "\n".join(text), [
        (largest <= _MOST, f"the process takes at most {_MOST / 1000:g} GB ({largest / 1000:.1f} GB)")
    ]


_MOST = 6_000.0
"""promise: MB per process"""


def write_features(folder: Path, layers: int, documents: int, divided_by: int) -> None:
    """Write shards as `spin extract` does, of all columns of some layers; widths may be divided for a quick trial."""
    (folder / "features").mkdir(parents=True)
    draw = np.random.default_rng(0)
    y = draw.integers(0, CLASSES, documents)
    widths = {
        str(FeatureColumn(Site(layer, kind), pooling)): width // divided_by
        for layer in range(1, layers + 1)
        for kind, width in WIDTHS.items()
        for pooling in POOLINGS
    }
    for first in range(0, documents, SHARD):
        own = y[first : first + SHARD]
        columns = {}
        for name, width in widths.items():
            values = draw.standard_normal((len(own), width), np.float32)
            values[:, :_SIGNAL_NEURONS] += _SIGNAL * (np.arange(_SIGNAL_NEURONS) % CLASSES == own[:, None])
            columns[FeatureColumn.parse(name)] = values.astype(np.float16)
        tokens = np.zeros(len(own), np.int32)
        pq.write_table(
            features_table(Features(columns, tokens, tokens, tokens > 0)),
            folder / "features" / f"{first:06d}.parquet",
            compression="none",
            use_dictionary=False,
            write_statistics=False,
        )
    (folder / "shape.json").write_text(json.dumps({"y": y.tolist(), "widths": widths}), encoding="utf-8")


def _fit(part: str, folder: Path) -> None:
    """Fit probes or heads; this is what a fresh process does."""
    shape = json.loads((folder / "shape.json").read_text(encoding="utf-8"))
    y, settings = np.array(shape["y"]), _settings(folder)
    keys = sorted(file.name for file in (folder / "features").iterdir())
    sizes = tuple(min(SHARD, len(y) - SHARD * i) for i in range(len(keys)))
    columns = {FeatureColumn.parse(name): width for name, width in shape["widths"].items()}
    (folder / LABELS).write_bytes(to_parquet(add_places(pa.table({}), Places.of_sizes(sizes))))
    features = FeatureShards(Store(str(folder)), sizes, tuple(f"features/{key}" for key in keys), columns)
    splits = [assign_split(row, 0, 0.15, 0.0) for row in range(len(y))]
    groups = np.arange(len(y), dtype=np.uint64)
    sample = Sample.of(Labels([], LabelSpace(tuple("abc"[:CLASSES])), y, splits, groups).training_data(settings))
    probes, heads = Store(str(folder / "probes")), Store(str(folder / "heads"))
    sites = group_by_site(list(columns))
    if part == "probes":
        of_sites = tuple(tuple(of_site) for of_site in sites.values())
        fit_columns(
            ProbesJob(
                settings,
                features,
                sample,
                of_sites,
                Corpus((), (), CorpusSpool(probes, "", PartSize(1)), settings.data),
                probes,
            ),
            "cpu",
        )
        return
    depth = max(column.site.layer for column in columns)
    compute = {Site(layer, kind): layer / depth for layer in range(1, depth + 1) for kind in WIDTHS}
    fitted = tuple(read_probe(probes, c) for c in columns), tuple(read_ridge(probes, c) for c in columns)
    fit_heads(HeadsJob(settings, features, *fitted, None, sample, compute, heads), "cpu")


def _settings(folder: Path) -> Settings:
    return parse_settings(
        {
            "backbone": {"model": "none"},
            "data": {"train": "none"},
            "store": str(folder),
            "search": {"words": "off"},
            "ray": {"workers": 0},
        }
    )


if __name__ == "__main__":
    _fit(sys.argv[1], Path(sys.argv[2]))
