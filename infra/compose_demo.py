"""`make compose-demo`: train and classify on the containers of compose.yaml, and kill the worker during the night.

The images are those of `make images`; `compose.local.yaml` puts PostgreSQL and the S3 server on local ones. Docker
Compose drives podman by its API. The tables of the night are read from this machine, by the published port of the S3
server. It leaves no container, volume, network, process or file. It needs what `infra/images/podman.sh` sets up.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from infra.demo_project import NIGHT, TRAIN, DemoProject, Steps, require_variables
from jobs.quickstart import BACKBONE
from spin.backbone.hub import locate_model

INFRA = Path(__file__).parent
PROJECT = "spin-demo"
PORTS = {"the job server": 8265, "MLflow": 5000, "the S3 server": 8333}
"""published by compose.yaml"""
_STARTING = 300
"""seconds within which all services must be healthy"""
_CHECK_EVERY = 2.0
"""seconds between health checks"""


def podman(*arguments: str) -> str:
    """Return the output of a podman command. Raises CalledProcessError if it fails."""
    return subprocess.run(["podman", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


class Compose:
    """A context in which the services of compose.yaml run, under a project name and passwords of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._passwords = make_passwords()
        self._ended = threading.Event()
        self._socket = folder / "podman.sock"
        self._environment = {**os.environ, **self._passwords, "DOCKER_HOST": f"unix://{self._socket}"}

    def __enter__(self) -> Compose:
        self._check_images()
        self._before = list_objects()
        with (self._folder / "podman.log").open("w") as log:
            self._service = subprocess.Popen(
                ["podman", "system", "service", "--time", "0", f"unix://{self._socket}"],
                stderr=log,
                start_new_session=True,  # Ctrl-C must not end it before the containers are removed
            )
        self._checks = threading.Thread(target=self._run_health_checks)
        try:
            wait_for_socket(self._socket)
            if not Path("/run/systemd/system").is_dir():
                self._checks.start()
            self.run("up", "--no-build", "--detach", "--wait", "--wait-timeout", str(_STARTING))
        except BaseException:
            subprocess.run(self._command("logs", "--tail", "20"), env=self._environment)
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop and remove everything. Exits with a message if anything is left."""
        try:
            self.run("down", "--volumes", "--remove-orphans", "--timeout", "10")
        finally:
            self._ended.set()
            if self._checks.is_alive():
                self._checks.join()
            self._service.terminate()
            self._service.wait()
        left = list_objects() - self._before
        if left:
            sys.exit(f"left behind by the demo: {', '.join(sorted(left))}; expected nothing; remove them by podman")

    @property
    def variables(self) -> dict[str, str]:
        """The environment in which programs of this machine use the services, by their published ports."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{PORTS['the S3 server']}",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": self._passwords["AWS_ACCESS_KEY_ID"],
            "AWS_SECRET_ACCESS_KEY": self._passwords["AWS_SECRET_ACCESS_KEY"],
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._passwords["RAY_AUTH_TOKEN"],
            "MLFLOW_TRACKING_USERNAME": "spin",
            "MLFLOW_TRACKING_PASSWORD": self._passwords["MLFLOW_ADMIN_PASSWORD"],
        }

    def run(self, *arguments: str) -> None:
        """Run a command of Docker Compose on the project. Raises CalledProcessError if it fails."""
        subprocess.run(self._command(*arguments), check=True, env=self._environment)

    def _command(self, *arguments: str) -> list[str]:
        files = ("--file", str(INFRA / "compose.yaml"), "--file", str(INFRA / "images" / "compose.local.yaml"))
        return ["docker-compose", "--ansi", "never", "--project-name", PROJECT, *files, *arguments]

    def _check_images(self) -> None:
        """Exit with a message if an image is missing."""
        command = self._command("config", "--images")
        images = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=self._environment).stdout
        names = sorted(set(images.split()))
        missing = [name for name in names if subprocess.run(["podman", "image", "exists", name]).returncode]
        if missing:
            sys.exit(f"no image {', '.join(missing)}; run `make images TARGETS='cpu mlflow'` first")

    def replace_worker(self) -> None:
        """Kill the worker with all that runs in it, and start another in a new container."""
        podman("kill", f"{PROJECT}-ray-worker-1")
        self.run("up", "--no-build", "--no-deps", "--force-recreate", "--detach", "ray-worker")

    def _run_health_checks(self) -> None:
        """Run the checks of all containers until the context ends: podman leaves the timing of them to systemd."""
        while not self._ended.wait(_CHECK_EVERY):
            for container in podman("ps", "--quiet", "--filter", f"label=com.docker.compose.project={PROJECT}").split():
                # fails for one that ends meanwhile or has no check; podman records the outcome
                subprocess.run(["podman", "healthcheck", "run", container], capture_output=True)


