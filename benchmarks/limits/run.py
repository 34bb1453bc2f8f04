"""`make bench-limits`: probes against the paper's recipe and other solvers, Ray's cost, memory, many and large files.

It writes limits.md; `--only` measures a part alone and replaces its section of that page.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from benchmarks.limits import overhead
from benchmarks.limits.many_files import LATENCY, NightCost, Publication
from benchmarks.limits.many_files import SHARD as FILE_SHARD
from benchmarks.limits.many_files import WORKERS as FILE_WORKERS
from benchmarks.limits.overhead import ONE, ONE_WIDE, PLAIN, PLAIN_WIDE, TWO, WAYS, Way
from benchmarks.limits.page import Part, table, write_page
from benchmarks.limits.recipe import EPOCHS, RESTARTS, Race
from benchmarks.limits.scale import SHARD, WORKERS, Scale
from benchmarks.limits.solvers import FEW, LIMIT, MANY, SPIN, Times
from benchmarks.limits.versions import OTHER, THIS, median_ratio
from spin.sites import FeatureColumn
from spin.sparsify.solvers.l1_path import TOLERANCE

_FOLDER = Path("runs/bench/limits")
_REPORT = Path("benchmarks/limits.md")
_FASTER, _COST, _TWICE, _FLAT = 10.0, 1.1, 1.6, 1.1
"""promises: speedup of probes, seconds over a plain loop's, speedup by a second actor, largest over smallest"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few documents, one round: shows only that it runs")
    parser.add_argument("--only", choices=_PARTS, help="measure one part alone")
    parser.add_argument("--other", help="compare only the nights of another version, installed for this Python")
    options = parser.parse_args()
    quick = options.quick
    folder = _FOLDER / "quick" if quick else _FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    folder = folder.resolve()  # workers run in folders of their own
    if options.other:
        parts = {_VERSIONS: versions(_versions(folder / "versions", quick, options.other))}
    else:
        chosen = [part for name, part in _PARTS.items() if options.only in (None, name)]
        parts = {title: measure(folder, quick) for title, measure in chosen}
    path = folder / "limits.md" if quick else _REPORT
    write_page(path, parts)
    for name in ("extract", "nights", "training", "large", "files", "versions"):
        shutil.rmtree(folder / name, ignore_errors=True)
    broken = [promise for _, verdicts in parts.values() for holds, promise in verdicts if not holds]
    print(f"written to {path}")
    if broken and not quick:
        raise SystemExit("does not hold: " + "; ".join(broken))


def probes(races: Sequence[Race], sites: Mapping[int, int]) -> Part:
    """Seconds and objectives per feature column, and seconds for all; `sites` counts columns by width."""
    rows = [
        [str(r.column), f"{r.saga:.1f}", f"{r.spin:.2f}", f"{r.saga / r.spin:.1f}", f"{r.shipped:.2f}",
         f"{r.saga / r.shipped:.1f}", f"{r.kkt:.0e}"]
        for r in races
    ]  # fmt: skip
    totals = [sum(count * _mean_at(races, width, name) for width, count in sites.items()) for name in _SECONDS]
    saga, spin, shipped = totals
    total = f"all {sum(sites.values())}, extrapolated"
    rows.append(
        [total, f"{saga:.0f}", f"{spin:.0f}", f"{saga / spin:.1f}", f"{shipped:.0f}", f"{saga / shipped:.1f}", ""]
    )
    heads = [
        "",
        "recipe, s",
        "SPIN to the same objective, s",
        "×",
        "SPIN by default, s",
        "×",
        "violation of optimality",
    ]
    objectives = [
        [str(r.column), f"{C:g}", f"{recipe:.5f}", f"{spin:.5f}"] for r in races for C, recipe, spin in r.objectives
    ]
    text = [
        table(heads, rows),
        f"Processor seconds of one thread, all classes of the tweets on MiniLM. The recipe: saga on raw activations, "
        f"five strengths, {RESTARTS} warm restarts of {EPOCHS} epochs each. SPIN to the same objective: the batched "
        "solver for GPUs, here on the CPU, on the same raw activations and for all strengths and classes together, "
        "stopped as soon as no objective exceeds the recipe's; the comparison is included. SPIN by default: the path "
        "of penalties of the default settings on standardised activations, solved to the violation shown, its penalty "
        "chosen by validation. Extrapolated: the mean time per width times the feature columns of that width.\n",
        table(["", "C", "objective, recipe", "objective, SPIN"], objectives),
    ]
    speeds = {"SPIN to the same objective": saga / spin, "SPIN by default": saga / shipped}
    return "\n".join(text), [
        (all(r.reached for r in races), "no objective of SPIN exceeds the recipe's, at any strength, for any class"),
        *((x >= _FASTER, f"{name} is {x:.1f} × faster, expected at least {_FASTER:g} ×") for name, x in speeds.items()),
    ]


