"""A model that version 0.1 registered still loads, serves and classifies, and can be champion."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipelines.registry import packaging
from pipelines.registry.promotion import promote
from pipelines.registry.versions import CHALLENGER, Registry
from spin import TrainedClassifier
from spin.settings import parse_settings
from tests.support import tiny
from tests.support.model_server import serve
from tests.support.registry_fixture import build_evaluation_set, build_quick_classifier, build_training_record
from tests.support.version_0_1 import BUNDLE, copy_bundle, load_expected, register_bundle

EXPECTED = load_expected()
PYFUNC_SHA256 = "72c0302c1fd128713eb4faf50c377f598b05b09d94560a70aa4057f05edaf065"
"""SHA-256 of the logged code, which imports from modules of version 0.1"""
LOAD_AND_PREDICT = """
import json, sys
import mlflow, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
rows = pandas.DataFrame({"text": json.load(sys.stdin)})
print(json.dumps({
    "plain": model.predict(rows).to_dict("list"),
    "explained": model.predict(rows, params={"threshold": 0.8, "explain": True}).to_dict("list"),
    "probabilities": model.unwrap_python_model().spin.predict_proba(rows["text"].tolist()).tolist(),
}))
"""
"""code that predicts the texts of standard input with the model in a folder: by default and with both parameters"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_bundle(tmp_path_factory.mktemp("version_0_1") / "model")


def test_the_logged_code_of_version_0_1_is_unchanged() -> None:
    """If a formatter or an editor changed it, the other tests would prove nothing."""
    assert hashlib.sha256((BUNDLE / "pyfunc.py").read_bytes()).hexdigest() == PYFUNC_SHA256


def test_a_model_of_version_0_1_loads_in_a_fresh_process(bundle: Path) -> None:
    """MLflow runs the logged code, which predicts what version 0.1 predicted; threshold and explanations work."""
    process = subprocess.run(
        [sys.executable, "-c", LOAD_AND_PREDICT, str(bundle)],
        input=json.dumps(EXPECTED.texts),
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    reply = json.loads(process.stdout.splitlines()[-1])
    scores = np.max(EXPECTED.probabilities, axis=1)
    assert reply["plain"]["label"] == EXPECTED.labels
    np.testing.assert_allclose(reply["plain"]["score"], scores, atol=1e-5)
    np.testing.assert_allclose(reply["probabilities"], EXPECTED.probabilities, atol=1e-5)

    above_threshold = [label if score >= 0.8 else None for label, score in zip(EXPECTED.labels, scores, strict=True)]
    assert reply["explained"]["label"] == above_threshold
    assert None in above_threshold
    for text, label, row in zip(EXPECTED.texts, EXPECTED.labels, reply["explained"]["explanation"], strict=True):
        explanation = json.loads(row)
        assert explanation["class"] == label
        assert len(explanation["neurons"]) == 10
        assert {word["word"] for word in explanation["words"]} <= {*text.split()}
        assert len(explanation["words"]) == min(10, len(text.split()))


@pytest.mark.server
def test_mlflow_serves_a_model_of_version_0_1(bundle: Path, tmp_path: Path) -> None:
    """It answers with labels, scores and explanations over HTTP."""
    with serve(str(bundle), tmp_path) as server:
        rows = server.post(EXPECTED.texts).json()["predictions"]
        [explained] = server.post(EXPECTED.texts[:1], explain=True).json()["predictions"]
    assert [row["label"] for row in rows] == EXPECTED.labels
    np.testing.assert_allclose([row["score"] for row in rows], np.max(EXPECTED.probabilities, axis=1), atol=1e-5)
    assert json.loads(explained["explanation"])["class"] == EXPECTED.labels[0]


def test_the_classifier_loads_an_artifact_of_version_0_1(bundle: Path) -> None:
    """Neither MLflow nor the logged code is needed."""
    settings = TrainedClassifier.load(bundle / packaging.SPIN).settings
    backbone = settings.model_copy(update={"model": str(bundle / "artifacts" / "backbone")})
    classifier = TrainedClassifier.load(bundle / packaging.SPIN, backbone=backbone)
    np.testing.assert_allclose(classifier.predict_proba(EXPECTED.texts), EXPECTED.probabilities, atol=1e-5)


@pytest.mark.usefixtures("gate_in_process")
def test_a_model_of_version_0_1_is_promoted_and_replaced_through_the_gate(
    bundle: Path, tmp_path: Path, sqlite_uri: str
) -> None:
    """The gate compares it with a new version on the same backbone, which becomes champion."""
    rows = tiny.make_documents(240, seed=5)
    registry = Registry(
        parse_settings(
            {
                "backbone": {"model": str(bundle / "artifacts" / "backbone"), "dtype": "float32", "device": "cpu"},
                "data": {"train": "none"},
                "store": str(tmp_path / "store"),
                "mlflow": {"model": "registered by 0.1", "tracking_uri": sqlite_uri},
                "classify": {"cascade": False},
                "promote": {"max_regression": 0.05},
            }
        )
    )
    first = register_bundle(registry, bundle, build_evaluation_set(rows))
    assert registry.resolve(f"models:/{registry.name}@{CHALLENGER}") == first
    event = promote.promote(registry, first, "registered by version 0.1")
    assert registry.champion() == first
    classifier = registry.load(first)
    assert classifier.predict(EXPECTED.texts) == EXPECTED.labels
    np.testing.assert_allclose(classifier.predict_proba(EXPECTED.texts), EXPECTED.probabilities, atol=1e-5)

    training = tiny.make_documents(120)
    trained = build_quick_classifier(registry.settings.backbone).fit(
        [row["text"] for row in training], [row["label"] for row in training]
    )
    trained.save(tmp_path / "artifact")
    second = registry.register(tmp_path / "artifact", build_training_record()).version
    replaced = promote.promote(registry, second, "trained by this version")
    assert registry.champion() == second
    assert replaced.from_version == first
    assert replaced.score_before == event.score
