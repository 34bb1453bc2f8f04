"""Debian's Prometheus and Pushgateway, which infra/monitoring/install.sh unpacks, on free ports of this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from infra.nodes import free_port
from tests.support.repository import ROOT

MONITORING = ROOT / "infra" / "monitoring"
_WAIT_SECONDS = 120


def unpack_programs() -> Path:
    """The folder of the programs; skips the test where they cannot be had, which fails in CI."""
    if shutil.which("apt-get") and shutil.which("dpkg-deb"):
        done = subprocess.run([str(MONITORING / "install.sh")], stdout=subprocess.PIPE, text=True)
        found = re.search(r"PATH=(.*):\$PATH", done.stdout)
        if found:
            return Path(found[1])
    message = "no Prometheus: infra/monitoring/install.sh unpacks Debian's packages"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


@dataclass(frozen=True)
class Pushgateway:
    """A running Pushgateway."""

    url: str

    def read(self) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
        """What it holds of nights: the value of each metric by its labels, without those of the gateway's own."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as answer:
            return read_samples(answer.read().decode(), "spin_night_")


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus."""

    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression returns."""
        query = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"{self.url}/api/v1/query?{query}", timeout=30) as answer:
            result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
            return result

    def wait_for(self, expression: str, value: float) -> None:
        """Wait until an expression returns one series with a value."""

        def check() -> None:
            values = [float(series["value"][1]) for series in self.query(expression)]
            assert values == [value], f"{expression} is {values}; expected {value}"

        wait_until(check, AssertionError)

    def list_names(self, pattern: str) -> set[str]:
        """The names of all metrics that match a pattern."""
        return {series["metric"]["__name__"] for series in self.query(f'{{__name__=~"{pattern}"}}')}


def read_samples(text: str, prefix: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """The samples of a scrape whose names have a prefix."""
    samples: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith(prefix):
                labels = {k: v for k, v in sample.labels.items() if k not in ("instance", "job")}
                samples.setdefault(sample.name, {})[tuple(sorted(labels.items()))] = sample.value
    return samples


@contextmanager
def run_pushgateway(programs: Path) -> Iterator[Pushgateway]:
    """Run a Pushgateway within the context."""
    address = f"127.0.0.1:{free_port()}"
    with _running([str(programs / "prometheus-pushgateway"), f"--web.listen-address={address}"]):
        _wait_for_answer(f"http://{address}/-/ready")
        yield Pushgateway(f"http://{address}")


@contextmanager
def run_prometheus(programs: Path, folder: Path, targets: Sequence[str]) -> Iterator[Prometheus]:
    """Run a Prometheus within the context that scrapes some addresses every 5 seconds, with its data in a folder."""
    address = f"127.0.0.1:{free_port()}"
    jobs = [{"job_name": "spin", "honor_labels": True, "static_configs": [{"targets": list(targets)}]}]
    rules = [str(MONITORING / "alerts.yaml")]
    configuration = {"global": {"scrape_interval": "5s"}, "rule_files": rules, "scrape_configs": jobs}
    file = folder / "prometheus.json"
    file.write_text(json.dumps(configuration))
    command = [str(programs / "prometheus"), f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}"]
    with _running([*command, f"--web.listen-address={address}"]):
        _wait_for_answer(f"http://{address}/-/ready")
        yield Prometheus(f"http://{address}")


@contextmanager
def _running(command: list[str]) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def wait_until(check: Any, failure: type[BaseException] | tuple[type[BaseException], ...]) -> None:
    """Call a function until it raises no such error."""
    retry = retry_if_exception_type(failure)
    Retrying(retry=retry, wait=wait_fixed(0.2), stop=stop_after_delay(_WAIT_SECONDS), reraise=True)(check)


def _wait_for_answer(url: str) -> None:
    wait_until(lambda: urllib.request.urlopen(url, timeout=5).close(), OSError)
