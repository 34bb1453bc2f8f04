"""The registered model as MLflow's own readers load it. SPIN itself reads the safetensors and JSON, never this code."""

from __future__ import annotations

from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel, PythonModelContext


class SpinModel(PythonModel):
    """Predicts label and score of a column `text`."""

    def load_context(self, context: PythonModelContext) -> None:
        from spin import SpinClassifier

        self.spin = SpinClassifier.load(context.artifacts["spin"])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        chances = self.spin.predict_proba(model_input["text"].tolist())
        return pd.DataFrame({"label": self.spin.labels(chances), "score": chances.max(1).astype(float)})


mlflow.models.set_model(SpinModel())
