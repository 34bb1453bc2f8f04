"""OpenTelemetry traces of runs, sent to the collector that the standard environment variables name.

Each run has a root span, `night` or `training`, below which are spans of its stages and shards. Several runs that share
a pass each have a trace of their own. The pass has another one, whose root span is linked with theirs.

Each process creates an object `traceparent-NUMBER` beside the other records of a run, in the form of W3C Trace Context.
By it a later process links its trace to the earlier one. None is ever replaced, and the largest number is the latest
process: one that was suspended and overtaken can create its own object late, but never hide that of its successor.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import re
from collections.abc import Sequence
from typing import Any

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Link, Span, SpanContext, StatusCode, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import ShardOutcome
from pipelines.telemetry.current_runs import CurrentRun
from pipelines.telemetry.run_record import Observer, RunRecord, WorkError
from spin.errors import SpinError, shorten_message
from spin.settings import mask_credentials

_log = logging.getLogger(__name__)
QUEUED_SPANS = 16_384
"""spans that wait for the collector, unless OTEL_BSP_MAX_QUEUE_SIZE says otherwise: at ten shards per second those of
27 minutes; the default of the SDK, 2,048, would be three"""
_QUEUE_SIZE = "OTEL_BSP_MAX_QUEUE_SIZE"
_SDK_LOGGERS = ("opentelemetry.exporter", "opentelemetry.sdk")
"""they report each failed request and each dropped span, of which SPIN warns once"""
_Attributes = dict[str, str | int | list[str] | None]
_TRACEPARENT = re.compile(r"traceparent-(\d{6,})")


class Traces(Observer):
    """Makes spans of the work of this process; `endpoint` is the collector, without credentials, for messages."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._messages = _SdkMessages(endpoint)
        self._delivery = _Delivery(OTLPSpanExporter(), endpoint, self._messages)
        self._provider = TracerProvider(resource=_describe_service(), shutdown_on_exit=False)
        queue_size = None if os.environ.get(_QUEUE_SIZE) else QUEUED_SPANS
        self._provider.add_span_processor(BatchSpanProcessor(self._delivery, max_queue_size=queue_size))
        self._tracer = self._provider.get_tracer("spin", importlib.metadata.version("spin-neurons"))
        self._roots: dict[str, Span] = {}
        self._nested: list[Span] = []
        self._ended = 0

    def run_started(self, run: RunRecord) -> None:
        earlier = find_earlier(run.records, run.number)
        links = [] if earlier is None else [Link(earlier, {"spin.link": "resumes"})]
        self._roots[run.run.name] = root = self._start(run.kind, None, _describe_run(run), links)
        store_span(run.records, run.number, root)

    def run_ended(self, run: RunRecord) -> None:
        root = self._roots[run.run.name]
        attributes: _Attributes = {}
        for use in run.inputs:
            if use.kind == "files" and use.rows is not None:
                attributes |= {"spin.input.rows": use.rows, "spin.input.files": use.files}
        for use in run.outputs:
            if use.kind == "table":
                attributes[f"spin.output.{use.uri.rpartition('/')[2]}.rows"] = use.rows
            elif use.kind == "model":
                attributes["spin.model_version"] = use.version
        root.set_attributes(_known(attributes))
        self._end(root, run.error)

    def work_started(self, runs: Sequence[CurrentRun], stage: str | None) -> dict[str, str]:
        if stage is not None:
            span = self._start(stage, self._innermost(), {"spin.stage": stage})
        elif len(runs) == 1:
            span = self._roots[runs[0].name]
        else:
            span = self._start_pass(runs)
        self._nested.append(span)
        context = span.get_span_context()
        return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}

    def work_ended(self, error: WorkError | None) -> None:
        span = self._nested.pop()
        if all(span is not root for root in self._roots.values()):
            self._end(span, error)

    def shard_ended(self, name: str, shard: ShardOutcome[Any]) -> None:
        counts, started = shard.counts, _nanoseconds(shard.ended - shard.seconds)
        attributes = {
            "spin.shard": name,
            "spin.rows": counts.rows,
            "spin.dead_letters": counts.dead_letters,
            "spin.tries": shard.tries,
            "spin.tokens": getattr(counts, "tokens", None),
        }
        span = self._start("shard", self._innermost(), attributes, started=started)
        if shard.tries > 1:
            span.add_event("retried", {"spin.tries": shard.tries}, started)
        self._end(span, None, ended=_nanoseconds(shard.ended))

    def close(self) -> None:
        self._provider.shutdown()

    def give_up(self) -> None:
        self._delivery.shutdown()
        lost = self._ended - self._delivery.delivered
        if lost:  # a request that is broken off may still log something, so the messages are kept
            _log.warning(
                "traces: %d of %d spans were not delivered to the collector at %s", lost, self._ended, self._endpoint
            )
        else:
            self._messages.end()

    def _innermost(self) -> Span | None:
        return self._nested[-1] if self._nested else None

    def _start_pass(self, runs: Sequence[CurrentRun]) -> Span:
        """Start the span of a pass, and link it to those of its runs and back."""
        roots = [self._roots[run.name] for run in runs]
        names, models = [run.name for run in runs], [run.model for run in runs]
        links = [Link(root.get_span_context(), {"spin.run": name}) for root, name in zip(roots, names, strict=True)]
        attributes: _Attributes = {"spin.runs": names, "spin.models": models}
        shared = self._start("pass", None, attributes, links)
        for root in roots:
            if root.is_recording():  # that of a run that has failed is not
                root.add_link(shared.get_span_context(), {"spin.link": "pass"})
        return shared

    def _start(
        self,
        name: str,
        parent: Span | None,
        attributes: _Attributes,
        links: Sequence[Link] = (),
        *,
        started: int | None = None,
    ) -> Span:
        """Start a span, the root of a trace without a parent, with those of the attributes that have a value."""
        context = Context() if parent is None else set_span_in_context(parent, Context())
        return self._tracer.start_span(name, context, attributes=_known(attributes), links=links, start_time=started)

    def _end(self, span: Span, error: WorkError | None, *, ended: int | None = None) -> None:
        if error is not None:
            span.set_status(StatusCode.ERROR, error.message)
            span.set_attributes({"error.type": error.kind, "spin.exit_status": error.status})
        self._ended += span.get_span_context().trace_flags.sampled
        span.end(ended)


