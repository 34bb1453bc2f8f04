"""The page as Markdown: tables, and under each whether the claims hold, in figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student

from benchmarks.method.all_neurons import STRENGTHS as ALL_STRENGTHS
from benchmarks.method.contenders import EXITS, LONGEST_TEXT, STRENGTHS, TFIDF_STRENGTHS
from benchmarks.method.corpora import FLIPPED
from benchmarks.method.paper import ETAS, HEAD_STRENGTHS, PROBE_STRENGTHS
from benchmarks.method.peers.fast_text import BUCKETS, LONGEST, TRIALS
from benchmarks.method.peers.set_fit import ITERATIONS
from benchmarks.method.siren import ETAS as SIREN_ETAS
from benchmarks.method.siren import RATES, WIDTHS
from benchmarks.method.tasks.task import Task
from benchmarks.method.tasks.tweets import TWEETS
from benchmarks.section_page import table, word_of

Result = dict[str, Any]
SPIN, BALANCED, HALF = "SPIN, accuracy", "SPIN, balanced", "SPIN, lower half"
MEAN_LOSS, WORST_LOSS = 0.5, 0.8
"""limits of the claim about early exits: points of macro-F1 lost in the mean of the draws, and in the worst one"""
ALL, LAST, WORDS, PAPER = "all neurons", "last layer", "TF-IDF", "the paper's recipe"
HEAD_ALONE = "SetFit, head alone"
GAIN, MOST_NEURONS = 0.3, 10.0
"""limits of the claims with all labels: points of macro-F1 above all neurons, percent of the neurons"""
ENOUGH_LABELS = 256
"""labels per class from which the claim on the mean is about all neurons alone; below also about the last layer and
SetFit's head"""
_CONFIDENCE = 0.9


def report(results: dict[str, list[Result]], missing: Sequence[str] = (), task: Task = TWEETS) -> str:
    """The whole page of a task's results by corpus and setting; it names the experiments that are missing."""
    parts = [
        f"# {task.heading}\n",
        f"{describe_runs(results)} Written by `{task.command('bench-method')}`.\n",
        _about(results, task),
    ]
    if missing:
        parts.append(f"**Not finished: {', '.join(missing)}.** Their results are missing on this page.\n")
    for section in sections(results):
        parts += [f"## {section.title}\n", section.table, section.claims]
        parts += [f"{task.tried[section.key]}\n"] if section.key in task.tried else []
    parts.append(_rules(results, task))
    return "\n".join(part for part in parts if part)


@dataclass(frozen=True)
class Section:
    """A table of the page, with the claims under it."""

    key: str
    """corpus and setting, such as `minilm-full`, or `few` for all numbers of labels per class together"""
    title: str
    table: str
    claims: str
    """a Markdown list"""

    @property
    def failed(self) -> list[str]:
        """The claims that do not hold, without the mark."""
        mark = f"- {word_of(False)}: "
        return [line.removeprefix(mark) for line in self.claims.splitlines() if line.startswith(mark)]


def sections(results: Mapping[str, list[Result]]) -> list[Section]:
    """The tables of a task's results by corpus and setting, in the order of the page."""
    full = {key: runs for key, runs in results.items() if key.endswith("-full")}
    found = [
        Section(key, f"{corpus_title(runs)}: {label_text(runs)}", full_table(runs), full_claims(runs))
        for key, runs in sorted(full.items())
    ]
    few = {int(key.rpartition("-few")[2]): runs for key, runs in results.items() if "-few" in key}
    few = dict(sorted(few.items()))
    if few:
        shown = {f"{count} per class": runs for count, runs in few.items()}
        found.append(_paired_section("few", "few labels", shown, few_claims(few)))
    noisy = next((runs for key, runs in results.items() if key.endswith("-noisy")), None)
    if noisy:
        title = f"{100 * FLIPPED:.0f} % of the training labels flipped"
        found.append(_paired_section("noisy", title, {"flipped": noisy}, noisy_claims(noisy)))
    return found


