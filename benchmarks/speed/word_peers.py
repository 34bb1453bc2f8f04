"""The peers that run no transformer: TF-IDF with a logistic regression, fastText and model2vec."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import joblib

from benchmarks.method.contenders import choose_tfidf_model
from benchmarks.method.peers import fast_text, static_model
from benchmarks.speed.contender import Answers, Classify, Contender, WordPeer
from benchmarks.speed.trial import Trial


def word_contenders(trial: Trial) -> list[Contender]:
    """All of them, trained as in the benchmark of the method; what was trained is kept. model2vec needs an encoder."""
    return [
        Contender(WordPeer("TF-IDF + logistic regression", cores=1), lambda: tfidf(trial)),
        Contender(WordPeer("fastText", cores=1), lambda: fast(trial)),
        Contender(WordPeer("model2vec"), lambda: static(trial)),
    ]


def tfidf(trial: Trial) -> Classify:
    """TF-IDF of words and word pairs with a logistic regression, a pipeline of scikit-learn."""

    def train(folder: Path) -> None:
        joblib.dump(choose_tfidf_model(trial.exam), folder / "pipeline.joblib")

    model = joblib.load(trial.parts.get("tfidf", train) / "pipeline.joblib")
    return lambda texts, _: Answers(model.predict(texts))


def fast(trial: Trial) -> Classify:
    """fastText on words and word pairs."""
    import fasttext

    def train(folder: Path) -> None:
        fast_text.choose_model(trial.exam).save_model(str(folder / "model.bin"))

    model = fasttext.load_model(str(trial.parts.get("fasttext", train) / "model.bin"))
    return lambda texts, _: Answers(fast_text.predict(model, texts))


def static(trial: Trial) -> Classify:
    """model2vec, distilled from the backbone, as a pipeline of its library for inference."""
    from model2vec.inference import StaticModelPipeline

    def train(folder: Path) -> None:
        distilled = static_model.distill(trial.plan.model)
        classifier = static_model.fit_classifier(distilled, trial.exam, trial.exam.data.rows)
        classifier.to_pipeline().save_pretrained(str(folder))

    model = StaticModelPipeline.from_pretrained(trial.parts.get("model2vec", train))

    def classify(texts: Sequence[str], _: int) -> Answers:
        # several processes would start anew for every call
        return Answers(model.predict(list(texts), use_multiprocessing=False).astype(int))

    return classify
