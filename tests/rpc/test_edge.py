"""The error edge under real gRPC calls: one status, one ErrorInfo, and the server goes on."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc.aio import insecure_channel
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from memfold import telemetry
from memfold.api import errors
from memfold.api.v1 import errors_pb2
from memfold.api.v1 import generation_service_pb2 as pb
from memfold.api.v1 import generation_service_pb2_grpc as pb_grpc
from memfold.rpc.server import Server
from memfold.rpc.status import _CODES, UnreachableError, error_from, make_error, status_of

SECRET = "the text of a turn"


class Servicer(pb_grpc.GenerationServiceServicer):
    """Fails in every way that a handler can."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def Score(self, request, context):  # noqa: N802
        match request.text:
            case "known":
                raise errors.BacklogFullError("too many turns wait", facts={"backlog": "3"}, retry_after_ms=1500)
            case "unknown":
                raise RuntimeError(SECRET)
            case "cancels itself":
                future = asyncio.get_running_loop().create_future()
                future.cancel()
                await future
            case "own timeout":
                raise TimeoutError(SECRET)
            case "sleeps":
                try:
                    self.started.set()
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    self.cancelled.set()
                    raise
            case "huge error":
                raise errors.MemoryNotFoundError("m" * 100_000, facts={"name": "n" * 100_000})
        return pb.ScoreResponse(revision="fine")

    async def Generate(self, request, context) -> AsyncIterator[pb.GenerateResponse]:  # noqa: N802
        yield pb.GenerateResponse(delta=pb.TextDelta(text="a"))
        match request.memory:
            case "known":
                raise errors.StateDamagedError("damaged")
            case "unknown":
                raise RuntimeError(SECRET)
            case "sleeps":
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    self.cancelled.set()
                    raise


@pytest.fixture(params=[False, True], ids=["plain", "instrumented"])
def instrumented(request):
    """Everything holds with OpenTelemetry's instrumentation around it as well."""
    measuring = telemetry.setup("test", span_exporter=InMemorySpanExporter()) if request.param else None
    yield
    if measuring is not None:
        measuring.shutdown()


@pytest.fixture
async def served(tmp_path, instrumented):
    server, servicer = (
        Server("127.0.0.1:0", grace_s=0.3, reflection=True, ready_file=str(tmp_path / "ready")),
        Servicer(),
    )
    server.add(pb_grpc.add_GenerationServiceServicer_to_server, servicer)
    await server.start()
    # A plain channel: the instrumented one keeps cancellations to itself.
    async with insecure_channel(server.address) as channel:
        yield server, servicer, pb_grpc.GenerationServiceStub(channel), channel
    await server.stop()


def infos(error: grpc.RpcError) -> list[error_details_pb2.ErrorInfo]:
    """Every ErrorInfo of a failed call."""
    found = []
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for packed in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if packed.Unpack(info):
                    found.append(info)
    return found


async def failure(call) -> tuple[str, str, error_details_pb2.ErrorInfo]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    (info,) = infos(caught.value)
    return caught.value.code().name, info.reason, info


async def test_an_error_of_the_family_arrives_with_its_code_reason_facts_and_delay(served):
    _, _, stub, _ = served
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Score(pb.ScoreRequest(text="known"))
    (info,) = infos(caught.value)
    assert (caught.value.code(), info.reason, info.domain) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "BACKLOG_FULL",
        "memfold.api.v1",
    )
    error = error_from(caught.value)
    assert isinstance(error, errors.BacklogFullError)
    assert (error.facts, error.retry_after_ms) == ({"backlog": "3"}, 1500)


async def test_an_unknown_exception_is_internal_and_neither_client_nor_log_see_its_text(served, caplog):
    _, _, stub, _ = served
    with caplog.at_level(logging.DEBUG):
        code, reason, info = await failure(stub.Score(pb.ScoreRequest(text="unknown")))
    assert (code, reason) == ("INTERNAL", "INTERNAL")
    assert info.metadata["trace_id"] in caplog.text
    assert "RuntimeError" in caplog.text
    assert SECRET not in caplog.text
    assert SECRET not in str(info)


async def test_a_handler_that_is_cancelled_from_within_still_answers(served):
    _, _, stub, _ = served
    code, reason, _ = await failure(stub.Score(pb.ScoreRequest(text="cancels itself"), timeout=10))
    assert (code, reason) == ("INTERNAL", "INTERNAL")


async def test_a_timeout_inside_is_not_taken_for_the_deadline(served):
    _, _, stub, _ = served
    code, reason, _ = await failure(stub.Score(pb.ScoreRequest(text="own timeout"), timeout=10))
    assert (code, reason) == ("INTERNAL", "INTERNAL")


async def test_bytes_that_are_no_message_are_malformed_and_the_server_goes_on(served):
    _, _, stub, channel = served
    raw = channel.unary_unary("/memfold.api.v1.GenerationService/Score")
    for data in (b"\xff\xff\xff", b"\x12\x02\xff\xfe", b"\x0a\x05abc"):
        code, reason, _ = await failure(raw(data))
        assert (code, reason) == ("INVALID_ARGUMENT", "MALFORMED_REQUEST")
    assert (await stub.Score(pb.ScoreRequest())).revision == "fine"