def full_table(results: Sequence[Result]) -> str:
    """All rows with all columns, mean ± standard deviation over the seeds."""
    columns: list[tuple[str, Callable[[str], str]]] = [
        ("accuracy", lambda name: spread(100 * values_of(results, name, "accuracy"), 1)),
        ("macro-F1", lambda name: spread(100 * values_of(results, name, "macro_f1"), 1)),
        ("ECE, %", lambda name: spread(100 * values_of(results, name, "ece"), 1)),
        ("by chance up to", lambda name: spread(100 * values_of(results, name, "ece_limit"), 1)),
        ("neurons", lambda name: spread(values_of(results, name, "neurons"), 0)),
        ("depth", lambda name: spread(values_of(results, name, "depth"), 1)),
        ("compute", lambda name: spread(values_of(results, name, "compute"), 2)),
        ("seconds to fit", lambda name: spread(values_of(results, name, "seconds"), 0)),
    ]
    lines = [[name, *(cell(name) for _, cell in columns)] for name in _names(results)]
    train, valid, test = results[0]["documents"]
    below = (
        f"{_draws(results)}, mean ± sd; {results[0]['classes']} classes; {train:,} documents for training, {valid:,} "
        f"for validation, {test:,} for the test; {results[0]['neurons']:,} neurons, counted once per pooling, in "
        f"{results[0]['depth']} blocks.\n"
    )
    return table(["", *(title for title, _ in columns)], lines) + "\n" + below


def full_claims(results: Sequence[Result]) -> str:
    """The claims with all labels, as a Markdown list."""
    gain = Difference.of(results, ALL)
    share = 100 * mean_of(results, SPIN, "neurons") / results[0]["neurons"]
    ece, limit = (100 * mean_of(results, SPIN, key) for key in ("ece", "ece_limit"))
    lines = [
        f"- {word_of(gain.mean >= GAIN and gain.lower >= 0 and share <= MOST_NEURONS)}: `accuracy` gains at least "
        f"{GAIN} points of macro-F1 on {ALL}, and no loss is within the 90 % interval over the draws, with at most "
        f"{MOST_NEURONS:.0f} % of the neurons ({gain.interval}, {share:.1f} %).",
        _words_claim(results),
        f"- {word_of(ece <= limit)}: `accuracy` has an ECE that exact probabilities would show by chance ({ece:.1f} %; "
        f"they exceed {limit:.1f} % in 5 % of such test sets).",
    ]
    for name in (n for n in _names(results) if not n.startswith("SPIN") and n != ALL):
        ahead = Difference.of(results, name)
        lines.append(f"- {word_of(ahead.mean > 0)}: `accuracy` has a higher macro-F1 than {name} ({ahead.interval}).")
    return "\n".join([*lines, *_cost_claims(results)]) + "\n"


def _cost_claims(results: Sequence[Result]) -> list[str]:
    """What less of the backbone costs."""
    compute = mean_of(results, SPIN, "compute"), mean_of(results, BALANCED, "compute")
    loss = -Difference.of(results, BALANCED).mean
    saved = 100 * (1 - compute[1] / compute[0])
    lines = [
        *_exits_claim(results),
        f"- `balanced` runs {100 * compute[1]:.0f} % of the backbone where `accuracy` runs {100 * compute[0]:.0f} %: "
        f"it saves {saved:.0f} % of the compute for {loss:+.2f} points of macro-F1.",
    ]
    if HALF not in _names(results):
        return lines
    gain = 100 * (mean_of(results, HALF, "macro_f1") - mean_of(results, LAST, "macro_f1"))
    return [
        *lines,
        f"- {word_of(gain > 0)}: SPIN on the lower half of the blocks has a higher macro-F1 than the {LAST} of the "
        f"whole model ({gain:+.2f} points at {100 * mean_of(results, HALF, 'compute'):.0f} % of its compute).",
    ]


def _exits_claim(results: Sequence[Result]) -> list[str]:
    """What early exits cost, if the draws have this row."""
    if EXITS not in _names(results):
        return []
    losses = 100 * (values_of(results, SPIN, "macro_f1") - values_of(results, EXITS, "macro_f1"))
    saved = 100 * (1 - mean_of(results, EXITS, "compute") / mean_of(results, SPIN, "compute"))
    return [
        f"- {word_of(losses.mean() <= MEAN_LOSS and losses.max() <= WORST_LOSS)}: early exits lose at most {MEAN_LOSS} "
        f"points of macro-F1 in the mean of the draws, and {WORST_LOSS} in the worst one ({losses.mean():.2f} and "
        f"{losses.max():.2f}); they save {saved:.0f} % of the compute."
    ]


def few_claims(counts: dict[int, list[Result]]) -> str:
    """The claims with few labels, as a Markdown list, by number of labels per class."""
    lines = []
    for count, results in counts.items():
        named = [ALL] if count >= ENOUGH_LABELS else [ALL, LAST, HEAD_ALONE]
        gains = [Difference.of(results, name) for name in named if name in _names(results)]
        rows = " nor ".join(f"{gain.name} ({gain})" for gain in gains)
        where = f"{count} per class, "
        lines += [
            f"- {word_of(all(gain.mean >= 0 for gain in gains))}: {where}`accuracy` is in the mean not below {rows}.",
            _words_claim(results, where),
            _others_claim(results, [WORDS, *named], where),
        ]
    return "\n".join(lines) + "\n"


