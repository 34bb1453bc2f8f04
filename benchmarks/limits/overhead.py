"""The cost of Ray: `spin extract` against a plain loop that reads, extracts and writes the same shards."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.section_page import Part, table
from spin.settings import Settings, parse_settings

SHARD = 1_000


@dataclass(frozen=True)
class Way:
    """One way to extract the features of the corpus: with Ray or without, and with how many processes and threads."""

    ray: bool
    workers: int
    """processes"""
    threads: int
    """per process"""

    def __str__(self) -> str:
        threads = f"{self.workers} × {self.threads} thread{'s' * (self.threads > 1)}"
        return f"spin extract, {threads}" if self.ray else f"plain loop, {threads}"


PLAIN, ONE, TWO = Way(False, 1, 1), Way(True, 1, 1), Way(True, 2, 1)
PLAIN_WIDE, ONE_WIDE = Way(False, 1, 2), Way(True, 1, 2)
WAYS = (PLAIN, ONE, TWO, PLAIN_WIDE, ONE_WIDE)


def measure(folder: Path, *, quick: bool) -> list[dict[Way, float]]:
    """Seconds by way, in rounds in which all ways take turns."""
    return race(folder, WAYS, 1 if quick else 3, quick=quick)


def race(folder: Path, ways: Sequence[Way], count: int, *, quick: bool) -> list[dict[Way, float]]:
    """Seconds by way, in rounds in which some ways take turns; on two shards at least, since Ray adds between them."""
    settings, rounds = prepare(folder, (2 if quick else 10) * SHARD), []
    for number in range(count):
        order = ways if number % 2 == 0 else ways[::-1]
        rounds.append({way: seconds(way, settings, folder) for way in order})
        print(" | ".join(f"{way}: {time:.1f} s" for way, time in rounds[-1].items()), flush=True)
    return rounds


def section(rounds: Sequence[Mapping[Way, float]]) -> Part:
    """Seconds per way and round; a ratio is the median of the ratios within the rounds."""
    medians = {way: statistics.median(times[way] for times in rounds) for way in WAYS}
    rows = [[str(way), f"{medians[way]:.1f}", ", ".join(f"{times[way]:.1f}" for times in rounds)] for way in WAYS]

    def ratio(way: Way, to: Way) -> float:
        return statistics.median(times[way] / times[to] for times in rounds)

    cost = {"one thread": ratio(ONE, PLAIN), "two threads": ratio(ONE_WIDE, PLAIN_WIDE)}
    gain = 1 / ratio(TWO, ONE)
    text = [
        table(["", "median, s", "rounds, s"], rows),
        f"All feature columns of MiniLM, {SHARD:,} documents per shard; seconds from the start of the first "
        "shard to the end of the last. The plain loop reads, extracts and writes the same shards in one process. Each "
        "ratio is the median of the ratios within the rounds.\n",
    ]
    verdicts = [
        (c <= _COST, f"{name}: {c:.2f} × the seconds of the plain loop, expected at most {_COST} ×")
        for name, c in cost.items()
    ]
    return "\n".join(text), [
        *verdicts,
        (gain >= _TWICE, f"two actors of one thread are {gain:.2f} × as fast as one, expected at least {_TWICE} ×"),
    ]


_COST, _TWICE = 1.1, 1.6
"""promises: seconds over a plain loop's, speedup by a second actor"""


def prepare(folder: Path, documents: int) -> Settings:
    """Write a labelled corpus of tweets and its plan; return the settings that extract it."""
    from jobs.quickstart import BACKBONE, read_tweets

    folder.mkdir(parents=True, exist_ok=True)
    tweets = read_tweets().sample(documents, random_state=0)[["id", "text", "label"]]
    pq.write_table(pa.Table.from_pandas(tweets, preserve_index=False), folder / "tweets.parquet", row_group_size=SHARD)
    settings = parse_settings(
        {
            "backbone": {"model": BACKBONE, "device": "cpu"},
            "data": {"train": str(folder / "tweets.parquet")},
            "store": str(folder / "store"),
            "ray": {"shard_documents": SHARD},
        }
    )
    seconds(ONE_WIDE, settings, folder)  # writes the plan, and reads the files into the page cache
    shutil.copy(Path(settings.store.uri) / "features/plan.json", folder)
    return settings


def seconds(way: Way, settings: Settings, folder: Path) -> float:
    """Seconds from the start of the first shard to the end of the last, in a fresh process; start-up is not counted."""
    ray = settings.ray.model_copy(update={"workers": way.workers, "cpus_per_worker": way.threads})
    way_settings = settings.model_copy(update={"ray": ray})
    file = folder / "overhead.json"
    file.write_text(json.dumps({"ray": way.ray, "settings": way_settings.model_dump()}), encoding="utf-8")
    shutil.rmtree(settings.store.uri, ignore_errors=True)
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.limits.overhead", str(file)], stdout=subprocess.PIPE, check=True
    )
    return float(process.stdout.split()[-1])


def _extract(settings: Settings) -> float:
    """Run `spin extract` and return the seconds of its shards."""
    from pipelines.data.feature_pool import FeaturePool
    from pipelines.nightly.report.night_report import span
    from pipelines.storage.object_store import Store
    from pipelines.training.extract_features import run_extract

    run_extract(settings)
    [pool] = FeaturePool.list_all(Store.of(settings) / "features")
    return span(list(pool.outcomes().values()))


def _loop(settings: Settings, planned: Path) -> float:
    """Do the same work in a plain loop over the shards of a plan of `spin extract` and return the seconds.

    The clock runs as in `span`: it starts when the step is ready for its first shard, for which a worker has computed
    a text, and stops when the last shard is computed, before its files are written.
    """
    import torch

    from pipelines.data.feature_store import FeaturePlan
    from pipelines.storage.lease import Lease
    from pipelines.storage.object_store import Store
    from pipelines.storage.shard_log import Attempt
    from pipelines.storage.stage_plan import read_plan
    from pipelines.training.extract_features import ExtractStep, as_planned, open_corpus
    from pipelines.workers.weights_cache import with_engine

    torch.set_num_threads(settings.ray.cpus_per_worker)
    store = Path(settings.store.uri)
    store.mkdir(parents=True)
    shutil.copy(planned, store)
    plan = read_plan(Store(str(store)), FeaturePlan)
    assert plan is not None
    settings = as_planned(with_engine(settings, "extract"), plan)
    corpus = open_corpus(settings, plan)
    with Lease(Store(str(store))) as lease:
        corpus.restore(lease)
    step = ExtractStep(settings, plan.metadata["backbone"]["digest"], plan.derived)
    attempt = Attempt(Store(str(store)), "")
    step.check()
    start = ended = time.perf_counter()
    for shard in corpus.spool.locate(plan.derived.unread):
        files = step(shard, attempt).files
        ended = time.perf_counter()
        for ending, content in files.items():
            (store / f"{shard.index}.{ending}").write_bytes(content)
    return ended - start


if __name__ == "__main__":
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    requested = Settings.model_validate(request["settings"])
    print(_extract(requested) if request["ray"] else _loop(requested, Path(sys.argv[1]).with_name("plan.json")))
