"""Memory, time and storage of a training by its number of labelled documents."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.limits.process_memory import run_watched
from benchmarks.section_page import Part, table
from spin.settings import Settings, parse_settings

FILE = 100_000
"""documents per file of the corpus"""
WORKERS = 2


@dataclass(frozen=True)
class TrainingCost:
    """A training from extraction to registration."""

    name: str
    """of backbone and corpus"""
    documents: int
    seconds: Mapping[str, float]
    """by stage"""
    peak: Mapping[str, float]
    """peak resident memory in MB of the driver, and of the largest other process"""
    own: Mapping[str, float]
    """peak anonymous memory in MB, likewise; as measured at intervals"""
    stored: float
    """GB of features that were written"""
    whole: float
    """GB that the features of all columns of all documents would take"""


def train(name: str, settings: Settings, folder: Path, documents: int) -> TrainingCost:
    """Train in a fresh process and measure it."""
    (folder / "settings.json").write_text(settings.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.limits.training", str(folder)]
    watch = run_watched(command, f"the training on {documents:,} documents")
    store = Path(settings.store.uri)
    plan = json.loads((store / "features" / "plan.json").read_text(encoding="utf-8"))["derived"]["reading"]
    row = sum(width * np.dtype(plan["types"][column]).itemsize for column, width in plan["widths"].items())
    stored = sum(file.stat().st_size for part in ("features", "kept") for file in (store / part).rglob("*.parquet"))
    seconds = json.loads((folder / "seconds.json").read_text(encoding="utf-8"))
    return TrainingCost(
        name, documents, seconds, dict(watch.peak), dict(watch.own), stored / 1e9, row * documents / 1e9
    )


def prepare_tiny(folder: Path, documents: int) -> Settings:
    """A corpus of texts that all differ, of three classes, and the settings of a tiny random backbone."""
    from tests.support import tiny

    classes = ("good", "bad", "plain")
    (folder / "corpus").mkdir(parents=True)
    backbone = tiny.save_bert(folder / "backbone")
    rows = tiny.make_documents(10_000, classes)
    for first in range(0, documents, FILE):
        numbers = range(first, min(first + FILE, documents))
        table = {
            "id": [f"d{number:08d}" for number in numbers],
            "text": [f"{rows[number % len(rows)]['text']} {number}" for number in numbers],
            "label": [rows[number % len(rows)]["label"] for number in numbers],
        }
        pq.write_table(pa.table(table), folder / "corpus" / f"{first:08d}.parquet", row_group_size=10_000)
    return make_settings(folder, str(backbone))


def make_settings(folder: Path, backbone: str) -> Settings:
    return parse_settings(
        {
            "backbone": {"model": backbone, "device": "cpu"},
            "data": {"train": str(folder / "corpus")},
            "store": str(folder / "store"),
            "mlflow": {"model": "scale", "tracking_uri": f"sqlite:///{folder}/mlflow.db"},
            "ray": {"workers": WORKERS},
        }
    )


def prepare_tweets(folder: Path, documents: int) -> Settings:
    """The tweets over and over, each with the number of its row, and the settings of MiniLM."""
    from jobs.quickstart import BACKBONE, read_tweets

    tweets = read_tweets()
    numbers = np.arange(documents)
    of_tweets = tweets.iloc[numbers % len(tweets)]
    table = {
        "id": [f"d{number:08d}" for number in numbers],
        "text": [f"{text} {number}" for text, number in zip(of_tweets["text"], numbers, strict=True)],
        "label": of_tweets["label"].tolist(),
    }
    (folder / "corpus").mkdir(parents=True)
    pq.write_table(pa.table(table), folder / "corpus" / "tweets.parquet", row_group_size=10_000)
    return make_settings(folder, BACKBONE)


def measure(folder: Path, *, quick: bool) -> list[TrainingCost]:
    """Train on a tenth of the documents and on all of a tiny backbone, then with MiniLM."""
    tiny_sizes, tweets = ((6_000, 12_000), 2_000) if quick else ((100_000, 1_000_000), 100_000)
    cases = [("tiny", prepare_tiny, documents) for documents in tiny_sizes] + [("MiniLM", prepare_tweets, tweets)]
    costs = []
    for name, prepare, documents in cases:
        case = folder / f"{name}-{documents}"
        costs.append(train(name, prepare(case, documents), case, documents))
        shutil.rmtree(case)
        print(costs[-1], flush=True)
    return costs


def section(costs: Sequence[TrainingCost]) -> Part:
    """Seconds per stage, memory and storage of trainings; the first two have the same backbone."""
    rows = [
        [f"{c.name}, {c.documents:,}", *(f"{c.seconds[stage]:,.0f}" for stage in _STAGES),
         *(f"{memory[kind]:,.0f}" for memory in (c.peak, c.own) for kind in _KINDS),
         f"{c.stored:.2f}", f"{c.stored / c.whole:.0%}"]
        for c in costs
    ]  # fmt: skip
    heads = ["documents", *(f"{stage}, s" for stage in _STAGES), *(f"{kind}'s peak, MB" for kind in _KINDS),
             *(f"{kind}'s own, MB" for kind in _KINDS), "features, GB", "of all neurons"]  # fmt: skip
    text = [
        table(heads, rows),
        f"`spin run` with its default settings and {WORKERS} workers, from extraction to registration, baselines "
        "included. tiny: a random backbone of three blocks, three classes; MiniLM: the tweets, over and over, each "
        "with its row number. Peak: the peak resident memory of the process (VmHWM of Linux), of the largest process "
        "that the driver has started; library files and the pages of Ray's object store that the process has touched "
        "are included. Own: anonymous memory, measured ten times per second. Features: what the two passes stored; of "
        "all neurons: as a share of the features of all columns of all documents.\n",
    ]
    small, large = costs[0], costs[1]
    largest = max(max(cost.peak.values()) for cost in costs)
    growth = {kind: large.peak[kind] / small.peak[kind] for kind in _KINDS}
    share = large.stored / large.whole
    return "\n".join(text), [
        (largest <= _MOST, f"no process takes more than {_MOST / 1000:g} GB (largest {largest / 1000:.1f} GB)"),
        *(
            (
                ratio <= _FLAT,
                f"{kind}'s peak with {large.documents:,} documents is {ratio:.2f} × that with {small.documents:,}, "
                f"expected at most {_FLAT} ×",
            )
            for kind, ratio in growth.items()
        ),
        (share <= _STORED, f"two passes over {large.documents:,} documents store {share:.0%} of all features, "
                           f"expected at most {_STORED:.0%}"),
    ]  # fmt: skip


_STAGES, _KINDS = ("extract", "probe", "train"), ("driver", "worker")
_MOST, _FLAT, _STORED = 6_000.0, 1.1, 0.15
"""promises: MB per process, growth of memory from a tenth of the documents, share of all features that is stored"""


def _train(folder: Path) -> None:
    """Run a training; this is what the fresh process does."""
    from jobs.cli import configure_libraries

    configure_libraries()
    from pipelines.training.workflow import run_workflow

    settings = Settings.model_validate_json((folder / "settings.json").read_text(encoding="utf-8"))
    seconds: dict[str, float] = {}
    run_workflow(settings, on_stage=lambda event: seconds.update({event.stage: event.seconds}))
    (folder / "seconds.json").write_text(json.dumps(seconds), encoding="utf-8")


if __name__ == "__main__":
    _train(Path(sys.argv[1]))
