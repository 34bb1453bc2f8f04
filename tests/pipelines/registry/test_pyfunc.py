"""The registered model as users of MLflow see it: loaded as a pyfunc and served over HTTP."""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
import sys
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from transformers import AutoModel

from pipelines.registry.packaging import EXAMPLE
from spin.backbone.digest import compute_digest
from spin.backbone.hub import locate_model
from spin.errors import UserError
from tests.support import tiny
from tests.support.model_server import serve
from tests.support.registry_fixture import TEXTS, RegistryFixture
from tests.support.repository import ROOT


@pytest.fixture(scope="module")
def shared_fixture(tmp_path_factory: pytest.TempPathFactory, tracking_uri: str) -> RegistryFixture:
    """A registry with one version whose backbone folder has been deleted; the bundle holds a copy."""
    folder = tmp_path_factory.mktemp("pyfunc")
    registry_fixture = RegistryFixture(folder, tiny.save_bert(folder / "bert"), tracking_uri)
    shutil.rmtree(folder / "bert")
    return registry_fixture


def load_pyfunc(registry_fixture: RegistryFixture, **options: Any) -> Any:
    """Load version 1 as MLflow does."""
    with registry_fixture.registry.tracking.session():
        return mlflow.pyfunc.load_model(f"models:/{registry_fixture.name}/1", **options)


def predict(model: Any, texts: list[str], **params: Any) -> pd.DataFrame:
    return model.predict(pd.DataFrame({"text": texts}), params=params)


@pytest.fixture(scope="module")
def model(shared_fixture: RegistryFixture) -> Any:
    return load_pyfunc(shared_fixture)


def test_the_pyfunc_predicts_as_the_trained_classifier(shared_fixture: RegistryFixture, model: Any) -> None:
    """It needs only the registered files; one text gets the same prediction as among many."""
    predictions = predict(model, TEXTS)
    assert list(predictions.columns) == ["label", "score"]
    assert predictions["label"].tolist() == shared_fixture.labels
    np.testing.assert_allclose(predictions["score"], shared_fixture.spin.predict_proba(TEXTS).max(1), atol=1e-6)
    assert predict(model, TEXTS[:1]).to_dict("records") == predictions[:1].to_dict("records")


