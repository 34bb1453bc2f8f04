"""The row of model2vec (Tulkens and van Dongen 2024): a vector per token, distilled from the backbone."""

from __future__ import annotations

from functools import cache
from time import process_time
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.method.contenders import Answer, calibrate
from benchmarks.method.corpora import Exam
from benchmarks.method.peers.libraries import silence
from spin.arrays import Floats, Rows
from spin.backbone.hub import locate_model
from spin.labels.label_space import LabelSpace, Targets

if TYPE_CHECKING:
    from model2vec import StaticModel
    from model2vec.train import StaticModelForClassification

FOLDS = 2
"""of the cross-validation where labels are few; a model takes up to a minute"""


def static_model(exam: Exam) -> Answer:
    """The classifier of model2vec with its default settings: a network on the mean of the vectors, which it learns too.

    It is fitted on all labelled documents, of which it sets a tenth aside to end in time. The models of the folds serve
    for the temperature and for thresholds alone.
    """
    start = process_time()
    model = distill(exam.corpus.plan.model)
    held_out = [_logits(model, exam, fold.train, fold.valid) for fold in exam.folds[:FOLDS]]
    logits = _logits(model, exam, exam.data.rows, exam.test)
    return calibrate(exam, "model2vec", logits, held_out, process_time() - start, "default settings")


@cache
def distill(backbone: str) -> StaticModel:
    """The static model of a backbone by the defaults of model2vec, of which each token's vector has 256 dimensions."""
    from model2vec.distill import distill

    with silence():
        return distill(str(locate_model(backbone)), device="cpu")


def fit_classifier(model: StaticModel, exam: Exam, rows: Rows) -> StaticModelForClassification:
    """The classifier that is fitted on some rows; its classes are the numbers of the classes as text."""
    from model2vec.train import StaticModelForClassification

    classifier = StaticModelForClassification.from_static_model(model=model)
    texts = [exam.corpus.texts[row] for row in rows]
    labels = [_label(exam.y[row], exam.corpus.label_space) for row in rows]
    with torch.random.fork_rng(devices=[]), silence():
        classifier.fit(texts, labels, random_seed=exam.seed, device="cpu")
    return classifier


def _logits(model: StaticModel, exam: Exam, rows: Rows, out: Rows) -> Floats:
    """Logits (m, K) of the second rows by a classifier that is fitted on the first."""
    label_space = exam.corpus.label_space
    classifier = fit_classifier(model, exam, rows)
    with silence():
        found = torch.from_numpy(classifier.encode([exam.corpus.texts[row] for row in out]))
    if not label_space.multilabel:
        found = found.log_softmax(1)
    logits = np.full((len(out), len(label_space)), -np.log(len(rows) + 1.0), np.float32)  # of absent classes
    logits[:, [int(name) for name in classifier.classes_]] = found.numpy()
    return logits


def _label(y: Targets, label_space: LabelSpace) -> str | list[str]:
    """The number of a document's class as text, or those of its classes."""
    return [str(k) for k in np.flatnonzero(y)] if label_space.multilabel else str(y)
