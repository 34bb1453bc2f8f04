"""The registered model as MLflow loads and serves it. SPIN itself reads its safetensors and JSON, never this code."""

from __future__ import annotations

import json
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel, PythonModelContext

from spin import Explanation, SpinError, TrainedClassifier, stretches

_TOP = 10
"""number of neurons, and of words, in an explanation"""


class SpinModel(PythonModel):
    """Predicts `label` and `score` for a column `text`.

    `threshold` removes labels with a lower probability; in a multi-label task the label is then the list of classes
    with at least this probability. 0 keeps the model's own thresholds. `explain` adds a column `explanation` of JSON
    with the neurons and words that contribute most.
    """

    def load_context(self, context: PythonModelContext) -> None:
        self.spin = TrainedClassifier.load(
            context.artifacts["spin"],
            weights=context.artifacts.get("backbone"),
            device="auto",  # the machine that trained may have had another device
            choose=context.model_config["choose"],
        )
        self.spin.prepare()  # here, so that errors show at once and the threads of a server share it

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        options = {"threshold": 0.0, "explain": False, **(params or {})}
        if not 0 <= options["threshold"] <= 1:
            raise MlflowException.invalid_parameter_value(
                f"threshold: found {options['threshold']:g}, expected a probability from 0 to 1"
            )
        texts = model_input["text"].tolist()
        try:
            table = self._predict(texts, options["threshold"])
            if options["explain"]:
                table["explanation"] = [_explanation(self.spin.explain(text)) for text in texts]
        except SpinError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None
        return table

    def _predict(self, texts: list[str], threshold: float) -> pd.DataFrame:
        """The score is the probability of the label; the largest of all where the label is a list or None."""
        predictions = self.spin.predict_all(texts)
        labels: list[Any] = list(predictions.labels)
        scores = [float(score) for score in predictions.score]
        if threshold and self.spin.label_space.multilabel:
            labels = self.spin.label_space.names(predictions.probabilities >= threshold)
        elif threshold:
            labels = [label if score >= threshold else None for label, score in zip(labels, scores, strict=True)]
        return pd.DataFrame({"label": pd.Series(labels, dtype=object), "score": pd.Series(scores, dtype=float)})


def _explanation(explanation: Explanation) -> str:
    """The main contributions to the logit of the predicted class, as JSON."""
    k = explanation.classes.index(explanation.label)
    contributions = [
        (float(explanation.word_contributions[tokens, k].sum()), start, end)
        for start, end, tokens in stretches(explanation.words)
    ]
    words = [
        {"word": explanation.text[start:end], "start": start, "end": end, "adds": contribution}
        for contribution, start, end in sorted(contributions, key=lambda word: -abs(word[0]))[:_TOP]
    ]
    neurons = [
        {"neuron": f"{top.column}[{top.neuron}]", "adds": top.contribution, "word": top.word}
        for top in explanation.top(_TOP, explanation.classes[k])
    ]
    return json.dumps(
        {
            "class": explanation.classes[k],
            "logit": float(explanation.logits[k]),
            "bias": float(explanation.bias[k]),
            "neurons": neurons,
            "words": words,
            "terms": [
                {"term": term, "adds": adds} for term, adds in explanation.top_terms(_TOP, explanation.classes[k])
            ],
        },
        ensure_ascii=False,
    )


mlflow.models.set_model(SpinModel())
