"""Load a logged model through MLflow in a fresh process, as its users do, and predict with it there.

`python -m pipelines.registry.subprocess_predict MODEL ANSWER` is that process; it reads what to predict as JSON from
standard input.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spin.activations.engine import CALIBRATION_TEXTS
from spin.classifier import SpinClassifier
from spin.errors import SpinError, UserError
from spin.labels.label_space import Label
from spin.settings import DecisionSettings, Settings

_RUN = {"dtype", "engine", "compile", "batch_tokens", "device", "trust_remote_code"}
"""how a backbone is run; which weights are read is for the logged model to say"""


@dataclass(frozen=True)
class Answer:
    """What a logged model said to n texts."""

    columns: dict[str, str]
    """of its input schema, name to type"""
    classes: tuple[str, ...]
    multilabel: bool
    labels: list[Label | None]
    probabilities: NDArray[np.floating]
    """(n, K)"""
    seconds: float
    """from text to label, loading aside"""


def ask(model: Path, texts: Sequence[str], settings: Settings) -> Answer:
    """What the logged model in a folder says to texts, decided as a night with these settings would.

    Runs its code: who calls this has checked it. Raises UserError when it does not load or does not predict.
    """
    question = {
        "texts": list(texts),
        "choose": settings.choose,
        "decision": settings.decision.model_dump(),
        "early": settings.classify.cascade,
        "run": settings.backbone.model_dump(include=_RUN),
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "answer.json"
        done = subprocess.run(
            # it imports what this process would, and nothing that happens to lie in the working directory
            [sys.executable, "-P", "-m", "pipelines.registry.subprocess_predict", str(model), str(file)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            input=json.dumps(question),
            capture_output=True,
            text=True,
        )
        if not file.exists():
            said = done.stderr.strip().splitlines()[-1:]
            raise UserError(f"its process ended with status {done.returncode}{': ' * bool(said)}{''.join(said)}")
        found = json.loads(file.read_bytes())
    if "error" in found:
        raise UserError(found["error"])
    found |= {"classes": tuple(found["classes"]), "probabilities": np.array(found["probabilities"])}
    return Answer(**found)


class _Heard(SpinClassifier):
    """Keeps the probabilities of all classes: the public answer has only the largest."""

    kept: list[NDArray[np.floating]]

    def predict_proba(self, texts: Sequence[str]) -> NDArray[np.floating]:
        self.kept.append(super().predict_proba(texts))
        return self.kept[-1]


def _answer(
    model: str, texts: list[str], choose: Any, decision: dict[str, Any], early: bool, run: dict[str, Any]
) -> dict[str, Any]:
    """The question, put through MLflow's public interface."""
    import mlflow
    import pandas as pd

    loaded = mlflow.pyfunc.load_model(model)
    schema = loaded.metadata.get_input_schema()
    wrapped = loaded.unwrap_python_model()
    logged = wrapped.spin
    wrapped.spin = spin = _Heard.assemble(
        logged.settings.model_copy(update=run),
        logged.backbone_digest,
        logged.label_space,
        logged.training_result,
        logged.metric,
        choose=choose,
        decision=DecisionSettings(**decision),
        early=early,
    )
    spin.calibration = tuple(texts[:CALIBRATION_TEXTS])
    assert isinstance(spin, _Heard)
    spin.kept = []
    loaded.predict(pd.DataFrame({"text": texts[:1]}))  # loads the backbone
    spin.kept = []
    start = time.perf_counter()
    answer = loaded.predict(pd.DataFrame({"text": texts}))
    seconds = time.perf_counter() - start
    probabilities = np.concatenate(spin.kept)
    if not len(answer) == len(probabilities) == len(texts) or not np.isfinite(probabilities).all():
        raise UserError(f"found {len(answer)} answers to {len(texts)} texts; expected one for each, of finite numbers")
    return {
        "columns": {column.get("name", ""): str(column["type"]) for column in (schema.to_dict() if schema else [])},
        "classes": spin.classes,
        "multilabel": spin.label_space.multilabel,
        # pandas makes of None what is not a number
        "labels": [label if isinstance(label, (str, list)) else None for label in answer["label"]],
        "probabilities": probabilities.tolist(),
        "seconds": seconds,
    }


def main() -> None:
    model, file = sys.argv[1:]
    question = json.load(sys.stdin)
    try:
        found = _answer(model, **question)
    except SpinError as error:
        found = {"error": str(error)}
    except Exception as error:  # whatever the model's own code raises
        found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    Path(file).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
