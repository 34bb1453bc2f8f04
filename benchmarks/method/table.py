"""The page as Markdown: tables, and under each whether the claims hold, in figures."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.machine import processor, versions
from benchmarks.method.all_neurons import STRENGTHS as ALL_STRENGTHS
from benchmarks.method.contenders import STRENGTHS
from benchmarks.method.corpora import FLIPPED
from benchmarks.method.paper import ETAS, HEAD_STRENGTHS, PROBE_STRENGTHS

Result = dict[str, Any]
SPIN, BALANCED, HALF = "SPIN, accuracy", "SPIN, balanced", "SPIN, lower half"
ALL, LAST = "all neurons", "last layer"
_LIBRARIES = ("numpy", "scipy", "scikit-learn", "torch", "transformers", "numba")
TRIED: dict[str, str] = {
    "minilm-full": (
        "Tried: the candidate with the best validation score, which among many candidates wins partly by luck, ended "
        "0.58 points below all neurons; the largest candidate within one standard error ends at -0.03. Early stopping "
        "of the head's solver is part of its regularisation: fitted to convergence it lost up to 0.7 points. The row "
        "of all neurons has the same stopping, which gained it 0.16. On another draw with 10,000 test documents, more "
        "neurons (eta 0.9, 23.6 %) gained 0.2 to 0.4, so the limit of 10 % costs something."
    ),
    "few": (
        "Tried: the candidate with the best cross-validated score lost up to 10 points with 16 labels per class, "
        "since it chose shallow depths by luck; among candidates within one standard error the largest is chosen. With "
        "256 per class, more neurons (30 %) did worse (66.6 against 67.9)."
    ),
    "noisy": (
        "Tried: the one-standard-error rule, which reduced the difference by 0.2 points; earlier stopping, which the "
        "row of all neurons has too. The likely cause: wrong labels harm each probe's choice of neurons, while a ridge "
        "over all neurons averages over the noise."
    ),
}
"""written by hand, by name of a table: what was tried where a claim does not hold"""


def report(results: dict[str, list[Result]], missing: Sequence[str] = ()) -> str:
    """The whole page of results by corpus and setting; it names the experiments that are missing."""
    parts = [_head()]
    if missing:
        parts.append(f"**Not finished: {', '.join(missing)}.** Their results are missing on this page.\n")
    full = {key: runs for key, runs in results.items() if key.endswith("-full")}
    for key, runs in sorted(full.items()):
        parts += [f"## {_title(runs)}: all labels\n", full_table(runs), full_claims(runs), _tried(key)]
    few = {key: runs for key, runs in results.items() if "-few" in key}
    counts = {int(key.rpartition("-few")[2]): runs for key, runs in few.items()}
    counts = dict(sorted(counts.items()))
    if counts:
        shown = {f"{count} per class": runs for count, runs in counts.items()}
        parts += _paired_section("few labels", "few", shown)
    noisy = next((runs for key, runs in results.items() if key.endswith("-noisy")), None)
    if noisy:
        parts += _paired_section(f"{100 * FLIPPED:.0f} % of the training labels flipped", "noisy", {"flipped": noisy})
    parts.append(_rules(results))
    return "\n".join(part for part in parts if part)


def full_table(results: Sequence[Result]) -> str:
    """All rows with all columns, mean ± standard deviation over the seeds."""
    columns: list[tuple[str, Callable[[str], str]]] = [
        ("accuracy", lambda name: _spread(100 * _values(results, name, "accuracy"), 1)),
        ("macro-F1", lambda name: _spread(100 * _values(results, name, "macro_f1"), 1)),
        ("ECE, %", lambda name: _spread(100 * _values(results, name, "ece"), 1)),
        ("neurons", lambda name: _spread(_values(results, name, "neurons"), 0)),
        ("depth", lambda name: _spread(_values(results, name, "depth"), 1)),
        ("compute", lambda name: _spread(_values(results, name, "compute"), 2)),
        ("seconds to fit", lambda name: _spread(_values(results, name, "seconds"), 0)),
    ]
    lines = [[name, *(cell(name) for _, cell in columns)] for name in _names(results)]
    train, valid, test = results[0]["documents"]
    below = (
        f"{len(results)} seeds, mean ± sd; {train:,} documents for training, {valid:,} for validation, "
        f"{test:,} for the test; {results[0]['neurons']:,} neurons, counted once per pooling, in "
        f"{results[0]['depth']} blocks.\n"
    )
    return markdown(["", *(title for title, _ in columns)], lines) + "\n" + below


def full_claims(results: Sequence[Result]) -> str:
    """The claims with all labels, as a Markdown list."""
    spin_score = 100 * _mean(results, SPIN, "macro_f1")
    lines = []
    for name in (n for n in _names(results) if not n.startswith("SPIN") and n != ALL):
        gain = spin_score - 100 * _mean(results, name, "macro_f1")
        lines.append(f"- {_holds(gain > 0)}: `accuracy` has a higher macro-F1 than {name} ({gain:+.2f} points).")
    all_scores = 100 * _values(results, ALL, "macro_f1")
    gap, sd = spin_score - all_scores.mean(), _sd(all_scores)
    share = 100 * _mean(results, SPIN, "neurons") / results[0]["neurons"]
    lines.append(
        f"- {_holds(gap >= -sd and share <= 10)}: at most one sd below {ALL} ({gap:+.2f} points, sd {sd:.2f}) "
        f"with at most 10 % of the neurons ({share:.1f} %)."
    )
    compute = _mean(results, SPIN, "compute"), _mean(results, BALANCED, "compute")
    loss = 100 * _mean(results, BALANCED, "macro_f1") - spin_score
    saved = 100 * (1 - compute[1] / compute[0])
    lines.append(
        f"- `balanced` runs {100 * compute[1]:.0f} % of the backbone where `accuracy` runs {100 * compute[0]:.0f} %: "
        f"it saves {saved:.0f} % of the compute for {loss:+.2f} points of macro-F1."
    )
    gain = 100 * (_mean(results, HALF, "macro_f1") - _mean(results, LAST, "macro_f1"))
    lines.append(
        f"- {_holds(gain > 0)}: SPIN on the lower half of the blocks has a higher macro-F1 than the {LAST} of the "
        f"whole model ({gain:+.2f} points at {100 * _mean(results, HALF, 'compute'):.0f} % of its compute)."
    )
    return "\n".join(lines) + "\n"


def _paired_section(title: str, key: str, shown: dict[str, list[Result]]) -> list[str]:
    first = next(iter(shown.values()))
    head = f"## {_title(first)}: {title}\n"
    return [head, paired_table(shown), paired_claims(shown), _tried(key)]


def paired_table(shown: dict[str, list[Result]]) -> str:
    """Macro-F1 of every row, and the difference of SPIN to it on the same draws, under one or several settings."""
    titles = [""]
    for setting in shown:
        titles += [f"macro-F1, {setting}", "SPIN − row"]
    lines = []
    for name in _names(next(iter(shown.values()))):
        line = [name]
        for results in shown.values():
            mean, error = _difference(results, name)
            line += [_spread(100 * _values(results, name, "macro_f1"), 1), f"{mean:+.2f} ± {error:.2f}"]
        lines.append(["–" if name == SPIN and i and i % 2 == 0 else cell for i, cell in enumerate(line)])
    first = next(iter(shown.values()))
    below = (
        f"{len(first)} draws; macro-F1 as mean ± sd, the paired difference of `accuracy` to a row in points "
        f"as mean ± standard error; {first[0]['documents'][2]:,} test documents.\n"
    )
    return markdown(titles, lines) + "\n" + below


def paired_claims(shown: dict[str, list[Result]]) -> str:
    """Whether SPIN is below a row by more than a standard error, as a Markdown list."""
    lines = []
    for setting, results in shown.items():
        below = []
        for name in (n for n in _names(results) if not n.startswith("SPIN")):
            mean, error = _difference(results, name)
            if mean < -error:
                below.append(f"{name} ({mean:+.2f}, standard error {error:.2f})")
        exceptions = f", except {', '.join(below)}" if below else ""
        lines.append(
            f"- {_holds(not below)}, {setting}: `accuracy` at most one standard error below every row{exceptions}."
        )
    return "\n".join(lines) + "\n"


def _difference(results: Sequence[Result], name: str) -> tuple[float, float]:
    """Mean and standard error of the difference SPIN − row in points of macro-F1."""
    differences = 100 * (_values(results, SPIN, "macro_f1") - _values(results, name, "macro_f1"))
    return float(differences.mean()), _sd(differences) / float(np.sqrt(len(differences)))


def _rules(results: dict[str, list[Result]]) -> str:
    """How every row was computed."""
    choices = [row["choice"] for runs in results.values() for run in runs for row in run["rows"]]
    parts = [choice.rpartition("; ")[2].split() for choice in choices if "reached" in choice]
    missed, requested = sum(int(p[0]) for p in parts), sum(int(p[2]) for p in parts)
    return f"""## How the rows are computed