_SECONDS = ("saga", "spin", "shipped")


def _mean_at(races: Sequence[Race], width: int, name: str) -> float:
    return statistics.mean(getattr(race, name) for race in races if race.width == width)


def solvers(
    times: Sequence[Times], by_width: Mapping[int, Mapping[int, Sequence[float]]], sites: Mapping[int, int]
) -> Part:
    """Seconds per design and solver, and those of SPIN by number of classes; `sites` counts columns by width."""
    others = [name for name in times[0].seconds if name != SPIN]

    def cell(design: Times, name: str) -> str:
        median = statistics.median(design.seconds[name])
        if median == float("inf"):
            return "–"
        return f"{median:.2f}" if name == SPIN else f"{median:.2f} ({design.ratio(name):.1f} ×)"

    rows = [[f"{d.documents:,} × {d.width:,}", *(cell(d, name) for name in (SPIN, *others))] for d in times]
    by_classes = [
        [f"{width:,}", *(f"{statistics.median(s):.2f}" for s in seconds.values()), f"{_times_few(seconds):.1f}"]
        for width, seconds in by_width.items()
    ]
    of_all = {
        K: [sum(sites[width] * at for width, at in zip(by_width, of_round, strict=True)) for of_round in rounds]
        for K, rounds in ((K, list(zip(*(s[K] for s in by_width.values()), strict=True))) for K in (FEW, MANY))
    }
    total = f"all {sum(sites.values())} columns, extrapolated"
    by_classes.append([total, *(f"{statistics.median(s):.0f}" for s in of_all.values()), f"{_times_few(of_all):.1f}"])
    text = [
        table(["documents × width", f"{SPIN}, s", *(f"{name}, s" for name in others)], rows),
        "Processor seconds of one thread for all classes of the tweets on MiniLM, along the penalties of the default "
        "settings on standardised activations; the median of the rounds, in which the solvers take turns, and the "
        "median ratio to SPIN within a round. The certificate of every solution of every solver is the same: the "
        f"optimality conditions are violated by at most {TOLERANCE:g} of the penalty. ProxNewton stops by it; "
        "liblinear and saga have other criteria, and the time is that of the loosest of the tolerances 1e-2, 1e-4 and "
        "1e-6 that meets it. All but liblinear start from the solution before. liblinear penalises the intercept, here "
        "by a ten-thousandth of a coefficient's penalty. SPIN reads float32, the others float64. "
        f"–: not certified within about {LIMIT:g} s.\n",
        table(["width", *(f"{K} classes, s" for K in (FEW, MANY)), "×"], by_classes),
        f"SPIN on {_DOCUMENTS:,} documents with classes that a random linear model draws, of unequal frequency. All "
        "columns: the time per width times the feature columns of MiniLM of that width.\n",
    ]
    closest = min(d.ratio(name) for d in times for name in others)
    shared = _times_few(of_all)
    return "\n".join(text), [
        (closest > 1, f"every other solver takes at least {closest:.1f} × the time of SPIN, expected more than 1 ×"),
        (
            shared <= _MANY_COST,
            f"{MANY} classes take {shared:.1f} × the time of {FEW} over all columns, expected at most {_MANY_COST:g} ×",
        ),
    ]


_MANY_COST = 10.0
_DOCUMENTS = 16_000


def _times_few(seconds: Mapping[int, Sequence[float]]) -> float:
    """The time of many classes by that of few in the same round, in the median round."""
    return statistics.median(many / few for few, many in zip(seconds[FEW], seconds[MANY], strict=True))


