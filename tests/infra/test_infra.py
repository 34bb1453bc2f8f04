"""The manifests of infra/k8s: valid, confined, without a secret, and in agreement with the settings and the command."""

from __future__ import annotations

import copy
import re
import shutil
from pathlib import Path
from typing import Any, get_args

import jsonschema
import kubernetes_validate
import pytest
import yaml

from spin.settings import Stage, holds_password
from tests.support.manifests import (
    K8S,
    OVERLAYS,
    ROOT,
    RUNBOOK,
    RUNS,
    build_manifests,
    list_containers,
    list_group_templates,
    list_pod_templates,
    list_strings,
    load_overlay_settings,
    load_ray_schema,
    make_ray_jobs,
    render_overlay,
    select_kind,
)

SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|KEY|CREDENTIAL", re.IGNORECASE)


@pytest.fixture(params=OVERLAYS)
def documents(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """All that an overlay applies."""
    return render_overlay(request.param)


def on(cluster: dict[str, Any]) -> list[str]:
    """The groups of workers that may have any."""
    return [group["groupName"] for group in cluster["workerGroupSpecs"] if group["maxReplicas"] > 0]


# ---- schemas


@pytest.mark.parametrize("version", ["1.32", kubernetes_validate.latest_version()])
def test_kubernetes_takes_every_document(documents: list[dict[str, Any]], version: str) -> None:
    """Strictly: an unknown key is an error. The pods inside KubeRay's resources too."""
    plain = [d for d in documents if not d["apiVersion"].startswith("ray.io/")]
    assert {d["kind"] for d in plain} >= {"CronJob", "Deployment", "Role", "ConfigMap"}
    for document in plain:
        kubernetes_validate.validate(document, version, strict=True)
    for _, template in list_pod_templates(documents):
        kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pod", **template}, version, strict=True)


def test_kuberay_takes_its_resources(documents: list[dict[str, Any]]) -> None:
    """RayCluster, the templates, and the RayJobs that are made of them."""
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
def test_a_misspelt_key_is_seen(path: list[Any]) -> None:
    """Kubernetes would drop it and say nothing: the schema that the tests hold against the manifests does not."""
    job = copy.deepcopy(select_kind(render_overlay("cpu"), "RayJob")["train-tweets"])
    validator = jsonschema.Draft202012Validator(load_ray_schema("RayJob"))
    assert validator.is_valid(job)
    place = job["spec"]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = {}
    assert [path[-1] in error.message for error in validator.iter_errors(job)] == [True]


# ---- what a pod may do and what it takes


def test_every_container_is_confined(documents: list[dict[str, Any]]) -> None:
    """The restricted Pod Security Standard, which the namespace enforces."""
    namespace = select_kind(documents, "Namespace")["spin"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for where, template in list_pod_templates(documents):
        spec, context = template["spec"], template["spec"]["securityContext"]
        assert context["runAsNonRoot"] is True, where
        assert context["runAsUser"] > 0, where
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, where
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), where
        allowed = {"name", "configMap", "emptyDir", "projected"}
        assert all(set(volume) <= allowed for volume in spec.get("volumes", [])), where
        assert spec["enableServiceLinks"] is False, where  # else MLFLOW_PORT is tcp://…, which MLflow takes for its own
    for where, container in list_containers(documents):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False, where
        assert context["capabilities"] == {"drop": ["ALL"]}, where


def test_every_container_says_what_it_takes(documents: list[dict[str, Any]]) -> None:
    """CPU and memory, and no more memory than was asked for: a node that is full kills pods."""
    for where, container in list_containers(documents):
        asked, most = container["resources"]["requests"], container["resources"]["limits"]
        assert {"cpu", "memory"} <= set(asked), where
        assert asked["memory"] == most["memory"], where
        assert asked.get("nvidia.com/gpu") == most.get("nvidia.com/gpu"), where


def test_images_are_pinned(documents: list[dict[str, Any]]) -> None:
    """By a version, none by `latest`."""
    images = {where: container["image"] for where, container in list_containers(documents) if "image" in container}
    assert images
    for where, image in images.items():
        name, colon, tag = image.rpartition(":")
        assert colon, where
        assert "/" not in tag, where
        assert re.match(r"\d+\.\d+\.\d+", tag), (where, image)
        assert name, where
    assert {image.rpartition("-")[2] for image in images.values()} == {"cpu", "cuda", "mlflow", "trixie"}


def test_rights_are_the_least(documents: list[dict[str, Any]]) -> None:
    """One role, to read and make RayJobs, for the pods of the CronJobs; no token in any other container."""
    roles, bindings = select_kind(documents, "Role"), select_kind(documents, "RoleBinding")
    assert [role["rules"] for role in roles.values()] == [
        [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["get", "create"]}]
    ]
    assert [binding["subjects"] for binding in bindings.values()] == [
        [{"kind": "ServiceAccount", "name": "spin-start", "namespace": "spin"}]
    ]
    assert not {"ClusterRole", "ClusterRoleBinding"} & {d["kind"] for d in documents}
    for where, template in list_pod_templates(documents):
        starts = template["spec"].get("serviceAccountName") == "spin-start"
        assert template["spec"]["automountServiceAccountToken"] is starts, where
        assert starts == (where in {f"CronJob {name}" for name in RUNS}), where
        # the head's account is KubeRay's, with rights for the autoscaler: no other container mounts its token
        assert ("serviceAccountName" not in template["spec"]) == where.endswith(", head"), where
    tokens = {
        where for where, c in list_containers(documents) for m in c.get("volumeMounts", []) if m["name"] == "kubernetes"
    }
    assert {where.rpartition(", ")[2] for where in tokens} == {"autoscaler"}


