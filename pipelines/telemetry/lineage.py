"""OpenLineage events of runs, sent by the client of OpenLineage to what its own variables and files name.

A thread of its own sends them, so that no night waits for an endpoint.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from uuid import UUID

from openlineage.client import OpenLineageClient
from openlineage.client.event_v2 import RunEvent
from openlineage.client.uuid import generate_new_uuid

from pipelines.telemetry.lineage_events import end_event, start_event
from pipelines.telemetry.run_events import Observer, RunEnd, RunStart
from spin.errors import shorten_message
from spin.settings import mask_credentials

_log = logging.getLogger(__name__)


def _create_client() -> OpenLineageClient:
    """The client, without the variables that it adds to the environment: a later client would take their values."""
    before = set(os.environ)
    client = OpenLineageClient()
    for name in set(os.environ) - before:
        del os.environ[name]
    return client


class Lineage(Observer):
    """Sends an event when the work of this process on a run begins, and another one when it ends."""

    def __init__(self) -> None:
        self._client = _create_client()
        self._ids: dict[str, UUID] = {}
        self._waiting: queue.Queue[RunEvent | None] = queue.Queue()
        self._queued = self._sent = 0
        self._warned = self._given_up = False
        # a daemon, since a thread that waits for an endpoint must not keep the process from ending
        self._sender = threading.Thread(target=self._send_all, daemon=True, name="lineage")
        self._sender.start()

    def run_started(self, start: RunStart) -> None:
        id = self._ids[start.run.name] = generate_new_uuid()
        self._queue(start_event(start, str(id)))

    def run_ended(self, start: RunStart, end: RunEnd) -> None:
        self._queue(end_event(start, end, str(self._ids[start.run.name])))

    def close(self) -> None:
        self._waiting.put(None)
        self._sender.join()

    def give_up(self) -> None:
        self._given_up = True
        lost = self._queued - self._sent
        if lost:
            _log.warning("lineage: %d of %d events were not delivered", lost, self._queued)

    def _queue(self, event: RunEvent) -> None:
        self._queued += 1
        self._waiting.put(event)

    def _send_all(self) -> None:
        while (event := self._waiting.get()) is not None and not self._given_up:
            try:
                self._client.emit(event)
                self._sent += 1
            except Exception as error:
                if not self._warned and not self._given_up:
                    self._warned = True
                    _log.warning(
                        "lineage: an event is not accepted (%s: %s). The work goes on; reported once",
                        type(error).__name__,
                        shorten_message(mask_credentials(str(error))),
                    )
                _log.debug("an event of OpenLineage could not be sent", exc_info=True)
        self._client.close(0)
