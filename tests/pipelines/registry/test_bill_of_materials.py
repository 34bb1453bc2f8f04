"""The bill of materials that each version holds: its hashes, its data, its figures and the licence of its weights."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from pipelines.registry.bill_of_materials import BILL
from pipelines.registry.version_records import LoggedData
from tests.support import tiny
from tests.support.registry_fixture import RegistryFixture, build_evaluation_set, build_training_record

pytestmark = pytest.mark.slow

EVALUATION_SET = build_evaluation_set([{"id": "a", "text": "ein Bär – 熊", "label": "good"}])
DATA = LoggedData(
    name="reviews",
    source="https://token@store.example/reviews",
    digest="0123456789abcdef" * 4,
    profile={"documents": 120},
)


def register(folder: Path, uri: str, *, card: str | None = None, **changes: Any) -> tuple[Path, dict[str, Any]]:
    """Register a version; returns its logged model and the bill in it."""
    backbone = tiny.save_bert(folder / "bert")
    if card is not None:
        (backbone / "README.md").write_text(card)
    fixture = RegistryFixture(folder, backbone, uri, **changes)
    record = build_training_record(EVALUATION_SET, "f" * 64, metrics={"test_accuracy": 0.5}, data=DATA)
    number = fixture.registry.register(folder / "artifact", record).version
    model = fixture.registry.download_model(number, folder)
    return model, json.loads((model / BILL).read_text(encoding="utf-8"))


def find(bill: dict[str, Any], ref: str) -> dict[str, Any]:
    [found] = [component for component in bill["components"] if component["bom-ref"] == ref]
    return dict(found)


def read_hashes(component: dict[str, Any]) -> dict[str, str]:
    """The SHA-256 of the files of a component, by name."""
    return {file["name"]: hash["content"] for file in component["components"] for hash in file["hashes"]}


def test_a_version_holds_a_bill_of_materials(tmp_path: Path, sqlite_uri: str) -> None:
    """It is valid CycloneDX, and without credentials."""
    model, bill = register(tmp_path, sqlite_uri, card="---\nlicense: apache-2.0\n---\n# A model")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill)) is None
    of_version, weights = bill["metadata"]["component"], find(bill, "weights")
    assert (of_version["type"], of_version["version"]) == ("machine-learning-model", "f" * 64)
    assert of_version["modelCard"]["quantitativeAnalysis"]["performanceMetrics"] == [
        {"type": "test_accuracy", "value": "0.5"}
    ]
    for component, names in (
        (of_version, {"pyfunc.py", "artifacts/spin/config.json", "artifacts/spin/model.safetensors"}),
        (weights, {f"artifacts/backbone/{path.name}" for path in (model / "artifacts" / "backbone").iterdir()}),
    ):
        assert read_hashes(component) == {
            name: hashlib.sha256((model / name).read_bytes()).hexdigest() for name in names
        }
    assert weights["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert find(bill, "data:test")["hashes"][0]["content"] == hashlib.sha256(EVALUATION_SET.to_json()).hexdigest()
    facts = {each["name"]: each["value"] for each in find(bill, "data:corpus")["properties"]}
    assert facts == {
        "spin:digest": DATA.digest, "spin:documents": "120", "spin:source": "https://***@store.example/reviews"
    }  # fmt: skip
    assert find(bill, "library:mlflow")["purl"] == f"pkg:pypi/mlflow@{version('mlflow')}"


@pytest.mark.parametrize("card", [None, "no front matter", "---\nlicense: [a, b]\n---\n", "---\n: [\n---\n"])
def test_a_licence_that_is_not_known_is_left_out(tmp_path: Path, sqlite_uri: str, card: str | None) -> None:
    _, bill = register(tmp_path, sqlite_uri, card=card)
    assert "licenses" not in find(bill, "weights")


def test_weights_that_a_version_does_not_hold_have_a_digest_alone(tmp_path: Path, sqlite_uri: str) -> None:
    _, bill = register(tmp_path, sqlite_uri, registry={"include_backbone": False})
    weights = find(bill, "weights")
    assert "components" not in weights
    assert [each["name"] for each in weights["properties"]] == ["spin:digest"]
