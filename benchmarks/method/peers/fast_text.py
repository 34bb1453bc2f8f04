"""The row of fastText (Joulin et al. 2017): averaged vectors of words and word pairs, learned with the classes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any, NamedTuple

import numpy as np

from benchmarks.method.contenders import Answer, Fit, calibrate, choose_strength
from benchmarks.method.corpora import Exam
from spin.arrays import Floats, Rows
from spin.labels.label_space import LabelSpace, Targets

BUCKETS = 200_000
"""rows of the table that word pairs are hashed into. With the published two millions, which suit many more documents,
a model takes 0.8 GB"""
LONGEST = 500
"""words and marks that it reads of a text, about as many as backbones read; a manual page may have thousands"""
_LABEL = "__label__"
_NONE = "none"
"""the label of documents without a class, since fastText skips documents without a label"""
_LEAST = 1e-6
"""probability; fastText may round one to 0 or above 1"""
_TOKENS = re.compile(r"[^\W_]+|[^\w\s]")


class Trial(NamedTuple):
    """What validation chooses."""

    epochs: int
    rate: float
    """learning rate"""


TRIALS = (Trial(25, 0.5), Trial(25, 1.0), Trial(50, 1.0))
"""within the ranges that its tutorial names: 5 to 50 epochs, learning rates of 0.1 to 1.0; fewer epochs learn nothing
from so few documents"""


def fast_text(exam: Exam) -> Answer:
    """fastText on words and word pairs, as its tutorial proposes; epochs and learning rate are chosen by validation."""
    start = process_time()
    texts = {row: prepare(exam.corpus.texts[row]) for row in (*exam.data.rows, *exam.test)}
    fit = _fit_of(exam, texts)
    chosen = choose_strength(exam, fit, TRIALS)
    [logits] = fit(exam.data.rows, exam.test, [chosen.strength])
    choice = f"{chosen.strength.epochs} epochs, learning rate {chosen.strength.rate:g}"
    return calibrate(exam, "fastText", logits, chosen.held_out, process_time() - start, choice)


def choose_model(exam: Exam) -> Any:
    """The model of that row, fitted on all labelled documents."""
    texts = {row: prepare(exam.corpus.texts[row]) for row in exam.data.rows}
    chosen = choose_strength(exam, _fit_of(exam, texts), TRIALS)
    return _train(exam, texts, exam.data.rows, chosen.strength)


def predict(model: Any, texts: Sequence[str]) -> Targets:
    """The most probable class (n,) of each of n texts that are not prepared yet."""
    labels, _ = model.predict([prepare(text) for text in texts])
    return np.array([int(label.removeprefix(_LABEL)) for [label] in labels])


def prepare(text: str) -> str:
    """The start of a text as its tutorial prepares texts: in lower case, marks apart from words, on one line."""
    return " ".join(match.group() for match in islice(_TOKENS.finditer(text.lower()), LONGEST))


def _fit_of(exam: Exam, texts: Mapping[int, str]) -> Fit[Trial]:
    def fit(rows: Rows, out: Rows, trials: Sequence[Trial]) -> list[Floats]:
        return [_logits(exam, texts, rows, out, trial) for trial in trials]

    return fit


def _train(exam: Exam, texts: Mapping[int, str], rows: Rows, trial: Trial) -> Any:
    """The model that is fitted on some rows, of their prepared texts."""
    import fasttext

    label_space = exam.corpus.label_space
    with TemporaryDirectory() as folder:
        file = Path(folder) / "train.txt"
        # it learns from one text after another, and of texts in the order of their classes would forget the first
        shuffled = np.random.default_rng(exam.seed).permutation(rows)
        lines = [f"{_labels(exam.y[row], label_space)} {texts[row]}\n" for row in shuffled]
        file.write_text("".join(lines), encoding="utf-8")
        return fasttext.train_supervised(
            input=str(file), epoch=trial.epochs, lr=trial.rate, wordNgrams=2, bucket=BUCKETS,
            loss="ova" if label_space.multilabel else "softmax", thread=1, seed=exam.seed, verbose=0,
        )  # fmt: skip


def _logits(exam: Exam, texts: Mapping[int, str], rows: Rows, out: Rows, trial: Trial) -> Floats:
    """Logits (m, K) of the second rows by a model that is fitted on the first."""
    model, label_space = _train(exam, texts, rows, trial), exam.corpus.label_space
    probabilities = np.full((len(out), len(label_space)), 1 / (len(rows) + 2.0))  # of classes without a document
    names, values = model.predict([texts[row] for row in out], k=-1)
    for i, (labels, shares) in enumerate(zip(names, values, strict=True)):
        for label, share in zip(labels, shares, strict=True):
            if label != _LABEL + _NONE:
                probabilities[i, int(label.removeprefix(_LABEL))] = share
    probabilities = probabilities.clip(_LEAST, 1 - _LEAST)
    odds = probabilities / (1 - probabilities) if label_space.multilabel else probabilities
    return np.log(odds)


def _labels(y: Targets, label_space: LabelSpace) -> str:
    """The labels of a document in the format of fastText."""
    if not label_space.multilabel:
        return f"{_LABEL}{y}"
    return " ".join(f"{_LABEL}{k}" for k in np.flatnonzero(y)) or _LABEL + _NONE
