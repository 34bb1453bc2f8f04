"""A Ray cluster of several nodes on this machine, for trials and tests; its processes end with the context.

`python infra/nodes.py 2` has a head and two workers until Ctrl-C.
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

_STORE = 100 << 20
"""bytes of a node's object store: documents never pass through it"""


class Nodes:
    """A context: a head without CPUs, on which drivers run, and workers of one CPU. Every node has its own cache."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def __enter__(self) -> Nodes:
        from ray.cluster_utils import Cluster

        # jobs start with the path of their node: `spin` must be on it, as in an activated environment
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
                "dashboard_port": _free_port(),
                "dashboard_agent_listen_port": _free_port(),  # its usual one may be that of another Ray here
            },
        )
        for _ in range(self.workers):
            self.add()
        return self

    def __exit__(self, *_: object) -> None:
        self._cluster.shutdown()
        self._scratch.cleanup()

    @property
    def address(self) -> str:
        """Of the job server."""
        return f"http://{self._cluster.head_node.webui_url}"

    @property
    def gcs(self) -> str:
        """What a driver gives as `ray.address`."""
        return str(self._cluster.address)

    @property
    def folder(self) -> str:
        """Everything that the nodes write lies in it."""
        return self._scratch.name

    @property
    def caches(self) -> list[Path]:
        """The cache folders of the nodes."""
        return sorted(Path(self._scratch.name).glob("node*/cache"))

    def add(self) -> Any:
        """A further worker node."""
        name = f"node{len(list(Path(self._scratch.name).glob('node*')))}"
        folder = self._folder(name)
        cache = {"SPIN_CACHE": f"{folder}/cache"}
        self.last = self._cluster.add_node(num_cpus=1, object_store_memory=_STORE, temp_dir=folder, env_vars=cache)
        return self.last

    def lose(self, node: Any) -> None:
        """A node and all that runs on it, at once, as a spot machine goes."""
        self._cluster.remove_node(node, allow_graceful=False)

    def _folder(self, name: str) -> str:
        """Of a node alone, as on a machine of its own: nodes that share one unpack a job's files over one another's."""
        folder = Path(self._scratch.name) / name
        folder.mkdir()
        return str(folder)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    with Nodes(int(sys.argv[1]) if len(sys.argv) > 1 else 2) as nodes:
        print(f"job server {nodes.address}, ray.address {nodes.gcs}, in {nodes.folder}; Ctrl-C ends it", flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a shell gives its background no Ctrl-C
        with suppress(KeyboardInterrupt):
            signal.pause()
