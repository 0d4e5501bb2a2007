"""Traces and metrics, with real servers, a real Redis, a real Celery worker and a real collector."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent import futures

import grpc
import pytest
import redis
import redis.asyncio
from celery.contrib.testing.worker import start_worker
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from memfold import hints, telemetry

CANARY = "my-cat-is-called-Mortimer"
FINGERPRINT = "ab" * 32
OTEL_VARIABLES = [
    "OTEL_SDK_DISABLED",
    "OTEL_SERVICE_NAME",
    "OTEL_TRACES_EXPORTER",
    "OTEL_METRICS_EXPORTER",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in OTEL_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def traced():
    """Telemetry with an in-memory exporter; calling it gives the finished spans."""
    exporter = InMemorySpanExporter()
    running = telemetry.setup("test", span_exporter=exporter)

    def spans():
        running.flush()
        return exporter.get_finished_spans()

    yield spans
    running.shutdown()


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def scrape(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return answer.read().decode()


# --- on and off -------------------------------------------------------------------------------------------------------


def test_a_client_works_where_opentelemetry_is_not_installed():
    program = """
import sys
sys.modules["opentelemetry"] = None  # importing it fails
from memfold import telemetry
running = telemetry.setup("client")
with telemetry.tracer().start_as_current_span("nothing") as span:
    span.set_attribute("a", 1)
telemetry.instruments().append_ack_seconds.record(0.1)
telemetry.instruments().open_streams.add(-1, {"a": "b"})
telemetry.instruments().behind_memories.set(3)
telemetry.meter().create_counter("memfold.other").add(1)
running.flush()
running.shutdown()
try:
    telemetry.setup("client", metrics_port=1)
except ImportError:
    print("asked for, and not there")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "asked for, and not there\n"


