"""`make cluster-demo`: submit jobs to a cluster, lose a node, promote and roll back versions, all on this machine.

It uses three Ray nodes, MLflow on PostgreSQL and an S3 server. A training run and a night are submitted, a node is
removed in the middle of the night, two versions are promoted and the second is rolled back. It needs the services that
`infra/s3/run.sh infra/mlflow/run.sh` starts, and leaves no process running.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from infra.demo_project import NIGHT, TRAIN, DemoProject, Steps, require_variables
from infra.nodes import Nodes


def main() -> None:
    """Run the demo and print the time of every step at the end."""
    require_variables(os.environ, ("AWS_ENDPOINT_URL", "MLFLOW_TRACKING_URI"), "cluster-demo")
    begun = float(os.environ.get("DEMO_STARTED", time.time()))
    steps = Steps()
    steps.add("start of an S3 server, and of MLflow on PostgreSQL", time.time() - begun)
    with tempfile.TemporaryDirectory() as folder:
        with steps.timed("start of Ray: a head and two workers"):
            nodes = Nodes(2).__enter__()
        try:
            demo = DemoProject(Path(folder), nodes.address, os.environ["MLFLOW_TRACKING_URI"])
            with steps.timed(f"a training run on the cluster, of {TRAIN:,} tweets"):
                demo.spin("submit", "run", "settings.yaml")
            with steps.timed("version 1 passes the gate and is champion"):
                demo.spin("promote", "settings.yaml", "--why", "the first")
            with steps.timed(f"a night of {NIGHT:,} tweets, in which a node is lost"):
                demo.night(lambda: nodes.lose(nodes.last), workers=nodes.workers)
            with steps.timed("a second version with fewer neurons, trained on the remaining node"):
                demo.spin("submit", "train", "settings.yaml", "--restart", "--set", "search.max_share=0.05")
            with steps.timed("it passes the gate against the champion"):
                demo.spin("promote", "settings.yaml", "--why", "half the neurons")
            with steps.timed("back to version 1"):
                demo.spin("rollback", "settings.yaml", "--why", "to show it")
            demo.spin("history", "settings.yaml")
        finally:
            with steps.timed("stop of Ray"):
                nodes.__exit__()
    steps.summarize(time.time() - begun)


if __name__ == "__main__":
    main()
