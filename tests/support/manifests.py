"""Render the manifests of infra/k8s, list their pods and containers, and load strict schemas of KubeRay's resources."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from spin.settings import Settings, load_settings
from tests.support.repository import ROOT

K8S = ROOT / "infra" / "k8s"
RUNS = {"classify-tweets": "classify", "train-tweets": "run"}
"""templates of runs, with the command that each runs"""
DAY = "2026-11-24"
OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir())
RUNBOOK = (ROOT / "infra" / "README.md").read_text(encoding="utf-8")


def build_manifests(folder: Path) -> list[dict[str, Any]]:
    """Return the documents that `kubectl apply -k FOLDER` would apply."""
    tools = [["kustomize", "build"], ["kubectl", "kustomize"]]
    tool = next((tool for tool in tools if shutil.which(tool[0])), None)
    if tool is None:
        message = "no kustomize: infra/kustomize.sh installs Debian's"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    process = subprocess.run([*tool, str(folder)], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return list(yaml.safe_load_all(process.stdout))


@cache
def render_overlay(overlay: str) -> list[dict[str, Any]]:
    """Return the documents of an overlay. They are cached: copy one before changing it."""
    return build_manifests(K8S / "overlays" / overlay)


def select_kind(documents: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    """Return the documents of a kind by name."""
    return {d["metadata"]["name"]: d for d in documents if d["kind"] == kind}


def list_group_templates(cluster: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and pod template of the head and of each worker group of a RayCluster's spec."""
    yield "head", cluster["headGroupSpec"]["template"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group["template"]


def list_pod_templates(documents: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every pod template of the documents, with a description of its location."""
    for document in documents:
        spec, where = document.get("spec", {}), f"{document['kind']} {document['metadata']['name']}"
        if document["kind"] == "Deployment":
            yield where, spec["template"]
        elif document["kind"] == "CronJob":
            yield where, spec["jobTemplate"]["spec"]["template"]
        elif document["kind"] in ("RayCluster", "RayJob"):
            for name, template in list_group_templates(spec.get("rayClusterSpec", spec)):
                yield f"{where}, {name}", template
            if "submitterPodTemplate" in spec:
                yield f"{where}, submitter", spec["submitterPodTemplate"]


def list_containers(documents: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every container, and the autoscaler options, of which KubeRay makes a container."""
    for where, template in list_pod_templates(documents):
        for container in template["spec"]["containers"] + template["spec"].get("initContainers", []):
            yield f"{where}, {container['name']}", container
    for document in documents:
        spec = document.get("spec", {})
        options = spec.get("rayClusterSpec", spec).get("autoscalerOptions")
        if options is not None:
            yield f"{document['kind']} {document['metadata']['name']}, autoscaler", options


def list_strings(tree: Any) -> Iterator[str]:
    """Yield every string in a nested value, including the keys of mappings."""
    if isinstance(tree, dict):
        yield from (part for pair in tree.items() for side in pair for part in list_strings(side))
    elif isinstance(tree, list):
        yield from (part for item in tree for part in list_strings(item))
    elif isinstance(tree, str):
        yield tree


def load_ray_schema(kind: str) -> dict[str, Any]:
    """Return the JSON schema of KubeRay's RayCluster or RayJob, with unknown keys forbidden."""
    folder = Path(os.environ.get("SPIN_KUBERAY_CRDS", ROOT.parent / "shared" / "kuberay"))
    path = folder / f"ray.io_{kind.lower()}s.yaml"
    if not path.exists():
        pytest.skip(f"no {path}: set SPIN_KUBERAY_CRDS to a folder with KubeRay's custom resource definitions")
    return forbid_unknown_keys(_definition(path)["schema"]["openAPIV3Schema"])


@cache
def _definition(path: Path) -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # these files are large
    definition = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    version: dict[str, Any] = next(v for v in definition["spec"]["versions"] if v["storage"])
    assert version["name"] == "v1"
    return version


def forbid_unknown_keys(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a structural schema that refuses unknown keys, which Kubernetes would drop silently."""
    closed = dict(schema)
    if "properties" in schema:
        closed["properties"] = {key: forbid_unknown_keys(value) for key, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            closed["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            closed[key] = forbid_unknown_keys(schema[key])
    return closed


def load_start_script() -> ModuleType:
    """Import infra/k8s/base/start.py, which a CronJob's pod runs."""
    spec = importlib.util.spec_from_file_location("start", K8S / "base" / "start.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_ray_jobs(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the RayJobs that the CronJobs' pods create on DAY, by template."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JOB", "classify-tweets-29387520")
        patch.setenv("JOB_UID", "0c4c1a0e-7c5e-4c6a-9f0a-1b2c3d4e5f60")
        build_run = load_start_script().build_run
        return {name: build_run(job, f"{name}-{DAY}", DAY) for name, job in select_kind(documents, "RayJob").items()}


def load_overlay_settings(documents: list[dict[str, Any]], folder: Path) -> Settings:
    """Load the settings that the ConfigMap of an overlay gives to pods."""
    path = folder / "settings.yaml"
    path.write_text(select_kind(documents, "ConfigMap")["spin-settings"]["data"]["settings.yaml"], encoding="utf-8")
    return load_settings(path)
