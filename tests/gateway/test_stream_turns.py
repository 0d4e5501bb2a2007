"""StreamTurns: an acknowledgement a turn, in order, at the pace that the log takes."""

import asyncio
import time

import grpc
import pytest

from memfold.api.v1 import errors_pb2
from memfold.api.v1 import memory_service_pb2 as pb
from memfold_gateway import turn_stream
from memfold_gateway.gateway import gateway

ALICE = "tenants/acme/memories/alice"
HOLD_S = 1.0


def request(content, memory=ALICE, turn_id="", role="user", create=True):
    return pb.StreamTurnsRequest(
        memory=memory, turn=pb.Turn(id=turn_id, role=role, content=content), allow_missing=create
    )


def memory_of(at):
    return f"tenants/acme/memories/m{at}"


@pytest.fixture
async def brisk(gateway_redis, store, kit, tmp_path, monkeypatch):
    """Stubs on a gateway that holds a stream up for a second only."""
    monkeypatch.setattr(turn_stream, "_HOLD_S", HOLD_S)
    settings = kit.settings(tmp_path, gateway_redis.url)
    async with gateway(settings) as server, grpc.aio.insecure_channel(server.address) as channel:
        yield kit.stubs(channel)


async def replay(requests):
    for one in requests:
        yield one


async def rest(call):
    """What is left of a call that was read from with ``read``."""
    found = []
    while (ack := await call.read()) is not grpc.aio.EOF:
        found.append(ack)
    return found


async def contents(api, memory=ALICE):
    page = await api.memory.ListTurns(pb.ListTurnsRequest(memory=memory, page_size=1000))
    return [turn.content for turn in page.turns]


async def test_each_turn_is_acknowledged_in_order(api, kit):
    requests = [request(f"turn {at}", turn_id=f"t{at}") for at in range(kit.BACKLOG)]
    acks = [ack async for ack in api.memory.StreamTurns(replay(requests))]
    assert [ack.appended.id for ack in acks] == [f"t{at}" for at in range(kit.BACKLOG)]
    assert [ack.appended.sequence for ack in acks] == list(range(1, kit.BACKLOG + 1))
    assert [int(ack.revision.split(".")[1]) for ack in acks] == list(range(1, kit.BACKLOG + 1))
    assert await contents(api) == [f"turn {at}" for at in range(kit.BACKLOG)]


async def test_a_turn_is_acknowledged_before_the_next_is_sent(api):
    call = api.memory.StreamTurns()
    for at in range(3):
        await call.write(request(f"turn {at}"))
        assert (await call.read()).appended.sequence == at + 1
    await call.done_writing()
    assert await rest(call) == []


async def test_turns_of_many_memories_keep_their_order_in_each(api):
    requests = [request(f"{at}", memory_of(at % 7)) for at in range(7 * 15)]
    acks = [ack async for ack in api.memory.StreamTurns(replay(requests))]
    assert [ack.memory for ack in acks] == [one.memory for one in requests]
    for which in range(7):
        assert await contents(api, memory_of(which)) == [str(at) for at in range(which, 7 * 15, 7)]


async def test_a_rejection_hits_only_the_turn_concerned(api):
    requests = [
        request("one", turn_id="t1"),
        request("other content", turn_id="t1"),
        request("bad role", turn_id="t3", role="bot"),
        request("", turn_id="t4"),
        request("another tenant", "tenants/other/memories/x", "t5"),
        request("no such memory", memory_of(1), "t6", create=False),
        request("no name", "nonsense", "t7"),
        request("two", turn_id="t8"),
        request("one", turn_id="t1"),
    ]
    acks = [ack async for ack in api.memory.StreamTurns(replay(requests))]
    outcomes = [
        errors_pb2.ErrorReason.Name(ack.rejection.reason).removeprefix("ERROR_REASON_")
        if ack.WhichOneof("outcome") == "rejection"
        else (ack.appended.sequence, ack.appended.duplicate)
        for ack in acks
    ]
    assert outcomes == [
        (1, False),
        "TURN_ID_CONFLICT",
        "INVALID_FIELD",
        "INVALID_FIELD",
        "TENANT_MISMATCH",
        "MEMORY_NOT_FOUND",
        "INVALID_FIELD",
        (2, False),
        (1, True),
    ]
    assert [ack.rejection.id for ack in acks[1:7]] == ["t1", "t3", "t4", "t5", "t6", "t7"]
    assert all(ack.rejection.message and not ack.revision for ack in acks[1:7])
    assert await contents(api) == ["one", "two"]


async def test_a_full_backlog_holds_the_stream_up_until_the_writer_has_caught_up(api, kit, store):
    requests = [request(f"turn {at}") for at in range(2 * kit.BACKLOG)]
    call = api.memory.StreamTurns(replay(requests))
    started = time.monotonic()
    acks = [await call.read() for _ in range(kit.BACKLOG)]
    assert time.monotonic() - started < 2, "turns that were appended waited for those that were not"
    await kit.fold(store, ALICE)
    acks += await rest(call)
    assert [ack.appended.sequence for ack in acks] == list(range(1, 2 * kit.BACKLOG + 1))
    assert await contents(api) == [f"turn {at}" for at in range(2 * kit.BACKLOG)]


