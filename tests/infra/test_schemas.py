"""The manifests of infra/k8s and infra/compose.yaml match the schemas of those who read them.

The file is slow because jsonschema compiles a grammar of addresses for two seconds when it is imported.
"""

from __future__ import annotations

import copy
import json
from importlib import resources
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.support.manifests import (
    ROOT,
    RUNS,
    list_pod_templates,
    load_ray_schema,
    make_ray_jobs,
    render_overlay,
    select_kind,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("version", ["1.32", kubernetes_validate.latest_version()])
def test_every_document_is_valid_for_kubernetes(documents: list[dict[str, Any]], version: str) -> None:
    """Unknown keys are errors. The pods inside KubeRay's resources are validated too."""
    core = [d for d in documents if not d["apiVersion"].startswith("ray.io/")]
    assert {d["kind"] for d in core} >= {"CronJob", "Deployment", "Role", "ConfigMap", "NetworkPolicy"}
    for document in core:
        kubernetes_validate.validate(document, version, strict=True)
    for _, template in list_pod_templates(documents):
        kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pod", **template}, version, strict=True)


def test_every_ray_resource_is_valid_for_kuberay(documents: list[dict[str, Any]]) -> None:
    """These are the RayCluster, the templates of RayJobs, and the RayJobs that are made from them."""
    runs = make_ray_jobs(documents)
    assert set(runs) == set(RUNS)
    for document in [*(d for d in documents if d["apiVersion"] == "ray.io/v1"), *runs.values()]:
        jsonschema.Draft202012Validator(load_ray_schema(document["kind"])).validate(document)


@pytest.mark.parametrize(
    "path",
    [
        ["backoffLimits"],
        ["rayClusterSpec", "headGroupSpec", "rayStartParam"],
        ["rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "resource"],
        ["submitterPodTemplate", "spec", "restartpolicy"],
    ],
    ids=lambda path: ".".join(map(str, path)),
)
def test_the_strict_schema_refuses_a_misspelt_key(path: list[Any]) -> None:
    """Kubernetes would drop the key silently."""
    job = copy.deepcopy(select_kind(render_overlay("cpu"), "RayJob")["train-tweets"])
    validator = jsonschema.Draft202012Validator(load_ray_schema("RayJob"))
    assert validator.is_valid(job)
    parent = job["spec"]
    for step in path[:-1]:
        parent = parent[step]
    parent[path[-1]] = {}
    assert [path[-1] in error.message for error in validator.iter_errors(job)] == [True]


def test_compose_yaml_matches_the_schema_of_the_compose_specification() -> None:
    """The JSON schema is the copy in check-jsonschema."""
    schema_file = resources.files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    jsonschema.validate(
        yaml.safe_load((ROOT / "infra" / "compose.yaml").read_text(encoding="utf-8")),
        json.loads(schema_file.read_text(encoding="utf-8")),
    )
