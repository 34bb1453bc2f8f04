"""Documents longer than a window: what `backbone.long_texts: windows` brings and costs against `cut`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.method.contenders import fit_spin
from benchmarks.method.corpora import METRIC, Corpus, Exam
from benchmarks.section_page import table
from benchmarks.speed.contender import SHIPPED, Answers, Classify, Contender, OurSetting, Precision
from benchmarks.speed.interval import Interval, score_difference
from benchmarks.speed.our_settings import classify_with
from benchmarks.speed.page import Conditions, cost_per_million, describe_run
from benchmarks.speed.parts import Parts
from benchmarks.speed.rounds import Ready, make_ready, race
from benchmarks.speed.row import Row
from benchmarks.speed.trial import Sides, divide_corpus
from benchmarks.speed.verdicts import compare, points, times
from spin import TrainedClassifier
from spin.activations.extract import Features, count_tokens, extract
from spin.arrays import Floats
from spin.backbone.loading import load_backbone
from spin.classifier import feature_columns
from spin.labels.label_space import Targets
from spin.labels.metrics import score
from spin.settings import BackboneSettings
from spin.sites import FeatureColumn

TITLE = "Whole documents"
SIDES = Sides(1200, 300, 0, 600)
"""fewer than the peers have: a document takes as long as all of its windows"""
QUICK_SIDES = Sides(160, 40, 0, 40)
SITES = ("resid", "ffn")
_MAX_WINDOWS = 8
"""half of the default, so that the whole takes less than 20 minutes"""
_TITLES = (
    "", "docs/s", "least–most", "tokens per document", "macro-F1", "accuracy", "by words", "compute", "$ per million",
)  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """The figures of a classifier that reads the test documents in one way, cut or in windows."""

    row: Row
    tokens: float
    """read by the backbone per document, special tokens and overlaps included; none where words alone decide"""
    by_words: float
    """share of the documents whose words alone decide, without the backbone"""


@dataclass(frozen=True)
class Comparison:
    """Documents that are cut against the same ones in windows."""

    settings: BackboneSettings
    """of the windows"""
    learned: int
    """number of documents that the classifiers learned from"""
    folds: int
    """divisions of these documents by which the choices were made"""
    y: Targets
    """(n,) of the test documents"""
    cut: Features
    """the tokens that are read of each test document up to the first limit, and those that are not"""
    whole: Features
    """the same in windows"""
    readings: Sequence[Reading]
    """at full depth cut and in windows, then the same two as shipped"""


def window_settings(model: str) -> BackboneSettings:
    """The settings of a model that reads documents in windows, on the processor."""
    return BackboneSettings(model=model, device="cpu", long_texts="windows", max_windows=_MAX_WINDOWS)


def measure(
    corpus: Corpus,
    settings: BackboneSettings,
    sides: Sides,
    folder: Path,
    rounds: int,
    sites: Sequence[str] = SITES,
) -> Comparison:
    """Train a classifier for each way to read documents, and time both at full depth and as shipped.

    `settings` are those of the windows. Both learn from the same documents of the corpus, at some `sites`, with
    default settings; the classifiers are kept in `folder`.
    """
    exam, _ = divide_corpus(corpus, sides)
    texts = [corpus.texts[row] for row in exam.test]
    cut = count_tokens(load_backbone(settings.model_copy(update={"max_windows": 1})), texts)
    whole = count_tokens(load_backbone(settings), texts)
    parts = Parts(folder, [corpus.plan.record(), corpus.origin, sides._asdict(), settings.model_dump(), list(sites)])
    contenders = _contenders(exam, settings, parts, sites)
    ready = [make_ready(contender, ()) for contender in contenders]
    results = race(ready, texts, rounds)
    readings = [
        _reading(each, results.seconds[each.key], results.answers[each.key], read.n_tokens, exam)
        for each, read in zip(ready, (cut, whole) * 2, strict=True)
    ]
    return Comparison(settings, len(exam.data.rows), len(exam.folds), exam.y[exam.test], cut, whole, readings)


def section(comparison: Comparison, conditions: Conditions, threads: int) -> str:
    """The section of the page: how the documents are read, the figures of every way, and the differences."""
    count = len(comparison.y)
    lines = [_line(reading, count, conditions.price, threads) for reading in comparison.readings]
    cut, whole, shipped_cut, shipped_whole = (reading.row for reading in comparison.readings)
    differences = [
        _difference("at full depth", cut, whole, comparison.y),
        _difference("as shipped", shipped_cut, shipped_whole, comparison.y),
    ]
    return "\n".join(
        [
            f"## {TITLE}\n\n{describe_run(conditions)}\n\n{_about(comparison)}\n",
            table(_TITLES, lines),
            f"Windows against cut:\n\n{table(('', 'docs/s', 'macro-F1', 'accuracy'), differences)}",
            _documents(comparison),
        ]
    )


def train(exam: Exam, settings: BackboneSettings, sites: Sequence[str], folder: Path) -> None:
    """Fit a classifier with default settings on the activations of whole or cut documents, and save it to a folder.

    Activations of documents that it does not learn from are not read: they are NaN.
    """
    rows, backbone = exam.data.rows, load_backbone(settings)
    columns = feature_columns(backbone, sites, None)
    print(f"  {settings.long_texts}: reading {len(rows):,} documents to learn from", flush=True)
    read = extract(backbone, [exam.corpus.texts[row] for row in rows], columns).columns
    features: dict[FeatureColumn, Floats] = {}
    for column in columns:
        values = read.pop(column)
        features[column] = np.full((len(exam.y), values.shape[1]), np.nan, np.float32)
        features[column][rows] = values
    fitted = fit_spin(replace(exam, corpus=replace(exam.corpus, features=features)))
    spin = TrainedClassifier(settings, backbone.digest, exam.corpus.label_space, fitted.training_result, METRIC)
    spin.save(folder)


def _contenders(exam: Exam, settings: BackboneSettings, parts: Parts, sites: Sequence[str]) -> list[Contender]:
    """Cut and in windows, at full depth and then as shipped, in the default engine and precision of this machine."""
    backbone = load_backbone(settings)
    precision: Precision = "bfloat16" if backbone.precision == "bfloat16" else "float32"
    contenders = []
    for early in (False, True):
        for way in ("cut", "windows"):
            own = settings.model_copy(update={"long_texts": way})
            role = OurSetting(
                backbone.engine,
                precision,
                max_loss=SHIPPED if early else None,
                default=early,
                windows=way == "windows",
            )

            def load(own: BackboneSettings = own, early: bool = early) -> Classify:
                artifact = parts.get(own.long_texts, lambda folder: train(exam, own, sites, folder))
                spin = TrainedClassifier.load(artifact, backbone=own, early=early)
                return classify_with(spin, exam.corpus.flops)

            contenders.append(Contender(role, load))
    return contenders


def _reading(
    ready: Ready, seconds: Sequence[float], answers: Answers, lengths: NDArray[np.integer], exam: Exam
) -> Reading:
    """The figures of a contender that reads as many tokens of the test documents as `lengths` (n,) if none exits."""
    role, y, compute = ready.contender.role, exam.y[exam.test], answers.compute
    assert compute is not None
    row = Row(
        role,
        tuple(seconds),
        answers.classes,
        score(METRIC, y, answers.classes),
        score("accuracy", y, answers.classes),
        valid_score=float("nan"),
        agreement=float("nan"),
        compute=float(np.average(compute, weights=lengths)),
    )
    return Reading(row, float((lengths * (compute > 0)).mean()), float((compute == 0).mean()))


def _line(reading: Reading, count: int, price: float, threads: int) -> list[str]:
    row = reading.row
    speeds = count / np.array(row.seconds)
    return [
        row.role.name,
        f"{count / row.median:,.1f}",
        f"{speeds.min():,.1f}–{speeds.max():,.1f}",
        f"{reading.tokens:,.0f}",
        f"{100 * row.score:.1f}",
        f"{100 * row.accuracy:.1f}",
        f"{100 * reading.by_words:.0f} %",
        f"{100 * row.compute:.0f} %",
        f"{cost_per_million(row.median / count, threads, price):.2f}",
    ]


def _difference(name: str, cut: Row, whole: Row, y: Targets) -> list[str]:
    """What windows gain and cost, with intervals."""
    pair = compare(cut, whole, y)
    assert pair.ratio is not None
    assert pair.difference is not None
    accuracy: Interval = score_difference(y, whole.accuracy, whole.classes, cut.accuracy, cut.classes, "accuracy")
    return [name, times(pair.ratio), points(pair.difference), points(accuracy)]


def _about(comparison: Comparison) -> str:
    settings, role = comparison.settings, comparison.readings[0].row.role
    choices = "cross-validation" if comparison.folds > 1 else "validation"
    assert isinstance(role, OurSetting)
    return (
        "What it brings and costs to [read whole documents](../docs/how-to/long-texts.md), with `backbone.long_texts: "
        f"windows` in at most {settings.max_windows} windows of {settings.max_tokens} tokens with an overlap of "
        f"{settings.window_overlap}, where by default a document is cut after {settings.max_tokens} tokens, as in the "
        "rows that do not name windows. Both are "
        f"trained with default settings on the same documents, and their choices are made by {choices} within these. "
        "Words count to the end of a document in both. They run in the default engine and precision of this machine "
        f"({role.engine}, {role.precision})."
    )


def _documents(comparison: Comparison) -> str:
    """How long the documents are, and how much of them is read in each way if none exits early."""
    cut, whole, most = comparison.cut, comparison.whole, comparison.settings.max_tokens
    assert cut.cut is not None
    assert whole.cut is not None
    assert cut.unread_tokens is not None
    assert whole.unread_tokens is not None
    assert whole.windows is not None
    lengths = cut.n_tokens + cut.unread_tokens
    rounds = len(comparison.readings[0].row.seconds)

    def unread(tokens: NDArray[np.integer]) -> str:
        return f"{tokens.mean():,.0f} ({100 * tokens.sum() / lengths.sum():.1f} % of all) are not"

    return (
        f"{len(comparison.y):,} test documents of {lengths.mean():,.0f} tokens on average, {comparison.learned:,} "
        f"others to learn from; {rounds} rounds. {100 * cut.cut.mean():.1f} % of the test documents are longer than "
        f"{most} tokens. Cut, {cut.n_tokens.mean():,.0f} tokens per document are read, and "
        f"{unread(cut.unread_tokens)}. In windows, {whole.n_tokens.mean():,.0f} are read, overlaps twice, in "
        f"{whole.windows.mean():.1f} windows per document, and {unread(whole.unread_tokens)}; "
        f"{100 * whole.cut.mean():.1f} % of the documents are longer than their windows. In the table, documents that "
        "their words decide have no tokens, since they are not even tokenized.\n"
    )
