"""Load a logged model through MLflow in a fresh process, as its users do, and predict with it there.

`python -m pipelines.registry.promotion.subprocess_predict MODEL REPLY` is that process: it reads a request as JSON
from standard input and writes its reply to the file REPLY.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, PlainSerializer, PlainValidator

from pipelines.registry.logged_code import require_known_code
from pipelines.registry.packaging import fetch_weights
from pipelines.registry.promotion.isolation import isolated_environment, without_network
from pipelines.service_errors import StalledError
from pipelines.storage.records import from_json, to_json
from spin.arrays import Floats
from spin.classifier import TrainedClassifier
from spin.errors import SpinError, UserError, describe_error
from spin.labels.label_space import Label
from spin.settings import OF_INT8, BackboneSettings, Choice, DecisionSettings, Settings, choose_precision

# -P: it imports what this process would, and nothing from the working directory
# -B: it leaves no compiled code beside that of the version, which is refused there
_COMMAND = (sys.executable, "-P", "-B", "-m", "pipelines.registry.promotion.subprocess_predict")
_RUN = {"dtype", "engine", "compile", "batch_tokens", "device", "trust_remote_code"}
"""backbone settings that determine how it runs; the logged model determines the weights"""
_SAMPLE = 32
"""texts whose public answers are compared with the classifier's"""
_TOLERANCE = 1e-3
"""largest difference of two scores that count as equal"""
_STDERR_BYTES = 4096
"""end of the process's error output in which its last line is looked for"""

_log = logging.getLogger(__name__)


class PredictionRequest(BaseModel):
    """The request to the fresh process."""

    model_config = ConfigDict(frozen=True)

    texts: tuple[str, ...]
    choose: Choice
    """which of the three classifiers of the artifact"""
    decision: DecisionSettings
    early: bool
    """whether documents exit early"""
    backbone: BackboneSettings
    """how the backbone is run; its `model` is ignored"""

    @classmethod
    def of(cls, texts: Sequence[str], settings: Settings) -> PredictionRequest:
        """Predict as a night with these settings does."""
        return cls(
            texts=tuple(texts),
            choose=settings.choose,
            decision=settings.decision,
            early=settings.classify.cascade,
            backbone=settings.backbone,
        )


@dataclass(frozen=True)
class PredictionReply:
    """The predictions of a logged model for n texts."""

    input_columns: Mapping[str, str]
    """type by name, of the model's input schema"""
    classes: tuple[str, ...]
    """names of the K classes"""
    multilabel: bool
    """whether a document has a list of classes"""
    labels: list[Label | None]
    """None where the decision abstains"""
    probabilities: Annotated[Floats, PlainValidator(np.array), PlainSerializer(np.ndarray.tolist)]
    """(n, K)"""
    seconds: float
    """from texts to labels, without loading"""
    thresholds: Mapping[str, float] | None = None
    """the threshold of every class that the training of this version chose, if it chose any"""

    @property
    def documents_per_s(self) -> float:
        return len(self.labels) / max(self.seconds, 1e-9)


def parse_reply(text: str) -> PredictionReply:
    """The reply of the fresh process. Raises UserError with the reason where it could not predict."""
    reply = json.loads(text)
    if "error" in reply:
        raise UserError(reply["error"])
    return from_json(PredictionReply, reply)


