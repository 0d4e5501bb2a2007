"""The three services as real processes, and a collector that listens to what they say of themselves."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent import futures

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from memfold.api.v1 import generation_service_pb2 as generation_pb
from memfold.api.v1 import generation_service_pb2_grpc as generation_grpc
from memfold.api.v1 import memory_service_pb2 as pb
from memfold.api.v1 import memory_service_pb2_grpc as pb_grpc
from memfold.hints import TASK

pytestmark = [pytest.mark.platform, pytest.mark.timeout(600)]

CANARY = "my-cat-is-called-Mortimer"
KEY = "mfk_acme_of-this-test"
METADATA = (("authorization", f"Bearer {KEY}"),)
MEMORY = "tenants/acme/memories/alice"


class Collector(trace_service_pb2_grpc.TraceServiceServicer, metrics_service_pb2_grpc.MetricsServiceServicer):
    """Keeps every span, by the service that sent it, and the names of all metrics."""

    def __init__(self):
        self.spans = []
        self.metrics = set()
        self.heard = ""

    def Export(self, request, context):  # noqa: N802
        self.heard += str(request)
        if isinstance(request, metrics_service_pb2.ExportMetricsServiceRequest):
            for resource in request.resource_metrics:
                for scope in resource.scope_metrics:
                    self.metrics |= {metric.name for metric in scope.metrics}
            return metrics_service_pb2.ExportMetricsServiceResponse()
        for resource in request.resource_spans:
            (service,) = [a.value.string_value for a in resource.resource.attributes if a.key == "service.name"]
            for scope in resource.scope_spans:
                self.spans += [(service, span) for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture(scope="module")
def collector():
    heard = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(heard, server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(heard, server)
    heard.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield heard
    server.stop(None).wait()


class Service:
    """A service as a process. Leaving it asks it to stop, which makes it send what it has buffered."""

    def __init__(self, service, directory, **settings):
        self._ready = directory / f"{service}.json"
        self._log = directory / f"{service}.log"
        environment = {
            "MEMFOLD_READY_FILE": str(self._ready),
            "MEMFOLD_LISTEN": "127.0.0.1:0",
            "OMP_NUM_THREADS": "1",
            **{name if name.isupper() else f"MEMFOLD_{name.upper()}": str(value) for name, value in settings.items()},
        }
        with self._log.open("wb") as log:
            command = [sys.executable, "-P", "-m", f"memfold_{service}"]
            self._process = subprocess.Popen(command, env=os.environ | environment, cwd=directory, stderr=log)

    def address(self):
        deadline = time.monotonic() + 180
        while not self._ready.exists():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.02)
        return json.loads(self._ready.read_text())["address"]

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            if kind is None:
                self._process.send_signal(signal.SIGTERM)
                assert self._process.wait(60) == 0, self._log.read_text()
        finally:
            self._process.kill()
            self._process.wait()


@pytest.fixture(scope="module")
def heard(collector, redis_server, tmp_path_factory):
    """What the collector heard after a turn was appended and folded, and one question asked."""
    from memfold_osam.testing import write_random_model  # noqa: PLC0415  brings torch

    directory = tmp_path_factory.mktemp("services")
    keys = directory / "keys.json"
    keys.write_text(json.dumps({hashlib.sha256(KEY.encode()).hexdigest(): "acme"}))
    model = write_random_model(directory / "model")
    shared = {
        "redis_url": redis_server.url,
        "grace_s": 20,
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
        "OTEL_METRIC_EXPORT_INTERVAL": "500",
    }
    device = {"backbone": model, "device": "cpu", "threads": 1}
    with (
        # The reconciler keeps quiet: what it finds before the hint arrives would be folded in a trace of its own.
        Service("writer", directory, **shared, **device, reconcile_s=60) as writer,
        Service("reader", directory, **shared, **device) as reader,
        Service("gateway", directory, **shared, api_keys_file=keys, reader_target=reader.address()) as gateway,
        grpc.insecure_channel(gateway.address()) as channel,
    ):
        writer.address()
        memories, generation = pb_grpc.MemoryServiceStub(channel), generation_grpc.GenerationServiceStub(channel)
        turn = pb.Turn(id="one", role="user", content=CANARY)
        request = pb.AppendTurnsRequest(memory=MEMORY, turns=[turn], allow_missing=True)
        memories.AppendTurns(request, metadata=METADATA, timeout=30)
        memories.WaitForRevision(pb.WaitForRevisionRequest(memory=MEMORY), metadata=METADATA, timeout=60)
        question = generation_pb.GenerateRequest(memory=MEMORY)
        question.messages.add(role="user", content=CANARY)
        question.sampling.max_tokens = 4
        assert list(generation.Generate(question, metadata=METADATA, timeout=60))
        other = pb.Turn(id="one", role="user", content=f"not {CANARY}")
        with pytest.raises(grpc.RpcError) as caught:
            memories.AppendTurns(pb.AppendTurnsRequest(memory=MEMORY, turns=[other]), metadata=METADATA, timeout=30)
        assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
    collector.logs = "".join(path.read_text() for path in directory.glob("*.log"))
    return collector


def path_to_root(heard, leaf):
    """The span and its ancestors, as (service, name)."""
    by_id = {span.span_id: (service, span) for service, span in heard.spans}
    found = []
    service, span = leaf
    while True:
        found.append((service, span.name))
        if not span.parent_span_id:
            return found[::-1]
        service, span = by_id[span.parent_span_id]


def test_one_trace_runs_from_append_turns_to_the_commit(heard):
    (commit,) = [entry for entry in heard.spans if entry[1].name == "memfold.commit"]
    path = path_to_root(heard, commit)
    assert path[0] == ("memfold-gateway", "/memfold.api.v1.MemoryService/AppendTurns")
    assert ("memfold-gateway", f"apply_async/{TASK}") in path
    assert ("memfold-writer", f"run/{TASK}") in path
    stored = [span for service, span in heard.spans if span.parent_span_id == commit[1].span_id]
    assert stored  # the script that commits, on Redis
    assert {span.trace_id for span in stored} == {commit[1].trace_id}


def test_one_trace_runs_from_the_gateway_to_the_reader(heard):
    name = "/memfold.api.v1.GenerationService/Generate"
    (asked,) = [entry for entry in heard.spans if entry[0] == "memfold-reader" and entry[1].name == name]
    path = path_to_root(heard, asked)
    assert path[0] == ("memfold-gateway", name)
    assert set(path) == {("memfold-gateway", name), ("memfold-reader", name)}


def test_the_collector_gets_the_metrics_of_all_services(heard):
    assert heard.metrics >= {
        "memfold.append.ack",
        "memfold.behind.memories",
        "memfold.behind.oldest",
        "memfold.fold",
        "memfold.fold.tokens",
        "memfold.fold.lag",
        "memfold.fold.lag.turns",
        "memfold.fold.lag.tokens",
        "memfold.first_token",
        "memfold.generated.tokens",
        "memfold.open_streams",
    }


def test_neither_spans_nor_metrics_nor_logs_hold_a_turn_or_a_key(heard):
    assert len(heard.spans) > 5
    for secret in (CANARY, KEY):
        assert secret not in heard.heard
        assert secret not in heard.logs


def test_looking_for_work_leaves_no_spans(heard):
    roots = {span.name for _, span in heard.spans if not span.parent_span_id}
    assert all(name.startswith("/memfold.api.v1.") or name == f"apply_async/{TASK}" for name in roots), roots
