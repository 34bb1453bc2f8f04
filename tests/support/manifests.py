"""The manifests of infra/k8s as Kubernetes gets them, their pods, and the strict schemas of KubeRay's resources."""

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
"""templates of runs, and the stage that each starts"""
DAY = "2026-11-24"
OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir())
RUNBOOK = (ROOT / "infra" / "README.md").read_text(encoding="utf-8")


def build(folder: Path) -> list[dict[str, Any]]:
    """What `kubectl apply -k FOLDER` would apply."""
    tools = [["kustomize", "build"], ["kubectl", "kustomize"]]
    tool = next((tool for tool in tools if shutil.which(tool[0])), None)
    if tool is None:
        message = "no kustomize: infra/kustomize.sh installs Debian's"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    done = subprocess.run([*tool, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@cache
def rendered(overlay: str) -> list[dict[str, Any]]:
    """The documents of an overlay; they are shared: copy before changing one."""
    return build(K8S / "overlays" / overlay)


def of_kind(documents: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    """The documents of a kind by name."""
    return {d["metadata"]["name"]: d for d in documents if d["kind"] == kind}


def groups(cluster: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The pod templates of a RayCluster's spec: head, then each group of workers."""
    yield "head", cluster["headGroupSpec"]["template"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group["template"]


def pods(documents: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod template of the documents, with words for where it stands."""
    for document in documents:
        spec, where = document.get("spec", {}), f"{document['kind']} {document['metadata']['name']}"
        if document["kind"] == "Deployment":
            yield where, spec["template"]
        elif document["kind"] == "CronJob":
            yield where, spec["jobTemplate"]["spec"]["template"]
        elif document["kind"] in ("RayCluster", "RayJob"):
            for name, template in groups(spec.get("rayClusterSpec", spec)):
                yield f"{where}, {name}", template
            if "submitterPodTemplate" in spec:
                yield f"{where}, submitter", spec["submitterPodTemplate"]


def containers(documents: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every container, and the options of the autoscaler that KubeRay makes one of."""
    for where, template in pods(documents):
        for container in template["spec"]["containers"] + template["spec"].get("initContainers", []):
            yield f"{where}, {container['name']}", container
    for document in documents:
        spec = document.get("spec", {})
        options = spec.get("rayClusterSpec", spec).get("autoscalerOptions")
        if options is not None:
            yield f"{document['kind']} {document['metadata']['name']}, autoscaler", options


def strings(tree: Any) -> Iterator[str]:
    """Every string in a tree, keys too."""
    if isinstance(tree, dict):
        yield from (part for pair in tree.items() for side in pair for part in strings(side))
    elif isinstance(tree, list):
        yield from (part for item in tree for part in strings(item))
    elif isinstance(tree, str):
        yield tree


def ray_schema(kind: str) -> dict[str, Any]:
    """The JSON schema of KubeRay's RayCluster or RayJob, in which a key that it does not name is an error."""
    folder = Path(os.environ.get("SPIN_KUBERAY_CRDS", ROOT.parent / "shared" / "kuberay"))
    path = folder / f"ray.io_{kind.lower()}s.yaml"
    if not path.exists():
        pytest.skip(f"no {path}: set SPIN_KUBERAY_CRDS to a folder with KubeRay's custom resource definitions")
    return strict(_definition(path)["schema"]["openAPIV3Schema"])


@cache
def _definition(path: Path) -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # these files are large
    definition = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    version: dict[str, Any] = next(v for v in definition["spec"]["versions"] if v["storage"])
    assert version["name"] == "v1"
    return version


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """A structural schema under which what Kubernetes would drop in silence is refused."""
    closed = dict(schema)
    if "properties" in schema:
        closed["properties"] = {key: strict(value) for key, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            closed["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            closed[key] = strict(schema[key])
    return closed


def starter() -> ModuleType:
    """infra/k8s/base/start.py, which a CronJob's pod runs."""
    spec = importlib.util.spec_from_file_location("start", K8S / "base" / "start.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def started(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The RayJobs that the CronJobs' pods make on DAY, by template."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JOB", "classify-tweets-29387520")
        patch.setenv("JOB_UID", "0c4c1a0e-7c5e-4c6a-9f0a-1b2c3d4e5f60")
        make = starter().run_of
        return {name: make(job, f"{name}-{DAY}", DAY) for name, job in of_kind(documents, "RayJob").items()}


def settings_of(documents: list[dict[str, Any]], folder: Path) -> Settings:
    """The settings that pods find in the ConfigMap."""
    path = folder / "settings.yaml"
    path.write_text(of_kind(documents, "ConfigMap")["spin-settings"]["data"]["settings.yaml"], encoding="utf-8")
    return load_settings(path)
