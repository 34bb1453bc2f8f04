"""Static checks of infra/Dockerfile, infra/compose.yaml and infra/images. No image is built or run here.

`make images` and `make compose-demo` do that, by hand: they take too long for every commit.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from infra.images.pip_config import format_options, list_paths, parse_options
from tests.support.manifests import ROOT

COMPOSE = (ROOT / "infra" / "compose.yaml").read_text(encoding="utf-8")
IMAGES = ROOT / "infra" / "images"
SCRIPTS = sorted(IMAGES.glob("*.sh"))


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
    """Return the instructions of every stage, preceded by those of the stages that it is based on.

    The arguments before the first stage belong to none.
    """
    stages: dict[str, list[tuple[str, str]]] = {}
    first = next(index for index, (name, _) in enumerate(instructions) if name == "FROM")
    for name, arguments in instructions[first:]:
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
    assert set(stages) - {"wheel", "venv", "run", "node"} >= {"cpu", "cuda", "mlflow"}
    for target in ("cpu", "cuda", "mlflow"):
        users = [arguments for name, arguments in stages[target] if name == "USER"]
        assert users == ["10001:10001"], target  # the user of the Kubernetes manifests
        assert [arguments for name, arguments in stages[target] if name == "COPY"] == [
            f"--from=venv-{target} /opt/spin /opt/spin"
        ]
        assert not [arguments for name, arguments in stages[target] if name == "RUN" and "pip" in arguments], target
        assert len([arguments for name, arguments in stages[target] if name == "HEALTHCHECK"]) == 1, target
    assert {base for [(_, base), *_] in stages.values()} == {"${BASE}"}
    assert not [
        arguments
        for name, arguments in instructions
        if name == "ADD" or "http://" in arguments.replace("http://127.0.0.1", "")
    ]
    secrets = [arguments for name, arguments in instructions if re.search("PASSWORD|SECRET|TOKEN", arguments)]
    assert not secrets


def test_the_base_and_the_index_of_torch_are_arguments_with_public_defaults(
    instructions: list[tuple[str, str]],
) -> None:
    """A build elsewhere may replace them; one without arguments needs the public registry and PyTorch's index."""
    defaults = dict(arguments.split("=", 1) for name, arguments in instructions if name == "ARG" and "=" in arguments)
    assert re.fullmatch(r"python:3\.1[123]\.\d+-slim-trixie", defaults["BASE"])
    assert defaults["TORCH_INDEX"] == "https://download.pytorch.org/whl/cpu"
    [install] = [arguments for name, arguments in instructions if name == "RUN" and "${TORCH_INDEX}" in arguments]
    assert '--index-url "${TORCH_INDEX}"' in install


def test_pip_reads_its_configuration_from_a_secret_wherever_it_installs(instructions: list[tuple[str, str]]) -> None:
    """So no layer holds it. Images for GPUs take the build of torch that PyPI has, not one for processors."""
    pip = [
        arguments
        for name, arguments in instructions
        if name == "RUN" and re.search(r"\bpip (install|wheel)", arguments)
    ]
    assert len(pip) == 6
    assert all(arguments.startswith("--mount=type=secret,id=pip ") for arguments in pip)
    stages = split_stages(instructions)
    environment = " ".join(arguments for name, arguments in stages["venv"] if name == "ENV")
    assert "PIP_CONFIG_FILE=/run/secrets/pip" in environment
    assert not [arguments for name, arguments in stages["run"] if "PIP_" in arguments]
    assert [arguments for name, arguments in stages["venv-cuda"] if '"torch===${TORCH}"' in arguments]


def test_images_install_the_versions_of_constraints_txt(instructions: list[tuple[str, str]]) -> None:
    """All images have one version per library, which is within the range of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = [*project["dependencies"], *project["optional-dependencies"]["pipelines"]]
    ranges = {r.name: r.specifier for r in map(Requirement, requirements)}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    constrained = dict(line.split("==") for line in lines if "==" in line)
    arguments_given = {arguments for name, arguments in instructions if name == "ARG" and "=" in arguments}
    versions = {tuple(text.split("=")) for text in arguments_given if not text.startswith(("BASE=", "TORCH_INDEX="))}
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
    installs = [arguments for name, arguments in instructions if name == "RUN" and "pip install" in arguments]
    assert all("--constraint /src/constraints.txt" in arguments for arguments in installs)


def test_the_extra_of_the_images_has_the_faster_engine_of_processors() -> None:
    """Without OpenVINO a night on processors takes two thirds longer than measured."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert "spin-neurons[openvino]" in extras["pipelines"]
    assert {Requirement(text).name for text in extras["openvino"]} == {"openvino"}


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


def test_services_test_their_health_in_a_form_that_podman_keeps(services: dict[str, Any]) -> None:
    """Podman's API takes a test of the form CMD apart at blanks, so an argument with blanks needs CMD-SHELL."""
    for name, service in services.items():
        form, *words = service.get("healthcheck", {"test": ["NONE"]})["test"]
        assert form in ("CMD", "CMD-SHELL", "NONE"), name
        assert form != "CMD" or not [word for word in words if " " in word], name


def test_local_services_differ_from_those_of_compose_yaml_in_their_images_alone(services: dict[str, Any]) -> None:
    """Those are built from Debian's packages; the S3 server is another, so it has another command."""
    override = yaml.safe_load((IMAGES / "compose.local.yaml").read_text(encoding="utf-8"))
    assert set(override) == {"services"}
    assert {name: set(service) for name, service in override["services"].items()} == {
        "postgres": {"image"},
        "s3": {"image", "command"},
    }
    assert {name for name, service in services.items() if "build" not in service} == set(override["services"])
    stages = re.findall(r" AS (\w+)", (IMAGES / "services.Dockerfile").read_text(encoding="utf-8"))
    assert [service["image"] for service in override["services"].values()] == [
        f"localhost/spin-{stage}:local" for stage in stages
    ]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_of_the_images_are_valid_bash(script: Path) -> None:
    """Where shellcheck is installed, it finds nothing either."""
    subprocess.run(["bash", "-n", script], check=True)
    assert script.stat().st_mode & 0o111
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)


def test_the_configuration_of_pip_is_one_file_and_the_paths_that_it_names(tmp_path: Path) -> None:
    """The environment overrides files; options that concern this machine alone are left out."""
    wheels, certificate = tmp_path / "wheels", tmp_path / "ca.crt"
    wheels.mkdir()
    certificate.touch()
    lines = [
        f":env:.find-links='{wheels} https://example.org/wheels'",
        ":env:.cache-dir='/home/me/.cache'",
        f"global.cert='{certificate}'",
        "global.find-links='/elsewhere'",
        "install.extra-index-url='https://a.example\\nhttps://b.example'",
    ]
    options = parse_options(lines)
    assert options == {
        "cert": str(certificate),
        "find-links": f"{wheels} https://example.org/wheels",
        "extra-index-url": "https://a.example\nhttps://b.example",
    }
    assert list_paths(options) == [certificate, wheels]
    assert format_options(options).splitlines() == [
        "[global]",
        f"cert = {certificate}",
        f"find-links = {wheels} https://example.org/wheels",
        "extra-index-url = https://a.example",
        "    https://b.example",
    ]
