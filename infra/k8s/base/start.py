"""Makes the RayJob of a day from a template that lies in the cluster, and waits for its end: start.py TEMPLATE

DAY is the day, YYYY-MM-DD; where it is not set, yesterday in UTC: the last one that is over. The RayJob's name is
TEMPLATE-DAY, so a second one is not made while the first runs or after it has succeeded: then this waits for it, or
says so. After a failure the name becomes TEMPLATE-DAY-2 and so on, and the run resumes from the store.

Exit status 0: the run has succeeded; 1: it has not. Standard library only; the account needs get and create of rayjobs.
"""

import http.client
import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
WAIT = 15.0
"""seconds between two looks"""
ENDS = {"Complete", "Failed", "ValidationFailed"}
"""of KubeRay's jobDeploymentStatus"""


def call(name: str = "", body: dict | None = None) -> dict | None:
    """The RayJob of a name, or the one that was made of a body; None where it is not there, or there already.

    The API server may be away for a while: then it is asked again, until the Job's deadline ends this process.
    """
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    namespace = (ACCOUNT / "namespace").read_text()
    url = f"https://{host}:{port}/apis/ray.io/v1/namespaces/{namespace}/rayjobs" + (f"/{name}" if name else "")
    while True:
        request = urllib.request.Request(url, None if body is None else json.dumps(body).encode())
        request.add_header("Authorization", f"Bearer {(ACCOUNT / 'token').read_text()}")  # which is renewed there
        request.add_header("Content-Type", "application/json")
        try:
            context = ssl.create_default_context(cafile=ACCOUNT / "ca.crt")
            with urllib.request.urlopen(request, timeout=30, context=context) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code in (404, 409):
                return None
            if error.code < 500 and error.code != 429:
                sys.exit(f"{url}: {error.code}: {error.read().decode(errors='replace')}")
            print(f"{url}: {error.code}; trying again", file=sys.stderr)
        except (OSError, http.client.HTTPException) as error:
            print(f"{url}: {error}; trying again", file=sys.stderr)
        time.sleep(WAIT)


def run_of(template: dict, name: str, day: str) -> dict:
    """The RayJob of a day. It belongs to the Job whose pod this is: who deletes that stops this."""
    spec = template["spec"]
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
        "spec": {**spec, "suspend": False, "entrypoint": spec["entrypoint"].replace("{day}", day)},
    }


def outcome(job: dict) -> bool | None:
    """Whether it succeeded; None while it runs."""
    status = job.get("status", {})
    if status.get("jobDeploymentStatus") not in ENDS:
        return None
    return status["jobDeploymentStatus"] == "Complete" and status.get("jobStatus") == "SUCCEEDED"


def main(template_name: str) -> int:
    """Make or find the day's RayJob and wait for its end."""
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    day = date.fromisoformat(os.environ.get("DAY") or yesterday.isoformat()).isoformat()
    template = call(template_name)
    if template is None:
        sys.exit(f"there is no RayJob {template_name} to make one of; apply the overlay")
    number, name = 1, f"{template_name}-{day}"
    while call(body=run_of(template, name, day)) is None:
        there = call(name)
        if there is not None and outcome(there) is False:
            number += 1
            name = f"{template_name}-{day}-{number}"
        elif there is not None:
            print(f"{name} is there already", flush=True)
            break
    while (job := call(name)) is not None and outcome(job) is None:
        time.sleep(WAIT)
    if job is None:
        print(f"{name} was deleted", file=sys.stderr)
        return 1
    status = job["status"]
    print(f"{name}: {status.get('jobStatus') or status['jobDeploymentStatus']} {status.get('message', '')}".strip())
    return 0 if outcome(job) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