async def test_a_request_larger_than_allowed_names_its_size(served):
    _, _, _, channel = served
    raw = channel.unary_unary("/memfold.api.v1.GenerationService/Score")
    code, reason, info = await failure(raw(b"\0" * (17 * 2**20)))
    assert (code, reason, info.metadata["field"]) == ("INVALID_ARGUMENT", "INVALID_FIELD", "request")


async def test_an_unknown_method_is_named_so(served):
    _, _, _, channel = served
    for method in ("/memfold.api.v1.GenerationService/Nothing", "/nothing.Service/At"):
        code, reason, _ = await failure(channel.unary_unary(method)(b""))
        assert (code, reason) == ("UNIMPLEMENTED", "UNKNOWN_METHOD")


async def test_a_deadline_is_answered_by_the_server_before_the_client_gives_up(served):
    _, servicer, stub, _ = served
    code, reason, _ = await failure(stub.Score(pb.ScoreRequest(text="sleeps"), timeout=2))
    assert (code, reason) == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")
    assert servicer.cancelled.is_set()


async def test_a_stream_is_cut_at_its_deadline_with_a_reason(served):
    _, servicer, stub, _ = served
    call = stub.Generate(pb.GenerateRequest(memory="sleeps"), timeout=2)
    assert (await call.read()).delta.text == "a"
    code, reason, _ = await failure(call.read())
    assert (code, reason) == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")
    assert servicer.cancelled.is_set()


@pytest.mark.parametrize(("kind", "expected"), [("known", "STATE_DAMAGED"), ("unknown", "INTERNAL")])
async def test_a_stream_that_fails_half_way_ends_with_a_reason(served, kind, expected):
    _, _, stub, _ = served
    call = stub.Generate(pb.GenerateRequest(memory=kind))
    assert (await call.read()).delta.text == "a"
    assert (await failure(call.read()))[1] == expected


@pytest.mark.parametrize("streams", [False, True])
async def test_a_client_that_goes_away_cancels_the_handler(served, streams):
    _, servicer, stub, _ = served
    if streams:
        call = stub.Generate(pb.GenerateRequest(memory="sleeps"))
        await call.read()
    else:
        call = asyncio.ensure_future(stub.Score(pb.ScoreRequest(text="sleeps")))
        await servicer.started.wait()
    call.cancel()
    async with asyncio.timeout(5):
        await servicer.cancelled.wait()


async def test_an_error_longer_than_metadata_may_be_is_cut(served):
    _, _, stub, _ = served
    code, reason, _ = await failure(stub.Score(pb.ScoreRequest(text="huge error")))
    assert (code, reason) == ("NOT_FOUND", "MEMORY_NOT_FOUND")


async def test_stopping_ends_calls_that_outlast_the_grace_with_a_reason(served):
    server, servicer, stub, _ = served
    unary = asyncio.ensure_future(stub.Score(pb.ScoreRequest(text="sleeps")))
    await servicer.started.wait()
    stream = stub.Generate(pb.GenerateRequest(memory="sleeps"))
    await stream.read()
    stopping = asyncio.create_task(server.stop())
    for call in (unary, stream.read()):
        code, reason, _ = await failure(call)
        assert (code, reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
    await stopping


async def test_health_watch_and_reflection_work_behind_the_edge(served):
    server, _, _, channel = served
    health = health_pb2_grpc.HealthStub(channel)
    watch = health.Watch(health_pb2.HealthCheckRequest(service="memfold.api.v1.GenerationService"))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    await server.set_serving(True)
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()

    describe = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="memfold.api.v1.GenerationService"),
    ]
    services, files = [answer async for answer in describe(iter(requests))]
    assert "memfold.api.v1.GenerationService" in [s.name for s in services.list_services_response.service]
    assert files.file_descriptor_response.file_descriptor_proto


async def test_the_ready_file_appears_when_everything_serves(served, tmp_path: Path):
    server, _, _, _ = served
    await server.set_serving(True, "memfold.api.v1.GenerationService")
    assert not (tmp_path / "ready").exists(), "one service is not all of them"
    await server.set_serving(True)
    assert json.loads((tmp_path / "ready").read_text())["address"] == server.address


async def test_two_servers_do_not_share_a_port(served):
    with pytest.raises(OSError, match="cannot listen"):
        await Server(served[0].address).start()


async def test_a_channel_to_nowhere_is_unreachable():
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await pb_grpc.GenerationServiceStub(channel).GetModel(pb.GetModelRequest())
    assert isinstance(error_from(caught.value), UnreachableError)


def test_every_reason_of_the_protos_has_a_code_and_keeps_its_class():
    names = {name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.keys()}  # noqa: SIM118
    names.discard("UNSPECIFIED")
    assert set(_CODES) == names

    class PrivateError(errors.MemfoldError):
        """Never leaves its process; what a server calls INTERNAL must not become one of these."""

    assert type(make_error("INTERNAL", "", {}, 0)) is errors.MemfoldError
    for kind in errors.MemfoldError.__subclasses__():
        if kind is not UnreachableError and "reason" in vars(kind):
            assert kind.reason in names
            assert type(make_error(kind.reason, "", {}, 0)) is kind
            assert status_of(make_error(kind.reason, "", {}, 0))[0] != grpc.StatusCode.UNKNOWN
