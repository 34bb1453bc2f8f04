"""From rows to markdown: a table a model, and what is needed to read it."""

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
HOW = """## How to read it

- All rows answer the same documents, tokenising and the head included, from texts to classes; every one sorts them by
  length. A row is timed once a round, all in turn, in an order that turns from round to round; two whole passes
  that are not timed come first, as a stream makes kernels for each shape of batch that it meets. docs/s is of the
  median round, least–most of all rounds.
- A peer's batch is the quickest of those tried on a fifth of the documents. Ours batches by its default token budget.
- Peers share one head: logistic regression on standardised embeddings (the mean of the last layer, of a decoder the
  last token), fitted in float32 on the documents that ours learns from, its C by cross-validation. An int8 of nncf is
  calibrated on training documents.
- SPIN's graphs are compiled with fused attention off and streams that are not pinned to cores; the OpenVINO of peers as
  it comes.
- tokens/s counts special tokens and no padding. % of peak: FLOPs a second, of the GEMM peak in the row's precision. A
  document costs 2 FLOPs a token for each weight of the blocks' linear maps (24 d² a block in BERT) and 4 d a block for
  each pair of its tokens, without padding, times `compute`: the share of the whole model that the row runs.
- × best peer is the median over rounds of the ratio to the peer of the best median, in any precision.
- agreement: labels that are those of float32, for a peer of the first peer in float32, for ours of our own full depth.
"""


def table(rows: Sequence[Row], trial: Trial, peaks: Mapping[str, float]) -> str:
    """The rows of a trial, fastest last among the peers and among ours."""
    best = best_peer(rows)
    lines = []
    for row in sorted(rows, key=lambda row: (row.ours, -row.median)):
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
    """Title, table and the figures of the documents."""
    error = 100 * float(np.sqrt(0.25 / len(trial.texts)))
    title = trial.plan.title[0].upper() + trial.plan.title[1:]
    return (
        f"## {title}\n\n{table(rows, trial, peaks)}\n"
        f"{len(trial.texts):,} documents of {trial.lengths.mean():.1f} tokens on average, {len(trial.train[0]):,} "
        f"others to learn from; {rounds} rounds; batches tried: {', '.join(map(str, trial.batches))}. GEMM peak in "
        f"these rounds: {said_peaks(peaks)}. An accuracy's standard error is at most {error:.1f} points.\n"
    )


def said_peaks(peaks: Mapping[str, float]) -> str:
    """GEMM peaks in one line."""
    return ", ".join(f"{peak:,.0f} G{'OP' if name == 'int8' else 'FLOP'}/s {name}" for name, peak in peaks.items())


def told(found: Sequence[Verdict]) -> str:
    """The verdicts as a list."""
    lines = []
    for verdict in found:
        holds = "holds" if verdict.holds else "**does not hold**" if verdict.asserted else "not reached"
        lines.append(f"- {holds}: {verdict.text}.\n")
    return "".join(lines)
