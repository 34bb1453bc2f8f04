"""The rows of SetFit (Tunstall et al. 2022): a logistic regression on the backbone, fine-tuned on pairs of texts."""

from __future__ import annotations

import logging
from tempfile import TemporaryDirectory
from time import process_time
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.method.contenders import Answer, regression_logits
from benchmarks.method.corpora import Exam
from benchmarks.method.peers.libraries import silence
from spin.arrays import Floats, Rows
from spin.backbone.hub import locate_model
from spin.labels.label_space import LabelSpace

if TYPE_CHECKING:
    from setfit import SetFitModel

ITERATIONS = 20
"""pairs of equal and of different classes that each text gets, as published; by the library's own default, which is all
pairs of texts, 64 labels for each of three classes would take 37 minutes per draw"""
RATE = 2e-5
"""learning rate of the backbone, as published"""
_LEAST = 1e-6
"""probability"""


def set_fit(exam: Exam) -> Answer:
    """SetFit with the published settings: one epoch over the pairs, batches of 16 pairs, a learning rate of 2e-5.

    Nothing is chosen by validation: it learns from all labelled documents, and has no temperature.
    """
    start = process_time()
    with torch.random.fork_rng(devices=[]), silence():
        model = fine_tune(exam, exam.data.rows)
        shares = model.predict_proba([exam.corpus.texts[row] for row in exam.test], as_numpy=True)
    logits = to_logits(shares, model.model_head.classes_, exam.corpus.label_space)
    seconds, width = process_time() - start, model.model_body.get_embedding_dimension()
    return Answer("SetFit", logits, width, exam.corpus.depth, 1.0, seconds, "published settings")


def set_fit_head(exam: Exam) -> Answer:
    """The head of SetFit on the backbone as it is: a logistic regression with C = 1 on embeddings of unit length."""
    start = process_time()
    column = next(column for column in exam.corpus.features if column.site.kind == "final")
    X, Z = (_unit_length(exam.corpus.features[column][rows]) for rows in (exam.data.rows, exam.test))
    logits = regression_logits(X, exam.y[exam.data.rows], Z, 1.0, exam.corpus.label_space)
    seconds = process_time() - start
    return Answer("SetFit, head alone", logits, X.shape[1], exam.corpus.depth, 1.0, seconds, "C 1")


def fine_tune(exam: Exam, rows: Rows) -> SetFitModel:
    """The fine-tuned model with its head, both fitted on the given rows."""
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    for name in ("setfit", "sentence_transformers"):
        logging.getLogger(name).setLevel(logging.WARNING)
    multilabel = exam.corpus.label_space.multilabel
    model = SetFitModel.from_pretrained(
        str(locate_model(exam.corpus.plan.model)), multi_target_strategy="one-vs-rest" if multilabel else None,
        device="cpu",
    )  # fmt: skip
    labels = [y.astype(int).tolist() if multilabel else int(y) for y in exam.y[rows]]
    documents = Dataset.from_dict({"text": [exam.corpus.texts[row] for row in rows], "label": labels})
    with TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder, num_iterations=ITERATIONS, batch_size=16, num_epochs=1, body_learning_rate=RATE,
            seed=exam.seed, report_to="none", save_strategy="no", logging_strategy="no", show_progress_bar=False,
        )  # fmt: skip
        Trainer(model=model, args=settings, train_dataset=documents).train()
    return model


def to_logits(shares: Floats, classes: Floats, label_space: LabelSpace) -> Floats:
    """Logits (m, K) of the probabilities of the classes that the head has."""
    clipped = np.clip(shares, _LEAST, 1 - _LEAST)
    if label_space.multilabel:
        return np.log(clipped / (1 - clipped))
    logits = np.full((len(shares), len(label_space)), np.log(_LEAST))
    logits[:, classes] = np.log(clipped)
    return logits


def _unit_length(values: Floats) -> Floats:
    values = values.astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)