def ray(rounds: Sequence[Mapping[Way, float]]) -> Part:
    """Seconds per way and round; a ratio is the median of the ratios within the rounds."""
    medians = {way: statistics.median(times[way] for times in rounds) for way in WAYS}
    rows = [[str(way), f"{medians[way]:.1f}", ", ".join(f"{times[way]:.1f}" for times in rounds)] for way in WAYS]

    def ratio(way: Way, to: Way) -> float:
        return statistics.median(times[way] / times[to] for times in rounds)

    cost = {"one thread": ratio(ONE, PLAIN), "two threads": ratio(ONE_WIDE, PLAIN_WIDE)}
    gain = 1 / ratio(TWO, ONE)
    text = [
        table(["", "median, s", "rounds, s"], rows),
        f"All feature columns of MiniLM, {overhead.SHARD:,} documents per shard; seconds from the start of the first "
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


def memory(nights: Sequence[Scale]) -> Part:
    """Peak memory and speed by number of documents."""
    kinds = ("driver", "worker")
    rows = [
        [f"{n.documents:,}", *(f"{memory[kind]:.0f}" for memory in (n.peak, n.own) for kind in kinds),
         f"{n.per_s:,.0f}", f"{n.documents / n.whole_s:,.0f}", f"{n.outcome:,}"]
        for n in nights
    ]  # fmt: skip
    heads = [
        "documents",
        "driver's peak, MB",
        "worker's peak, MB",
        "driver's own, MB",
        "worker's own, MB",
        "documents/s in shards",
        "documents/s overall",
        "shard record, bytes",
    ]
    text = [
        table(heads, rows),
        f"A night on a tiny random backbone with the check for duplicate ids, {SHARD:,} documents per shard, {WORKERS} "
        "workers of one thread. Peak: the peak resident memory of the process (VmHWM of Linux), of the worker with the "
        "largest; it includes library files and the pages of Ray's object store that the process has touched. Own: "
        "anonymous memory, measured ten times per second. Documents/s in shards: documents per second of the median "
        "shard times the number of workers, of the shards that began after the first had ended, so that the start-up "
        "of a worker is left out. Documents/s overall: from the start of the first shard to the end of the last, work "
        "of the driver between shards included. Shard record: the longest that the driver holds.\n",
    ]
    verdicts = []
    measured = {
        f"{kind}'s {name}": [getattr(n, field)[kind] for n in nights] for kind in kinds for name, field in _PEAKS
    }
    for name, values in {**measured, "documents/s in shards": [n.per_s for n in nights]}.items():
        spread = max(values) / min(values)
        verdicts.append((spread <= _FLAT, f"{name}: largest {spread:.2f} × the smallest, expected at most {_FLAT} ×"))
    overall = [n.documents / n.whole_s for n in nights]
    slowdown = max(overall) / overall[-1]
    promise = (
        f"documents/s overall: the fastest night's {slowdown:.2f} × the largest night's, expected at most {_FLAT} ×"
    )
    return "\n".join(text), [*verdicts, (slowdown <= _FLAT, promise)]


_PEAKS = (("peak", "peak"), ("own memory", "own"))


def files(costs: Sequence[NightCost], publication: Publication) -> Part:
    """Requests, bytes and seconds of nights of many or large files; the first one is a night of one small file."""
    base, many, large_csv, large_parquet = costs
    rows = [
        [f"{c.files:,} × {c.name}" if c.files > 1 else c.name, f"{c.input_bytes / 1e6:,.1f}", f"{c.documents:,}",
         f"{c.shards:,}", f"{c.input_requests:,}", f"{c.input_read / 1e6:,.1f}", f"{c.lease_requests:,}",
         f"{c.other_requests:,}", f"{c.seconds:.0f}", f"{c.computing:.0f}"]
        for c in costs
    ]  # fmt: skip
    heads = ["input", "MB", "documents", "shards", "requests for input", "MB of input read", "requests of the lease",
             "other requests", "seconds", "… computing"]  # fmt: skip
    text = [
        table(heads, rows),
        f"Nights on an S3 server, each request delayed by {1000 * LATENCY:.0f} ms, on a tiny random backbone with the "
        f"check for duplicate ids, {FILE_SHARD:,} documents per shard, {FILE_WORKERS} workers. Requests and bytes as a "
        "proxy before the server counts them, headers included, of driver and workers. Seconds: of the whole command, "
        "its start included. Computing: while at least one shard was being classified. A night of one small file has "
        "the cost that every night has.\n",
        f"Publishing {publication.files:,} files took {publication.seconds:.1f} s without the delay.\n",
    ]
    per_file = many.input_requests / many.files
    per_shard = (many.other_requests - base.other_requests) / many.shards
    read = {
        cost.name: (cost.input_read / cost.input_bytes, most)
        for cost, most in ((large_csv, _CSV_READ), (large_parquet, _PARQUET_READ))
    }
    return "\n".join(text), [
        (per_file <= 1, f"{per_file:.2f} requests per small file, expected at most 1"),
        (per_shard <= _PER_SHARD, f"{per_shard:.1f} further requests per shard, expected at most {_PER_SHARD}"),
        (
            many.overhead <= _OVERHEAD,
            f"{many.files:,} small files take {many.overhead:.0f} s beyond computing, expected at most "
            f"{_OVERHEAD:.0f} s",
        ),
        *(
            (times <= most, f"{name}: read {times:.2f} × its size, expected at most {most} ×")
            for name, (times, most) in read.items()
        ),
        (
            publication.seconds <= _PUBLICATION,
            f"publishing {publication.files:,} files takes {publication.seconds:.1f} s, expected at most "
            f"{_PUBLICATION:.0f} s",
        ),
    ]


_PER_SHARD, _OVERHEAD, _CSV_READ, _PARQUET_READ, _PUBLICATION = 8, 120.0, 1.1, 1.3, 10.0
"""promises: requests per shard, seconds beyond computing, bytes read by bytes of input, seconds of a commit"""


def versions(rounds: Sequence[dict[str, float]]) -> Part:
    """Seconds of a night by this version and by another one."""
    rows = [
        [version, f"{statistics.median(times[version] for times in rounds):.1f}",
         ", ".join(f"{times[version]:.1f}" for times in rounds)]
        for version in (THIS, OTHER)
    ]  # fmt: skip
    text = [
        table(["", "median, s", "rounds, s"], rows),
        "Parquet files on a disk, a tiny random backbone, 2 workers, the check for duplicate ids; seconds of the whole "
        "command. The versions take turns.\n",
    ]
    ratio = median_ratio(rounds)
    return "\n".join(text), [
        (ratio >= _AS_FAST, f"this version is {ratio:.2f} × as fast as the other, expected at least {_AS_FAST} ×")
    ]


_AS_FAST = 0.95


def _versions(folder: Path, quick: bool, other: str) -> list[dict[str, float]]:
    from benchmarks.limits.versions import measure

    return measure(folder, 20_000 if quick else 1_000_000, other)


def _races(quick: bool) -> list[Race]:
    import numpy as np
    from threadpoolctl import threadpool_limits

    from benchmarks.limits.recipe import COLUMNS, race
    from benchmarks.method.run import warm_up
    from spin.labels.cross_validation import Fold
    from spin.labels.label_space import LabelSpace

    train, valid = (400, 100) if quick else (6400, 1600)
    features, labels = _read_tweets(train + valid, COLUMNS)
    label_space = LabelSpace(tuple(sorted(set(labels))))
    fold, races = Fold(np.arange(train), np.arange(train, train + valid)), []
    with threadpool_limits(1):
        warm_up()
        for column in COLUMNS:
            races.append(race(column, features[column], label_space.index(labels), fold, label_space))
            print(races[-1], flush=True)
    return races


def _read_tweets(count: int, columns: Sequence[FeatureColumn]) -> tuple[dict[FeatureColumn, NDArray[Any]], list[str]]:
    """Activations of MiniLM in float16 and labels of some tweets."""
    import numpy as np

    from jobs.quickstart import BACKBONE, read_tweets
    from spin.activations.extract import extract
    from spin.backbone.loading import load_backbone
    from spin.settings import BackboneSettings

    tweets = read_tweets().sample(count, random_state=0)
    backbone = load_backbone(BackboneSettings(model=BACKBONE, device="cpu"))
    features = extract(backbone, tweets["text"].tolist(), dict.fromkeys(columns, np.float16)).columns
    return features, tweets["label"].tolist()


def _solver_times(quick: bool) -> tuple[list[Times], dict[int, dict[int, list[float]]]]:
    import numpy as np
    from threadpoolctl import threadpool_limits

    from benchmarks.limits.solvers import DESIGNS, ROUNDS, compare, time_classes, warm_up
    from spin.labels.label_space import LabelSpace
    from spin.labels.standardizer import Standardizer
    from spin.sparsify.probe import signs

    count, sizes = (400, (200,)) if quick else (_DOCUMENTS, (2_000, _DOCUMENTS))
    features, labels = _read_tweets(count, list(dict.fromkeys(column for group in DESIGNS for column in group)))
    label_space = LabelSpace(tuple(sorted(set(labels))))
    targets = signs(label_space.indicator(label_space.index(labels)), label_space)
    times, by_width = [], {}
    with threadpool_limits(1):
        warm_up()
        for group in DESIGNS:
            values = np.concatenate([features[column] for column in group], axis=1)
            X = Standardizer.fit(values).transform(values)
            for documents in sizes:
                times.append(compare(X[:documents], targets[:, :documents], 1 if quick else ROUNDS))
                print(times[-1], flush=True)
            if len(group) == 1:
                by_width[X.shape[1]] = time_classes(X, 1 if quick else ROUNDS)
                print(by_width, flush=True)
    return times, by_width


def _sites() -> dict[int, int]:
    """Number of feature columns of MiniLM by width, under the default poolings."""
    from benchmarks.method.corpora import DEFAULT_POOLINGS
    from jobs.quickstart import BACKBONE
    from spin.backbone.loading import load_backbone
    from spin.settings import BackboneSettings

    backbone = load_backbone(BackboneSettings(model=BACKBONE, device="cpu"))
    widths = [backbone.width(site) for site in backbone.sites for _ in DEFAULT_POOLINGS[backbone.causal]]
    return {width: widths.count(width) for width in sorted(set(widths))}


def _rounds(folder: Path, quick: bool) -> list[dict[Way, float]]:
    from benchmarks.limits.overhead import prepare, seconds

    settings, rounds = prepare(folder, 1_000 if quick else 10_000), []
    for number in range(1 if quick else 3):
        order = WAYS if number % 2 == 0 else WAYS[::-1]
        rounds.append({way: seconds(way, settings, folder) for way in order})
        print(" | ".join(f"{way}: {time:.1f} s" for way, time in rounds[-1].items()), flush=True)
    return rounds


def _nights(folder: Path, quick: bool) -> list[Scale]:
    from benchmarks.limits.scale import night, prepare

    sizes = (10_000, 20_000) if quick else (10_000, 100_000, 1_000_000)
    prepare(folder, max(sizes))
    nights = []
    for documents in sizes:
        nights.append(night(folder, documents))
        print(nights[-1], flush=True)
    return nights


def _training(folder: Path, quick: bool) -> Part:
    from benchmarks.limits.training import measure, section

    return section(measure(folder, quick=quick))


def _large_backbone(folder: Path, quick: bool) -> Part:
    from benchmarks.limits.large_backbone import measure, section

    return section(measure(folder, quick=quick))


def _files(folder: Path, quick: bool) -> tuple[list[NightCost], Publication]:
    from benchmarks.limits.many_files import FULL, QUICK, measure

    return measure(folder, QUICK if quick else FULL)


_PARTS: Mapping[str, tuple[str, Callable[[Path, bool], Part]]] = {
    "probes": ("Probes against the paper's recipe", lambda folder, quick: probes(_races(quick), _sites())),
    "solvers": ("Solvers at the same certificate", lambda folder, quick: solvers(*_solver_times(quick), _sites())),
    "ray": ("The cost of Ray", lambda folder, quick: ray(_rounds(folder / "extract", quick))),
    "memory": (
        "Memory and speed by number of documents",
        lambda folder, quick: memory(_nights(folder / "nights", quick)),
    ),
    "training": ("Training by number of documents", lambda folder, quick: _training(folder / "training", quick)),
    "large": (
        "Activations of eight billion parameters",
        lambda folder, quick: _large_backbone(folder / "large", quick),
    ),
    "files": ("Many files and large files", lambda folder, quick: files(*_files(folder / "files", quick))),
}
"""title and function of every part of the page that needs nothing else, in order"""
_VERSIONS = "A million documents in ten files"
"""title of the part for which `--other` is given"""
