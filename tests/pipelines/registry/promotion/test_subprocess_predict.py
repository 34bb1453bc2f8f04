"""The process that predicts with a logged model: its messages, its end, and the check of the logged code."""

from __future__ import annotations

import _thread
import json
import shutil
import signal
import threading
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest

from pipelines.registry.packaging import load_bundle, write_bundle
from pipelines.registry.promotion.subprocess_predict import (
    PredictionReply,
    PredictionRequest,
    _check_answers,
    parse_reply,
    predict_in_subprocess,
    reply_to,
)
from pipelines.service_errors import StalledError
from pipelines.storage.records import from_json, to_json
from spin import TrainedClassifier
from spin.errors import UserError
from spin.settings import CascadeSettings, DecisionSettings, Settings, parse_settings
from tests.support import tiny
from tests.support.hanging import hang_fresh_process, has_ended, run_in_fresh_process, wait_until
from tests.support.registry_fixture import TEXTS, build_quick_classifier

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def trained_bundle(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path) -> Path:
    """A version's folder as it is registered, with its backbone; no test changes it."""
    folder, rows = tmp_path_factory.mktemp("trained"), tiny.make_documents(120)
    settings = build_settings(backbone={"model": str(backbone_folder), "dtype": "float32", "device": "cpu"})
    whole = CascadeSettings(max_loss=0)  # MLflow serves full depth
    spin = build_quick_classifier(settings.backbone, cascade=whole)
    spin.fit([row["text"] for row in rows], [row["label"] for row in rows])
    spin.save(folder / "artifact")
    write_bundle(folder / "model", folder / "artifact", settings, mlflow.models.Model())
    return folder / "model"


def test_a_request_survives_a_json_round_trip() -> None:
    """The request has all settings on which the predictions of a night depend."""
    settings = parse_settings(
        {
            "backbone": {"model": "m", "dtype": "bfloat16", "batch_tokens": 4096, "trust_remote_code": True},
            "data": {"train": "t"},
            "store": "s",
            "choose": "cheapest",
            "decision": {"thresholds": {"good": 0.2}, "abstain": 0.05},
            "classify": {"cascade": False},
        }
    )
    request = PredictionRequest.of(["a", "ein Bär – 熊"], settings)
    assert PredictionRequest.model_validate_json(request.model_dump_json()) == request
    assert (request.texts[1], request.choose, request.early) == ("ein Bär – 熊", "cheapest", False)
    assert (request.decision, request.backbone) == (settings.decision, settings.backbone)


def test_a_reply_survives_a_json_round_trip() -> None:
    """The reply has probabilities, an empty list of labels and an abstention."""
    labels, probabilities = [["a"], [], None], np.array([[0.1, 0.25]] * 3)
    reply = PredictionReply({"text": "string"}, ("a", "b"), True, labels, probabilities, 1.5, {"a": 0.1, "b": 0.3})
    copy = from_json(PredictionReply, json.loads(json.dumps(to_json(reply))))
    np.testing.assert_array_equal(copy.probabilities, reply.probabilities)
    names = [field.name for field in fields(reply) if field.name != "probabilities"]
    assert [getattr(copy, name) for name in names] == [getattr(reply, name) for name in names]


def test_a_fresh_process_predicts_as_the_classifier_of_the_bundle(trained_bundle: Path) -> None:
    """It runs the logged code and needs no registry."""
    reply, classifier = predict_in_subprocess(trained_bundle, TEXTS, build_settings()), load_bundle(trained_bundle)
    assert reply.labels == classifier.predict(TEXTS)
    np.testing.assert_allclose(reply.probabilities, classifier.predict_proba(TEXTS), atol=1e-6)


def test_a_logged_model_replies_with_the_thresholds_of_its_choice(trained_bundle: Path, tmp_path: Path) -> None:
    """They decide its labels, in MLflow's own interface too, and the settings of the request replace them."""
    bundle, thresholds = Path(shutil.copytree(trained_bundle, tmp_path / "model")), {"bad": 1e-6, "good": 1 - 1e-6}
    labels = load_bundle(bundle).predict(TEXTS)
    config = bundle / "artifacts" / "spin" / "config.json"
    content = json.loads(config.read_text())
    content["classifiers"][content["choices"]["accuracy"]]["summary"]["thresholds"] = thresholds
    config.write_text(json.dumps(content))
    reply = _reply(bundle, TEXTS, build_settings())
    assert reply.thresholds == thresholds
    assert reply.labels == ["bad"] * len(TEXTS) != labels
    by_settings = build_settings().model_copy(update={"decision": DecisionSettings(thresholds={"good": 0.5})})
    assert _reply(bundle, TEXTS, by_settings).labels == labels


def _reply(bundle: Path, texts: list[str], settings: Settings) -> PredictionReply:
    request = PredictionRequest.of(texts, settings).model_dump_json()
    return parse_reply(reply_to(request, str(bundle)))


