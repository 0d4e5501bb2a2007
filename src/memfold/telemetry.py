"""Traces and metrics of a service: what the rooms measure with, and the switch that turns it on.

Nothing here needs OpenTelemetry until ``setup`` finds a reason for it: a client installs and imports without. Before
``setup``, and where it found no reason, ``tracer``, ``meter`` and ``instruments`` take everything and do nothing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, cast

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Tracer

    from memfold._otel import Pipeline

_log = logging.getLogger(__name__)

# Bucket bounds: from a loopback append to a fold that waited for a model; from one turn to a full backlog.
_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0]
_COUNTS = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 1e5]

Labels = Mapping[str, str]


class Counter(Protocol):
    """Grows, or, for something that is open now, grows and shrinks."""

    def add(self, amount: float, attributes: Labels | None = None) -> None:
        """Add ``amount``."""


class Histogram(Protocol):
    """A distribution."""

    def record(self, amount: float, attributes: Labels | None = None) -> None:
        """Note one value."""


class Gauge(Protocol):
    """The newest value."""

    def set(self, amount: float, attributes: Labels | None = None) -> None:
        """Replace the value."""


@dataclass(frozen=True, slots=True)
class Instruments:
    """Everything that memfold measures. Prometheus shows each as ``memfold_`` and the attribute's name.

    Prometheus adds ``_total`` to the counters that only grow.
    """

    append_ack_seconds: Histogram
    behind_memories: Gauge
    behind_oldest_seconds: Gauge
    fold_seconds: Histogram
    fold_tokens: Counter
    fold_lag_seconds: Histogram
    fold_lag_turns: Histogram
    fold_lag_tokens: Histogram
    first_token_seconds: Histogram
    generated_tokens: Counter
    open_streams: Counter
    engine_active: Gauge
    engine_waiting: Gauge
    engine_slots: Gauge
    engine_kv_tokens: Gauge
    states_damaged: Counter

    @classmethod
    def of(cls, meter: Meter) -> Self:
        """Make every instrument."""

        def seconds(name: str, what: str) -> Histogram:
            return meter.create_histogram(name, "s", what, explicit_bucket_boundaries_advisory=_SECONDS)

        def counts(name: str, unit: str, what: str) -> Histogram:
            return meter.create_histogram(name, unit, what, explicit_bucket_boundaries_advisory=_COUNTS)

        return cls(
            append_ack_seconds=seconds("memfold.append.ack", "AppendTurns, or one turn of a stream, to its ack"),
            behind_memories=meter.create_gauge("memfold.behind.memories", "{memory}", "Memories with unfolded turns"),
            behind_oldest_seconds=meter.create_gauge("memfold.behind.oldest", "s", "How long the first has waited"),
            fold_seconds=seconds("memfold.fold", "One batch on the device"),
            fold_tokens=meter.create_counter("memfold.fold.tokens", "{token}", "Tokens folded"),
            fold_lag_seconds=seconds("memfold.fold.lag", "Append of a turn to the commit that folded it"),
            fold_lag_turns=counts("memfold.fold.lag.turns", "{turn}", "Turns that one commit caught up"),
            fold_lag_tokens=counts("memfold.fold.lag.tokens", "{token}", "Tokens that one commit caught up"),
            first_token_seconds=seconds("memfold.first_token", "Generate to its first token"),
            generated_tokens=meter.create_counter("memfold.generated.tokens", "{token}", "Tokens generated"),
            open_streams=meter.create_up_down_counter("memfold.open_streams", "{stream}", "Generations running now"),
            engine_active=meter.create_gauge("memfold.engine.active", "{request}", "Requests that the engine works on"),
            engine_waiting=meter.create_gauge("memfold.engine.waiting", "{request}", "Requests that wait for a slot"),
            engine_slots=meter.create_gauge("memfold.engine.slots", "{request}", "Requests that can be active at once"),
            engine_kv_tokens=meter.create_gauge("memfold.engine.kv_tokens", "{token}", "Keys and values that are held"),
            states_damaged=meter.create_counter("memfold.states.damaged", "{state}", "Stored states found damaged"),
        )


class _Silence:
    """Stands in for any tracer, span, meter or instrument: takes every call, does nothing."""

    def __getattr__(self, name: str) -> Self:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *_: object, **__: object) -> Self:
        return self

    def __bool__(self) -> bool:
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> Literal[False]:
        return False


_SILENCE = _Silence()


class Telemetry:
    """What ``setup`` started. One is active in a process at a time."""

    def __init__(self, pipeline: Pipeline | None) -> None:
        self._pipeline = pipeline
        self.tracer = cast("Tracer", pipeline.tracer if pipeline else _SILENCE)
        self.meter = cast("Meter", pipeline.meter if pipeline else _SILENCE)
        self.instruments = Instruments.of(self.meter)

    def flush(self) -> None:
        """Send what is buffered."""
        if self._pipeline is not None:
            self._pipeline.flush()

    def shutdown(self, timeout_s: float = 5.0) -> None:
        """Send what is buffered, within ``timeout_s``, and take every instrumentation off. A second call does nothing."""
        global _active  # noqa: PLW0603  one service a process; the instrumentations patch the whole process as well
        if _active is self:
            _active = _SILENT
        if self._pipeline is not None:
            self._pipeline.shutdown(timeout_s)
            self._pipeline = None


_SILENT = Telemetry(None)
_active = _SILENT


def setup(service_name: str, metrics_port: int = 0, *, span_exporter: SpanExporter | None = None) -> Telemetry:
    """Start what the environment and the caller ask for; call it before any channel, server or Redis client is made.

    Traces and metrics go out by OTLP only where the standard ``OTEL_EXPORTER_OTLP_[TRACES_|METRICS_]ENDPOINT`` is set
    (``OTEL_TRACES_EXPORTER=none`` and ``OTEL_METRICS_EXPORTER=none`` turn either off again). With
    ``OTEL_SDK_DISABLED=true`` nothing is started at all. No span carries a turn: exception texts are cut out.

    Args:
        service_name: ``service.name``, unless ``OTEL_SERVICE_NAME`` says another.
        metrics_port: where Prometheus may scrape; 0 for nowhere.
        span_exporter: a further place for spans.

    Raises:
        RuntimeError: telemetry runs already in this process.
        OSError: the port is taken.
        ImportError: something was asked for and the ``service`` extra is not installed.
    """
    global _active  # noqa: PLW0603
    if _active is not _SILENT:
        raise RuntimeError("telemetry runs already in this process")
    otlp_traces, otlp_metrics = _otlp("TRACES"), _otlp("METRICS")
    asked = otlp_traces or otlp_metrics or metrics_port or span_exporter
    if not asked or os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return Telemetry(None)

    from memfold._otel import Pipeline  # noqa: PLC0415  the SDK is loaded only where it is used

    _active = Telemetry(
        Pipeline.start(
            os.environ.get("OTEL_SERVICE_NAME") or service_name,
            metrics_port=metrics_port,
            otlp_traces=otlp_traces,
            otlp_metrics=otlp_metrics,
            span_exporter=span_exporter,
        )
    )
    _log.info("telemetry: metrics port %s, OTLP traces %s, OTLP metrics %s", metrics_port, otlp_traces, otlp_metrics)
    return _active


def tracer() -> Tracer:
    """The tracer of the running service. Ask when a span starts, not at import."""
    return _active.tracer


def meter() -> Meter:
    """The meter of the running service, for what ``instruments`` lacks."""
    return _active.meter


def instruments() -> Instruments:
    """The instruments of the running service. Ask when there is something to note, not at import."""
    return _active.instruments


def _otlp(signal: Literal["TRACES", "METRICS"]) -> bool:
    """Whether the standard variables ask for this signal. They belong to OpenTelemetry, so no service's settings hold them."""
    environ: Mapping[str, Any] = os.environ
    if environ.get(f"OTEL_{signal}_EXPORTER", "").strip() == "none":
        return False
    return bool(environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or environ.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT"))
