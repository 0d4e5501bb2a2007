"""GenerationService through the gateway: checked here, answered by a reader, its errors unchanged."""

import asyncio

import grpc
import pytest
from grpc.aio import insecure_channel
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from memfold import telemetry
from memfold.api.errors import MemoryNotFoundError, ModelLoadingError, PromptTooLongError
from memfold.api.v1 import generation_service_pb2 as pb
from memfold_gateway.gateway import gateway

ALICE = "tenants/acme/memories/alice"


@pytest.fixture
async def proxied(reader, gateway_redis, store, kit, tmp_path):
    """A gateway with a reader behind it: the reader's servicer, and stubs on the gateway."""
    servicer, address = reader
    settings = kit.settings(tmp_path, gateway_redis.url, address)
    async with gateway(settings) as server, grpc.aio.insecure_channel(server.address) as channel:
        yield servicer, kit.stubs(channel)


def prompt(content="Where do I live?", **fields):
    return pb.GenerateRequest(memory=ALICE, messages=[pb.Message(role="user", content=content)], **fields)


async def test_calls_reach_the_reader_as_they_came_and_its_answers_come_back(proxied):
    servicer, api = proxied
    request = prompt(sampling=pb.Sampling(temperature=0.5, seed=7), memory_options=pb.MemoryOptions(gain=0))
    answers = [answer async for answer in api.generation.Generate(request)]
    assert "".join(answer.delta.text for answer in answers) == "Lisbon"
    assert answers[-1].summary.finish_reason == pb.FINISH_REASON_END_OF_TURN
    score = await api.generation.Score(pb.ScoreRequest(memory=ALICE, text="a", continuations=["b", "c"]))
    assert [s.log_probability for s in score.scores] == [-1.5, -1.5]
    assert (await api.generation.GetModel(pb.GetModelRequest())).model.backbone == "tiny"
    assert [method for method, _, _ in servicer.seen] == ["Generate", "Score", "GetModel"]
    assert servicer.seen[0][1] == request


async def test_the_first_token_does_not_wait_for_the_last(proxied):
    _, api = proxied
    call = api.generation.Generate(prompt("forever"))
    assert (await call.read()).delta.text == "Lis"
    call.cancel()


async def test_the_deadline_goes_along(proxied, kit):
    servicer, api = proxied
    call = api.generation.Generate(prompt("forever"), timeout=2)
    await call.read()
    found = await kit.failure(call.read())
    assert (found.code, found.reason) == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")
    assert 0 < servicer.seen[0][2] < 2
    async with asyncio.timeout(5):
        await servicer.cancelled.wait()


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("traced", [True, False])
async def test_a_client_that_goes_away_stops_the_reader(reader, gateway_redis, store, kit, tmp_path, streams, traced):
    servicer, address = reader
    measuring = telemetry.setup("test", span_exporter=InMemorySpanExporter()) if traced else None
    try:
        settings = kit.settings(tmp_path, gateway_redis.url, address)
        async with gateway(settings) as server, insecure_channel(server.address) as channel:
            api = kit.stubs(channel)
            if streams:
                call = api.generation.Generate(prompt("forever"))
                await call.read()
            else:
                call = api.generation.Score(pb.ScoreRequest(text="forever", continuations=["x"]))
                await servicer.started.wait()
            call.cancel()
            async with asyncio.timeout(5):
                await servicer.cancelled.wait()
    finally:
        if measuring is not None:
            measuring.shutdown()
    assert ("traceparent" in servicer.metadata) is traced


@pytest.mark.parametrize(
    ("fault", "code", "facts"),
    [
        (MemoryNotFoundError("not there", facts={"memory": ALICE}), "NOT_FOUND", {"memory": ALICE}),
        (PromptTooLongError("too long", facts={"tokens": "9"}), "INVALID_ARGUMENT", {"tokens": "9"}),
        (ModelLoadingError("loading", retry_after_ms=700), "UNAVAILABLE", {}),
    ],
)
async def test_the_reader_s_reasons_pass_through(proxied, kit, fault, code, facts):
    servicer, api = proxied
    servicer.fault = fault
    for call in (
        api.generation.Generate(prompt()).read(),
        api.generation.Score(pb.ScoreRequest(text="a", continuations=["b"])),
        api.generation.GetModel(pb.GetModelRequest()),
    ):
        found = await kit.failure(call)
        assert (found.code, found.reason, found.facts, found.retry_ms) == (
            code,
            fault.reason,
            facts,
            fault.retry_after_ms,
        )


async def test_a_fault_of_the_reader_stays_without_details(proxied, kit):
    servicer, api = proxied
    servicer.fault = RuntimeError("the text of a turn")
    found = await kit.failure(api.generation.GetModel(pb.GetModelRequest()))
    assert (found.code, found.reason) == ("INTERNAL", "INTERNAL")
    assert "text" not in found.message
    assert found.facts["trace_id"]


async def test_without_a_reader_the_reason_says_so(api, kit):
    for call in (
        api.generation.Generate(prompt()).read(),
        api.generation.Score(pb.ScoreRequest(text="a", continuations=["b"])),
        api.generation.GetModel(pb.GetModelRequest()),
    ):
        found = await kit.failure(call)
        assert (found.code, found.reason) == ("UNAVAILABLE", "READER_UNAVAILABLE")


async def test_a_reader_that_stops_in_the_middle_is_noticed_and_its_successor_is_used(
    gateway_redis, store, kit, tmp_path
):
    first = kit.reader_server(kit.StubReader())
    address = await first.start()
    settings = kit.settings(tmp_path, gateway_redis.url, address)
    async with gateway(settings) as server, grpc.aio.insecure_channel(server.address) as channel:
        api = kit.stubs(channel)
        call = api.generation.Generate(prompt("forever"))
        await call.read()
        await first.stop()
        found = await kit.failure(call.read())
        assert (found.code, found.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
        assert (await kit.failure(api.generation.GetModel(pb.GetModelRequest()))).reason == "READER_UNAVAILABLE"
        second = kit.reader_server(kit.StubReader(), listen=address)
        await second.start()
        reasons = set()
        async with asyncio.timeout(15):
            while True:
                try:
                    await api.generation.GetModel(pb.GetModelRequest())
                    break
                except grpc.aio.AioRpcError as error:
                    reasons.add(kit.failure_of(error).reason)
                    await asyncio.sleep(0.1)
        assert reasons <= {"READER_UNAVAILABLE"}
        await second.stop()
