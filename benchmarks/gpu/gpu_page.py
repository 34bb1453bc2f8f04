"""The page of a run as Markdown."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from benchmarks.gpu.deviations import BFLOAT16_FACTOR, LIMITS, SAME_LABELS
from benchmarks.gpu.documents import TOPICS
from benchmarks.gpu.plain_pass import FIXED_BATCH
from benchmarks.gpu.results import Results, judge
from benchmarks.gpu.solver_times import LIMITS as SOLVER_LIMITS
from benchmarks.gpu.speed_rounds import ALL_NEURONS, EXITS, FROM_TEXT, IN_ORDER, SAME_SPIN, SORTED, SPIN, WorkloadSpeed
from benchmarks.gpu.spin_pass import SELECTED
from benchmarks.section_page import table


def render(results: Results) -> str:
    """The page: machine, goals, and a table per part with how to read it."""
    parts = [
        "# GPU\n",
        "Written by `make bench-gpu`.\n",
        f"{_machine(results)}\n",
        _goals(results),
        _speeds(results),
        _peers(results),
        _exits(results),
        _waits(results),
        _gemm(results),
        _deviations(results),
        _solvers(results),
    ]
    return "\n".join(part for part in parts if part)


def _machine(results: Results) -> str:
    machine, versions = results.machine, ", ".join(f"{k} {v}" for k, v in results.machine.versions.items())
    card = f"{machine.device}, {machine.memory / 2**30:.0f} GiB, driver {machine.driver}; " if results.on_gpu else ""
    kind = "A quick run, which shows only that it works. " if results.quick else ""
    return (
        f"{kind}{datetime.date.today()}; {card}{machine.processor}, {machine.cores} cores; {versions}; "
        f"{results.seconds / 60:.1f} minutes."
    )


def _goals(results: Results) -> str:
    lines = [f"- {'reached' if holds else '**missed**'}: {text}." for holds, text in judge(results)]
    lines += [f"- **failed**: {text}." for text in results.disagreements() + results.failures]
    return "\n".join(["## Goals\n", *lines]) + "\n" if lines else ""


def _part(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], text: str) -> str:
    return f"## {title}\n\n{table(heads, rows)}\n{text}\n"


def _name(speed: WorkloadSpeed) -> str:
    return f"{speed.shape}, {speed.workload}"


def _speeds(results: Results) -> str:
    rows = [
        [
            _name(s),
            f"{s.tokens / s.documents:.0f}",
            f"{s.speeds[SPIN].rate:,.0f}",
            f"{s.rate / 1e12:.2f}",
            f"{results.share(s):.1%}",
            f"{s.tokens / s.padded_tokens:.1%}",
            f"{s.speeds[SPIN].times.spread:.1%}",
            f"{abs(s.ratio(SPIN, SAME_SPIN) - 1):.1%}",
            f"{s.peak_memory / 2**30:.1f}",
        ]
        for s in results.speeds
    ]
    heads = ["model, documents", "tokens each", "tokens/s", "TFLOP/s", "% of products", "% no padding", "spread"]
    text = (
        "Random weights in bfloat16. A pass pads batches by length and budget of tokens, runs the blocks, reads "
        f"the residual stream and the feed-forward neurons of all layers, of which {SELECTED:.0%} are gathered and "
        "pooled, standardises them and applies the head; its time ends with the labels in memory. Token ids are "
        "looked up, since random documents would not be tokenized as text is. Operations are those of the linear "
        "maps of the blocks and of attention between tokens that see each other, without padding; pooling, "
        "gathers and head take time and count for nothing. % of products: by the fastest matrix products of the "
        "same run, below. Spread: the longest time less the shortest, by the median; same twice: the difference "
        "between two contenders that are both this pass."
    )
    return _part("The whole pass", [*heads, "same twice", "GiB"], rows, text)


def _peers(results: Results) -> str:
    rows = [
        [
            _name(s),
            *(f"{s.speeds[name].rate:,.0f}" for name in (SPIN, SORTED, IN_ORDER)),
            *(f"{s.ratio(SPIN, name):.2f}" for name in (SORTED, IN_ORDER)),
        ]
        for s in results.speeds
    ]
    heads = ["model, documents", "SPIN", "sorted", "in order", "× sorted", "× in order"]
    text = (
        "Tokens per second, and SPIN's by those of transformers in the same round, in the median round. "
        "Sorted: the same model on batches by length with SPIN's budget of tokens, the last hidden state pooled by "
        f"mean, and a linear head; in order: batches of {FIXED_BATCH} documents as they come."
    )
    return _part("Against plain transformers", heads, rows, text)


def _exits(results: Results) -> str:
    rows = [
        [
            _name(s),
            f"{s.exit_share:.0%}",
            f"{s.speeds[EXITS].rate:,.0f}",
            f"{s.ratio(EXITS, SPIN):.2f}",
            f"{s.speeds[FROM_TEXT].rate:,.0f}",
            f"{s.speeds[ALL_NEURONS].rate:,.0f}" if ALL_NEURONS in s.speeds else "–",
        ]
        for s in results.speeds
    ]
    heads = ["model, documents", "% that exit", "with exits", "× full depth", "from text", "all neurons"]
    text = (
        "Tokens per second. With exits, documents of which a head on the first third of the blocks is confident "
        "stop there; its threshold is the median confidence of other documents. From text: with a tokenizer of "
        "words at spaces in a thread of its own, which is faster than those of real models. All neurons: what "
        "training reads, every neuron of every site under two poolings, in float16."
    )
    return _part("Exits, text and training", heads, rows, text)


def _waits(results: Results) -> str:
    if not any(s.waits for s in results.speeds):
        return ""
    rows = [
        [_name(s), f"{s.batches}", f"{sum(s.waits.values()) / s.batches:.1f}", "; ".join(list(s.waits)[:3])]
        for s in results.speeds
    ]
    heads = ["model, documents", "batches", "waits per batch", "most frequent"]
    text = (
        "Calls of one pass that torch reports as synchronising with the device. Waiting for an event, as the pass "
        "does for its results, is not among them."
    )
    return _part("Where the processor waits", heads, rows, text)


def _gemm(results: Results) -> str:
    rows = [[" × ".join(f"{n:,}" for n in g.size), f"{g.rate / 1e12:.1f}"] for g in results.gemm]
    heads = ["rows × inner × columns", "TFLOP/s"]
    text = "Products of random bfloat16 matrices that take turns, by the median of the device's own times."
    return _part("Matrix products", heads, rows, text)


def _deviations(results: Results) -> str:
    rows = [
        [
            f"{d.shape}, {d.device}, {d.precision}",
            d.worst,
            f"{d.by_site[d.worst]:.1e}",
            f"{d.allowed[d.worst]:.1e}",
            f"{d.same_labels:.1%}",
        ]
        for d in results.deviations
    ]
    limits = "; ".join(f"{p} {LIMITS[p]:g} and {SAME_LABELS[p]:.0%} of the labels" for p in LIMITS)
    heads = ["pass", "worst site", "deviation", "allowed", "same labels"]
    text = (
        "Pooled neurons against float64 on the processor, one document at a time, read by other code: the norm of "
        f"the difference by the norm, per site. The labels of {TOPICS} topics are compared by the same head. A run "
        f"fails beyond the limits: {limits}. In bfloat16 a site may deviate by {BFLOAT16_FACTOR} times what the "
        "model itself loses there in that precision, by the same other code, if that is more."
    )
    return _part("Agreement", heads, rows, text)


def _solvers(results: Results) -> str:
    rows = [
        [
            f"{s.solver}: {s.problem.documents:,} × {s.problem.width:,}, {s.problem.classes} classes",
            f"{s.problem.designs}",
            f"{s.problem.penalties}",
            f"{s.device.median:.2f}",
            "–" if s.processor is None else f"{s.processor.median:.2f}",
            "–" if s.difference is None else f"{s.difference:.1e}",
        ]
        for s in results.solvers
    ]
    limits = ", ".join(f"{name} {limit:g}" for name, limit in SOLVER_LIMITS.items())
    heads = ["problem", "columns", "penalties", "device, s", "processor, s", "difference"]
    text = (
        "Documents × neurons, on synthetic standardised activations, from arrays to arrays. The same solver runs "
        "on both; on a processor, `spin train` takes another one for L1 paths. The difference of L1 paths is that "
        f"of their objectives, else that of predictions; limits: {limits}."
    )
    return _part("Solvers of training", heads, rows, text)
