"""The S3 server of infra/s3, which can be stopped and started again with its data."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.repository import ROOT

_FOLDER = ROOT / "infra" / "s3"


class S3Server:
    """A server in a folder of its own; its address and credentials are in the environment of this process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, _free_port()

    def start(self) -> None:
        """Start it, or start it again."""
        command = [str(_FOLDER / "up.sh"), "-d", str(self.folder), "-p", str(self.port), "-s", "20"]
        exports = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        os.environ.update(re.findall(r"(AWS_\w+)=(\S+)", exports))

    def stop(self) -> None:
        """Stop it; the data stays."""
        subprocess.run([str(_FOLDER / "down.sh"), "-d", str(self.folder)], check=True)


@contextmanager
def run_s3_server() -> Iterator[S3Server]:
    """Run a server within the context, and delete its data afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="spin-s3."))
    server = S3Server(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


def _free_port() -> int:
    """A port with another free one after it."""
    for port in range(7480, 8380, 60):
        if all(_is_free(each) for each in (port, port + 1)):
            return port
    raise SystemExit("no free port for the S3 server")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
