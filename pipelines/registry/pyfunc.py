"""The registered model as MLflow's own readers load it. SPIN itself reads the safetensors and JSON, never this code."""

from __future__ import annotations

import json
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel, PythonModelContext

from spin import Explanation, SpinClassifier, SpinError, stretches

_LOUDEST = 10
"""neurons, and words, of an explanation"""


class SpinModel(PythonModel):
    """Gives `label` and `score` of a column `text`.

    `threshold` nulls a label whose probability is below; in a multi-label task the label is the classes from this
    probability on. 0 leaves the model's own thresholds. `explain` adds a column of JSON: the loudest neurons and words.
    """

    def load_context(self, context: PythonModelContext) -> None:
        self.spin = SpinClassifier.load(
            context.artifacts["spin"],
            weights=context.artifacts.get("backbone"),
            device="auto",  # the machine that trained may have had another one than this
            choose=context.model_config["choose"],
        )
        _ = self.spin.engine  # what is wrong with it is told now, and requests in threads find it open

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        asked = {"threshold": 0.0, "explain": False, **(params or {})}
        if not 0 <= asked["threshold"] <= 1:
            raise MlflowException.invalid_parameter_value(
                f"threshold: found {asked['threshold']:g}, expected a probability from 0 to 1"
            )
        texts = model_input["text"].tolist()
        try:
            answer = self._answer(texts, asked["threshold"])
            if asked["explain"]:
                answer["explanation"] = [_explanation(self.spin.explain(text)) for text in texts]
        except SpinError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None
        return answer

    def _answer(self, texts: list[str], threshold: float) -> pd.DataFrame:
        """The score is the probability of the label, the largest of all where that is a list or none."""
        probabilities = self.spin.predict_proba(texts)
        at = {name: k for k, name in enumerate(self.spin.classes)}
        labels: list[Any] = list(self.spin.labels(probabilities))
        scores = [
            float(row[at[label]] if isinstance(label, str) else row.max())
            for row, label in zip(probabilities, labels, strict=True)
        ]
        if threshold and self.spin.label_space.multilabel:
            labels = self.spin.label_space.names(probabilities >= threshold)
        elif threshold:
            labels = [label if score >= threshold else None for label, score in zip(labels, scores, strict=True)]
        return pd.DataFrame({"label": pd.Series(labels, dtype=object), "score": pd.Series(scores, dtype=float)})


def _explanation(found: Explanation) -> str:
    """What spoke loudest for and against the likeliest class, in logits."""
    k = found.ranked[0]
    added = [(float(found.word_contributions[of, k].sum()), start, end) for start, end, of in stretches(found.words)]
    words = [
        {"word": found.text[start:end], "start": start, "end": end, "adds": adds}
        for adds, start, end in sorted(added, key=lambda word: -abs(word[0]))[:_LOUDEST]
    ]
    neurons = [
        {"neuron": f"{top.column}[{top.neuron}]", "adds": top.contribution, "word": top.word}
        for top in found.top(_LOUDEST, found.classes[k])
    ]
    return json.dumps(
        {
            "class": found.classes[k],
            "logit": float(found.logits[k]),
            "bias": float(found.bias[k]),
            "neurons": neurons,
            "words": words,
        },
        ensure_ascii=False,
    )


mlflow.models.set_model(SpinModel())
