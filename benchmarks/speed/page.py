"""The page as Markdown: per model a table of all rows, one at equal scores, and the verdicts; and how to read it."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks import machine, section_page
from benchmarks.speed.contender import OurSetting, Role, TransformerPeer, WordPeer
from benchmarks.speed.interval import CONFIDENCE, speed_ratio
from benchmarks.speed.row import Row, fastest, transformer_peers
from benchmarks.speed.trial import Trial
from benchmarks.speed.verdicts import Equal, Verdict, points, times

_LIBRARIES = (
    "torch", "transformers", "sentence-transformers", "onnxruntime", "openvino", "nncf", "scikit-learn",
    "fasttext-community", "model2vec", "numpy",
)  # fmt: skip
_TITLES = (
    "", "precision", "batch", "docs/s", "least–most", "tokens/s", "% of peak", "at peak", "× best peer", "macro-F1",
    "accuracy", "agreement", "compute", "$ per million",
)  # fmt: skip
_EQUAL_TITLES = ("peer", "docs/s", "the fastest of ours", "docs/s", "× peer", "macro-F1, difference", "on validation")
TITLE = "# Speed\n\n"
_LAST = "How to read it"
HOW_TO_READ = f"""## {_LAST}

- Every row classifies the same test documents, from text to class, tokenising and the head included; transformers get
  them sorted by length. Rows are timed in turn, once per round, and their order is reversed from round to round. Two
  passes over all documents come first and do not count, since each stream compiles kernels for each batch shape that
  it meets; rows that take three times as long as the fastest of their kind make but one of them. After two rounds,
  rows that are half as fast as the fastest of their kind are timed no more. docs/s is documents per second in the
  median round, least–most those of the slowest and the fastest round.
- All rows learn from the same documents. The choice among our settings (which classifier, the loss that exits may
  cost, the precision) is made by the validation documents alone, from which no row learns; of the settings, only those
  that were chosen are run on the test documents. A score in a table is that of the test documents, unless it says
  otherwise.
- A peer's batch size is the fastest of those tried on a tenth of the validation documents. SPIN uses its default token
  budget, and learns with its default settings from neurons and words.
- Rows with reasons give with every prediction the words and the neurons that spoke loudest for it, and are compared
  with the same setting without.
- All transformer peers have the same head: logistic regression on standardised embeddings (the mean of the last layer
  or, for a decoder, its last token), fitted in float32, with C chosen by cross-validation. The int8 of nncf is
  calibrated on documents that are learned from.
- TF-IDF, fastText and model2vec are trained as for the page of the method. TF-IDF and fastText run in one thread.
- SPIN's graphs are compiled without fused attention where texts have at most 256 tokens, and their streams are not
  pinned to cores; the peers' OpenVINO has its default settings.
- An interval in brackets holds {100 * CONFIDENCE:.0f} %: of a ratio of speeds, a t-interval of the logarithms of the
  ratios within rounds, which share the noise; of a difference of macro-F1, the paired bootstrap over documents.
  A floor or a goal is met if the unfavourable end of the interval meets it. The exit status depends on floors alone.
- tokens/s is tokens per second, special tokens included, padding excluded. % of peak is FLOPs per second as a share of
  the GEMM peak in the row's precision. A document costs 2 FLOPs per token for each weight of the blocks' linear maps
  (24 d² per block in BERT) and 4 d per block for each pair of its tokens, without padding, times `compute`, the share
  of the whole model that the row runs. "at peak" is the documents per second that this many FLOPs would allow.
- × best peer is the ratio to the fastest transformer peer, whatever its precision.
- agreement is the share of labels equal to those in float32: for a transformer peer those of the first one in float32,
  for SPIN its own at full depth.