def test_files_that_loading_writes_are_not_downloaded(
    shared_fixture: RegistryFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow and Python write files into an artifact store on disk when they load a model."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    load_pyfunc(shared_fixture)
    files = {path.name for path in shared_fixture.registry.download_model("1", tmp_path).iterdir()}
    assert "pyfunc.py" in files
    assert not {"__pycache__", "registered_model_meta"} & files


def test_a_threshold_removes_less_probable_labels(shared_fixture: RegistryFixture, model: Any) -> None:
    """A threshold of 0 is the same as no threshold."""
    probabilities = shared_fixture.spin.predict_proba(TEXTS).max(1)
    border = float(np.sort(probabilities)[len(TEXTS) // 2])
    predictions = predict(model, TEXTS, threshold=border - 1e-4)
    expected = [
        label if p >= border - 1e-4 else None for label, p in zip(shared_fixture.labels, probabilities, strict=True)
    ]
    assert None in expected
    assert predictions["label"].tolist() == expected != shared_fixture.labels
    np.testing.assert_allclose(predictions["score"], probabilities, atol=1e-6)
    assert predict(model, TEXTS, threshold=0)["label"].tolist() == shared_fixture.labels
    assert predict(model, TEXTS, threshold=1)["label"].tolist() == [None] * len(TEXTS)


def test_explanations_list_the_top_neurons_and_words_of_every_text(shared_fixture: RegistryFixture, model: Any) -> None:
    """They are those of `explain`, with the class and its logit."""
    predictions = predict(model, TEXTS[:3], explain=True)
    assert list(predictions.columns) == ["label", "score", "explanation"]
    for text, label, row in zip(TEXTS, predictions["label"], predictions["explanation"], strict=False):
        record, explanation = json.loads(row), shared_fixture.spin.explain(text)
        assert record["class"] == label == explanation.label
        assert record["logit"] == pytest.approx(explanation.logits.max(), abs=1e-4)
        top = explanation.top(10)
        assert [neuron["neuron"] for neuron in record["neurons"]] == [f"{n.column}[{n.neuron}]" for n in top]
        assert [neuron["word"] for neuron in record["neurons"]] == [n.word for n in top]
        assert all(text[word["start"] : word["end"]] == word["word"] for word in record["words"])
        assert len(record["words"]) == min(10, len(text.split()))
        if len(record["words"]) == len(text.split()):  # words, special tokens and the bias add up to the logit
            k = explanation.classes.index(label)
            special = sum(
                float(explanation.word_contributions[w, k]) for w, (a, b) in enumerate(explanation.words) if a == b
            )
            total = sum(row["adds"] for row in record["words"]) + special + record["bias"]
            assert total == pytest.approx(record["logit"], abs=1e-4)


@pytest.mark.parametrize(
    ("rows", "params", "message"),
    [
        ({"text": TEXTS[:1]}, {"threshold": 1.5}, "threshold: found 1.5, expected a probability from 0 to 1"),
        ({"text": TEXTS[:1]}, {"threshold": float("nan")}, "threshold: found nan"),
        ({"text": TEXTS[:1]}, {"threshold": "high"}, "Can not safely convert"),
        ({"text": ["fine", " "]}, {}, "text 1 is ' '; expected text that is not empty"),
        ({"text": ["fine", None]}, {}, "text 1 is (None|nan); expected text"),
        ({"words": TEXTS[:1]}, {}, r"Model is missing inputs \['text'\]"),
    ],
)
def test_an_invalid_request_is_an_mlflow_error_with_status_400(
    model: Any, rows: dict[str, Any], params: dict[str, Any], message: str
) -> None:
    """A threshold is no probability, a text is empty or null, or the column is missing."""
    with pytest.raises(MlflowException, match=message) as error:
        model.predict(pd.DataFrame(rows), params=params)
    assert error.value.get_http_status_code() == 400


@pytest.mark.slow
def test_the_logged_model_has_a_signature_an_example_and_pinned_requirements(
    shared_fixture: RegistryFixture, model: Any, tmp_path: Path
) -> None:
    """Every library that loading imports is pinned at the installed version, optional engines aside."""
    signature = model.metadata.signature
    assert [(c.name, c.type.name, c.required) for c in signature.inputs.inputs] == [("text", "string", True)]
    outputs = [(c.name, c.type.name, c.required) for c in signature.outputs.inputs]
    assert outputs == [("label", "string", False), ("score", "double", True), ("explanation", "string", False)]
    assert [(p.name, p.dtype.name, p.default) for p in signature.params] == [
        ("threshold", "double", 0.0),
        ("explain", "boolean", False),
    ]
    assert model.input_example["text"].tolist() == list(EXAMPLE)
    requirements = shared_fixture.registry.download_model("1", tmp_path) / "requirements.txt"
    pins = dict(line.split("==") for line in requirements.read_text().split())
    assert pins == {name: version(name).partition("+")[0] for name in pins}
    optional_engines = {"onnxruntime", "openvino"}
    assert [names for names in find_imported_distributions() if not names & (pins.keys() | optional_engines)] == []


def find_imported_distributions() -> list[set[str]]:
    """Return, for each module that the method and the pyfunc import, the distributions that provide it."""
    modules: set[str] = set()
    for path in [*(ROOT / "spin").rglob("*.py"), ROOT / "pipelines" / "registry" / "pyfunc.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module.split(".")[0])
    modules.discard("huggingface_hub")  # a bundle holds its backbone, or finds it as training did
    by_module = packages_distributions()
    return [{name.lower().replace("_", "-") for name in by_module[m]} for m in sorted(modules) if m in by_module]


@pytest.mark.slow
def test_a_multilabel_pyfunc_predicts_lists_of_labels(tmp_path: Path, backbone_folder: Path, sqlite_uri: str) -> None:
    """A threshold in the request replaces the threshold of the model."""
    registry_fixture = RegistryFixture(tmp_path, backbone_folder, sqlite_uri, multilabel=True)
    model, probabilities = load_pyfunc(registry_fixture), registry_fixture.spin.predict_proba(TEXTS)
    assert [list(label) for label in predict(model, TEXTS)["label"]] == registry_fixture.labels
    border = float(np.median(probabilities))
    expected = [
        [name for name, p in zip(registry_fixture.spin.classes, row, strict=True) if p >= border]
        for row in probabilities
    ]
    labels = [list(label) for label in predict(model, TEXTS, threshold=border)["label"]]
    assert labels == expected != registry_fixture.labels
    [label, *_] = model.metadata.signature.outputs.inputs
    assert str(label.type) == "Array(string)"
    assert len(predict(model, TEXTS[:2], explain=True)["explanation"]) == 2


@pytest.mark.slow
def test_model_config_replaces_the_choice_of_the_settings(
    tmp_path: Path, backbone_folder: Path, sqlite_uri: str
) -> None:
    """`mlflow.pyfunc.load_model` takes `choose` as `model_config`."""
    registry_fixture = RegistryFixture(tmp_path, backbone_folder, sqlite_uri, choose="cheapest")
    configs = None, {"choose": "balanced"}
    models = [load_pyfunc(registry_fixture, model_config=config).unwrap_python_model() for config in configs]
    assert [model.spin.choose for model in models] == ["cheapest", "balanced"]


# ---------------------------------------------------------------- the backbone


@pytest.mark.slow
def test_a_bundle_without_the_backbone_loads_only_the_backbone_of_its_training(tmp_path: Path, sqlite_uri: str) -> None:
    """Loading fails if the folder of the backbone was changed or is missing."""
    folder = tiny.save_bert(tmp_path / "bert")
    registry_fixture = RegistryFixture(tmp_path, folder, sqlite_uri, registry={"include_backbone": False})
    bundle = registry_fixture.registry.download_model("1", tmp_path)
    assert sorted(path.name for path in (bundle / "artifacts").iterdir()) == ["spin"]
    assert predict(load_pyfunc(registry_fixture), TEXTS)["label"].tolist() == registry_fixture.labels
    shutil.rmtree(folder)
    tiny.save_bert(folder, seed=1)
    with pytest.raises(UserError, match="has digest .*, the model was trained on .*; point backbone.model at"):
        load_pyfunc(registry_fixture)
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="no directory"):
        load_pyfunc(registry_fixture)


@pytest.mark.slow
def test_a_backbone_that_changed_after_training_is_not_registered(tmp_path: Path, sqlite_uri: str) -> None:
    """The registry then still holds version 1 alone."""
    folder = tiny.save_bert(tmp_path / "bert")
    registry_fixture = RegistryFixture(tmp_path, folder, sqlite_uri)
    shutil.rmtree(folder)
    tiny.save_bert(folder, seed=1)
    with pytest.raises(UserError, match="the model was trained on"):
        registry_fixture.register()
    assert [v.number for v in registry_fixture.registry.versions()] == ["1"]


@pytest.mark.slow
def test_the_bundle_holds_all_backbone_files_and_no_others(
    tmp_path: Path, sqlite_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are the converted weights of a GGUF file in several shards; the folder also has an unrelated file."""
    monkeypatch.setenv("SPIN_CACHE", str(tmp_path / "cache"))
    gguf = tmp_path / "weights.gguf"
    gguf.write_bytes(b"converted already")
    converted = tmp_path / "cache" / "gguf" / (hashlib.sha256(gguf.read_bytes()).hexdigest()[:32] + "-2")
    tiny.save_bert(converted)
    AutoModel.from_pretrained(converted).save_pretrained(converted, max_shard_size="8KB")
    (converted / "model.safetensors").unlink()
    assert len([*converted.glob("*.safetensors")]) > 1
    (converted / "README.md").write_text("unrelated")
    registry_fixture = RegistryFixture(tmp_path, gguf, sqlite_uri)
    shutil.rmtree(tmp_path / "cache")
    backbone = registry_fixture.registry.download_model("1", tmp_path) / "artifacts" / "backbone"
    assert compute_digest(backbone) == registry_fixture.spin.backbone_digest
    assert locate_model(str(backbone)) == backbone
    assert "README.md" not in {path.name for path in backbone.iterdir()}
    assert predict(load_pyfunc(registry_fixture), TEXTS)["label"].tolist() == registry_fixture.labels


@pytest.mark.slow
def test_code_of_a_backbone_does_not_run_when_a_version_is_loaded(
    tmp_path: Path, sqlite_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading is refused even if `trust_remote_code` was on in training."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    marker = tmp_path / "executed"
    folder = tiny.save_model_with_code(tmp_path / "coded", marker)
    trusted = {"model": str(folder), "dtype": "float32", "device": "cpu", "trust_remote_code": True}
    registry_fixture = RegistryFixture(tmp_path, folder, sqlite_uri, backbone=trusted)
    marker.unlink()
    with pytest.raises(UserError, match=r"was trained on with backbone\.trust_remote_code on, here it is off"):
        load_pyfunc(registry_fixture)
    assert not marker.exists()


# ---------------------------------------------------------------- over HTTP


@pytest.mark.server
@pytest.mark.parametrize("tracking_uri", [pytest.param("server", marks=pytest.mark.mlflow)], indirect=True)
def test_mlflow_serves_the_model_over_http(shared_fixture: RegistryFixture, tmp_path: Path) -> None:
    """It answers with labels, thresholds and explanations; an invalid request gets status 400 and the reason."""
    environment = {"MLFLOW_TRACKING_URI": shared_fixture.registry.tracking.uri}
    with serve(f"models:/{shared_fixture.name}/1", tmp_path, environment) as server:
        rows = server.post(TEXTS).json()["predictions"]
        assert [row["label"] for row in rows] == shared_fixture.labels
        assert [row["label"] for row in server.post(TEXTS, threshold=1).json()["predictions"]] == [None] * len(TEXTS)
        [row] = server.post(TEXTS[:1], explain=True).json()["predictions"]
        assert json.loads(row["explanation"])["class"] == shared_fixture.labels[0]
        for response in (server.post([""]), server.post(TEXTS[:1], threshold=2)):
            assert response.status_code == 400
            assert "expected" in response.json()["message"]