def test_nothing_is_patched_or_loaded_when_nobody_asks():
    program = """
import sys, grpc.aio
from memfold import telemetry
before = grpc.aio.server
telemetry.setup("quiet")
assert grpc.aio.server is before
assert not [name for name in sys.modules if name.startswith("opentelemetry.sdk")]
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_the_sdk_switch_turns_everything_off(monkeypatch, free_port):
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    running = telemetry.setup("off", free_port, span_exporter=InMemorySpanExporter())
    with contextlib.closing(socket.socket()) as probe:
        assert probe.connect_ex(("127.0.0.1", free_port)) != 0
    assert not telemetry.tracer().start_as_current_span("x")
    running.shutdown()


def test_it_runs_once_at_a_time_and_as_often_as_asked(traced):
    with pytest.raises(RuntimeError, match="runs already"):
        telemetry.setup("second", span_exporter=InMemorySpanExporter())


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_prometheus_sees_every_instrument_under_its_promised_name(free_port):
    for _ in range(2):  # each run has a registry of its own
        running = telemetry.setup("shown", free_port)
        numbers = telemetry.instruments()
        for histogram in (
            numbers.append_ack_seconds,
            numbers.fold_seconds,
            numbers.fold_lag_seconds,
            numbers.fold_lag_turns,
            numbers.fold_lag_tokens,
            numbers.first_token_seconds,
        ):
            histogram.record(0.02)
        for counter in (numbers.fold_tokens, numbers.generated_tokens):
            counter.add(7)
        for gauge in (numbers.behind_memories, numbers.behind_oldest_seconds):
            gauge.set(3, {"fingerprint": "abc"})
        numbers.open_streams.add(2)
        numbers.open_streams.add(-1)
        lines = scrape(free_port).splitlines()
        running.shutdown()

        types = dict(line.split()[2:4] for line in lines if line.startswith("# TYPE memfold_"))
        assert types == {
            "memfold_append_ack_seconds": "histogram",
            "memfold_behind_memories": "gauge",
            "memfold_behind_oldest_seconds": "gauge",
            "memfold_fold_seconds": "histogram",
            "memfold_fold_tokens_total": "counter",
            "memfold_fold_lag_seconds": "histogram",
            "memfold_fold_lag_turns": "histogram",
            "memfold_fold_lag_tokens": "histogram",
            "memfold_first_token_seconds": "histogram",
            "memfold_generated_tokens_total": "counter",
            "memfold_open_streams": "gauge",
        }
        values = {line.partition("{")[0]: line.rpartition(" ")[2] for line in lines if not line.startswith("#")}
        assert values["memfold_open_streams"] == "1.0"
        assert values["memfold_fold_tokens_total"] == "7.0"
        assert any('le="0.025"' in line for line in lines)  # buckets fit seconds, not milliseconds
    assert telemetry.instruments() is not numbers


def test_a_taken_port_is_an_error(free_port):
    with contextlib.closing(socket.create_server(("0.0.0.0", free_port))), pytest.raises(OSError, match="in use"):
        telemetry.setup("unlucky", free_port)
    telemetry.setup("lucky").shutdown()


# --- OTLP -------------------------------------------------------------------------------------------------------------


class Collector(trace_service_pb2_grpc.TraceServiceServicer, metrics_service_pb2_grpc.MetricsServiceServicer):
    """Takes what exporters send."""

    def __init__(self):
        self.received = []

    def Export(self, request, context):  # noqa: N802
        self.received.append(request)
        if isinstance(request, trace_service_pb2.ExportTraceServiceRequest):
            return trace_service_pb2.ExportTraceServiceResponse()
        return metrics_service_pb2.ExportMetricsServiceResponse()


def test_spans_and_metrics_reach_a_collector_named_by_the_standard_variables(monkeypatch):
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")

    running = telemetry.setup("memfold-test")
    with telemetry.tracer().start_as_current_span("kept"):
        telemetry.instruments().fold_tokens.add(11)
    running.shutdown()
    server.stop(None).wait()

    traces = [r for r in collector.received if isinstance(r, trace_service_pb2.ExportTraceServiceRequest)]
    metrics = [r for r in collector.received if isinstance(r, metrics_service_pb2.ExportMetricsServiceRequest)]
    resource = {a.key: a.value.string_value for a in traces[0].resource_spans[0].resource.attributes}
    assert resource["service.name"] == "memfold-test"
    assert resource["service.instance.id"]
    assert [s.name for s in traces[0].resource_spans[0].scope_spans[0].spans] == ["kept"]
    assert "memfold.fold.tokens" in str(metrics[-1])


def test_each_signal_can_be_turned_off_again(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    telemetry.setup("off").shutdown()
    assert not telemetry.tracer()


def test_a_collector_that_is_down_does_not_hold_the_service_up(monkeypatch, free_port):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"http://127.0.0.1:{free_port}")
    running = telemetry.setup("patient")
    with telemetry.tracer().start_as_current_span("lost"):
        pass
    began = time.monotonic()
    running.shutdown(timeout_s=1)
    assert time.monotonic() - began < 3


# --- what a span may hold -----------------------------------------------------------------------------------------------


async def test_no_span_holds_what_was_sent_to_redis(traced, redis_url):
    client = redis.asyncio.Redis.from_url(redis_url)
    with telemetry.tracer().start_as_current_span("request"):
        await client.set(f"key:{CANARY}", CANARY)
        await client.eval("return redis.call('XADD', KEYS[1], '*', 'turn', ARGV[1])", 1, "log", CANARY)
        await client.xrange("log")
        async with client.pipeline(transaction=True) as pipeline:
            pipeline.rpush("list", CANARY)
            pipeline.get(f"key:{CANARY}")
            await pipeline.execute()
        with contextlib.suppress(redis.ResponseError):
            await client.execute_command("NONSENSE", CANARY)  # the reply quotes the arguments
        with contextlib.suppress(redis.ResponseError):
            await client.eval("error('no ' .. ARGV[1])", 0, CANARY)  # so does a script's error
        with contextlib.suppress(redis.ResponseError):
            async with client.pipeline() as pipeline:
                pipeline.incr(f"key:{CANARY}")  # redis-py itself quotes the command
                await pipeline.execute()
        await client.flushdb()
    await client.aclose()

    spans = traced()
    failed = [event for span in spans for event in span.events if event.name == "exception"]
    assert {span.name for span in spans} >= {"SET", "EVAL", "XRANGE", "RPUSH GET", "NONSENSE", "request"}
    assert len(failed) == 3
    assert all(set(event.attributes) == {"exception.type", "exception.escaped"} for event in failed)
    assert CANARY not in " ".join(span.to_json() for span in spans)


class Echo(grpc.GenericRpcHandler):
    """Answers with what it got; ``Fail`` fails with it; ``Count`` streams until it is cancelled."""

    def __init__(self):
        self.cancelled = asyncio.Event()
        self.within = None

    def service(self, call):
        if call.method == "/t.Test/Echo":
            return grpc.unary_unary_rpc_method_handler(self.echo)
        if call.method == "/t.Test/Fail":
            return grpc.unary_unary_rpc_method_handler(self.fail)
        return grpc.unary_stream_rpc_method_handler(self.count)

    async def echo(self, request, context):
        if self.within is not None:
            await self.within()
        return request

    async def fail(self, request, context):
        await context.abort(grpc.StatusCode.INTERNAL, request.decode(), (("facts-bin", b"kept"),))

    async def count(self, request, context):
        try:
            while True:
                yield request
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


@contextlib.asynccontextmanager
async def serving(echo):
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((echo,))
    checks = health.aio.HealthServicer()
    await checks.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


async def test_no_span_holds_what_was_said_over_grpc(traced):
    async with serving(Echo()) as channel:
        secret = (("authorization", f"Bearer {CANARY}"),)
        with telemetry.tracer().start_as_current_span("caller"):
            assert await channel.unary_unary("/t.Test/Echo")(CANARY.encode(), metadata=secret) == CANARY.encode()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary("/t.Test/Fail")(CANARY.encode())
    # The instrumentation must not cost the caller what the error said.
    assert caught.value.details() == CANARY
    assert dict(caught.value.trailing_metadata())["facts-bin"] == b"kept"
    spans = traced()
    assert sorted(span.name for span in spans) == sorted(["/t.Test/Echo", "/t.Test/Fail"] * 2 + ["caller"])
    assert CANARY not in " ".join(span.to_json() for span in spans)


async def test_a_call_without_a_trace_starts_one_at_the_server(traced):
    async with serving(Echo()) as channel:
        with suppress_instrumentation():  # as a client without telemetry
            await channel.unary_unary("/t.Test/Echo")(b"hello")
    assert [(span.name, span.parent) for span in traced()] == [("/t.Test/Echo", None)]


async def test_cancelling_a_stream_reaches_the_server_through_the_instrumentation(traced, caplog):
    echo = Echo()
    async with serving(echo) as channel:
        call = channel.unary_stream("/t.Test/Count")(b"tick")
        async for message in call:
            assert message == b"tick"
            break
        call.cancel()
        await asyncio.wait_for(echo.cancelled.wait(), 5)
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


async def test_probes_and_lone_polls_make_no_spans(traced, redis_url):
    async with serving(Echo()) as channel:
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    client = redis.asyncio.Redis.from_url(redis_url)
    await client.ping()
    await client.aclose()
    assert traced() == ()


# --- one trace ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def worker(redis_url, drain):
    """A real Celery worker in a thread, as the writer's is, that runs ``drain(partition)`` for each hint."""
    app = hints.celery_app(redis_url)
    done = threading.Event()

    @app.task(name=hints.TASK, shared=False)
    def run(fingerprint, partition):
        done.set()
        drain(partition)

    app.conf.task_default_queue = hints.queue_name(FINGERPRINT)
    try:
        with start_worker(app, pool="solo", perform_ping_check=False, shutdown_timeout=20):
            yield done
    finally:
        app.close()


