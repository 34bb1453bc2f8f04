"""The manifests of infra/k8s are confined and free of secrets, and agree with the settings and the command."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, get_args

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
    render_overlay,
    select_kind,
)

SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|KEY|CREDENTIAL", re.IGNORECASE)


def list_enabled_groups(cluster: dict[str, Any]) -> list[str]:
    """Return the names of the worker groups that may have workers."""
    return [group["groupName"] for group in cluster["workerGroupSpecs"] if group["maxReplicas"] > 0]


# ---- permissions and resources of pods


def test_every_container_meets_the_restricted_pod_security_standard(documents: list[dict[str, Any]]) -> None:
    """The namespace enforces the standard."""
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
        assert spec["enableServiceLinks"] is False, (
            where
        )  # else Kubernetes sets MLFLOW_PORT=tcp://…, which MLflow would read
    for where, container in list_containers(documents):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False, where
        assert context["capabilities"] == {"drop": ["ALL"]}, where


def test_no_container_can_write_into_its_image(documents: list[dict[str, Any]]) -> None:
    """Not even over the code that it runs: /tmp and the cache are folders of their own, and HOME is one of them."""
    volumes = {
        where: {volume["name"] for volume in template["spec"].get("volumes", []) if "emptyDir" in volume}
        for where, template in list_pod_templates(documents)
    }
    for where, container in list_containers(documents):
        assert container["securityContext"]["readOnlyRootFilesystem"] is True, where
        if where.endswith(", start"):  # it writes nothing
            continue
        pod = where.rpartition(", ")[0]
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert mounts["/tmp"]["name"] in volumes.get(pod, volumes.get(f"{pod}, head", set())), where
        assert {"name": "HOME", "value": "/tmp"} in container["env"], where


def test_what_no_policy_names_is_denied(documents: list[dict[str, Any]]) -> None:
    """Every pod is named by a policy, none may reach what gives out a node's credentials, or everything."""
    policies = {name: policy["spec"] for name, policy in select_kind(documents, "NetworkPolicy").items()}
    assert policies.pop("deny-by-default") == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    names = policies.pop("names")
    assert [port["port"] for port in names["egress"][0]["ports"]] == [53, 53]
    for name, policy in policies.items():
        for rule in policy.get("egress", []):
            blocks = [peer["ipBlock"] for peer in rule["to"] if "ipBlock" in peer]
            assert all({"169.254.0.0/16", "fd00:ec2::/32"} & set(block["except"]) for block in blocks), name
            assert "ports" in rule or not blocks, name
        for rule in policy.get("ingress", []):
            assert rule["from"], name
    selected = [policy["podSelector"] for policy in policies.values()]
    for where, template in list_pod_templates(documents):
        labels = dict(template.get("metadata", {}).get("labels", {}))
        if where.startswith("Ray") and not where.endswith(", submitter"):
            labels["ray.io/node-type"] = "head" if where.endswith(", head") else "worker"  # as KubeRay does
        assert any(selects(selector, labels) for selector in selected), where


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a selector of pods selects one with these labels."""
    wanted = selector.get("matchLabels", {}).items() <= labels.items()
    return wanted and all(labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", []))


def test_the_registry_and_the_heads_are_reached_by_those_alone_that_use_them(documents: list[dict[str, Any]]) -> None:
    policies = {name: policy["spec"] for name, policy in select_kind(documents, "NetworkPolicy").items()}
    head = {"matchLabels": {"ray.io/node-type": "head"}}
    assert policies["mlflow"]["ingress"] == [{"from": [{"podSelector": head}], "ports": [{"port": "http"}]}]
    [[submitter, operator]] = [rule["from"] for rule in policies["ray-head"]["ingress"]]
    assert submitter["podSelector"]["matchLabels"] == {"app.kubernetes.io/component": "submitter"}
    assert "--namespace kuberay" in RUNBOOK
    assert operator == {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kuberay"}}}
    for name in ("start", "vacuum", "submitter", "mlflow-upgrade"):
        assert policies[name]["policyTypes"] == ["Egress"], name  # deny-by-default lets nobody reach them


def test_users_of_the_registry_begin_without_permissions() -> None:
    for file in (K8S / "base" / "basic_auth.ini", ROOT / "infra" / "mlflow" / "up.sh"):
        assert re.findall(r"^default_permission = (\w+)$", file.read_text(encoding="utf-8"), re.MULTILINE) == [
            "NO_PERMISSIONS"
        ]


def test_every_container_requests_cpu_and_memory(documents: list[dict[str, Any]]) -> None:
    """The memory limit equals the request: a node whose memory is overcommitted kills pods."""
    for where, container in list_containers(documents):
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert {"cpu", "memory"} <= set(requests), where
        assert requests["memory"] == limits["memory"], where
        assert requests.get("nvidia.com/gpu") == limits.get("nvidia.com/gpu"), where


def test_every_image_is_pinned_to_a_version(documents: list[dict[str, Any]]) -> None:
    images = {where: container["image"] for where, container in list_containers(documents) if "image" in container}
    assert images
    for where, image in images.items():
        name, colon, tag = image.rpartition(":")
        assert colon, where
        assert "/" not in tag, where
        assert re.match(r"\d+\.\d+\.\d+", tag), (where, image)
        assert name, where
    assert {image.rpartition("-")[2] for image in images.values()} == {"cpu", "cuda", "mlflow", "trixie"}


def test_only_pods_of_cronjobs_may_create_ray_jobs(documents: list[dict[str, Any]]) -> None:
    """There is one role, which can read and create RayJobs. No other container mounts a token of the API server."""
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
        # the head has KubeRay's account with rights for the autoscaler, the only container that mounts its token
        assert ("serviceAccountName" not in template["spec"]) == where.endswith(", head"), where
    tokens = {
        where for where, c in list_containers(documents) for m in c.get("volumeMounts", []) if m["name"] == "kubernetes"
    }
    assert {where.rpartition(", ")[2] for where in tokens} == {"autoscaler"}


def test_manifests_refer_to_secrets_and_contain_none(documents: list[dict[str, Any]]) -> None:
    """The runbook shows how to create every secret that the manifests name."""
    assert "Secret" not in {d["kind"] for d in documents}
    assert not [text for text in list_strings(documents) if holds_password(text)]
    named = set()
    for where, container in list_containers(documents):
        for variable in container.get("env", []):
            assert not (SECRET.search(variable["name"]) and "value" in variable), (where, variable["name"])
            named |= {variable["valueFrom"]["secretKeyRef"]["name"]} if "secretKeyRef" in str(variable) else set()
        named |= {source["secretRef"]["name"] for source in container.get("envFrom", [])}
    assert named == {
        *("spin-store", "spin-tracking", "spin-vacuum"),
        *("mlflow-artifacts", "mlflow-database", "mlflow-admin"),
    }
    assert set(re.findall(r"create secret generic (\S+) ", RUNBOOK)) == named


def test_the_policy_of_the_runbook_lets_drivers_and_workers_read_the_inbox_alone() -> None:
    """And all that the manifests name: the inbox and the output of the entrypoint, the store and the corpus."""
    [block] = re.findall(r"```json\n(.*?)```", RUNBOOK, re.DOTALL)
    allowed: dict[str, set[str]] = {}
    for statement in json.loads(block)["Statement"]:
        for place in [statement["Resource"]] if isinstance(statement["Resource"], str) else statement["Resource"]:
            actions = [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
            allowed.setdefault(place.removeprefix("arn:aws:s3:::spin").strip("/*"), set()).update(actions)
    assert allowed["inbox"] == allowed["corpus"] == {"s3:GetObject"}
    assert allowed["nights"] == allowed["store"] > {"s3:PutObject", "s3:DeleteObject"}


def test_only_drivers_get_credentials_of_the_registry(documents: list[dict[str, Any]]) -> None:
    """Workers get the store's credentials, the head also MLflow's; submitters and starters get none.

    MLflow and the vacuum have credentials of the store of their own, so that each role may do only what it does.
    """
    expected = {
        "ray-head": ["spin-store", "spin-tracking"],
        "ray-worker": ["spin-store"],
        "mlflow": ["mlflow-database", "mlflow-admin", "mlflow-artifacts"],
        "upgrade": ["mlflow-database"],
        "vacuum": ["spin-vacuum"],
    }
    for where, container in list_containers(documents):
        secrets = [source["secretRef"]["name"] for source in container.get("envFrom", [])]
        assert secrets == expected.get(where.rpartition(", ")[2], []), where


# ---- the cluster


def test_every_run_has_the_cluster_of_its_overlay(documents: list[dict[str, Any]]) -> None:
    """Kustomize copies the spec of the one RayCluster into all RayJobs."""
    cluster = select_kind(documents, "RayCluster")["spin"]["spec"]
    assert [job["spec"]["rayClusterSpec"] for job in select_kind(documents, "RayJob").values()] == [cluster] * len(RUNS)


def test_workers_scale_from_zero_and_the_head_stays_off_spot_nodes(documents: list[dict[str, Any]]) -> None:
    """Only drivers run on the head, and its API needs a token. Only the group `gpu` has GPUs and the CUDA image."""
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
        has_gpu = "nvidia.com/gpu" in spec["containers"][0]["resources"]["limits"]
        assert has_gpu == (name == "gpu") == ("cuda" in spec["containers"][0]["image"]), name
        assert ("tolerations" in spec) == ("nodeSelector" in spec) == (name != "cpu"), name


def test_overlays_enable_their_worker_groups(tmp_path: Path) -> None:
    """`cpu` enables the group cpu, `gpu` also the group gpu; the patch in the runbook enables spot, for runs too."""
    assert {
        overlay: list_enabled_groups(select_kind(render_overlay(overlay), "RayCluster")["spin"]["spec"])
        for overlay in OVERLAYS
    } == {
        "cpu": ["cpu"],
        "gpu": ["cpu", "gpu"],
    }
    [patch] = [block for block in re.findall(r"```yaml\n(.*?)```", RUNBOOK, re.DOTALL) if "value: spot" in block]
    shutil.copytree(K8S, tmp_path / "k8s")
    path = tmp_path / "k8s" / "overlays" / "cpu" / "kustomization.yaml"
    path.write_text(path.read_text() + patch, encoding="utf-8")
    for job in select_kind(build_manifests(path.parent), "RayJob").values():
        assert list_enabled_groups(job["spec"]["rayClusterSpec"]) == ["cpu", "spot"]


def test_the_workers_of_the_settings_fit_into_the_cluster(documents: list[dict[str, Any]], tmp_path: Path) -> None:
    """The workers of every stage, and two CPUs for Ray's helper actors, fit into the enabled groups.

    The settings load, and name the address at which MLflow accepts requests.
    """
    settings = load_overlay_settings(documents, tmp_path)
    assert settings.ray.address == "auto"
    host, _, port = str(settings.mlflow.tracking_uri).removeprefix("http://").partition(":")
    assert [p["port"] for p in select_kind(documents, "Service")[host]["spec"]["ports"]] == [int(port)]
    allowed = next(c for _, c in list_containers(documents) if c.get("name") == "mlflow")["args"][-1]
    assert f"{host}:{port}" in allowed.removeprefix("--allowed-hosts=").split(",")
    cluster = select_kind(documents, "RayCluster")["spin"]["spec"]
    for stage in get_args(Stage):
        ray = settings.ray.for_stage(stage)
        assert ray.workers is not None
        assert ray.min_workers == 1, stage  # the cluster has no workers when a run begins
        capacity = cpus = 0
        for group, (_, template) in zip(
            cluster["workerGroupSpecs"], list(list_group_templates(cluster))[1:], strict=True
        ):
            limits = template["spec"]["containers"][0]["resources"]["limits"]
            per_pod = int(limits["cpu"]) // ray.cpus_per_worker
            if ray.gpus_per_worker:
                per_pod = min(per_pod, int(int(limits.get("nvidia.com/gpu", 0)) / ray.gpus_per_worker))
            capacity += per_pod * group["maxReplicas"]
            cpus += int(limits["cpu"]) * group["maxReplicas"]
        assert capacity >= ray.workers, stage
        assert cpus >= ray.workers * ray.cpus_per_worker + 2, stage


def test_the_cluster_names_the_version_of_ray_in_the_images(documents: list[dict[str, Any]]) -> None:
    """KubeRay needs the version to start Ray."""
    [version] = set(re.findall(r"ARG RAY=(\S+)", (ROOT / "infra" / "Dockerfile").read_text()))
    assert select_kind(documents, "RayCluster")["spin"]["spec"]["rayVersion"] == version


def test_every_manifest_file_is_valid_yaml_by_itself() -> None:
    """No file refers to an anchor in another."""
    for path in K8S.rglob("*.yaml"):
        assert list(yaml.safe_load_all(path.read_text(encoding="utf-8"))), path
