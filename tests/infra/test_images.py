"""Static checks of infra/Dockerfile and infra/compose.yaml. The tests need no Docker: no image is built or run."""

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
    """Each instruction of the Dockerfile with its arguments; continued lines are joined."""
    text = (ROOT / "infra" / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split()[0], line.partition(" ")[2]) for line in lines]


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """The services of compose.yaml, with anchors resolved."""
    services: dict[str, Any] = yaml.safe_load(COMPOSE)["services"]
    return services


def split_stages(instructions: list[tuple[str, str]]) -> dict[str, list[tuple[str, str]]]:
    """Return the instructions of every stage, preceded by those of the stages that it is based on."""
    stages: dict[str, list[tuple[str, str]]] = {}
    for name, arguments in instructions:
        if name == "FROM":
            base, _, stage = arguments.partition(" AS ")
            stages[stage] = [*stages.get(base, [("FROM", base)])]
        else:
            stages[stage].append((name, arguments))
    return stages


def test_images_are_pinned_run_without_root_and_copy_what_other_stages_built(
    instructions: list[tuple[str, str]],
) -> None:
    """Each of the three images copies a virtual environment from its build stage. No file comes from a URL."""
    stages = split_stages(instructions)
    assert set(stages) - {"wheel", "venv", "run"} >= {"cpu", "cuda", "mlflow"}
    for target in ("cpu", "cuda", "mlflow"):
        users = [arguments for name, arguments in stages[target] if name == "USER"]
        assert users == ["10001:10001"], target  # the user of the Kubernetes manifests
        assert [arguments for name, arguments in stages[target] if name == "COPY"] == [
            f"--from=venv-{target} /opt/spin /opt/spin"
        ]
        assert not [arguments for name, arguments in stages[target] if name == "RUN" and "pip" in arguments], target
    for stage, [(_, base), *_] in stages.items():
        assert re.fullmatch(r"python:3\.1[123]\.\d+-slim-trixie", base), stage
    assert not [arguments for name, arguments in instructions if name == "ADD" or "http://" in arguments]
    secrets = [arguments for name, arguments in instructions if re.search("PASSWORD|SECRET|TOKEN", arguments)]
    assert not secrets


def test_images_install_the_versions_of_constraints_txt(instructions: list[tuple[str, str]]) -> None:
    """All images have one version per library, which is within the range of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = [*project["dependencies"], *project["optional-dependencies"]["pipelines"]]
    ranges = {r.name: r.specifier for r in map(Requirement, requirements)}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    constrained = dict(line.split("==") for line in lines if "==" in line)
    versions = {tuple(arguments.split("=")) for name, arguments in instructions if name == "ARG"}
    assert {library for library, _ in versions} == {"TORCH", "RAY", "MLFLOW"}
    assert len(versions) == 3
    for library, version in versions:
        assert version in ranges[library.lower()]
        assert version == constrained.get(library.lower(), version)  # torch is not in constraints.txt
    assert all(
        "[pipelines]" in arguments
        for name, arguments in instructions
        if name == "RUN" and "/wheels/" in arguments and "install" in arguments
    )


def test_image_tags_are_the_version_of_the_project(services: dict[str, Any]) -> None:
    """So is the tag in the command at the top of the Dockerfile, in which the target is a variable of the shell."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    tags = [service["image"].partition(":")[2] for service in services.values() if "build" in service]
    tags += re.findall(r"-t spin:(\S+)", (ROOT / "infra" / "Dockerfile").read_text(encoding="utf-8"))
    for overlay in (ROOT / "infra" / "k8s" / "overlays").glob("*/kustomization.yaml"):
        tags += [image["newTag"] for image in yaml.safe_load(overlay.read_text(encoding="utf-8"))["images"]]
    assert len(tags) >= 9
    assert {tag.partition("-")[0] for tag in tags} == {version}


def test_the_build_context_holds_exactly_the_copied_files(instructions: list[tuple[str, str]]) -> None:
    """.dockerignore includes exactly the paths that the Dockerfile copies, and these exist."""
    included = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        path
        for name, arguments in instructions
        if name == "COPY" and not arguments.startswith("--from")
        for path in arguments.split()[:-1]
    }
    assert copied == included
    assert all((ROOT / path).exists() for path in copied)


def test_compose_yaml_matches_the_schema_of_the_compose_specification() -> None:
    """The JSON schema is the copy in check-jsonschema."""
    schema_file = resources.files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    jsonschema.validate(yaml.safe_load(COMPOSE), json.loads(schema_file.read_text(encoding="utf-8")))


def test_ports_are_published_on_the_loopback_address_alone(services: dict[str, Any]) -> None:
    """No service can be reached from another machine."""
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert sorted(port.split(":")[-1] for port in published) == ["5000", "8265", "8333"]
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert not [name for name, service in services.items() if "network_mode" in service]


def test_services_wait_until_their_dependencies_are_healthy(services: dict[str, Any]) -> None:
    """Every service has a health check except `bucket`, which ends; services that depend on it wait for its success."""
    assert {name for name, service in services.items() if "healthcheck" not in service} == {"bucket"}
    for service in services.values():
        for name, wait in service.get("depends_on", {}).items():
            expected = "service_completed_successfully" if name == "bucket" else "service_healthy"
            assert wait == {"condition": expected}


def test_compose_pins_images_and_drops_the_capabilities_of_built_ones(
    services: dict[str, Any], instructions: list[tuple[str, str]]
) -> None:
    """Images that are built here are targets of the Dockerfile."""
    for name, service in services.items():
        assert re.search(r":\d+\.\d+", service["image"]), name
        if "build" in service:
            assert service["build"]["target"] in split_stages(instructions)
            assert service["image"].endswith(f"-{service['build']['target']}")
            assert service["cap_drop"] == ["ALL"]
            assert service["security_opt"] == ["no-new-privileges:true"]


def test_compose_takes_all_credentials_from_its_env_file(services: dict[str, Any]) -> None:
    """All are required, and .env.example names them without values. Git ignores .env."""
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


def test_workers_of_compose_get_no_credentials_of_mlflow(services: dict[str, Any]) -> None:
    """The head, on which drivers run, has the password; it runs no worker."""
    assert not [name for name in services["ray-worker"]["environment"] if name.startswith("MLFLOW")]
    assert services["ray-head"]["environment"]["MLFLOW_TRACKING_PASSWORD"]
    assert "--num-cpus=0" in shlex.join(services["ray-head"]["command"])
