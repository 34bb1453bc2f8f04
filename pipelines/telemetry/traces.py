"""OpenTelemetry traces of runs, sent to the collector that the standard environment variables name.

Each run has a root span, `night` or `training`, below which are spans of its stages and shards. Several runs that share
a pass each have a trace of their own, and the pass has another one, whose root span and theirs are linked.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
from collections.abc import Mapping, Sequence

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Link, Span, SpanContext, StatusCode, TraceFlags, set_span_in_context

from pipelines.telemetry.current_runs import CurrentRun
from pipelines.telemetry.current_span import CurrentSpan
from pipelines.telemetry.run_events import Observer, RunEnd, RunStart, ShardEnd, WorkError
from pipelines.telemetry.telemetry_settings import TRACE_ENDPOINTS
from pipelines.telemetry.trace_links import RootSpan, find_earlier, store_span
from spin.errors import shorten_message
from spin.settings import mask_credentials

_log = logging.getLogger(__name__)
QUEUED_SPANS = 16_384
"""spans that wait for the collector, unless OTEL_BSP_MAX_QUEUE_SIZE says otherwise: at ten shards per second those of
27 minutes; the default of the SDK, 2,048, would be three"""
_QUEUE_SIZE = "OTEL_BSP_MAX_QUEUE_SIZE"
_SDK_LOGGERS = ("opentelemetry.exporter.otlp", "opentelemetry.sdk._shared_internal")
"""they report each failed request and each dropped span, of which SPIN warns once"""
Attributes = Mapping[str, str | int | float | bool | Sequence[str]]


class Traces(Observer):
    """Makes spans of the work of this process."""

    def __init__(self) -> None:
        self._messages = _SdkMessages()
        self._delivery = _Delivery(OTLPSpanExporter(), self._messages)
        self._processor = _CountingProcessor(self._delivery)
        self._provider = TracerProvider(resource=_describe_service(), shutdown_on_exit=False)
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer("spin", importlib.metadata.version("spin-neurons"))
        self._roots: dict[str, Span] = {}
        self._nested: list[Span] = []

    def run_started(self, start: RunStart) -> None:
        earlier = find_earlier(start.records, start.number)
        links = [] if earlier is None else [Link(_span_context(earlier), {"spin.link": "resumes"})]
        root = self._tracer.start_span(start.kind, Context(), attributes=_describe_run(start), links=links)
        self._roots[start.run.name] = root
        ids, sampled = _ids(root), root.get_span_context().trace_flags.sampled
        store_span(start.records, start.number, RootSpan(ids.trace_id, ids.span_id, sampled))

    def run_ended(self, start: RunStart, end: RunEnd) -> None:
        root = self._roots[start.run.name]
        for use in end.results.inputs:
            if use.kind == "files":
                _set_known(root, {"spin.input.rows": use.rows, "spin.input.files": use.files})
        for use in end.results.outputs:
            if use.kind == "table":
                _set_known(root, {f"spin.output.{use.uri.rpartition('/')[2]}.rows": use.rows})
            elif use.kind == "model":
                _set_known(root, {"spin.model_version": use.version})
        _end(root, end.error)

    def work_started(self, runs: Sequence[CurrentRun]) -> None:
        roots = [self._roots[run.name] for run in runs]
        if len(roots) == 1:
            self._nested.append(roots[0])
            return
        attributes = {"spin.runs": [run.name for run in runs], "spin.models": [run.model for run in runs]}
        links = [Link(root.get_span_context(), {"spin.run": run.name}) for root, run in zip(roots, runs, strict=True)]
        shared = self._tracer.start_span("pass", Context(), attributes=attributes, links=links)
        for root in roots:
            if root.is_recording():  # that of a run that has failed is not
                root.add_link(shared.get_span_context(), {"spin.link": "pass"})
        self._nested.append(shared)

    def work_ended(self, error: WorkError | None) -> None:
        span = self._nested.pop()
        if all(span is not root for root in self._roots.values()):
            _end(span, error)

    def stage_started(self, stage: str) -> None:
        self._nested.append(self._tracer.start_span(stage, self._parent(), attributes={"spin.stage": stage}))

    def stage_ended(self, error: WorkError | None) -> None:
        _end(self._nested.pop(), error)

    def shard_ended(self, name: str, shard: ShardEnd) -> None:
        counts, start = shard.counts, _nanoseconds(shard.ended - shard.seconds)
        attributes = {
            "spin.shard": name,
            "spin.rows": counts.rows,
            "spin.dead_letters": counts.dead_letters,
            "spin.tries": shard.tries,
        }
        span = self._tracer.start_span("shard", self._parent(), attributes=attributes, start_time=start)
        _set_known(span, {"spin.tokens": getattr(counts, "tokens", None)})
        if shard.tries > 1:
            span.add_event("retried", {"spin.tries": shard.tries}, start)
        span.end(_nanoseconds(shard.ended))

    def current_span(self) -> CurrentSpan | None:
        return _ids(self._nested[-1]) if self._nested else None

    def close(self) -> None:
        self._provider.shutdown()

    def give_up(self) -> None:
        self._delivery.stop()
        lost = self._processor.ended - self._delivery.delivered
        if not lost:
            self._messages.end()
        else:  # a request that is broken off may still log something
            _log.warning(
                "traces: %d of %d spans were not delivered to the collector at %s",
                lost,
                self._processor.ended,
                _endpoint(),
            )

    def _parent(self) -> Context:
        return set_span_in_context(self._nested[-1], Context()) if self._nested else Context()


class _Delivery(SpanExporter):
    """Hands spans to the exporter, counts those that arrive, and warns once of those that do not."""

    def __init__(self, exporter: SpanExporter, messages: _SdkMessages) -> None:
        self._exporter, self._messages = exporter, messages
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
                _endpoint(),
                self._messages.last or "no answer",
            )
        return result

    def shutdown(self) -> None:
        self.stop()

    def stop(self) -> None:
        """End the request that is under way, with all its attempts."""
        if not self._stopped:
            self._stopped = True
            self._exporter.shutdown()


class _CountingProcessor(BatchSpanProcessor):
    """Batches spans, and counts those that ended."""

    def __init__(self, exporter: SpanExporter) -> None:
        super().__init__(exporter, max_queue_size=None if os.environ.get(_QUEUE_SIZE) else QUEUED_SPANS)
        self.ended = 0

    def on_end(self, span: ReadableSpan) -> None:
        context = span.get_span_context()
        if context is not None and context.trace_flags.sampled:
            self.ended += 1
        super().on_end(span)


class _SdkMessages(logging.Handler):
    """Keeps the last message of the SDK about its delivery, instead of a line for every request and span."""

    def __init__(self) -> None:
        super().__init__()
        self.last = ""
        self._dropped = False
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
                _endpoint(),
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


def _describe_run(start: RunStart) -> Attributes:
    attributes = {
        "spin.run": start.run.name,
        "spin.model": start.run.model,
        "spin.model_version": start.model_version,
        "spin.night": start.date,
        "spin.process": start.number,
        "spin.output" if start.kind == "night" else "spin.store": mask_credentials(start.home),
    }
    return {name: value for name, value in attributes.items() if value is not None}


def _end(span: Span, error: WorkError | None) -> None:
    if error is not None:
        span.set_status(StatusCode.ERROR, error.message)
        span.set_attributes({"error.type": error.kind, "spin.exit_status": error.status})
    span.end()


def _set_known(span: Span, attributes: Mapping[str, str | int | None]) -> None:
    """Set the attributes that have a value."""
    span.set_attributes({name: value for name, value in attributes.items() if value is not None})


def _ids(span: Span) -> CurrentSpan:
    context = span.get_span_context()
    return CurrentSpan(f"{context.trace_id:032x}", f"{context.span_id:016x}")


def _span_context(span: RootSpan) -> SpanContext:
    flags = TraceFlags(TraceFlags.SAMPLED if span.sampled else TraceFlags.DEFAULT)
    return SpanContext(int(span.trace_id, 16), int(span.span_id, 16), is_remote=True, trace_flags=flags)


def _endpoint() -> str:
    return mask_credentials(next(value for name in TRACE_ENDPOINTS if (value := os.environ.get(name))))


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1_000_000_000)