def noisy_claims(results: Sequence[Result]) -> str:
    """The claims with flipped labels, as a Markdown list."""
    gain = Difference.of(results, ALL)
    lines = [
        f"- {word_of(gain.near)}: `accuracy` is not below {ALL} by more than one standard error ({gain}).",
        _words_claim(results),
        _others_claim(results, [WORDS, ALL]),
    ]
    return "\n".join(lines) + "\n"


def _words_claim(results: Sequence[Result], where: str = "") -> str:
    """The claim of every table."""
    gain = Difference.of(results, WORDS)
    return f"- {word_of(gain.near)}: {where}`accuracy` is not below {WORDS} by more than one standard error ({gain})."


def _others_claim(results: Sequence[Result], named: Sequence[str], where: str = "") -> str:
    """The claim about the rows that no other claim names."""
    others = [name for name in _names(results) if not name.startswith("SPIN") and name not in named]
    below = [gain for gain in (Difference.of(results, name) for name in others) if not gain.near]
    exceptions = f", except {', '.join(f'{gain.name} ({gain})' for gain in below)}" if below else ""
    claim = f"{where}`accuracy` is below no other row by more than one standard error{exceptions}"
    return f"- {word_of(not below)}: {claim}."


def _paired_section(key: str, title: str, shown: dict[str, list[Result]], claims: str) -> Section:
    first = next(iter(shown.values()))
    return Section(key, f"{corpus_title(first)}: {title}", paired_table(shown), claims)


def paired_table(shown: dict[str, list[Result]]) -> str:
    """Macro-F1 of every row, and the difference of SPIN to it on the same draws, under one or several settings."""
    titles = [""]
    for setting in shown:
        titles += [f"macro-F1, {setting}", "SPIN − row"]
    lines = []
    first = next(iter(shown.values()))
    fewer = set()
    for name in _names(first):
        line = [name]
        for setting, results in shown.items():
            draws = len(values_of(results, name, "macro_f1"))
            if 0 < draws < len(results):
                fewer.add(f"{name} with {setting} has {draws} draws")
            line += _paired_cells(results, name)
        lines.append(line)
    below = (
        f"{_draws(first)}; macro-F1 as mean ± sd, the paired difference of `accuracy` to a row in points "
        f"as mean ± standard error{''.join(f'; {words}' for words in sorted(fewer))}; "
        f"{first[0]['documents'][2]:,} test documents.\n"
    )
    return table(titles, lines) + "\n" + below


def _paired_cells(results: Sequence[Result], name: str) -> tuple[str, str]:
    """Macro-F1 of a row and the difference of SPIN to it; dashes for a row that the setting does not have."""
    values = 100 * values_of(results, name, "macro_f1")
    if not len(values):
        return "–", "–"
    return spread(values, 1), "–" if name == SPIN else str(Difference.of(results, name))


@dataclass(frozen=True)
class Difference:
    """The difference SPIN `accuracy` − row on the same draws, in points of macro-F1."""

    name: str
    mean: float
    error: float
    """the standard error of the mean"""
    half: float
    """half the width of the 90 % interval by Student's t; without end for a single draw"""

    @classmethod
    def of(cls, results: Sequence[Result], name: str) -> Difference:
        """Measure the difference to a row."""
        results = [result for result in results if name in _names([result])]
        differences = 100 * (values_of(results, SPIN, "macro_f1") - values_of(results, name, "macro_f1"))
        error = _sd(differences) / float(np.sqrt(len(differences)))
        half = (
            error * float(student.ppf((1 + _CONFIDENCE) / 2, len(differences) - 1)) if len(differences) > 1 else np.inf
        )
        return cls(name, float(differences.mean()), error, half)

    @property
    def lower(self) -> float:
        """The lower end of the interval."""
        return self.mean - self.half

    @property
    def near(self) -> bool:
        """Whether SPIN is at most one standard error below the row."""
        return self.mean >= -self.error

    @property
    def interval(self) -> str:
        """Mean and interval as words."""
        if np.isinf(self.half):
            return f"{self.mean:+.2f}, no interval of a single draw"
        return f"{self.mean:+.2f}, interval {self.lower:+.2f} to {self.mean + self.half:+.2f}"

    def __str__(self) -> str:
        return f"{self.mean:+.2f} ± {self.error:.2f}"