async def test_a_backlog_that_stays_full_rejects_with_a_delay(api, kit):
    requests = [request(f"turn {at}") for at in range(kit.BACKLOG + 2)]
    acks = [ack async for ack in api.memory.StreamTurns(replay(requests))]
    assert [ack.WhichOneof("outcome") for ack in acks] == ["appended"] * kit.BACKLOG + ["rejection"] * 2
    assert acks[-1].rejection.reason == errors_pb2.ERROR_REASON_BACKLOG_FULL
    assert acks[-1].rejection.retry_after_ms > 0


async def test_bytes_that_are_no_turn_end_the_stream_after_what_came_before(api, kit):
    raw = api.channel.stream_stream("/memfold.api.v1.MemoryService/StreamTurns")
    call = raw(metadata=kit.authorization(), timeout=20)
    await call.write(request("good").SerializeToString())
    await call.write(b"\xff\xff\xff")
    assert pb.StreamTurnsResponse.FromString(await call.read()).appended.sequence == 1
    found = await kit.failure(call.read())
    assert (found.code, found.reason) == ("INVALID_ARGUMENT", "MALFORMED_REQUEST")


async def test_a_client_is_slowed_down_while_its_turns_cannot_be_taken(api, kit):
    await api.memory.AppendTurns(
        kit.append("alice", *[kit.turn(f"{at}") for at in range(kit.BACKLOG)], allow_missing=True)
    )
    written, big = 0, "x" * 200_000

    async def requests():
        nonlocal written
        for at in range(400):
            written += 1
            yield request(f"{at} {big}")

    call = api.memory.StreamTurns(requests())
    await asyncio.sleep(2)  # the gateway holds a stream up for longer
    assert written < 200, "80 MB of turns were taken in, none of which could be appended"
    call.cancel()


async def test_a_stream_that_is_cut_leaves_the_gateway_well(api):
    call = api.memory.StreamTurns()
    await call.write(request("one"))
    await call.read()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call.read()
    assert await contents(api) == ["one"]


async def test_a_deadline_ends_the_stream_with_a_reason(api, kit):
    call = api.memory.StreamTurns(timeout=2)
    await call.write(request("one"))
    await call.read()
    found = await kit.failure(call.read())
    assert (found.code, found.reason) == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")
    assert await contents(api) == ["one"]


async def test_behind_a_turn_that_was_turned_away_nothing_of_its_memory_gets_in_before_it_comes_again(
    brisk, kit, store
):
    """The rejection is in one batch, the turns behind it in later ones, and by then there is room."""
    first = [request(f"{at}", turn_id=f"t{at}") for at in range(kit.BACKLOG + 1)]
    call = brisk.memory.StreamTurns()
    for one in first:
        await call.write(one)
    acks = [await call.read() for _ in first]
    assert [ack.WhichOneof("outcome") for ack in acks] == ["appended"] * kit.BACKLOG + ["rejection"]
    await kit.fold(store, ALICE)

    async def send(*ids, memory=ALICE):
        for turn_id in ids:
            await call.write(request(turn_id, memory, turn_id=turn_id))
        return [(await call.read()) for _ in ids]

    late = await send("late-1", "late-2")
    assert [ack.rejection.reason for ack in late] == [errors_pb2.ERROR_REASON_BACKLOG_FULL] * 2
    assert all(ack.rejection.retry_after_ms > 0 for ack in late)
    (elsewhere,) = await send("elsewhere", memory=memory_of(1))
    assert elsewhere.appended.sequence == 1, "other memories are not held up"
    again = await send(f"t{kit.BACKLOG}", "late-1", "late-2", "new")
    assert [ack.appended.sequence for ack in again] == [kit.BACKLOG + at for at in (1, 2, 3, 4)]
    await call.done_writing()
    assert await rest(call) == []
    assert (await contents(brisk))[kit.BACKLOG :] == [f"t{kit.BACKLOG}", "late-1", "late-2", "new"]


async def test_a_turn_without_an_id_is_known_again_by_what_it_says(brisk, kit, store):
    full = [request(f"{at}") for at in range(kit.BACKLOG)]
    call = brisk.memory.StreamTurns()
    for one in [*full, request("turned away"), request("behind it")]:
        await call.write(one)
    acks = [await call.read() for _ in range(kit.BACKLOG + 2)]
    assert [ack.WhichOneof("outcome") for ack in acks[-2:]] == ["rejection"] * 2
    await kit.fold(store, ALICE)
    for content in ("behind it", "turned away", "behind it"):
        await call.write(request(content))
    outcomes = [(await call.read()).WhichOneof("outcome") for _ in range(3)]
    assert outcomes == ["rejection", "appended", "appended"]
    call.cancel()


async def test_a_memory_that_stays_full_does_not_hold_up_the_others_twice(brisk, kit):
    call = brisk.memory.StreamTurns()
    for at in range(kit.BACKLOG + 1):
        await call.write(request(f"{at}", turn_id=f"t{at}"))
    for _ in range(kit.BACKLOG + 1):
        ack = await call.read()
    assert ack.WhichOneof("outcome") == "rejection"
    started = time.monotonic()
    for at in range(5):
        await call.write(request("again", turn_id=f"t{kit.BACKLOG}"))
        await call.write(request("x", memory_of(at)))
        assert (await call.read()).rejection.retry_after_ms > 0
        assert (await call.read()).appended.sequence == 1
    assert time.monotonic() - started < 2 * HOLD_S
    call.cancel()
