"""infra/Dockerfile and infra/compose.yaml: their form. They are not built or run here, where no Docker is."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from importlib import resources
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement

from tests.support.manifests import ROOT

COMPOSE = (ROOT / "infra" / "compose.yaml").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their words; continued lines are one."""
    text = (ROOT / "infra" / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split()[0], line.partition(" ")[2]) for line in lines]


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """Of compose.yaml, anchors followed."""
    found: dict[str, Any] = yaml.safe_load(COMPOSE)["services"]
    return found


def stages(instructions: list[tuple[str, str]]) -> dict[str, list[tuple[str, str]]]:
    """Every stage's instructions, those of the stages it is made from first."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, words in instructions:
        if name == "FROM":
            base, _, stage = words.partition(" AS ")
            found[stage] = [*found.get(base, [("FROM", base)])]
        else:
            found[stage].append((name, words))
    return found


def test_images_are_small_stages_without_root(instructions: list[tuple[str, str]]) -> None:
    """Three images, each without root and with what was built elsewhere; bases pinned; nothing from a URL."""
    found = stages(instructions)
    assert set(found) - {"wheel", "venv", "run"} >= {"cpu", "cuda", "mlflow"}
    for target in ("cpu", "cuda", "mlflow"):
        users = [words for name, words in found[target] if name == "USER"]
        assert users == ["10001:10001"], target  # as the manifests say
        assert [words for name, words in found[target] if name == "COPY"] == [
            f"--from=venv-{target} /opt/spin /opt/spin"
        ]
        assert not [words for name, words in found[target] if name == "RUN" and "pip" in words], target
    for stage, of in found.items():
        assert re.fullmatch(r"python:3\.1[123]\.\d+-slim-trixie", of[0][1]), stage
    assert not [words for name, words in instructions if name == "ADD" or "http://" in words]
    secrets = [words for name, words in instructions if re.search("PASSWORD|SECRET|TOKEN", words)]
    assert not secrets


def test_the_images_versions_are_those_we_ask_for(instructions: list[tuple[str, str]]) -> None:
    """One version per library in all images, within the range of pyproject.toml, and the one in constraints.txt."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = [*project["dependencies"], *project["optional-dependencies"]["pipelines"]]
    ranges = {r.name: r.specifier for r in map(Requirement, requirements)}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.split("==") for line in lines if "==" in line)
    found = {tuple(words.split("=")) for name, words in instructions if name == "ARG"}
    assert {name for name, _ in found} == {"TORCH", "RAY", "MLFLOW"}
    assert len(found) == 3
    for name, version in found:
        assert version in ranges[name.lower()]
        assert version == tested.get(name.lower(), version)  # torch is not constrained
    assert all(
        "[pipelines]" in words
        for name, words in instructions
        if name == "RUN" and "/wheels/" in words and "install" in words
    )


def test_the_context_is_what_the_wheel_needs(instructions: list[tuple[str, str]]) -> None:
    """.dockerignore lets in what is copied, and what is copied is there."""
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        word
        for name, words in instructions
        if name == "COPY" and not words.startswith("--from")
        for word in words.split()[:-1]
    }
    assert copied == let_in
    assert all((ROOT / word).exists() for word in copied)


def test_compose_is_of_the_compose_specification() -> None:
    """Its JSON schema, as check-jsonschema brings it along."""
    vendored = resources.files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    jsonschema.validate(yaml.safe_load(COMPOSE), json.loads(vendored.read_text(encoding="utf-8")))


def test_every_published_port_is_loopbacks(services: dict[str, Any]) -> None:
    """Nothing can be reached from another machine."""
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert sorted(port.split(":")[-1] for port in published) == ["5000", "8265", "8333"]
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert not [name for name, service in services.items() if "network_mode" in service]


def test_services_wait_until_the_others_are_well(services: dict[str, Any]) -> None:
    """Each has a health check, but the one that ends; who depends waits for health or for the end."""
    assert {name for name, service in services.items() if "healthcheck" not in service} == {"bucket"}
    for service in services.values():
        for name, wait in service.get("depends_on", {}).items():
            wanted = "service_completed_successfully" if name == "bucket" else "service_healthy"
            assert wait == {"condition": wanted}


def test_images_of_compose_are_pinned_and_ours_confined(
    services: dict[str, Any], instructions: list[tuple[str, str]]
) -> None:
    """Ours are the Dockerfile's targets, without capabilities."""
    for name, service in services.items():
        assert re.search(r":\d+\.\d+", service["image"]), name
        if "build" in service:
            assert service["build"]["target"] in stages(instructions)
            assert service["image"].endswith(f"-{service['build']['target']}")
            assert service["cap_drop"] == ["ALL"]
            assert service["security_opt"] == ["no-new-privileges:true"]


def test_credentials_of_compose_come_from_its_env_file(services: dict[str, Any]) -> None:
    """All are required, named in .env.example without a value, and no other secret stands there; git ignores .env."""
    example = dict(
        line.split("=", 1)
        for line in (ROOT / "infra" / ".env.example").read_text().splitlines()
        if not line.startswith("#")
    )
    assert set(re.findall(r"\$\{(\w+):\?\}", COMPOSE)) == set(example)
    assert COMPOSE.count("${") == len(re.findall(r"\$\{\w+:\?\}", COMPOSE))
    assert set(example.values()) == {""}
    for service in services.values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN|KEY", name):
                assert value.startswith("${"), name
    assert "/infra/.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_workers_of_compose_know_the_store_alone(services: dict[str, Any]) -> None:
    """The head has MLflow's password, for drivers."""
    assert not [name for name in services["ray-worker"]["environment"] if name.startswith("MLFLOW")]
    assert services["ray-head"]["environment"]["MLFLOW_TRACKING_PASSWORD"]
    assert "--num-cpus=0" in shlex.join(services["ray-head"]["command"])
