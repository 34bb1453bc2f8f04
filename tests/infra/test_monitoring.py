"""What Prometheus sees of a night, and the rules, the dashboard and the reference that speak of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml

from pipelines.nightly import classify_pass
from pipelines.nightly.classify import run_classify
from pipelines.nightly.night_outcomes import NIGHT_GAUGES
from pipelines.nightly.report.night_report import NightReport
from pipelines.storage.object_store import Store
from spin.settings import parse_settings
from tests.support import tiny
from tests.support.chaos import KILL_ONCE, ChaosStep, FolderRegistry
from tests.support.monitoring import (
    MONITORING,
    Prometheus,
    run_prometheus,
    run_pushgateway,
    unpack_programs,
)
from tests.support.proxy import run_proxy
from tests.support.registry_fixture import build_quick_classifier
from tests.support.repository import ROOT

NAME = re.compile(r"\b(?:ray_)?spin_(?:night_)?[a-z_]+\b")
MODEL = "monitored"


@pytest.fixture(scope="module")
def programs() -> Path:
    return unpack_programs()


@pytest.fixture
def metrics_address(ray_session: None) -> str:
    """Where the Ray of the tests exports its metrics."""
    import ray

    [node] = ray.nodes()
    return f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"


def list_reference_names() -> set[str]:
    """The names in the tables of the reference, as Prometheus stores them."""
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    names = set(re.findall(r"^\| `((?:ray_)?spin_\w+)` \|", page, re.MULTILINE))
    histograms = {name for name in names if f"`{name}` | histogram" in page}
    return (names - histograms) | {f"{name}{ending}" for name in histograms for ending in ("_bucket", "_count", "_sum")}


def list_expressions() -> list[str]:
    """The expressions of all alerts and of all panels of the dashboard."""
    groups = yaml.safe_load((MONITORING / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    dashboard = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))
    alerts = [rule["expr"] for group in groups for rule in group["rules"]]
    return alerts + [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


# ---- rules


@pytest.mark.slow
def test_the_rules_do_what_their_tests_say(programs: Path) -> None:
    promtool = [str(programs / "promtool")]
    subprocess.run([*promtool, "check", "rules", "alerts.yaml"], cwd=MONITORING, check=True)
    subprocess.run([*promtool, "test", "rules", "alerts_test.yaml"], cwd=MONITORING, check=True)


def test_every_alert_is_seen_to_fire_and_is_in_the_guide() -> None:
    """Each has a test in which it fires; all but the one about absence have one in which it does not."""
    rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    tests = yaml.safe_load((MONITORING / "alerts_test.yaml").read_text(encoding="utf-8"))["tests"]
    cases = [(case["alertname"], bool(case["exp_alerts"])) for test in tests for case in test["alert_rule_test"]]
    names = {rule["alert"] for group in rules for rule in group["rules"]}
    assert {name for name, fires in cases if fires} == names
    assert {name for name, fires in cases if not fires} >= names - {"SpinDrift"}
    guide = (ROOT / "docs" / "how-to" / "monitor-nights.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(Spin\w+)` \|", guide, re.MULTILINE)) == names


def test_the_dashboard_and_the_alerts_use_names_of_the_reference() -> None:
    used = {name for expression in list_expressions() for name in NAME.findall(expression)}
    assert used <= list_reference_names()
    assert {f"spin_night_{name}" for name in NIGHT_GAUGES} == {n for n in list_reference_names() if n[0] == "s"}


@pytest.mark.parametrize("name", ["prometheus.yml", "podmonitor.yaml"])
def test_scrape_configurations_parse(name: str, programs: Path) -> None:
    content = yaml.safe_load((MONITORING / name).read_text(encoding="utf-8"))
    if name == "podmonitor.yaml":
        [endpoint] = content["spec"]["podMetricsEndpoints"]
        assert endpoint["port"] == "metrics"
    else:
        subprocess.run([str(programs / "promtool"), "check", "config", name], cwd=MONITORING, check=True)


# ---- a night


@dataclass(frozen=True)
class ObservedNight:
    """A night in front of a Prometheus that has scraped it."""

    prometheus: Prometheus
    report: NightReport


@pytest.fixture
def observed_night(
    programs: Path,
    metrics_address: str,
    s3_server: str,
    backbone_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    """A night on Ray and S3 with dead letters, a worker that is killed, and a store that is busy now and then."""
    registry, base = make_registry(tmp_path, backbone_folder), f"{s3_server}/{uuid.uuid4().hex}"
    rows = [{"id": f"d{n}", "text": f"good film {n}"} for n in range(120)]
    rows[7]["text"] = ""
    rows[50]["text"] = f"{KILL_ONCE}{tmp_path / 'killed'}"
    Store(base).write("data/a.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())

    with (
        run_pushgateway(programs) as gateway,
        run_prometheus(programs, tmp_path, [metrics_address, gateway.url.removeprefix("http://")]) as prometheus,
        run_proxy(os.environ["AWS_ENDPOINT_URL"]) as proxy,
    ):
        proxy.fault = throttle_first_reads_of_shards()
        settings = parse_settings(
            {
                "backbone": {"model": str(backbone_folder), "dtype": "float32", "device": "cpu"},
                "data": {"train": "nowhere"},
                "store": "nowhere",
                "ray": {"workers": 2, "shard_documents": 40},
                "classify": {"max_dead_fraction": 0.1},
                "metrics": {"pushgateway": gateway.url},
            }
        )
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        with patch.object(classify_pass, "ClassifyStep", ChaosStep):
            report = run_classify(settings, registry, f"{base}/data", f"{base}/out", night="2026-03-01")  # type: ignore[arg-type]
        yield ObservedNight(prometheus, report)


def throttle_first_reads_of_shards() -> Callable[[int, str, str], str | None]:
    """A fault for the first request of each file that the stage `classify` keeps of its shards, whenever it comes.

    Requests for the tables of Delta do not count as those of a stage, so one in twenty of all might meet none.
    """
    seen: set[str] = set()

    def choose_fault(number: int, method: str, path: str) -> str | None:
        path = path.partition("?")[0]
        if "/parts/" not in path or path in seen:
            return None
        seen.add(path)
        return "throttle"

    return choose_fault


def make_registry(folder: Path, backbone: Path) -> FolderRegistry:
    """A registry whose champion is version 1."""
    rows = tiny.make_documents(240, ("good", "bad"))
    classifier = build_quick_classifier(backbone)
    classifier.fit([row["text"] for row in rows], [row["label"] for row in rows]).save(folder / "registry" / "1")
    (folder / "registry" / "champion").write_text("1")
    registry = FolderRegistry(folder / "registry")
    registry.name = MODEL  # other tests of this process count under another name
    return registry


@pytest.mark.s3
@pytest.mark.ray
def test_prometheus_sees_a_night_as_its_report_does(observed_night: ObservedNight) -> None:
    """Every name of the reference is scraped and no other, and the values are those of the report."""
    prometheus, report = observed_night.prometheus, observed_night.report
    classify = '{model="monitored", stage="classify"}'
    prometheus.wait_for(f"sum(ray_spin_documents_total{classify})", report.counts.rows)
    prometheus.wait_for(f"sum(ray_spin_tokens_total{classify})", report.counts.tokens)
    prometheus.wait_for(f"sum(ray_spin_shards_total{classify})", report.shards)
    for reason, count in report.counts.reasons.items():
        prometheus.wait_for(f'sum(ray_spin_dead_letters_total{{model="monitored", reason="{reason}"}})', count)
    for depth, count in report.counts.depths.items():
        prometheus.wait_for(f'sum(ray_spin_exits_total{{model="monitored", depth="{depth}"}})', count)
    prometheus.wait_for(f"count(ray_spin_retries_total{classify} > 0)", 1)
    prometheus.wait_for(f"sum(ray_spin_shard_seconds_count{classify})", report.shards)
    prometheus.wait_for('count(sum by (error) (ray_spin_store_errors_total{error="503"}))', 1)
    prometheus.wait_for('spin_night_documents{job="spin_night", model="monitored"}', report.counts.rows)
    prometheus.wait_for("spin_night_status", 0)
    estimated = {"spin_night_estimated_accuracy", "spin_night_estimated_macro_f1"} if report.quality is None else set()
    drift = {"spin_night_psi", "spin_night_drifted"} if not report.drift else set()
    names = prometheus.list_names("(ray_)?spin_.+")
    assert names == list_reference_names() - estimated - drift
