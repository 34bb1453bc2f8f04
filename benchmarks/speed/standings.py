"""The page as Markdown: one table per model, and how to read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.method.table import markdown
from benchmarks.speed.trial import Trial
from benchmarks.speed.verdicts import Row, Verdict, best_peer, ratio

_TITLES = (
    "", "precision", "batch", "docs/s", "least–most", "tokens/s", "% of peak", "× best peer", "accuracy", "agreement",
    "compute",
)  # fmt: skip
HOW_TO_READ = """## How to read it

- Every row classifies the same documents, from text to class, tokenising and the head included, and sorts them by
  length. Each row is timed once per round; the order of the rows is reversed from round to round. Two passes over all
  documents come first and are not timed, since each stream compiles kernels for each batch shape that it meets.
  docs/s is documents per second in the median round, least–most those of the slowest and the fastest round.
- A peer's batch size is the fastest of those tried on a fifth of the documents. SPIN uses its default token budget.
- All peers have the same head: logistic regression on standardised embeddings (the mean of the last layer or, for a
  decoder, its last token), fitted in float32 on the documents that SPIN learns from, with C chosen by cross-validation.
  The int8 of nncf is calibrated on training documents.
- SPIN's graphs are compiled without fused attention, and their streams are not pinned to cores; the peers' OpenVINO
  has its default settings.
- tokens/s is tokens per second, special tokens included, padding excluded. % of peak is FLOPs per second as a share of
  the GEMM peak in the row's precision. A document costs 2 FLOPs per token for each weight of the blocks' linear maps
  (24 d² per block in BERT) and 4 d per block for each pair of its tokens, without padding, times `compute`, the share
  of the whole model that the row runs.
- × best peer is the median over rounds of the speed ratio to the peer with the best median, whatever its precision.
- agreement is the share of labels equal to those in float32: for a peer those of the first peer in float32, for SPIN
  its own at full depth.
"""


def table(rows: Sequence[Row], trial: Trial, peaks: Mapping[str, float]) -> str:
    """The table of a trial: first the peers, then SPIN's rows, each from slow to fast."""
    best = best_peer(rows)
    lines = []
    for row in sorted(rows, key=lambda row: (row.spin, -row.median)):
        speeds = len(trial.texts) / np.array(row.seconds)
        peak = peaks.get(row.precision)
        rate = trial.flops * row.compute / row.median / 1e9
        cascade = "" if row.max_loss is None else f", max_loss {row.max_loss:g}"
        lines.append(
            [
                f"{row.name}{cascade}",
                row.precision,
                str(row.batch or "tokens"),
                f"{len(trial.texts) / row.median:,.0f}",
                f"{speeds.min():,.0f}–{speeds.max():,.0f}",
                f"{trial.lengths.sum() / row.median:,.0f}",
                f"{100 * rate / peak:.0f}" if peak else "–",
                f"{ratio(best, row):.2f}" if best else "–",
                f"{100 * row.accuracy:.1f}",
                f"{100 * row.agreement:.1f}",
                f"{100 * row.compute:.0f} %",
            ]
        )
    return markdown(_TITLES, lines)


def section(rows: Sequence[Row], trial: Trial, peaks: Mapping[str, float], rounds: int) -> str:
    """The title, the table and a paragraph about the documents."""
    error = 100 * float(np.sqrt(0.25 / len(trial.texts)))
    title = trial.plan.title[0].upper() + trial.plan.title[1:]
    return (
        f"## {title}\n\n{table(rows, trial, peaks)}\n"
        f"{len(trial.texts):,} documents of {trial.lengths.mean():.1f} tokens on average, {len(trial.train[0]):,} "
        f"others for training; {rounds} rounds; batch sizes tried: {', '.join(map(str, trial.batches))}. GEMM peak in "
        f"these rounds: {format_peaks(peaks)}. The standard error of an accuracy is at most {error:.1f} points.\n"
    )


def format_peaks(peaks: Mapping[str, float]) -> str:
    """The GEMM peaks in one line."""
    return ", ".join(f"{peak:,.0f} G{'OP' if name == 'int8' else 'FLOP'}/s {name}" for name, peak in peaks.items())


def verdict_list(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as a Markdown list."""
    lines = []
    for verdict in verdicts:
        holds = "holds" if verdict.holds else "**does not hold**" if verdict.asserted else "not reached"
        lines.append(f"- {holds}: {verdict.text}.\n")
    return "".join(lines)