def make_passwords() -> dict[str, str]:
    """Return a random value for each name in .env.example."""
    lines = (INFRA / ".env.example").read_text(encoding="utf-8").splitlines()
    return {line.removesuffix("="): secrets.token_hex(24) for line in lines if line.endswith("=")}


def check_ports() -> None:
    """Exit with a message if another program listens on a port that compose.yaml publishes."""
    for name, port in PORTS.items():
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                sys.exit(f"port {port}, that of {name}, is in use; end the program that listens there")


def list_objects() -> set[str]:
    """Return all containers, pods, volumes and networks of podman, each with its kind."""
    lists = {"container": "ps --all", "pod": "pod ps", "volume": "volume ls", "network": "network ls"}
    return {f"{kind} {id}" for kind, command in lists.items() for id in podman(*command.split(), "--quiet").split()}


def wait_for_socket(file: Path) -> None:
    """Return once something listens on a socket. Exits with a message after ten seconds."""
    for _ in range(100):
        with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
            probe.connect(str(file))
            return
        time.sleep(0.1)
    sys.exit(f"`podman system service` does not answer; expected it on {file}; see {file.with_name('podman.log')}")


def show_night(compose: Compose, folder: Path, steps: Steps) -> None:
    """Train, promote, and classify a night during which the worker is killed."""
    shutil.copytree(locate_model(BACKBONE), folder / "minilm")
    inside = ("--env", "AWS_ENDPOINT_URL=http://s3:8333")
    outside = ("--set", f"mlflow.tracking_uri=http://127.0.0.1:{PORTS['MLflow']}")
    with steps.timed("tweets are written to the S3 server"):
        job_server = f"http://127.0.0.1:{PORTS['the job server']}"
        demo = DemoProject(folder, job_server, "http://mlflow:5000", "./minilm")
    with steps.timed(f"a training run on the cluster, of {TRAIN:,} tweets"):
        demo.spin("submit", "run", "settings.yaml", *inside)
    with steps.timed("version 1 passes the gate and is champion"):
        demo.spin("promote", "settings.yaml", *outside, "--why", "the first")
    with steps.timed(f"a night of {NIGHT:,} tweets, in which the worker is killed and replaced"):
        demo.night(compose.replace_worker, workers=1, options=inside)


def main() -> None:
    """Run the demo and print the time of every step at the end."""
    require_variables(os.environ, ("CONTAINERS_CONF_OVERRIDE",), "compose-demo")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    begun, steps = time.time(), Steps()
    with tempfile.TemporaryDirectory(prefix="spin-demo-") as folder:
        state, project = Path(folder) / "compose", Path(folder) / "project"
        state.mkdir()
        project.mkdir()
        check_ports()
        with steps.timed("start of the containers, until all are healthy"):
            compose = Compose(state).__enter__()
        try:
            os.environ |= compose.variables
            show_night(compose, project, steps)
        finally:
            with steps.timed("containers, volumes and networks are removed"):
                compose.__exit__()
    steps.summarize(time.time() - begun)


if __name__ == "__main__":
    main()