def test_no_secret_stands_in_the_tree(documents: list[dict[str, Any]]) -> None:
    """Secrets are named, never written; each name and its keys are in the runbook."""
    assert "Secret" not in {d["kind"] for d in documents}
    assert not [text for text in list_strings(documents) if holds_password(text)]
    named = set()
    for where, container in list_containers(documents):
        for variable in container.get("env", []):
            assert not (SECRET.search(variable["name"]) and "value" in variable), (where, variable["name"])
            named |= {variable["valueFrom"]["secretKeyRef"]["name"]} if "secretKeyRef" in str(variable) else set()
        named |= {source["secretRef"]["name"] for source in container.get("envFrom", [])}
    assert named == {"spin-store", "spin-tracking", "mlflow-database", "mlflow-admin"}
    assert set(re.findall(r"create secret generic (\S+) ", RUNBOOK)) == named


def test_drivers_alone_know_the_registry(documents: list[dict[str, Any]]) -> None:
    """Workers get the store's credentials, the head MLflow's as well, submitters and starters none."""
    wanted = {
        "ray-head": ["spin-store", "spin-tracking"],
        "ray-worker": ["spin-store"],
        "mlflow": ["mlflow-database", "mlflow-admin", "spin-store"],
        "upgrade": ["mlflow-database"],
    }
    for where, container in list_containers(documents):
        found = [source["secretRef"]["name"] for source in container.get("envFrom", [])]
        assert found == wanted.get(where.rpartition(", ")[2], []), where


# ---- the cluster


def test_a_run_has_the_cluster_of_its_overlay(documents: list[dict[str, Any]]) -> None:
    """It is said once and copied, sizes and images included."""
    cluster = select_kind(documents, "RayCluster")["spin"]["spec"]
    assert [job["spec"]["rayClusterSpec"] for job in select_kind(documents, "RayJob").values()] == [cluster] * len(RUNS)