All rows learn from the same training documents, are chosen by macro-F1 on the same validation documents, and are then
refitted on both and calibrated by a temperature on held-out logits. Below 1,000 labels the choice is made by the
repeated stratified cross-validation of SPIN. Compute is the FLOPs per token up to the deepest site that is read, as a
share of the whole backbone's. Seconds to fit are processor seconds of one thread on activations that are already on
disk.

- TF-IDF (words and word pairs) and last layer (after the final norm, standardised, mean or last token): logistic
  regression with C from {_list(STRENGTHS)}.
- best single site: the L1 probe of the feature column with the best validation score.
- the paper's recipe: L1 one-vs-rest logistic regression on raw hidden states with C from {_list(PROBE_STRENGTHS)};
  importance by squared weights, summed over classes; the first k layers under one pooling; an L1 one-vs-rest head. The
  grid is thinned to bound the time: k from 1, half, all but one and all; eta from {_list(ETAS)}; the head's
  C from {_list(HEAD_STRENGTHS)}; where labels are few, one round of the cross-validation. A path of penalties ends
  after a time limit; {missed:,} of {requested:,} models of all tables were not reached for this reason.
- {ALL}: L2 multinomial logistic regression on all standardised feature columns, with the prior variance of a logit
  from {_list(ALL_STRENGTHS)}.