def _rules(results: dict[str, list[Result]], task: Task) -> str:
    """How every row was computed, and why some are missing."""
    lines = [
        f"- {row}: left out, since {task.left_out[row]}." if row in task.left_out else f"- {names}: {rule}"
        for row, names, rule in _row_rules(results)
    ]
    others = [(name, why) for name, why in task.decoder_left_out.items() if name not in task.left_out]
    lines += [f"- Tables of the decoder leave out {name}, since {why}." for name, why in others]
    others_decide = "choose theirs in the\n  same way" if task.multilabel else "give the most probable\n  class"
    rules = "\n".join(lines)
    exits = (
        f"\n  `{EXITS.removeprefix('SPIN, ')}` is `accuracy` as nights run it: words or the first blocks decide the "
        "documents that\n  they are sure of."
        if any(EXITS in _names(runs) for runs in results.values())
        else ""
    )
    return f"""## How the rows are computed

Near-identical texts (the same words in the same order, whatever their punctuation, links and mentions) are never
divided among training, validation and test documents or among folds. With all labels and with flipped ones, a draw is
another division; with few labels it is other documents of those that the first division does not test on. All rows of
a draw share its documents. SmolLM2 has fewer documents than MiniLM, since it has five times the neurons and the whole
run is to end within 90 minutes on two cores.

All rows learn from the same training documents, are chosen on the same validation documents (SPIN's candidates by log
loss, all others by macro-F1), and are then refitted on both and calibrated on held-out logits, SPIN's by their stack
and all others by a temperature; SetFit chooses nothing and has no temperature.
Below 5,000 labels the choice is made by the stratified cross-validation of SPIN: five parts, below 300 labels twice.
"By chance up to" is the ECE that exact probabilities exceed in 5 % of such test sets, where documents of a group, such
as packages of one source, may be right or wrong together; a dash: not measured with groups.

Compute is the FLOPs per token up to the deepest site that is read, as a share of the whole backbone's. Seconds to fit
are processor seconds of one thread on activations that are already on disk.

{rules}
- SPIN: the default settings, and labels under the thresholds that training chose; other rows {others_decide}. \
All rows but one come from one search, and show its seconds: `neurons` is what `accuracy` would be among its
  candidates without words, `neurons + words` among those that read both; these two have no network.
  `lower half` is a search of its own, on the probes of the lower half of the blocks.{exits}

Intervals and standard errors are of paired differences over the draws. Draws share documents, the few labels all of
their test documents: this part of chance is not in them.
"""


def _row_rules(results: dict[str, list[Result]]) -> list[tuple[str, str, str]]:
    """For each rule one of its rows, the names of all of them, and how they are computed."""
    trials = ", ".join(f"{trial.epochs} with {trial.rate:g}" for trial in TRIALS)
    widths = " or ".join(f"{first} and {second}" for first, second in WIDTHS)
    return [
        (WORDS, "TF-IDF (words and word pairs) and TF-IDF, characters (strings of 2 to 4 within words)",
         f"logistic\n  regression with C from {_list(TFIDF_STRENGTHS)}; strings of the first {LONGEST_TEXT:,} "
         "characters."),
        ("fastText", "fastText (Joulin et al. 2017)",
         "words and word pairs, a vector of 100 dimensions each, learned in one thread;\n"
         f"  epochs and learning rate from {trials}; {BUCKETS:,} buckets for the pairs, the first\n"
         f"  {LONGEST} words of a text, and one-vs-all where a document may have several classes."),
        ("model2vec", "model2vec (Tulkens and van Dongen 2024)",
         "a vector per token distilled from MiniLM, and the classifier of\n"
         "  the library on their mean; its default settings, which train the vectors too and end by a tenth of the\n"
         "  labelled documents."),
        ("SetFit", "SetFit (Tunstall et al. 2022)",
         f"the backbone fine-tuned for one epoch on {2 * ITERATIONS} pairs per text, and a logistic\n"
         "  regression, as published; `head alone` is this regression on the backbone as it is."),
        (LAST, "last layer (after the final norm, standardised, mean or last token)",
         f"logistic regression with C from\n  {_list(STRENGTHS)}."),
        ("best single site", "best single site", "the L1 probe of the feature column with the best validation score."),
        (PAPER, PAPER, _paper_rule(results)),
        ("SIREN's recipe", "SIREN's recipe (Jiao et al. 2026, a successor of SPIN)",
         "the L1 probes of the residual stream, averaged over the\n"
         f"  tokens; of each layer the neurons with a share eta of the absolute weights, from {_list(SIREN_ETAS)}; "
         "layers weighted\n  by the validation scores of their probes; a network with two ReLU layers, of\n"
         f"  {widths} units, ended by validation, with a learning rate from {_list(RATES)}.\n"
         "  Where it differs from the published code is in benchmarks/method/siren.py."),
        (ALL, ALL, "L2 multinomial logistic regression on all standardised feature columns, with the prior variance\n"
         f"  of a logit from {_list(ALL_STRENGTHS)}."),
        ("words", "words", "the word regression of SPIN without neurons."),
        ("penalty per layer", "penalty per layer",
         "one head on the neurons of the row `SPIN, neurons`, each layer scaled by what\n"
         "  a head on it alone gains on validation documents, as a share of the best layer's."),
        ("gate per document", "gate per document",
         "one head per layer on the same neurons, and in each document a softmax over\n"
         "  layers, computed from the largest probability and the entropy of each layer."),
        ("attention pooling", "attention pooling",
         "in each layer a learned query per class over the tokens of the residual stream, in\n"
         "  place of their mean; the weighted means of all layers add up to the logits."),
    ]  # fmt: skip


