"""Creates the RayJob of a day from a template in the cluster and waits for its end: start.py TEMPLATE

The environment variable DAY is the day, YYYY-MM-DD; by default yesterday in UTC, the last day that is over. The RayJob
is named TEMPLATE-DAY, so no second one is created while the first runs (this script then waits for it) or after it has
succeeded (it reports that). After a failure the next is named TEMPLATE-DAY-2 and so on, and the run resumes. The script
tries three times, unless the exit status of the command says that another try would end in the same way.

The environment variable RESTART=1 appends --restart to the command of the first RayJob that this Job creates, also
after the day has succeeded. Its later tries resume that run.

Exit status 0: the run has succeeded; 1: it has not. Standard library only; the account needs get and create of rayjobs.
"""

import http.client
import json
import os
import re
import ssl
import sys
import time
import urllib.error
import urllib.request
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
WAIT = 15.0
"""seconds between two requests"""
ENDS = {"Complete", "Failed", "ValidationFailed"}
"""values of KubeRay's jobDeploymentStatus for a run that has ended"""
TRIES = 3
"""RayJobs of a day that this script waits for, one after another"""
FINAL = {2, 4, 7}
"""exit statuses of `spin` that no other try changes: a mistake, too many bad rows or files, a night that has drifted"""


def call(name: str = "", body: dict | None = None) -> dict | None:
    """Get the RayJob of a name, or create one from a body; None if it does not exist, or exists already.

    While the API server does not answer, the request is repeated until the Job's deadline ends this process.
    """
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    namespace = (ACCOUNT / "namespace").read_text()
    url = f"https://{host}:{port}/apis/ray.io/v1/namespaces/{namespace}/rayjobs" + (f"/{name}" if name else "")
    while True:
        token = (ACCOUNT / "token").read_text()  # read each time, since the file is renewed
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)
        try:
            context = ssl.create_default_context(cafile=ACCOUNT / "ca.crt")
            with urllib.request.urlopen(request, timeout=30, context=context) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            if error.code in (404, 409):
                return None
            if error.code < 500 and error.code != 429:
                sys.exit(f"{url}: {error.code}: {error.read().decode(errors='replace')}")
            print(f"{url}: {error.code}; trying again", file=sys.stderr)
        except (OSError, http.client.HTTPException) as error:
            print(f"{url}: {error}; trying again", file=sys.stderr)
        time.sleep(WAIT)


def build_run(template: dict, name: str, day: str, *, restart: bool = False) -> dict:
    """Build the RayJob of a day. The Job of this pod owns it, so deleting the Job stops the run."""
    spec = template["spec"]
    entrypoint = spec["entrypoint"].replace("{day}", day) + (" --restart" if restart else "")
    return {
        "apiVersion": template["apiVersion"],
        "kind": template["kind"],
        "metadata": {
            "name": name,
            "labels": {"app.kubernetes.io/part-of": "spin", "app.kubernetes.io/instance": template["metadata"]["name"]},
            "ownerReferences": [
                {"apiVersion": "batch/v1", "kind": "Job", "name": os.environ["JOB"], "uid": os.environ["JOB_UID"]}
            ],
        },
        "spec": {**spec, "suspend": False, "entrypoint": entrypoint},
    }


def outcome(job: dict) -> bool | None:
    """Whether the run succeeded; None while it runs."""
    status = job.get("status", {})
    if status.get("jobDeploymentStatus") not in ENDS:
        return None
    return status["jobDeploymentStatus"] == "Complete" and status.get("jobStatus") == "SUCCEEDED"


def may_succeed(job: dict) -> bool:
    """Whether another try at a run that has failed may succeed."""
    status = job["status"]
    if status.get("jobStatus") == "STOPPED" or status["jobDeploymentStatus"] == "ValidationFailed":
        return False
    code = re.search(r"failed with exit code (\d+)", status.get("message", ""))  # the words of Ray
    return status.get("reason") != "DeadlineExceeded" and (code is None or int(code[1]) not in FINAL)


def is_own(job: dict) -> bool:
    """Whether the Job of this pod created a RayJob, in this pod or in one that was lost."""
    return any(owner["uid"] == os.environ["JOB_UID"] for owner in job["metadata"].get("ownerReferences", []))


def create_or_find(template: dict, day: str, *, restart: bool) -> str:
    """Create the RayJob of a day, and return its name, or that of the one that runs or has succeeded.

    With `restart`, the first RayJob of this Job begins a new run, and the success of another Job does not count.
    """
    number, name = 1, f"{template['metadata']['name']}-{day}"
    while call(body=build_run(template, name, day, restart=restart)) is None:
        existing = call(name)
        if existing is None:
            continue
        restart = restart and not is_own(existing)
        succeeded = outcome(existing)
        if succeeded is None and restart:
            sys.exit(f"{name} is running; RESTART needs a day at rest: wait for its end, or delete the RayJob")
        if succeeded is False or restart:
            number += 1
            name = f"{template['metadata']['name']}-{day}-{number}"
        else:
            print(f"{name} exists already", flush=True)
            break
    return name


def read_restart() -> bool:
    """Return whether RESTART asks for a new run. Any value but 1, 0 and none ends the script."""
    value = os.environ.get("RESTART", "")
    if value not in ("", "0", "1"):
        sys.exit(f"RESTART={value}: expected 1 for a new run, or 0 or nothing to resume")
    return value == "1"


def wait_for(name: str) -> dict | None:
    """Wait for the end of a RayJob and return it, None if it was deleted."""
    while (job := call(name)) is not None and outcome(job) is None:
        time.sleep(WAIT)
    return job


def main(template_name: str) -> int:
    """Create or find the day's RayJob and wait for its end, repeatedly if that may help; return the exit status."""
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    day = date.fromisoformat(os.environ.get("DAY") or yesterday.isoformat()).isoformat()
    restart = read_restart()
    template = call(template_name)
    if template is None:
        sys.exit(f"there is no RayJob {template_name} to use as a template; apply the overlay")
    for _ in range(TRIES):
        name = create_or_find(template, day, restart=restart)
        job = wait_for(name)
        if job is None:
            print(f"{name} was deleted", file=sys.stderr)
            return 1
        status = job["status"]
        reached = status.get("jobStatus") or status["jobDeploymentStatus"]
        print(f"{name}: {reached} {status.get('message', '')}".strip(), flush=True)
        if outcome(job):
            return 0
        if not may_succeed(job):
            return 1
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
