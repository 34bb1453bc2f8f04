"""Retry what a store did not answer, for its `retry_seconds`, which start with the first failure."""

from __future__ import annotations

import logging

from tenacity import (
    RetryCallState,
    Retrying,
    before_sleep_log,
    retry_if_exception_type,
    wait_exponential,
    wait_random_exponential,
)

from pipelines.service_errors import UnavailableError
from pipelines.storage.object_store import Store

_log = logging.getLogger(__name__)


def retry_unavailable(store: Store) -> Retrying:
    """Return a caller of functions that calls again after UnavailableError: `retry_unavailable(store)(read, key)`.

    The `retry_seconds` of the store count from the first failure, so that a function may compute for hours before it
    fails. The error is raised once the next call would start after them. The pauses double, and half of each is random,
    so that workers whose requests failed together do not retry together. One caller is for one call.
    """
    return Retrying(
        retry=retry_if_exception_type(UnavailableError),
        wait=wait_exponential(multiplier=0.5) + wait_random_exponential(multiplier=0.5),
        stop=_StopAfterFirstFailure(store.retry_seconds),
        before_sleep=before_sleep_log(_log, logging.DEBUG, exc_info=True),
        reraise=True,
    )


class _StopAfterFirstFailure:
    """Stops when the pause before the next call would end some seconds after the first failure."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.first_failure: float | None = None

    def __call__(self, state: RetryCallState) -> bool:
        now = state.outcome_timestamp
        assert now is not None
        if self.first_failure is None:
            self.first_failure = now
        return now - self.first_failure + state.upcoming_sleep >= self.seconds