"""


@dataclass(frozen=True)
class Conditions:
    """What the page says about the run as a whole."""

    command: str
    load: float
    """load average before the run"""
    seconds: float
    price: float
    """of an hour of one core, in dollars"""


def head(conditions: Conditions) -> str:
    """The title and a paragraph about the machine and the libraries."""
    return (
        f"{TITLE}{describe_run(conditions)} Python {platform.python_version()}, {machine.versions(_LIBRARIES)}. "
        f"A core costs ${conditions.price:g} per hour. Written by `{conditions.command}`.\n"
    )


def describe_run(conditions: Conditions) -> str:
    """The date, the machine and the time that a run took, as a sentence."""
    return (
        f"{datetime.date.today().isoformat()}; {machine.processor()}, {os.cpu_count()} cores "
        f"({', '.join(machine.flags()) or 'no known instruction sets'}); {machine.threads()} threads per row; load "
        f"average before the run {conditions.load:.1f}; the run took {conditions.seconds / 60:.0f} minutes."
    )


def with_section(page: str, title: str, section: str) -> str:
    """The page with a section in the place of the one with its title, or else before `HOW_TO_READ`."""
    first, sections = section_page.split_sections(page)
    sections[title] = section
    last = [sections.pop(_LAST)] if _LAST in sections else []
    return "\n".join([first, *sections.values(), *last])


def section(rows: Sequence[Row], trial: Trial, peaks: Mapping[str, float], price: float) -> str:
    """The title, the table of all rows and a paragraph about the documents."""
    error = 100 * float(np.sqrt(0.25 / len(trial.test)))
    title = trial.plan.title[0].upper() + trial.plan.title[1:]
    rounds = max(len(row.seconds) for row in rows)
    return (
        f"## {title}\n\n{table(rows, trial, peaks, price)}\n"
        f"{len(trial.test):,} test documents of {trial.lengths.mean():.1f} tokens on average, {len(trial.valid):,} for "
        f"validation, {len(trial.exam.data.rows):,} to learn from; {rounds} rounds; batch sizes tried: "
        f"{', '.join(map(str, trial.batches))}. GEMM peak in these rounds: {format_peaks(peaks)}. The standard error "
        f"of an accuracy is at most {error:.1f} points.\n"
    )


def table(rows: Sequence[Row], trial: Trial, peaks: Mapping[str, float], price: float) -> str:
    """The table of a trial: transformer peers, peers that read words alone, then our rows, each from slow to fast."""
    best = fastest(transformer_peers(rows))
    order = (TransformerPeer, WordPeer, OurSetting)
    lines = [
        _line(row, best, trial, peaks, price)
        for row in sorted(rows, key=lambda row: (order.index(type(row.role)), -row.median))
    ]
    return section_page.table(_TITLES, lines)


def _line(row: Row, best: Row | None, trial: Trial, peaks: Mapping[str, float], price: float) -> list[str]:
    count, peak = len(trial.test), peaks.get(row.role.precision)
    speeds, runs_transformer = count / np.array(row.seconds), not isinstance(row.role, WordPeer)
    operations = trial.flops * row.compute / count / 1e9
    counted = peak and operations and runs_transformer
    return [
        row.role.name,
        row.role.precision if runs_transformer else "–",
        str(row.batch) if row.batch else "tokens" if isinstance(row.role, OurSetting) else "–",
        f"{count / row.median:,.0f}",
        f"{speeds.min():,.0f}–{speeds.max():,.0f}",
        f"{trial.lengths.sum() / row.median:,.0f}" if runs_transformer else "–",
        f"{100 * operations * count / row.median / peak:.0f}" if peak and counted else "–",
        f"{peak / operations:,.0f}" if peak and counted else "–",
        f"{speed_ratio(best.seconds, row.seconds).estimate:.2f}" if best else "–",
        f"{100 * row.score:.1f}",
        f"{100 * row.accuracy:.1f}",
        "–" if np.isnan(row.agreement) else f"{100 * row.agreement:.1f}",
        f"{100 * row.compute:.0f} %",
        f"{cost_per_million(row.median / count, cores(row.role, trial.threads), price):.3f}",
    ]


def cores(role: Role, threads: int) -> int:
    """The number of cores that a contender keeps busy."""
    return min(role.cores or threads, threads) if isinstance(role, WordPeer) else threads


def cost_per_million(seconds: float, cores: int, price: float) -> float:
    """Dollars for a million documents of so many seconds each, at a price of an hour of one core."""
    return 1e6 * seconds / 3600 * cores * price


def equal_table(pairs: Sequence[Equal], trial: Trial) -> str:
    """For every peer the fastest of our settings that reaches its validation score, and how both do on the test."""
    lines = []
    for pair in pairs:
        line = [pair.peer.key, f"{len(trial.test) / pair.peer.median:,.0f}"]
        scores = f"{100 * pair.peer.valid_score:.1f}"
        if pair.ours is None or pair.ratio is None or pair.difference is None:
            lines.append([*line, "no setting reaches it", "–", "–", "–", scores])
            continue
        speed = f"{len(trial.test) / pair.ours.median:,.0f}"
        both = f"{100 * pair.ours.valid_score:.1f} / {scores}"
        lines.append([*line, pair.ours.key, speed, times(pair.ratio), points(pair.difference), both])
    return f"At the macro-F1 of each peer on validation:\n\n{section_page.table(_EQUAL_TITLES, lines)}"


def format_peaks(peaks: Mapping[str, float]) -> str:
    """The GEMM peaks in one line."""
    return ", ".join(f"{peak:,.0f} G{'OP' if name == 'int8' else 'FLOP'}/s {name}" for name, peak in peaks.items())


def verdict_list(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as a Markdown list."""
    return "".join(f"- {_outcome(verdict)}: {verdict.claim}: {verdict.figures}.\n" for verdict in verdicts)


def _outcome(verdict: Verdict) -> str:
    """Whether floor and goal are met, with both limits."""
    word = "at most " if verdict.limits.at_most else ""
    goal = f"goal {word}{verdict.limits.goal:g} × {'reached' if verdict.reaches_goal else 'not reached'}"
    if verdict.limits.floor is None:
        return goal
    floor = f"(floor {word}{verdict.limits.floor:g} ×"
    return f"{'holds' if verdict.holds else '**does not hold**'} {floor}; {goal})"