def find_earlier(records: Store, number: int) -> SpanContext | None:
    """The root span of the latest process with a smaller number; None if there is none or it cannot be read."""
    try:
        numbers = [int(match[1]) for name in records.list_names() if (match := _TRACEPARENT.fullmatch(name))]
        earlier = [each for each in numbers if each < number]
        data = records.read(_key(max(earlier))) if earlier else None
    except SpinError as error:
        _log.warning("traces: the earlier traces of %s cannot be read, so none is linked: %s", records.uri, error)
        return None
    text = "" if data is None else data.decode("ascii", "replace")
    context = TraceContextTextMapPropagator().extract({"traceparent": text.strip()}, Context())
    span = get_current_span(context).get_span_context()
    return span if span.is_valid else None


def store_span(records: Store, number: int, span: Span) -> None:
    """Store the root span of this process for the next one; nothing else depends on it."""
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, set_span_in_context(span, Context()))
    try:
        records.create(_key(number), f"{carrier['traceparent']}\n".encode())
    except SpinError as error:
        _log.warning("traces: %s/%s cannot be written, so no trace will link it: %s", records.uri, _key(number), error)


def _key(number: int) -> str:
    return f"traceparent-{number:06d}"


class _Delivery(SpanExporter):
    """Hands spans to the exporter, counts those that arrive, and warns once of those that do not."""

    def __init__(self, exporter: SpanExporter, endpoint: str, messages: _SdkMessages) -> None:
        self._exporter, self._endpoint, self._messages = exporter, endpoint, messages
        self.delivered = 0
        self._warned = self._stopped = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self._stopped:
            return SpanExportResult.FAILURE
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            self.delivered += len(spans)
        elif not self._warned and not self._stopped:
            self._warned = True
            _log.warning(
                "traces: the collector at %s does not take spans (%s); expected one that speaks OTLP over HTTP. The "
                "work goes on; reported once",
                self._endpoint,
                self._messages.last or "no answer",
            )
        return result

    def shutdown(self) -> None:
        """End the request that is under way, with all its attempts."""
        if not self._stopped:
            self._stopped = True
            self._exporter.shutdown()


class _SdkMessages(logging.Handler):
    """Keeps the last message of the SDK about its delivery, instead of a line for every request and span."""

    def __init__(self, endpoint: str) -> None:
        super().__init__()
        self._endpoint, self._dropped = endpoint, False
        self.last = ""
        for logger in map(logging.getLogger, _SDK_LOGGERS):
            logger.handlers = [other for other in logger.handlers if not isinstance(other, _SdkMessages)]
            logger.addHandler(self)
            logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        self.last = shorten_message(mask_credentials(record.getMessage()))
        _log.debug("OpenTelemetry: %s", self.last)
        if "Queue full" in self.last and not self._dropped:
            self._dropped = True
            _log.warning(
                "traces: spans are dropped, since %s of them wait for the collector at %s already (%s)",
                os.environ.get(_QUEUE_SIZE) or QUEUED_SPANS,
                self._endpoint,
                _QUEUE_SIZE,
            )

    def end(self) -> None:
        """Let the SDK write its own lines again."""
        for logger in map(logging.getLogger, _SDK_LOGGERS):
            logger.removeHandler(self)
            logger.propagate = True


def _describe_service() -> Resource:
    """The resource of all spans: as the environment says, by default the service `spin`."""
    resource = Resource.create({"service.version": importlib.metadata.version("spin-neurons")})
    if str(resource.attributes["service.name"]).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": "spin"}))
    return resource


def _describe_run(run: RunRecord) -> _Attributes:
    return {
        "spin.run": run.run.name,
        "spin.model": run.run.model,
        "spin.model_version": run.model_version,
        "spin.night": run.date,
        "spin.process": run.number,
        "spin.output" if run.kind == "night" else "spin.store": mask_credentials(run.home),
    }


def _known(attributes: _Attributes) -> dict[str, str | int | list[str]]:
    """The attributes that have a value."""
    return {name: value for name, value in attributes.items() if value is not None}


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1_000_000_000)