def predict_in_subprocess(model: Path, texts: Sequence[str], settings: Settings) -> PredictionReply:
    """The predictions of the logged model in a folder, decided as a night with these settings would.

    Runs the code that is logged with the model, which must be that of a release of SPIN, without the variables of this
    process that it does not need and, where the platform allows it, without a network. Raises UserError when it does
    not load or predict, and StalledError when it takes longer than `promote.timeout_seconds`; no process of it is left
    in any case.
    """
    # guarded by test_promote_runs_no_code_that_a_version_brings
    require_known_code(model)
    fetch_weights(model)
    with tempfile.TemporaryDirectory() as folder:
        request, reply, errors = (Path(folder) / name for name in ("request.json", "reply.json", "stderr"))
        # ASCII in any locale; files and not pipes, which a process that hangs would never empty or close
        request.write_text(json.dumps(PredictionRequest.of(texts, settings).model_dump(mode="json")), encoding="ascii")
        with request.open("rb") as stdin, errors.open("wb") as stderr:
            request.unlink()  # it holds texts: none is left if this process is killed
            process = subprocess.Popen(
                # guarded by test_logged_code_reaches_no_network; broken by:
                #   [*_COMMAND, str(model), str(reply)],
                without_network([*_COMMAND, str(model), str(reply)]),
                env=isolated_environment(os.environ),
                stdin=stdin,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,  # so that what it starts can be ended with it
            )
            status = _wait(process, settings.promote.timeout_seconds)
        if not reply.exists():
            lines = errors.read_bytes()[-_STDERR_BYTES:].decode(errors="replace").strip().splitlines()
            raise UserError(f"its process ended with status {status}{''.join(f': {line}' for line in lines[-1:])}")
        return parse_reply(reply.read_text(encoding="utf-8"))


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int:
    """The exit status of a process that leads a session; nothing of the session is left, whatever happens."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        raise StalledError(
            f"did not load and predict within {seconds:,g} s, and its process was ended; promote another version, or "
            "raise promote.timeout_seconds"
        ) from None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _predict(model: str, request: PredictionRequest) -> PredictionReply:
    """Load a model through MLflow, check its predictions, and predict the texts of the request."""
    import mlflow

    loaded = mlflow.pyfunc.load_model(model)
    served: TrainedClassifier = loaded.unwrap_python_model().spin
    texts = list(request.texts)
    _check_answers(loaded, served, texts[:_SAMPLE])
    run = request.backbone.model_dump(include=_RUN)
    run["dtype"] = choose_precision(request.backbone.dtype, served.settings.dtype)
    if run["dtype"] == "int8":
        run |= OF_INT8
    classifier = TrainedClassifier(
        served.settings.model_copy(update=run),
        served.backbone_digest,
        served.label_space,
        served.training_result,
        served.metric,
        choose=request.choose,
        decision=request.decision,
        early=request.early,
        scales=served.scales,
    )
    classifier.predict(texts[:1])  # loads the backbone
    start = time.perf_counter()
    predictions = classifier.predict_all(texts)
    seconds = time.perf_counter() - start
    if not np.isfinite(predictions.probabilities).all():
        raise UserError("found probabilities that are not finite numbers; train again")
    schema = loaded.metadata.get_input_schema()
    return PredictionReply(
        input_columns={column.get("name", ""): str(column["type"]) for column in (schema.to_dict() if schema else [])},
        classes=classifier.classes,
        multilabel=classifier.label_space.multilabel,
        labels=predictions.labels,
        probabilities=predictions.probabilities,
        seconds=seconds,
        thresholds=classifier.fitted.summary.thresholds,
    )


def _check_answers(loaded: Any, classifier: TrainedClassifier, texts: list[str]) -> None:
    """Raise UserError unless MLflow's public interface gives the labels and scores of the classifier in the model."""
    import pandas as pd

    answer: pd.DataFrame = loaded.predict(pd.DataFrame({"text": texts}))
    # pandas may hold a missing label as NaN
    labels = [label if isinstance(label, (str, list)) else None for label in answer["label"]]
    expected = classifier.predict_all(texts)
    if labels != expected.labels or not np.allclose(answer["score"], expected.score, atol=_TOLERANCE):
        raise UserError(
            "its logged code does not give the labels and scores of its own classifier; delete the version in MLflow, "
            "and `spin run` registers it again"
        )


def reply_to(request: str, model: str) -> str:
    """The reply of the fresh process to a request, both as JSON: predictions, or the reason why there are none."""
    try:
        return json.dumps(to_json(_predict(model, PredictionRequest.model_validate_json(request))))
    except SpinError as error:
        return json.dumps({"error": str(error)})
    except Exception as error:  # whatever the model's own code raises
        _log.debug("the model in %s cannot predict", model, exc_info=True)
        return json.dumps({"error": describe_error(error)})


def main() -> None:
    model, file = sys.argv[1:]
    Path(file).write_text(reply_to(sys.stdin.read(), model), encoding="utf-8")


if __name__ == "__main__":
    main()
