"""The registered model as MLflow's users have it: loaded as a pyfunc, and served over HTTP."""

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

from spin.backbone.digest import compute_digest
from spin.backbone.hub import locate_model
from spin.errors import UserError
from tests.support import tiny
from tests.support.model_server import serve
from tests.support.registry_fixture import TEXTS, RegistryFixture
from tests.support.repository import ROOT


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tracking_uri: str) -> RegistryFixture:
    """The backbone that it was trained on has been deleted; the bundle holds a copy."""
    folder = tmp_path_factory.mktemp("pyfunc")
    registry_fixture = RegistryFixture(folder, tiny.bert(folder / "bert"), tracking_uri)
    shutil.rmtree(folder / "bert")
    return registry_fixture


def loaded(registry_fixture: RegistryFixture, **options: Any) -> Any:
    with registry_fixture.registry.tracking.session():
        return mlflow.pyfunc.load_model(f"models:/{registry_fixture.name}/1", **options)


def predict(model: Any, texts: list[str], **params: Any) -> pd.DataFrame:
    return model.predict(pd.DataFrame({"text": texts}), params=params)


@pytest.fixture(scope="module")
def model(made: RegistryFixture) -> Any:
    return loaded(made)


def test_it_predicts_as_the_trained_classifier(made: RegistryFixture, model: Any) -> None:
    """From the registered files alone."""
    answer = predict(model, TEXTS)
    assert list(answer.columns) == ["label", "score"]
    assert answer["label"].tolist() == made.labels
    np.testing.assert_allclose(answer["score"], made.spin.predict_proba(TEXTS).max(1), atol=1e-6)
    assert predict(model, TEXTS[:1]).to_dict("records") == answer[:1].to_dict("records")