- SPIN: the default settings; `accuracy` and `balanced` come from one search, `lower half` is `accuracy` of a search
  restricted to the lower half of the blocks.
"""


def _head() -> str:
    return (
        f"# The method on real text\n\n{datetime.date.today().isoformat()}; {processor()}, {os.cpu_count()} cores; "
        f"Python {platform.python_version()}, {versions(_LIBRARIES)}. Written by `make bench-method`.\n"
    )


def _tried(key: str) -> str:
    return f"{TRIED[key]}\n" if key in TRIED else ""


def _title(results: Sequence[Result]) -> str:
    title: str = results[0]["experiment"]["plan"]["title"]
    return title[0].upper() + title[1:]


def _names(results: Sequence[Result]) -> list[str]:
    return [row["name"] for row in results[0]["rows"]]


def _values(results: Sequence[Result], name: str, key: str) -> Any:
    return np.array([next(row[key] for row in result["rows"] if row["name"] == name) for result in results], float)


def _mean(results: Sequence[Result], name: str, key: str) -> float:
    return float(_values(results, name, key).mean())


def _sd(values: Any) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _spread(values: Any, digits: int) -> str:
    mean, sd = f"{values.mean():,.{digits}f}", f"{_sd(values):,.{digits}f}"
    return mean if float(sd.replace(",", "")) == 0 else f"{mean} ± {sd}"


def _holds(holds: bool) -> str:
    return "holds" if holds else "**does not hold**"


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


def markdown(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are figures."""
    rule = ["---", *["---:"] * (len(titles) - 1)]
    return "".join(f"| {' | '.join(line)} |\n" for line in [titles, rule, *lines])
