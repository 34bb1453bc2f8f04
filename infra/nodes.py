"""A Ray cluster of several nodes on this machine, for trials and tests; its processes end with the context.

`python infra/nodes.py 2` starts a head and two workers, which run until Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

_STORE = 100 << 20
"""bytes of a node's object store; a small one suffices, since documents never pass through it"""


class Nodes:
    """A context with a head without CPUs, on which drivers run, and workers of one CPU. Each node has its own cache."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def __enter__(self) -> Nodes:
        from ray.cluster_utils import Cluster

        # jobs inherit the PATH of their node, on which `spin` must be, as in an activated environment
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._scratch = tempfile.TemporaryDirectory(prefix="spin-")
        self._cluster = Cluster(
            initialize_head=True,
            shutdown_at_exit=True,
            head_node_args={
                "num_cpus": 0,
                "temp_dir": self._folder("head"),
                "object_store_memory": _STORE,
                "include_dashboard": True,
                "dashboard_port": free_port(),
                "dashboard_agent_listen_port": free_port(),  # another Ray may have the default port
            },
        )
        for _ in range(self.workers):
            self.add()
        return self

    def __exit__(self, *_: object) -> None:
        self._cluster.shutdown()
        # processes that end with the nodes may still be writing
        Retrying(retry=retry_if_exception_type(OSError), wait=wait_fixed(0.2), stop=stop_after_delay(30), reraise=True)(
            self._scratch.cleanup
        )

    @property
    def address(self) -> str:
        """The address of the job server."""
        return f"http://{self._cluster.head_node.webui_url}"

    @property
    def gcs(self) -> str:
        """The address for the setting `ray.address`."""
        return str(self._cluster.address)

    @property
    def folder(self) -> str:
        """The folder that holds everything that the nodes write."""
        return self._scratch.name

    @property
    def caches(self) -> list[Path]:
        """The cache folders of the nodes."""
        return sorted(Path(self._scratch.name).glob("node*/cache"))

    def add(self) -> Any:
        """Start another worker node and return it."""
        name = f"node{len(list(Path(self._scratch.name).glob('node*')))}"
        folder = self._folder(name)
        cache = {"SPIN_CACHE": f"{folder}/cache"}
        self.last = self._cluster.add_node(num_cpus=1, object_store_memory=_STORE, temp_dir=folder, env_vars=cache)
        return self.last

    def lose(self, node: Any) -> None:
        """Remove a node and everything that runs on it at once, as when a spot machine is withdrawn."""
        self._cluster.remove_node(node, allow_graceful=False)

    def _folder(self, name: str) -> str:
        """Create a folder for one node; nodes that share a folder overwrite each other's unpacked job files."""
        folder = Path(self._scratch.name) / name
        folder.mkdir()
        return str(folder)


def free_port() -> int:
    """A port that no process of this machine listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    with Nodes(int(sys.argv[1]) if len(sys.argv) > 1 else 2) as nodes:
        print(f"job server {nodes.address}, ray.address {nodes.gcs}, in {nodes.folder}; Ctrl-C ends it", flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a shell sends no Ctrl-C to background processes
        with suppress(KeyboardInterrupt):
            signal.pause()
