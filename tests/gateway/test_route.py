"""Which reader a request goes to, and what becomes of it where that one fails: readers without a model, in this process."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass

import grpc
import pytest

from memfold.api.errors import (
    MemfoldError,
    MemoryNotFoundError,
    ModelLoadingError,
    ModelMismatchError,
    ReaderUnavailableError,
    ShuttingDownError,
    StoreUnavailableError,
)
from memfold.api.v1 import generation_service_pb2 as pb
from memfold.reader.v1 import load_service_pb2 as load_pb
from memfold.rpc.server import Server
from memfold_gateway import readers as readers_module
from memfold_gateway.gateway import gateway
from memfold_gateway.reader_link import LATE, ReaderLink
from memfold_gateway.reader_name import ReaderName

FOREVER = pb.GenerateRequest(messages=[pb.Message(role="user", content="forever")])
HELLO = pb.GenerateRequest(messages=[pb.Message(role="user", content="Hello")])
ALICE = ["tenants/acme/memories/alice-0", "tenants/acme/memories/alice-1"]
SCORE = pb.ScoreRequest(text="a", continuations=["b"])


@dataclass
class One:
    """A reader of this test."""

    stub: object
    load: object
    server: Server
    address: str

    @property
    def taken(self):
        return len(self.stub.seen)

    def says(self, **word):
        self.load.word = load_pb.WatchLoadResponse(
            **({"readiness": load_pb.READINESS_SERVING, "slots": 4, "fingerprint": "m"} | word)
        )


@pytest.fixture
async def open_readers(kit):
    """Starts so many readers."""
    async with AsyncExitStack() as stack:

        async def start(count):
            found = []
            for _ in range(count):
                stub, load = kit.StubReader(), kit.StubLoad()
                server = kit.reader_server(stub, load)
                found.append(One(stub, load, server, await server.start()))
                found[-1].says()
                stack.push_async_callback(server.stop)
            return found

        yield start


@pytest.fixture
async def behind(open_readers, gateway_redis, store, kit, tmp_path):
    """A gateway with readers behind it: starts them; answers with stubs on the gateway, and the readers."""
    async with AsyncExitStack() as stack:

        async def start(count=2):
            found = await open_readers(count)
            settings = kit.settings(tmp_path, gateway_redis.url, ", ".join(one.address for one in found))
            server = await stack.enter_async_context(gateway(settings))
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(server.address))
            return kit.stubs(channel), found

        yield start


async def until(condition, within_s=10):
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110  what is polled has no event
            await asyncio.sleep(0.01)


async def text_of(call):
    return "".join([answer.delta.text async for answer in call])


async def test_requests_go_where_there_is_least_to_do(behind):
    api, (first, second) = await behind()
    for _ in range(6):
        await text_of(api.generation.Generate(HELLO))
    assert (first.taken, second.taken) == (3, 3)
    streams = [api.generation.Generate(FOREVER) for _ in range(6)]
    for stream in streams:
        await stream.read()
    assert (first.taken, second.taken) == (6, 6)
    for stream in streams:
        stream.cancel()


async def test_what_other_gateways_have_given_a_reader_counts_by_its_slots(behind):
    api, (full, wide, third) = await behind(3)
    full.says(active=4, waiting=1)
    wide.says(active=8, slots=32)
    third.says(active=2)
    await asyncio.sleep(0.2)  # until the gateway has heard it
    for _ in range(5):
        await text_of(api.generation.Generate(HELLO))
    assert (full.taken, wide.taken, third.taken) == (0, 5, 0)


@pytest.mark.parametrize("readiness", [load_pb.READINESS_LOADING, load_pb.READINESS_DRAINING])
async def test_a_reader_that_is_not_ready_gets_nothing_until_it_is(behind, readiness):
    api, (first, second) = await behind()
    first.says(readiness=readiness)
    await asyncio.sleep(0.2)
    for _ in range(4):
        await text_of(api.generation.Generate(HELLO))
    assert (first.taken, second.taken) == (0, 4)
    first.says()
    await asyncio.sleep(0.2)
    for _ in range(4):
        await text_of(api.generation.Generate(HELLO))
    assert first.taken >= 2


@pytest.mark.parametrize(
    "fault",
    [
        ShuttingDownError("stopping"),
        ModelLoadingError("loading"),
        ReaderUnavailableError("full"),
        StoreUnavailableError("no store"),
    ],
)
async def test_what_a_reader_hands_back_another_one_answers(behind, fault):
    api, (first, second) = await behind()
    first.stub.fault = fault
    for _ in range(4):
        assert await text_of(api.generation.Generate(HELLO)) == "Lisbon"
        assert (await api.generation.Score(SCORE)).scores
    assert second.taken == 8
    assert first.taken < 8, "a reader that refuses is asked last for a moment"


async def test_a_fault_of_the_request_is_told_and_not_tried_again(behind, kit):
    api, (first, second) = await behind()
    first.stub.fault = second.stub.fault = MemoryNotFoundError("not there")
    assert (await kit.failure(api.generation.Generate(HELLO).read())).reason == "MEMORY_NOT_FOUND"
    first.stub.fault = second.stub.fault = MemfoldError("a fault")
    assert (await kit.failure(api.generation.Generate(HELLO).read())).reason == "INTERNAL"
    assert first.taken + second.taken == 2


async def test_where_every_reader_refuses_the_last_reason_is_told(behind, kit):
    api, found = await behind()
    for one in found:
        one.stub.fault = ReaderUnavailableError("the reader is full", retry_after_ms=900)
    failed = await kit.failure(api.generation.Generate(HELLO).read())
    assert (failed.code, failed.reason, failed.retry_ms) == ("UNAVAILABLE", "READER_UNAVAILABLE", 900)
    assert [one.taken for one in found] == [1, 1]


async def test_while_all_readers_load_their_model_the_reason_says_so(behind, kit):
    api, found = await behind()
    for one in found:
        one.says(readiness=load_pb.READINESS_LOADING)
    await asyncio.sleep(0.2)
    failed = await kit.failure(api.generation.GetModel(pb.GetModelRequest()))
    assert (failed.code, failed.reason, failed.retry_ms) == ("UNAVAILABLE", "MODEL_LOADING", 1000)


async def test_a_memory_is_answered_by_a_reader_of_its_own_model(behind, kit):
    api, (old, new, other) = await behind(3)
    new.says(fingerprint="new")
    other.says(fingerprint="other")
    mismatch = ModelMismatchError("of another model", facts={"memory_fingerprint": "new"})
    old.stub.fault = other.stub.fault = mismatch
    await asyncio.sleep(0.2)
    for _ in range(3):
        assert await text_of(api.generation.Generate(HELLO)) == "Lisbon"
    assert new.taken == 3
    assert old.taken + other.taken <= 3
    new.says(fingerprint="newer")
    await asyncio.sleep(0.2)
    new.stub.fault = mismatch
    assert (await kit.failure(api.generation.Generate(HELLO).read())).reason == "MODEL_MISMATCH"


async def test_what_has_begun_fails_cleanly_when_its_reader_ends_and_what_has_not_goes_on_elsewhere(behind, kit):
    api, (first, second) = await behind()
    begun = [
        api.generation.Generate(pb.GenerateRequest(messages=FOREVER.messages, memory=ALICE[at])) for at in range(2)
    ]
    for call in begun:
        await call.read()
    score = asyncio.ensure_future(api.generation.Score(pb.ScoreRequest(text="forever", continuations=["b"])))
    await until(lambda: first.taken + second.taken == 3)
    dying, other = (first, second) if first.taken == 2 else (second, first)
    await dying.server._server.stop(None)  # at once, without a word: as a kill would
    failed = await kit.failure(begun[ALICE.index(dying.stub.seen[0][1].memory)].read())
    assert (failed.code, failed.reason) == ("UNAVAILABLE", "READER_UNAVAILABLE")
    await until(lambda: other.taken == 2)
    score.cancel()
    assert await text_of(api.generation.Generate(HELLO)) == "Lisbon"


async def test_while_a_reader_stops_no_request_fails(behind):
    api, (first, second) = await behind()
    answered = []

    async def ask():
        while second.taken < 400:
            answered.append(await text_of(api.generation.Generate(HELLO)))

    asking = asyncio.gather(*(ask() for _ in range(20)))
    await until(lambda: first.taken > 50)
    await first.server.stop()
    await asking
    assert set(answered) == {"Lisbon"}


async def test_what_a_server_that_stops_has_not_looked_at_goes_elsewhere(gateway_redis, store, kit, tmp_path):
    class Stopping(kit.StubReader):
        async def Score(self, request, context):  # noqa: N802
            self.started.set()
            await context.abort(grpc.StatusCode.CANCELLED, "CANCELLED")  # as gRPC's core does of calls that wait

    stopping, other = Stopping(), kit.StubReader()
    servers = [kit.reader_server(stopping), kit.reader_server(other)]
    target = ",".join([await server.start() for server in servers])
    async with (
        gateway(kit.settings(tmp_path, gateway_redis.url, target)) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        while not stopping.started.is_set():
            assert (await kit.stubs(channel).generation.Score(SCORE)).scores
    for server in servers:
        await server.stop()


async def test_a_request_that_breaks_two_readers_is_not_given_to_a_third(behind, kit):
    api, found = await behind(3)
    score = asyncio.ensure_future(api.generation.Score(pb.ScoreRequest(text="forever", continuations=["b"])))
    for broken in range(2):
        await until(lambda: sum(one.taken for one in found) == broken + 1)  # noqa: B023  awaited within the round
        holder = next(one for one in found if one.taken and one.stub.started.is_set())
        holder.stub.started.clear()
        await holder.server._server.stop(None)
    failed = await kit.failure(score)
    assert (failed.code, failed.reason) == ("UNAVAILABLE", "READER_UNAVAILABLE")
    assert sorted(one.taken for one in found) == [0, 1, 1]


async def test_what_waits_at_a_reader_that_stops_moves_and_what_streams_stays(behind):
    api, (first, second) = await behind()
    second.says(active=100)
    await asyncio.sleep(0.2)
    stream = api.generation.Generate(FOREVER)
    await stream.read()
    score = asyncio.ensure_future(api.generation.Score(pb.ScoreRequest(text="forever", continuations=["b"])))
    await until(lambda: first.taken == 2)
    first.says(readiness=load_pb.READINESS_DRAINING)
    await until(lambda: second.taken == 1)
    assert not stream.done()
    score.cancel()
    stream.cancel()


async def test_where_there_is_no_other_reader_what_waits_at_one_that_stops_stays(behind):
    api, (only,) = await behind(1)
    score = asyncio.ensure_future(api.generation.Score(pb.ScoreRequest(text="forever", continuations=["b"])))
    await until(lambda: only.taken == 1)
    only.says(readiness=load_pb.READINESS_DRAINING)
    await asyncio.sleep(1.2)  # two beats
    assert not score.done()
    score.cancel()


async def test_a_silent_reader_is_left_then_given_up_and_taken_again_when_it_speaks(behind, kit, monkeypatch):
    monkeypatch.setattr(readers_module, "BEAT_S", 0.05)
    api, (first, second) = await behind()
    second.says(active=100)
    await asyncio.sleep(0.2)
    stream = api.generation.Generate(FOREVER)
    await stream.read()
    score = asyncio.ensure_future(api.generation.Score(pb.ScoreRequest(text="forever", continuations=["b"])))
    await until(lambda: first.taken == 2)
    first.load.quiet = True
    await until(lambda: second.taken == 1)
    assert not stream.done()
    assert await text_of(api.generation.Generate(HELLO)) == "Lisbon"
    assert (first.taken, second.taken) == (2, 2)
    failed = await kit.failure(stream.read())
    assert (failed.code, failed.reason) == ("UNAVAILABLE", "READER_UNAVAILABLE")
    first.load.quiet = False

    async def back():
        await text_of(api.generation.Generate(HELLO))
        return first.taken == 3

    async with asyncio.timeout(10):
        while not await back():
            pass
    score.cancel()


async def test_a_gateway_that_was_held_up_itself_does_not_take_its_readers_for_silent(open_readers, monkeypatch):
    (one,) = await open_readers(1)
    link = ReaderLink(one.address)
    await asyncio.wait_for(link.known.wait(), 10)
    for _ in range(LATE - 1):
        link.beat()
    assert link.serves
    link.beat()
    assert not link.serves
    await until(lambda: link.serves)
    await link.close()


async def test_readers_come_and_go_with_what_their_name_stands_for(
    open_readers, gateway_redis, store, kit, tmp_path, monkeypatch
):
    first, second = await open_readers(2)
    stands_for = {first.address}

    async def addresses(self):
        assert self == ReaderName("readers.test", 50052)
        if not stands_for:
            raise OSError("no such name")
        return set(stands_for)

    monkeypatch.setattr(ReaderName, "addresses", addresses)
    monkeypatch.setattr(readers_module, "_RESOLVE_S", 0.05)
    settings = kit.settings(tmp_path, gateway_redis.url, "dns:///readers.test:50052")
    async with gateway(settings) as server, grpc.aio.insecure_channel(server.address) as channel:
        api = kit.stubs(channel)
        stream = api.generation.Generate(FOREVER)
        await stream.read()
        stands_for.add(second.address)
        async with asyncio.timeout(10):
            while not second.taken:
                await text_of(api.generation.Generate(HELLO))
        stands_for.remove(first.address)
        await asyncio.sleep(0.2)
        before = first.taken
        for _ in range(4):
            await text_of(api.generation.Generate(HELLO))
        assert first.taken == before
        assert not stream.done()
        stands_for.clear()  # the name is not answered for: what was known holds
        await asyncio.sleep(0.2)
        assert await text_of(api.generation.Generate(HELLO)) == "Lisbon"
        stream.cancel()