async def test_one_trace_runs_from_the_call_through_the_queue_to_the_commit(traced, redis_url):
    store = redis.Redis.from_url(redis_url)

    def drain(partition):
        with telemetry.tracer().start_as_current_span("commit"):
            store.set("committed", partition)

    echo = Echo()
    with worker(redis_url, drain) as done, hints.Hinter(redis_url) as hinter:

        async def hint():
            hinter.hint(FINGERPRINT, 17)

        echo.within = hint
        async with serving(echo) as channel:
            with telemetry.tracer().start_as_current_span("caller"):
                await channel.unary_unary("/t.Test/Echo")(b"append")
        assert await asyncio.to_thread(done.wait, 20)
    store.close()

    spans = {(span.name, span.kind.name): span for span in traced()}
    steps = [
        ("caller", "INTERNAL"),
        ("/t.Test/Echo", "CLIENT"),
        ("/t.Test/Echo", "SERVER"),
        (f"apply_async/{hints.TASK}", "PRODUCER"),
        (f"run/{hints.TASK}", "CONSUMER"),
        ("commit", "INTERNAL"),
        ("SET", "CLIENT"),
    ]
    chain = [spans[step] for step in steps]
    for parent, child in itertools.pairwise(chain):
        assert child.parent.span_id == parent.context.span_id
    assert len({span.context.trace_id for span in chain}) == 1


def test_no_span_holds_what_a_failed_task_said(traced, redis_url):
    def drain(_partition):
        raise ValueError(CANARY)

    with worker(redis_url, drain) as done, hints.Hinter(redis_url) as hinter:
        hinter.hint(FINGERPRINT, 17)
        assert done.wait(20)
    spans = traced()
    assert f"run/{hints.TASK}" in {span.name for span in spans}
    assert CANARY not in " ".join(span.to_json() for span in spans)
