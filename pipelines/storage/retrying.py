"""Retry what a store did not answer, for its `retry_seconds`, which start with the first failure."""

from __future__ import annotations

import logging
from typing import Any

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
    so that workers whose requests failed together do not retry together.
    """
    return _retrying(store, wait_exponential(multiplier=0.5) + wait_random_exponential(multiplier=0.5))


def retry_commits(store: Store) -> Retrying:
    """Return the same with short random pauses, for commits to a table: after StaleSnapshotError, nobody waits long.

    Each call must open the table anew, since the call before it may have been committed.
    """
    return _retrying(store, wait_random_exponential(multiplier=0.1, max=5))


def _retrying(store: Store, wait: Any) -> Retrying:
    def is_over(state: RetryCallState) -> bool:
        now = state.outcome_timestamp
        assert now is not None
        first_failure = state.retry_object.statistics.setdefault("first_failure", now)  # they are of one call
        # guarded by test_a_slow_shard_is_retried_because_computing_does_not_count; broken by:
        #   return now - state.start_time + state.upcoming_sleep >= store.retry_seconds
        return now - first_failure + state.upcoming_sleep >= store.retry_seconds

    return Retrying(
        retry=retry_if_exception_type(UnavailableError),
        wait=wait,
        stop=is_over,
        before_sleep=before_sleep_log(_log, logging.DEBUG, exc_info=True),
        reraise=True,
    )
