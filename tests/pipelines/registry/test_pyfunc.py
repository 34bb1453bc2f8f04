"""The registered model as a stranger uses it: MLflow's pyfunc in another process, and MLflow's server over HTTP."""

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
    """Its backbone is gone from where it lay in training."""
    folder = tmp_path_factory.mktemp("pyfunc")
    registry_fixture = RegistryFixture(folder, tiny.bert(folder / "bert"), tracking_uri)
    shutil.rmtree(folder / "bert")
    return registry_fixture


def loaded(registry_fixture: RegistryFixture, **options: Any) -> Any:
    with registry_fixture.registry.tracking.session():
        return mlflow.pyfunc.load_model(f"models:/{registry_fixture.name}/1", **options)


def ask(model: Any, texts: list[str], **params: Any) -> pd.DataFrame:
    return model.predict(pd.DataFrame({"text": texts}), params=params)


@pytest.fixture(scope="module")
def model(made: RegistryFixture) -> Any:
    return loaded(made)


def test_a_stranger_predicts(made: RegistryFixture, model: Any) -> None:
    """As the classifier that was trained, from what is registered alone."""
    answer = ask(model, TEXTS)
    assert list(answer.columns) == ["label", "score"]
    assert answer["label"].tolist() == made.labels
    np.testing.assert_allclose(answer["score"], made.spin.predict_proba(TEXTS).max(1), atol=1e-6)
    assert ask(model, TEXTS[:1]).to_dict("records") == answer[:1].to_dict("records")


