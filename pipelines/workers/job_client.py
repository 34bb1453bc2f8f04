"""Submit `spin` commands as jobs to a Ray cluster, list, follow and stop them."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tenacity import Retrying, before_sleep_log, retry_if_exception, stop_after_delay, wait_fixed

from pipelines.service_errors import HeldError, UnavailableError
from spin.errors import UserError, shorten_message
from spin.settings import holds_password, holds_user_part, mask_credentials

_log = logging.getLogger(__name__)
_NOISY_LOGGERS = ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
"""the last two have levels of their own"""
PASSED = (
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "MLFLOW_TRACKING_URI",
)
"""environment variables that a job gets; everybody who sees the cluster sees them, so none is a credential"""
_CREDENTIAL = re.compile(r"SECRET|TOKEN|PASSW|CREDENTIAL|ACCESS_KEY|API_?KEY|PRIVATE|PROFILE", re.IGNORECASE)
_STARTING = 60
"""seconds after which a new cluster must accept jobs"""
_OVER = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class Job:
    """A submitted command."""

    id: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED"""
    started: str
    """in UTC"""
    seconds: float | None
    """run time; None while the job runs"""
    exit_status: int | None
    """of the command; None while the job runs"""

    @property
    def over(self) -> bool:
        return self.status in _OVER

    @classmethod
    def of(cls, details: Any) -> Job:
        status = str(details.status.value)
        # a driver that was ended by a signal has a negative exit code
        failed = max(details.driver_exit_code or 1, 1)
        start, end = details.start_time or 0, details.end_time
        return cls(
            details.submission_id or details.job_id,
            status,
            datetime.fromtimestamp(start / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S"),
            (end - start) / 1000 if end else None,
            {"SUCCEEDED": 0, "STOPPED": 130}.get(status, failed) if status in _OVER else None,
        )


class JobServer:
    """The job server at `http://HEAD:8265`, by default at RAY_API_SERVER_ADDRESS or on this machine.

    With RAY_AUTH_MODE=token, the token is that of RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH. Raises UnavailableError if
    nothing answers, UserError if the token is refused.
    """

    def __init__(self, address: str | None = None) -> None:
        uri = address or os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265"
        self.address = mask_credentials(uri)
        """for messages"""
        if not uri.startswith(("http://", "https://")):
            raise UserError(f"--address {self.address}: expected the cluster's dashboard, such as http://HEAD:8265")
        from ray.job_submission import JobSubmissionClient

        for name in _NOISY_LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        with self._one_line_errors():
            self._client = JobSubmissionClient(uri)

    def submit(
        self,
        name: str,
        entrypoint: str,
        *,
        files: Mapping[str, Path],
        environment: Mapping[str, str],
        once: bool = False,
    ) -> str:
        """Send files, start a command in a folder that holds these alone, and return the id of the job.

        `files` are files of this machine by their path in that folder. The id is `name`, or `name-2` and so on if
        earlier jobs have that name. Raises HeldError while one of these is running, and with `once` UserError if the
        last of them succeeded.
        """
        number = self._next(name, once)
        id = name if number == 1 else f"{name}-{number}"
        with _copied(files) as folder, self._one_line_errors():
            runtime = {"working_dir": folder, "env_vars": dict(environment)}
            try:
                self._send(entrypoint=entrypoint, submission_id=id, runtime_env=runtime)
            except RuntimeError as error:
                if "already exists" in str(error):  # another command has submitted it in the meantime
                    raise _held(id) from None
                raise
        return id

    def jobs(self) -> list[Job]:
        """All submitted jobs that the cluster still knows, newest first."""
        with self._one_line_errors():
            jobs = [Job.of(details) for details in self._client.list_jobs() if details.submission_id]
        return sorted(jobs, key=lambda job: (job.started, job.id), reverse=True)

    def job(self, id: str) -> Job:
        """One job by its id. Raises UserError if there is none."""
        with self._one_line_errors():
            try:
                return Job.of(self._client.get_job_info(id))
            except RuntimeError as error:
                if "does not exist" in str(error):
                    raise UserError(f"no job {id} at {self.address}; `spin jobs` lists them") from None
                raise

    def logs(self, id: str) -> str:
        """The output of a job so far."""
        self.job(id)
        with self._one_line_errors():
            return str(self._client.get_job_logs(id))

    def follow(self, id: str, write: Callable[[str], object]) -> Job:
        """Pass the output of a job to `write`, as it comes, until the job is over; return the job."""
        self.job(id)

        async def tail() -> None:
            async for text in self._client.tail_job_logs(id):
                write(text)

        with self._one_line_errors():
            asyncio.run(tail())
        return self._outcome(id)

    def stop(self, id: str) -> bool:
        """Stop a job and wait until it is over; return whether it was running."""
        running = not self.job(id).over
        with self._one_line_errors():
            self._client.stop_job(id)
        self._outcome(id)
        return running

    def _send(self, **job: Any) -> None:
        """Submit a job; a cluster that has just started answers before its head can run jobs, so retry for a while."""
        retrying = Retrying(
            retry=retry_if_exception(lambda e: isinstance(e, RuntimeError) and "No available agent" in str(e)),
            wait=wait_fixed(1),
            stop=stop_after_delay(_STARTING),
            before_sleep=before_sleep_log(_log, logging.DEBUG, exc_info=True),
            reraise=True,
        )
        retrying(self._client.submit_job, **job)

    def _outcome(self, id: str) -> Job:
        """Wait until the job is over, which is shortly after its last line; return it."""
        while not (job := self.job(id)).over:
            time.sleep(0.5)
        return job

    def _next(self, name: str, once: bool) -> int:
        """The number of the next job with a name."""
        pattern = re.compile(rf"{re.escape(name)}(?:-(\d+))?")
        earlier = {int(m[1] or 1): job for job in self.jobs() if (m := pattern.fullmatch(job.id))}
        for job in earlier.values():
            if not job.over:
                raise _held(job.id)
        last = earlier[max(earlier)] if earlier else None
        if once and last is not None and last.status == "SUCCEEDED":
            raise UserError(
                f"job {last.id} has succeeded; `spin logs {last.id}` shows what it did, --restart submits it again"
            )
        return max(earlier, default=0) + 1

    @contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        """Turn the errors of Ray's client into SpinErrors of one line."""
        import aiohttp
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            raise UserError(
                f"Ray at {self.address} refuses: {_line(error)}; set RAY_AUTH_MODE=token and the cluster's token in "
                "RAY_AUTH_TOKEN, or the file that holds it in RAY_AUTH_TOKEN_PATH"
            ) from None
        except (ConnectionError, requests.RequestException, aiohttp.ClientError) as error:
            raise UnavailableError(
                f"Ray at {self.address} does not answer: {_line(error)}; expected a cluster's dashboard, such as "
                "http://HEAD:8265 (a job that runs goes on)"
            ) from None
        except RuntimeError as error:
            raise UnavailableError(f"Ray at {self.address}: {_line(error)}") from None


def environment(names: Sequence[str] = ()) -> dict[str, str]:
    """The environment variables of a job: those of `PASSED` that are set here, and `names`: `NAME` or `NAME=VALUE`.

    Raises UserError for a variable that looks like a credential, because the description of a job shows it.
    """
    variables = {name: os.environ[name] for name in PASSED if os.environ.get(name)}
    for text in names:
        name, equals, value = text.partition("=")
        if _CREDENTIAL.search(name):
            raise UserError(f"--env {name}: looks like a credential; jobs are given none, the nodes have theirs")
        if not equals and name not in os.environ:
            raise UserError(f"--env {name}: is not set here; expected NAME=VALUE, or the name of a variable that is")
        variables[name] = value if equals else os.environ[name]
    for name, value in variables.items():
        if holds_password(value):
            raise UserError(f"{name} holds a password, which a job's description would show; take it out of the URI")
        check_user_part(name, value)
    return variables


def check_user_part(name: str, value: str) -> None:
    """Raise UserError for a value of a job with a part before @ in a URI, which may be a token; databases have users.

    Everybody who sees the cluster can read the description of a job.
    """
    if holds_user_part(value) and "sql" not in value.partition("://")[0]:
        raise UserError(
            f"{name} holds a URI with a part before @, which may be a token and which a job's description would show; "
            "take it out of the URI"
        )


@contextmanager
def _copied(files: Mapping[str, Path]) -> Iterator[str]:
    """Yield a folder with copies of files, by their path in it, so that Ray sends these and nothing else."""
    with tempfile.TemporaryDirectory(prefix="spin-submit-") as folder:
        for name, file in files.items():
            copy = Path(folder) / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(file, copy)
            except OSError as error:
                raise UserError(f"{name} cannot be sent: {error.strerror}") from None
        yield folder


def _held(id: str) -> HeldError:
    return HeldError(f"job {id} is on its way; `spin logs {id} --follow` watches it, `spin stop {id}` ends it")


def _line(error: BaseException) -> str:
    """The end of a message in one line: the server's stack trace comes before it."""
    return shorten_message(mask_credentials(str(error)), keep_end=True).strip(" .")
