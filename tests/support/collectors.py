"""Servers that receive traces over OTLP/HTTP and events of OpenLineage, or that answer as a broken one does."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class ReceivedSpan:
    """A span as a collector receives it."""

    name: str
    trace: str
    id: str
    parent: str
    """empty for a root span"""
    start: float
    """seconds since 1970"""
    end: float
    attributes: dict[str, Any]
    links: tuple[tuple[str, str], ...]
    """trace and span that each link names"""
    events: tuple[str, ...]
    failed: bool
    message: str
    """of its status"""


@dataclass
class Receiver:
    """What has come in, and how requests are answered."""

    url: str = ""
    status: int = 200
    bodies: list[tuple[str, bytes]] = field(default_factory=list)
    """path and body of each request"""
    released: threading.Event = field(default_factory=threading.Event)
    """requests are answered once it is set"""
    arrived: threading.Event = field(default_factory=threading.Event)
    """set when a request comes in"""

    @property
    def spans(self) -> list[ReceivedSpan]:
        """All spans that were received, by their start."""
        found = []
        for path, body in self.bodies:
            if path == "/v1/traces":
                request = ExportTraceServiceRequest.FromString(body)
                found += [
                    _parse_span(span)
                    for resource in request.resource_spans
                    for scope in resource.scope_spans
                    for span in scope.spans
                ]
        return sorted(found, key=lambda span: (span.start, span.name))

    @property
    def services(self) -> set[str]:
        """The names of the services that have sent spans."""
        names = set()
        for path, body in self.bodies:
            if path == "/v1/traces":
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    names |= {a.value.string_value for a in resource.resource.attributes if a.key == "service.name"}
        return names

    def named(self, name: str) -> list[ReceivedSpan]:
        """The spans of a name."""
        return [span for span in self.spans if span.name == name]

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events of OpenLineage, each checked for what the spec requires."""
        events = [json.loads(body) for path, body in self.bodies if path == "/api/v1/lineage"]
        for event in events:
            check_event(event)
        return events


@contextmanager
def receiving(status: int = 200, *, hanging: bool = False) -> Iterator[Receiver]:
    """A server that answers all requests with a status, or, `hanging`, not before the context ends."""
    receiver = Receiver(status=status)
    if not hanging:
        receiver.released.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            receiver.bodies.append((self.path, body))
            receiver.arrived.set()
            receiver.released.wait()
            self.send_response(receiver.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            """Write nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


def check_event(event: dict[str, Any]) -> None:
    """Fail unless an event has what OpenLineage requires of a RunEvent."""
    assert {"eventTime", "producer", "schemaURL", "run", "job"} <= event.keys()
    assert event["eventType"] in ("START", "RUNNING", "COMPLETE", "ABORT", "FAIL", "OTHER")
    assert len(event["run"]["runId"]) == 36
    assert event["job"]["namespace"]
    assert event["job"]["name"]
    facets = [*event["run"]["facets"].values(), *event["job"]["facets"].values()]
    for side, statistics in (("inputs", "inputFacets"), ("outputs", "outputFacets")):
        for dataset in event[side]:
            assert dataset["namespace"]
            assert dataset["name"]
            facets += [*dataset.get("facets", {}).values(), *dataset.get(statistics, {}).values()]
    for facet in facets:
        assert facet["_producer"].startswith("https://"), facet
        assert facet["_schemaURL"].startswith("https://"), facet


def _parse_span(span: Any) -> ReceivedSpan:
    return ReceivedSpan(
        name=span.name,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        start=span.start_time_unix_nano / 1e9,
        end=span.end_time_unix_nano / 1e9,
        attributes={attribute.key: _value(attribute.value) for attribute in span.attributes},
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        events=tuple(event.name for event in span.events),
        failed=span.status.code == 2,
        message=span.status.message,
    )


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_value(each) for each in value.array_value.values] if kind == "array_value" else getattr(value, kind)