def _paper_rule(results: dict[str, list[Result]]) -> str:
    """How the row of the paper's recipe was computed, and how much of its grid the time limit cut off."""
    choices = [row["choice"] for runs in results.values() for run in runs for row in run["rows"]]
    parts = [choice.rpartition("; ")[2].split() for choice in choices if "reached" in choice]
    missed, requested = sum(int(p[0]) for p in parts), sum(int(p[2]) for p in parts)
    return f"""\
L1 one-vs-rest logistic regression on raw hidden states with C from {_list(PROBE_STRENGTHS)};
  importance by squared weights, summed over classes; the first k layers under one pooling; an L1 one-vs-rest head. The
  grid is thinned to bound the time: k from 1, half, all but one and all; eta from {_list(ETAS)}; the head's
  C from {_list(HEAD_STRENGTHS)}; where labels are few, one round of the cross-validation. A path of penalties ends
  after a time limit; {missed:,} of {requested:,} models of all tables were not reached for this reason."""


def describe_runs(results: Mapping[str, Sequence[Result]]) -> str:
    """When, on which processors and with which libraries results were measured, a sentence for each."""
    measured = sorted({result["measured"] for runs in results.values() for result in runs})
    return " ".join(f"Measured {each}." for each in measured) or "Nothing is measured yet."


def _about(results: dict[str, list[Result]], task: Task) -> str:
    """The paragraph about a task's documents: what the task says, and their origin."""
    first = next((runs[0] for runs in results.values()), None)
    if not task.about or first is None:
        return task.about and f"{task.about}\n"
    return f"{task.about} {first['origin']}.\n"


def corpus_title(results: Sequence[Result]) -> str:
    """The documents and the backbone."""
    text: str = results[0]["experiment"]["plan"]["title"]
    return text[0].upper() + text[1:]


def label_text(results: Sequence[Result]) -> str:
    """How many labels an experiment learns from: all that the plan gives, their number where it is a subset, or few."""
    first, setting = results[0], results[0]["experiment"]["setting"]
    if setting.startswith("few"):
        return f"{setting.removeprefix('few')} per class"
    whole = first["experiment"]["plan"]["documents"] is None
    count = sum(first["documents"][:2])
    return f"all labels ({count:,})" if whole else f"{count:,} labels"


def _draws(results: Sequence[Result]) -> str:
    return f"{len(results)} draws" if len(results) > 1 else "1 draw"


def _names(results: Sequence[Result]) -> list[str]:
    return [row["name"] for row in results[0]["rows"]]


def values_of(results: Sequence[Result], name: str, key: str) -> Any:
    """The values of a row, of those draws that have it; NaN where the row has no such value."""
    values = [row.get(key, np.nan) for result in results for row in result["rows"] if row["name"] == name]
    return np.array(values, float)


def mean_of(results: Sequence[Result], name: str, key: str) -> float:
    """The mean of a row over the draws that have it."""
    return float(values_of(results, name, key).mean())


def _sd(values: Any) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def spread(values: Any, digits: int) -> str:
    """The mean of some values and their standard deviation; a dash where one is not known."""
    if np.isnan(values).any():
        return "–"
    mean, sd = f"{values.mean():,.{digits}f}", f"{_sd(values):,.{digits}f}"
    return mean if float(sd.replace(",", "")) == 0 else f"{mean} ± {sd}"


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)