def test_loading_changes_nothing(made: RegistryFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow writes into its artifact store where that is a folder, and Python its bytecode; neither comes back."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    loaded(made)
    found = {path.name for path in made.registry.download_model("1", tmp_path).iterdir()}
    assert "pyfunc.py" in found
    assert not {"__pycache__", "registered_model_meta"} & found


def test_a_threshold(made: RegistryFixture, model: Any) -> None:
    """Nulls what is less sure; 0 is the same as none."""
    probabilities = made.spin.predict_proba(TEXTS).max(1)
    border = float(np.sort(probabilities)[len(TEXTS) // 2])
    answer = ask(model, TEXTS, threshold=border - 1e-4)
    wanted = [
        label if chance >= border - 1e-4 else None for label, chance in zip(made.labels, probabilities, strict=True)
    ]
    assert None in wanted
    assert answer["label"].tolist() == wanted != made.labels
    np.testing.assert_allclose(answer["score"], probabilities, atol=1e-6)
    assert ask(model, TEXTS, threshold=0)["label"].tolist() == made.labels
    assert ask(model, TEXTS, threshold=1)["label"].tolist() == [None] * len(TEXTS)


def test_an_explanation(made: RegistryFixture, model: Any) -> None:
    """The loudest neurons and words of every text, as `explain` has them."""
    answer = ask(model, TEXTS[:3], explain=True)
    assert list(answer.columns) == ["label", "score", "explanation"]
    for text, label, said in zip(TEXTS, answer["label"], answer["explanation"], strict=False):
        told, found = json.loads(said), made.spin.explain(text)
        assert told["class"] == label == found.label
        assert told["logit"] == pytest.approx(found.logits.max(), abs=1e-4)
        loudest = found.top(10)
        assert [row["neuron"] for row in told["neurons"]] == [f"{n.column}[{n.neuron}]" for n in loudest]
        assert [row["word"] for row in told["neurons"]] == [n.word for n in loudest]
        assert all(text[row["start"] : row["end"]] == row["word"] for row in told["words"])
        assert len(told["words"]) == min(10, len(text.split()))
        if len(told["words"]) == len(text.split()):  # special tokens and the bias say the rest
            k = found.classes.index(label)
            special = sum(float(found.word_contributions[w, k]) for w, (a, b) in enumerate(found.words) if a == b)
            total = sum(row["adds"] for row in told["words"]) + special + told["bias"]
            assert total == pytest.approx(told["logit"], abs=1e-4)


@pytest.mark.parametrize(
    ("rows", "params", "said"),
    [
        ({"text": TEXTS[:1]}, {"threshold": 1.5}, "threshold: found 1.5, expected a probability from 0 to 1"),
        ({"text": TEXTS[:1]}, {"threshold": float("nan")}, "threshold: found nan"),
        ({"text": TEXTS[:1]}, {"threshold": "high"}, "Can not safely convert"),
        ({"text": ["fine", " "]}, {}, "text 1 is ' '; expected text that is not empty"),
        ({"text": ["fine", None]}, {}, "text 1 is (None|nan); expected text"),
        ({"words": TEXTS[:1]}, {}, r"Model is missing inputs \['text'\]"),
    ],
)
def test_what_is_asked_wrongly(model: Any, rows: dict[str, Any], params: dict[str, Any], said: str) -> None:
    """Is told as MLflow tells it, and so has a status of its own over HTTP."""
    with pytest.raises(MlflowException, match=said) as error:
        model.predict(pd.DataFrame(rows), params=params)
    assert error.value.get_http_status_code() == 400


def test_what_the_model_says_of_itself(made: RegistryFixture, model: Any, tmp_path: Path) -> None:
    """Signature, input example, and every library that loading imports, pinned to what is installed here."""
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
    extra = {"nncf", "onnxruntime", "openvino"}  # which `auto` does without
    assert [found for found in imported() if not found & (pins.keys() | extra)] == []


def imported() -> list[set[str]]:
    """The distributions of every module that the method and the pyfunc import; any one of several is as good."""
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
    """A list a text; a threshold takes the place of the model's own."""
    registry_fixture = RegistryFixture(tmp_path, backbone_folder, sqlite_uri, multilabel=True)
    model, probabilities = loaded(registry_fixture), registry_fixture.spin.predict_proba(TEXTS)
    assert [list(label) for label in ask(model, TEXTS)["label"]] == registry_fixture.labels
    border = float(np.median(probabilities))
    wanted = [
        [name for name, p in zip(registry_fixture.spin.classes, row, strict=True) if p >= border]
        for row in probabilities
    ]
    assert [list(label) for label in ask(model, TEXTS, threshold=border)["label"]] == wanted != registry_fixture.labels
    [label, *_] = model.metadata.signature.outputs.inputs
    assert str(label.type) == "Array(string)"
    assert len(ask(model, TEXTS[:2], explain=True)["explanation"]) == 2


def test_the_settings_choose_and_who_loads_may_choose_again(
    tmp_path: Path, backbone_folder: Path, sqlite_uri: str
) -> None:
    registry_fixture = RegistryFixture(tmp_path, backbone_folder, sqlite_uri, choose="cheapest")
    spins = [
        loaded(registry_fixture, model_config=c).unwrap_python_model().spin for c in (None, {"choose": "balanced"})
    ]
    assert [spin.choose for spin in spins] == ["cheapest", "balanced"]


# ---------------------------------------------------------------- the backbone


def test_a_bundle_without_the_backbone_checks_it(tmp_path: Path, sqlite_uri: str) -> None:
    """It loads where the backbone lies as it lay in training, and not where that was changed, or is gone."""
    folder = tiny.bert(tmp_path / "bert")
    registry_fixture = RegistryFixture(tmp_path, folder, sqlite_uri, registry={"include_backbone": False})
    whole = registry_fixture.registry.download_model("1", tmp_path)
    assert sorted(path.name for path in (whole / "artifacts").iterdir()) == ["spin"]
    assert ask(loaded(registry_fixture), TEXTS)["label"].tolist() == registry_fixture.labels
    shutil.rmtree(folder)
    tiny.bert(folder, seed=1)
    with pytest.raises(UserError, match="has digest .*, the model was trained on .*; point backbone.model at"):
        loaded(registry_fixture)
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="no directory"):
        loaded(registry_fixture)


def test_only_the_backbone_of_the_training_is_registered(tmp_path: Path, sqlite_uri: str) -> None:
    """One that changed since is refused before anything is registered."""
    folder = tiny.bert(tmp_path / "bert")
    registry_fixture = RegistryFixture(tmp_path, folder, sqlite_uri)
    shutil.rmtree(folder)
    tiny.bert(folder, seed=1)
    with pytest.raises(UserError, match="the model was trained on"):
        registry_fixture.register()
    assert [v.number for v in registry_fixture.registry.versions()] == ["1"]


def test_what_loads_is_what_is_registered(tmp_path: Path, sqlite_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a GGUF file its safetensors, of a sharded model all its files, and nothing that merely lies beside them."""
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
    assert ask(loaded(registry_fixture), TEXTS)["label"].tolist() == registry_fixture.labels


def test_code_of_a_backbone_does_not_run(tmp_path: Path, sqlite_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where training trusted it."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    mark = tmp_path / "mark"
    folder = tiny.coded(tmp_path / "coded", mark)
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
