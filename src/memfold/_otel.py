"""The OpenTelemetry SDK behind ``memfold.telemetry``: providers, exporters, official instrumentations.

The providers are handed to the instrumentations and never made global, so one process (a test) can start this twice.
"""

from __future__ import annotations

import importlib
import logging
import threading
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Self

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import Meter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import SpanKind, Status, TraceState
from opentelemetry.util.types import Attributes

_log = logging.getLogger(__name__)

# Event attributes of an exception that quote what it was raised about: a Redis error repeats the command's arguments.
_TEXTS = frozenset({"exception.message", "exception.stacktrace"})


class Pipeline:
    """A running SDK. ``tracer`` and ``meter`` are memfold's own; the instrumentations have theirs."""

    def __init__(self, resource: Resource, readers: Sequence[MetricReader]) -> None:
        self._tracers = TracerProvider(resource=resource)
        self._tracers.sampler = _NoLonePolls(self._tracers.sampler)
        self._meters = MeterProvider(readers, resource)
        self._closers: list[Callable[[], object]] = [self._tracers.shutdown, self._meters.shutdown]
        self.tracer: trace.Tracer = self._tracers.get_tracer("memfold")
        self.meter: Meter = self._meters.get_meter("memfold")

    @classmethod
    def start(
        cls,
        service_name: str,
        *,
        metrics_port: int,
        otlp_traces: bool,
        otlp_metrics: bool,
        span_exporter: SpanExporter | None,
    ) -> Self:
        """Start what is asked for; see ``memfold.telemetry.setup``."""
        # Two replicas must never write one series, whatever pushes them.
        resource = Resource.create({"service.name": service_name, "service.instance.id": str(uuid.uuid4())})
        readers: list[MetricReader] = []
        close_port: Callable[[], object] | None = None
        if metrics_port:
            reader, close_port = _prometheus(metrics_port)
            readers.append(reader)
        if otlp_metrics:
            readers.append(_otlp_metric_reader())
        pipeline = cls(resource, readers)
        if close_port is not None:
            pipeline._closers.append(close_port)
        exporters = [span_exporter] if span_exporter is not None else []
        if otlp_traces:
            exporters.append(_otlp_span_exporter())
        for exporter in exporters:
            pipeline._tracers.add_span_processor(BatchSpanProcessor(_WithoutTexts(exporter)))
        if exporters:  # without a place for spans, nothing is patched and nothing costs
            pipeline._closers[:0] = _instrument(pipeline._tracers, pipeline._meters)
        return pipeline

    def flush(self) -> None:
        """Send what is buffered."""
        self._tracers.force_flush()
        self._meters.force_flush()

    def shutdown(self, timeout_s: float) -> None:
        """Stop everything; a collector that does not answer holds the process up for ``timeout_s`` at most."""
        closing = threading.Thread(target=self._close, name="telemetry-shutdown", daemon=True)
        closing.start()
        closing.join(timeout_s)
        if closing.is_alive():
            _log.warning("telemetry was not sent within %s s and is dropped", timeout_s)

    def _close(self) -> None:
        for close in self._closers:
            close()


class _NoLonePolls(Sampler):
    """Leaves out client calls that belong to no trace: a worker that looks for work asks Redis all day."""

    def __init__(self, inner: Sampler) -> None:
        self._inner = inner

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[trace.Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        has_parent = trace.get_current_span(parent_context).get_span_context().is_valid
        if kind is SpanKind.CLIENT and not has_parent:
            return SamplingResult(Decision.DROP)
        return self._inner.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        return f"NoLonePolls{{{self._inner.get_description()}}}"


class _WithoutTexts(SpanExporter):
    """Passes spans on without the texts of exceptions and statuses: they can quote a turn. Types and codes stay."""

    def __init__(self, inner: SpanExporter) -> None:
        self._inner = inner

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return self._inner.export([_without_texts(span) for span in spans])

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._inner.force_flush(timeout_millis)


def _without_texts(span: ReadableSpan) -> ReadableSpan:
    if not span.events and not span.status.description:
        return span
    events = [
        Event(event.name, {k: v for k, v in (event.attributes or {}).items() if k not in _TEXTS}, event.timestamp)
        for event in span.events
    ]
    return ReadableSpan(
        name=span.name,
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=span.attributes,
        events=events,
        links=span.links,
        kind=span.kind,
        status=Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def _prometheus(port: int) -> tuple[MetricReader, Callable[[], object]]:
    from opentelemetry.exporter.prometheus import PrometheusMetricReader  # noqa: PLC0415
    from prometheus_client import CollectorRegistry, start_http_server  # noqa: PLC0415

    registry = CollectorRegistry()
    server, thread = start_http_server(port, registry=registry)

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return PrometheusMetricReader(registry=registry), close


def _otlp_span_exporter() -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

    return OTLPSpanExporter()


def _otlp_metric_reader() -> MetricReader:
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter  # noqa: PLC0415
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader  # noqa: PLC0415

    return PeriodicExportingMetricReader(OTLPMetricExporter())


def _instrument(tracers: TracerProvider, meters: MeterProvider) -> list[Callable[[], object]]:
    """Patch grpc.aio, Celery and Redis, as far as they are installed; returns what takes each off again."""
    from opentelemetry.instrumentation.grpc import filters  # noqa: PLC0415

    # Nor what a gateway hears from its readers all day.
    no_probes: Any = filters.negate(filters.any_of(filters.health_check(), filters.service_prefix("memfold.reader.")))
    undo: list[Callable[[], object]] = []
    for module, name, arguments in (
        ("grpc", "GrpcAioInstrumentorServer", {"filter_": no_probes}),
        ("grpc", "GrpcAioInstrumentorClient", {"filter_": no_probes}),
        ("celery", "CeleryInstrumentor", {}),
        ("redis", "RedisInstrumentor", {}),
    ):
        try:
            instrumentation = importlib.import_module(f"opentelemetry.instrumentation.{module}")
        except ImportError:
            _log.debug("no %s here to instrument", module)
            continue
        instrumentor = getattr(instrumentation, name)(**arguments)
        instrumentor.instrument(tracer_provider=tracers, meter_provider=meters)
        undo.append(instrumentor.uninstrument)
    return undo
