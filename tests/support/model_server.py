"""Run `mlflow models serve` in its own process group for a test."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

TIMEOUT = 120
"""seconds for a server to start, and for it to answer a request"""


@dataclass(frozen=True)
class ModelServer:
    """A running model server."""

    url: str

    def post(self, texts: Sequence[str], **params: Any) -> requests.Response:
        """Post texts and parameters of the model as JSON; return the response."""
        body = {"dataframe_split": {"columns": ["text"], "data": [[text] for text in texts]}, "params": params}
        return requests.post(f"{self.url}/invocations", json=body, timeout=TIMEOUT)


@contextmanager
def serve(model_uri: str, folder: Path, environment: Mapping[str, str] | None = None) -> Iterator[ModelServer]:
    """Serve a model URI or a model folder, as the README shows; the log goes to `folder`, where the server runs too."""
    port, scripts = _find_free_port(), Path(sys.executable).parent
    command = [str(scripts / "mlflow"), "models", "serve", "--model-uri", model_uri, "--env-manager", "local"]
    log_file = folder / "server.log"
    with log_file.open("w") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
            env={**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", **(environment or {})},
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=folder,
        )
    try:
        deadline = time.monotonic() + TIMEOUT
        while not _responds(f"http://127.0.0.1:{port}/ping"):
            assert process.poll() is None, log_file.read_text()
            assert time.monotonic() < deadline, log_file.read_text()
            time.sleep(0.1)
        yield ModelServer(f"http://127.0.0.1:{port}")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _responds(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).status_code == 200
    except requests.ConnectionError:
        return False