def test_the_cluster_scales_and_its_head_is_safe(documents: list[dict[str, Any]]) -> None:
    """Drivers only on the head, which no spot node may have; a token for who speaks to it; GPUs in their group."""
    cluster = select_kind(documents, "RayCluster")["spin"]["spec"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["authOptions"] == {"mode": "token"}
    head = cluster["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert "tolerations" not in head["template"]["spec"]
    terms = head["template"]["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    [[spot]] = [term["matchExpressions"] for term in terms["nodeSelectorTerms"]]
    specs = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    selector = specs["spot"]["template"]["spec"]["nodeSelector"]
    assert (spot["operator"], {spot["key"]: spot["values"][0]}) == ("NotIn", selector)
    for name, group in specs.items():
        assert group["minReplicas"] == group["replicas"] == 0, name
        spec = group["template"]["spec"]
        asks = "nvidia.com/gpu" in spec["containers"][0]["resources"]["limits"]
        assert asks == (name == "gpu") == ("cuda" in spec["containers"][0]["image"]), name
        assert ("tolerations" in spec) == ("nodeSelector" in spec) == (name != "cpu"), name


def test_a_group_is_on_where_the_overlay_says_so(tmp_path: Path) -> None:
    """cpu: only that; gpu: that too; spot: as the runbook says, for the runs as well."""
    assert {
        overlay: on(select_kind(render_overlay(overlay), "RayCluster")["spin"]["spec"]) for overlay in OVERLAYS
    } == {
        "cpu": ["cpu"],
        "gpu": ["cpu", "gpu"],
    }
    [patch] = [block for block in re.findall(r"```yaml\n(.*?)```", RUNBOOK, re.DOTALL) if "value: spot" in block]
    shutil.copytree(K8S, tmp_path / "k8s")
    path = tmp_path / "k8s" / "overlays" / "cpu" / "kustomization.yaml"
    path.write_text(path.read_text() + patch, encoding="utf-8")
    for job in select_kind(build_manifests(path.parent), "RayJob").values():
        assert on(job["spec"]["rayClusterSpec"]) == ["cpu", "spot"]


def test_the_settings_load_and_fit_the_cluster(documents: list[dict[str, Any]], tmp_path: Path) -> None:
    """The pool of every stage, and two CPUs for Ray's helpers, fit the groups that are on."""
    settings = load_overlay_settings(documents, tmp_path)
    assert settings.ray.address == "auto"
    host, _, port = str(settings.mlflow.tracking_uri).removeprefix("http://").partition(":")
    assert [p["port"] for p in select_kind(documents, "Service")[host]["spec"]["ports"]] == [int(port)]
    allowed = next(c for _, c in list_containers(documents) if c.get("name") == "mlflow")["args"][-1]
    assert f"{host}:{port}" in allowed.removeprefix("--allowed-hosts=").split(",")
    cluster = select_kind(documents, "RayCluster")["spin"]["spec"]
    for stage in get_args(Stage):
        of = settings.ray.for_stage(stage)
        assert of.workers is not None
        assert of.min_workers == 1, stage  # the cluster is empty when a run begins
        fitting = cpus = 0
        for group, (_, template) in zip(
            cluster["workerGroupSpecs"], list(list_group_templates(cluster))[1:], strict=True
        ):
            limits = template["spec"]["containers"][0]["resources"]["limits"]
            a_pod = int(limits["cpu"]) // of.cpus_per_worker
            if of.gpus_per_worker:
                a_pod = min(a_pod, int(int(limits.get("nvidia.com/gpu", 0)) / of.gpus_per_worker))
            fitting += a_pod * group["maxReplicas"]
            cpus += int(limits["cpu"]) * group["maxReplicas"]
        assert fitting >= of.workers, stage
        assert cpus >= of.workers * of.cpus_per_worker + 2, stage


def test_one_version_of_ray_everywhere(documents: list[dict[str, Any]]) -> None:
    """That of the image is that of which KubeRay is told."""
    [image] = set(re.findall(r"ARG RAY=(\S+)", (ROOT / "infra" / "Dockerfile").read_text()))
    assert select_kind(documents, "RayCluster")["spin"]["spec"]["rayVersion"] == image


def test_the_files_of_the_tree_are_yaml() -> None:
    """Each by itself too, so that no anchor reaches out of its file."""
    for path in K8S.rglob("*.yaml"):
        assert list(yaml.safe_load_all(path.read_text(encoding="utf-8"))), path