def test_loading_changes_nothing(made: RegistryFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow and Python write into an artifact store on disk when they load; those files are not downloaded."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    loaded(made)
    files = {path.name for path in made.registry.download_model("1", tmp_path).iterdir()}
    assert "pyfunc.py" in files
    assert not {"__pycache__", "registered_model_meta"} & files


def test_a_threshold(made: RegistryFixture, model: Any) -> None:
    """Removes less probable labels; 0 is the same as no threshold."""
    probabilities = made.spin.predict_proba(TEXTS).max(1)
    border = float(np.sort(probabilities)[len(TEXTS) // 2])
    answer = predict(model, TEXTS, threshold=border - 1e-4)
    wanted = [label if p >= border - 1e-4 else None for label, p in zip(made.labels, probabilities, strict=True)]
    assert None in wanted
    assert answer["label"].tolist() == wanted != made.labels
    np.testing.assert_allclose(answer["score"], probabilities, atol=1e-6)
    assert predict(model, TEXTS, threshold=0)["label"].tolist() == made.labels
    assert predict(model, TEXTS, threshold=1)["label"].tolist() == [None] * len(TEXTS)


def test_an_explanation(made: RegistryFixture, model: Any) -> None:
    """The main neurons and words of every text, as `explain` gives them."""
    answer = predict(model, TEXTS[:3], explain=True)
    assert list(answer.columns) == ["label", "score", "explanation"]
    for text, label, row in zip(TEXTS, answer["label"], answer["explanation"], strict=False):
        logged, explanation = json.loads(row), made.spin.explain(text)
        assert logged["class"] == label == explanation.label
        assert logged["logit"] == pytest.approx(explanation.logits.max(), abs=1e-4)
        loudest = explanation.top(10)
        assert [row["neuron"] for row in logged["neurons"]] == [f"{n.column}[{n.neuron}]" for n in loudest]
        assert [row["word"] for row in logged["neurons"]] == [n.word for n in loudest]
        assert all(text[row["start"] : row["end"]] == row["word"] for row in logged["words"])
        assert len(logged["words"]) == min(10, len(text.split()))
        if len(logged["words"]) == len(text.split()):  # special tokens and the bias say the rest
            k = explanation.classes.index(label)
            special = sum(
                float(explanation.word_contributions[w, k]) for w, (a, b) in enumerate(explanation.words) if a == b
            )
            total = sum(row["adds"] for row in logged["words"]) + special + logged["bias"]
            assert total == pytest.approx(logged["logit"], abs=1e-4)


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
def test_a_wrong_request_is_an_mlflow_error(
    model: Any, rows: dict[str, Any], params: dict[str, Any], message: str
) -> None:
    """With HTTP status 400."""
    with pytest.raises(MlflowException, match=message) as error:
        model.predict(pd.DataFrame(rows), params=params)
    assert error.value.get_http_status_code() == 400


def test_the_metadata_of_the_model(made: RegistryFixture, model: Any, tmp_path: Path) -> None:
    """Signature, input example, and a pin of every library that loading imports, at the installed version."""
    signature = model.metadata.signature
    assert [(c.name, c.type.name, c.required) for c in signature.inputs.inputs] == [("text", "string", True)]
    outputs = [(c.name, c.type.name, c.required) for c in signature.outputs.inputs]
    assert outputs == [("label", "string", False), ("score", "double", True), ("explanation", "string", False)]
    assert [(p.name, p.dtype.name, p.default) for p in signature.params] == [
        ("threshold", "double", 0.0),
        ("explain", "boolean", False),
    ]
    assert model.input_example["text"].tolist() == TEXTS[:2]
    required = made.registry.download_model("1", tmp_path) / "requirements.txt"
    pins = dict(line.split("==") for line in required.read_text().split())
    assert pins == {name: version(name).partition("+")[0] for name in pins}
    extra = {"nncf", "onnxruntime", "openvino"}  # optional engines
    assert [names for names in imported() if not names & (pins.keys() | extra)] == []


def imported() -> list[set[str]]:
    """For each module that the method and the pyfunc import, the distributions that provide it."""
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


def test_a_multi_label_model(tmp_path: Path, backbone_folder: Path, sqlite_uri: str) -> None:
    """One list per text; a threshold replaces the model's own."""
    registry_fixture = RegistryFixture(tmp_path, backbone_folder, sqlite_uri, multilabel=True)
    model, probabilities = loaded(registry_fixture), registry_fixture.spin.predict_proba(TEXTS)
    assert [list(label) for label in predict(model, TEXTS)["label"]] == registry_fixture.labels
    border = float(np.median(probabilities))
    wanted = [
        [name for name, p in zip(registry_fixture.spin.classes, row, strict=True) if p >= border]
        for row in probabilities
    ]
    assert (
        [list(label) for label in predict(model, TEXTS, threshold=border)["label"]] == wanted != registry_fixture.labels
    )
    [label, *_] = model.metadata.signature.outputs.inputs
    assert str(label.type) == "Array(string)"
    assert len(predict(model, TEXTS[:2], explain=True)["explanation"]) == 2


def test_the_choice_of_the_settings_can_be_replaced_on_loading(
    tmp_path: Path, backbone_folder: Path, sqlite_uri: str
) -> None:
    registry_fixture = RegistryFixture(tmp_path, backbone_folder, sqlite_uri, choose="cheapest")
    spins = [
        loaded(registry_fixture, model_config=c).unwrap_python_model().spin for c in (None, {"choose": "balanced"})
    ]
    assert [spin.choose for spin in spins] == ["cheapest", "balanced"]


# ---------------------------------------------------------------- the backbone


def test_a_bundle_without_the_backbone_checks_it(tmp_path: Path, sqlite_uri: str) -> None:
    """It loads while the training's backbone is in place and unchanged, and fails when it is changed or missing."""
    folder = tiny.bert(tmp_path / "bert")
    registry_fixture = RegistryFixture(tmp_path, folder, sqlite_uri, registry={"include_backbone": False})
    whole = registry_fixture.registry.download_model("1", tmp_path)
    assert sorted(path.name for path in (whole / "artifacts").iterdir()) == ["spin"]
    assert predict(loaded(registry_fixture), TEXTS)["label"].tolist() == registry_fixture.labels
    shutil.rmtree(folder)
    tiny.bert(folder, seed=1)
    with pytest.raises(UserError, match="has digest .*, the model was trained on .*; point backbone.model at"):
        loaded(registry_fixture)
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="no directory"):
        loaded(registry_fixture)


def test_only_the_backbone_of_the_training_is_registered(tmp_path: Path, sqlite_uri: str) -> None:
    """A backbone that changed since is refused before anything is registered."""
    folder = tiny.bert(tmp_path / "bert")
    registry_fixture = RegistryFixture(tmp_path, folder, sqlite_uri)
    shutil.rmtree(folder)
    tiny.bert(folder, seed=1)
    with pytest.raises(UserError, match="the model was trained on"):
        registry_fixture.register()
    assert [v.number for v in registry_fixture.registry.versions()] == ["1"]


def test_the_bundle_holds_all_backbone_files_and_no_others(
    tmp_path: Path, sqlite_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The safetensors of a GGUF file, all files of a sharded model, and no unrelated file of the folder."""
    monkeypatch.setenv("SPIN_CACHE", str(tmp_path / "cache"))
    gguf = tmp_path / "weights.gguf"
    gguf.write_bytes(b"converted already")
    converted = tmp_path / "cache" / "gguf" / hashlib.sha256(gguf.read_bytes()).hexdigest()[:32]
    tiny.bert(converted)
    AutoModel.from_pretrained(converted).save_pretrained(converted, max_shard_size="8KB")
    (converted / "model.safetensors").unlink()
    assert len([*converted.glob("*.safetensors")]) > 1
    (converted / "README.md").write_text("beside")
    registry_fixture = RegistryFixture(tmp_path, gguf, sqlite_uri)
    shutil.rmtree(tmp_path / "cache")
    backbone = registry_fixture.registry.download_model("1", tmp_path) / "artifacts" / "backbone"
    assert compute_digest(backbone) == registry_fixture.spin.backbone_digest
    assert locate_model(str(backbone)) == backbone
    assert "README.md" not in {path.name for path in backbone.iterdir()}
    assert predict(loaded(registry_fixture), TEXTS)["label"].tolist() == registry_fixture.labels


def test_code_of_a_backbone_does_not_run(tmp_path: Path, sqlite_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where training had trust_remote_code on."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    mark = tmp_path / "mark"
    folder = tiny.save_model_with_code(tmp_path / "coded", mark)
    trusted = {"model": str(folder), "dtype": "float32", "device": "cpu", "trust_remote_code": True}
    registry_fixture = RegistryFixture(tmp_path, folder, sqlite_uri, backbone=trusted)
    mark.unlink()
    with pytest.raises(UserError, match=r"was trained on with backbone\.trust_remote_code on, here it is off"):
        loaded(registry_fixture)
    assert not mark.exists()


# ---------------------------------------------------------------- over HTTP


def test_mlflow_serves_it(made: RegistryFixture, tmp_path: Path) -> None:
    """Labels, thresholds and explanations over HTTP; a wrong request is answered with status 400 and the reason."""
    environment = {"MLFLOW_TRACKING_URI": made.registry.tracking.uri}
    with serve(f"models:/{made.name}/1", tmp_path, environment) as server:
        rows = server.post(TEXTS).json()["predictions"]
        assert [row["label"] for row in rows] == made.labels
        assert [row["label"] for row in server.post(TEXTS, threshold=1).json()["predictions"]] == [None] * len(TEXTS)
        [row] = server.post(TEXTS[:1], explain=True).json()["predictions"]
        assert json.loads(row["explanation"])["class"] == made.labels[0]
        for response in (server.post([""]), server.post(TEXTS[:1], threshold=2)):
            assert response.status_code == 400
            assert "expected" in response.json()["message"]