def test_a_version_of_int8_is_served_and_judged_in_int8(
    backbone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its scales, on the processor, also where there is a GPU and the settings name another engine.

    With float32 in the settings it is judged in that. What it needs to be served has OpenVINO among it.
    """
    rows = tiny.make_documents(120)
    backbone = {"model": str(backbone_folder), "dtype": "int8", "engine": "openvino", "device": "auto"}
    settings = build_settings(backbone=backbone)
    spin = build_quick_classifier(settings.backbone, cascade=CascadeSettings(max_loss=0), sites=["resid.03"])
    spin.fit([row["text"] for row in rows], [row["label"] for row in rows])
    spin.save(tmp_path / "artifact")
    bundle = tmp_path / "model"
    write_bundle(bundle, tmp_path / "artifact", settings, mlflow.models.Model())
    expected = spin.predict_proba(TEXTS)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert load_bundle(bundle).backbone.precision == "int8"
    for changes in ({"dtype": "auto", "engine": "torch", "device": "cuda"}, {"dtype": "int8"}):
        reply = _reply(bundle, TEXTS, build_settings(backbone={**backbone, **changes}))
        np.testing.assert_allclose(reply.probabilities, expected, atol=1e-4)
    reply = _reply(bundle, TEXTS, build_settings(backbone={**backbone, "dtype": "float32", "device": "cpu"}))
    assert np.abs(reply.probabilities - expected).max() > 1e-4
    assert "openvino==" in (bundle / "requirements.txt").read_text()


def test_a_version_of_another_precision_is_judged_as_it_was_trained(trained_bundle: Path, tmp_path: Path) -> None:
    """Settings that are for the challenger, which was trained in int8, do not keep the champion from being measured."""
    bundle = shutil.copytree(trained_bundle, tmp_path / "model")
    in_int8 = build_settings(backbone={"model": "m", "dtype": "int8", "device": "cpu"})
    expected = _reply(bundle, TEXTS, build_settings()).probabilities
    np.testing.assert_allclose(_reply(bundle, TEXTS, in_int8).probabilities, expected, atol=1e-6)
    assert "openvino==" not in (bundle / "requirements.txt").read_text()


def test_an_error_reply_is_raised_as_a_user_error() -> None:
    """The message is that of the reply."""
    with pytest.raises(UserError, match="^there is no backbone$"):
        parse_reply('{"error": "there is no backbone"}')


class AlteringModel:
    """A model as MLflow loads it, whose code changes labels and scores of its classifier."""

    def __init__(self, classifier: TrainedClassifier, changes: dict[str, Any], added_score: float = 0.0) -> None:
        self.classifier, self.changes, self.added_score = classifier, changes, added_score

    def predict(self, rows: pd.DataFrame) -> pd.DataFrame:
        predictions = self.classifier.predict_all(rows["text"].tolist())
        labels = [self.changes.get(str(label), label) for label in predictions.labels]
        return pd.DataFrame({"label": pd.Series(labels, dtype=object), "score": predictions.score + self.added_score})


def test_logged_code_must_predict_as_its_classifier(trained_bundle: Path) -> None:
    """Another label, a missing one, a list or another score is refused."""
    classifier = load_bundle(trained_bundle)
    _check_answers(AlteringModel(classifier, {}), classifier, TEXTS)
    for model in (
        AlteringModel(classifier, {"good": "bad"}),
        AlteringModel(classifier, {"good": None}),
        AlteringModel(classifier, {"bad": ["bad"]}),
        AlteringModel(classifier, {}, added_score=0.01),
    ):
        with pytest.raises(UserError, match="does not give the labels and scores of its own classifier"):
            _check_answers(model, classifier, TEXTS)


def build_settings(**changes: Any) -> Settings:
    backbone = {"model": "m", "dtype": "float32", "device": "cpu"}
    return parse_settings({"backbone": backbone, "data": {"train": "t"}, "store": "s", **changes})


def test_a_version_that_hangs_is_ended_with_all_that_it_started(
    trained_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has exit status 6 and names the limit."""
    read_pids = hang_fresh_process(tmp_path / "hang", monkeypatch)
    with pytest.raises(
        StalledError, match="did not load and predict within 3 s, .* raise promote.timeout_seconds"
    ) as e:
        predict_in_subprocess(trained_bundle, ["a text"] * 10_000, build_settings(promote={"timeout_seconds": 3}))
    assert e.value.status == 6
    assert len(read_pids()) == 2
    for pid in read_pids():
        wait_until(lambda pid=pid: has_ended(pid))


@pytest.fixture
def python_handles_sigint() -> Iterator[None]:
    """Python's handler of SIGINT, which libraries of other tests may have replaced."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before or signal.SIG_DFL)


@pytest.mark.usefixtures("python_handles_sigint")
def test_an_interrupt_ends_the_process_too(
    trained_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in a session of its own, so the terminal does not interrupt it."""
    read_pids = hang_fresh_process(tmp_path / "hang", monkeypatch)
    arrived = threading.Event()

    def interrupt() -> None:
        wait_until(lambda: bool(read_pids()))
        while not arrived.is_set():  # Python drops an interrupt that meets a callback of the garbage collector
            _thread.interrupt_main()
            arrived.wait(10)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        predict_in_subprocess(trained_bundle, ["a text"], build_settings())
    arrived.set()
    thread.join()
    for pid in read_pids():
        wait_until(lambda pid=pid: has_ended(pid))


def test_a_process_that_writes_without_end_and_dies_is_an_error_with_its_last_line(
    trained_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
    sys.stderr.write("noise\\n" * 200_000 + "out of memory\\n")
    sys.stderr.flush()
    os._exit(7)
"""
    run_in_fresh_process(code, tmp_path / "noise", monkeypatch)
    with pytest.raises(UserError, match="^its process ended with status 7: out of memory$"):
        predict_in_subprocess(trained_bundle, ["a text"] * 10_000, build_settings())
