"""Backpressure by tenant and by system: who is refused, what is said, and when it ends."""

import asyncio

import grpc
import pytest

from memfold.api.v1 import memory_service_pb2 as pb
from memfold_gateway import turn_stream
from memfold_gateway.gateway import gateway

LIMIT = 3


def memory_of(at, tenant="acme"):
    return f"tenants/{tenant}/memories/m{at}"


@pytest.fixture
async def limited(gateway_redis, store, kit, tmp_path):
    """Starts a gateway with limits; gives stubs of two tenants on it."""
    running = []

    async def start(**limits):
        serving = gateway(kit.settings(tmp_path, gateway_redis.url, **limits))
        server = await serving.__aenter__()
        channel = grpc.aio.insecure_channel(server.address)
        running.extend([channel.close, lambda: serving.__aexit__(None, None, None)])
        return kit.stubs(channel), kit.stubs(channel, kit.OTHER_KEY)

    yield start
    for stop in running:
        await stop()


async def append(kit, api, name):
    return await api.memory.AppendTurns(pb.AppendTurnsRequest(memory=name, turns=[kit.turn("x")], allow_missing=True))


async def refusal(kit, api, name):
    """How the next append fails, once the gateway has counted."""
    async with asyncio.timeout(10):
        while True:
            try:
                await append(kit, api, name)
            except grpc.aio.AioRpcError as error:
                return kit.failure_of(error)
            await asyncio.sleep(0.1)


async def accepted(kit, api, name):
    async with asyncio.timeout(10):
        while True:
            try:
                return await append(kit, api, name)
            except grpc.aio.AioRpcError as error:
                if kit.failure_of(error).reason != "BACKLOG_FULL":
                    raise
            await asyncio.sleep(0.1)


async def test_a_tenant_with_too_many_waiting_memories_is_refused_and_others_are_not(limited, store, kit):
    acme, other = await limited(backlog_memories_tenant=LIMIT)
    for at in range(LIMIT):
        await append(kit, acme, memory_of(at))
    found = await refusal(kit, acme, memory_of(0))
    assert (found.code, found.reason, found.facts["limit"]) == ("RESOURCE_EXHAUSTED", "BACKLOG_FULL", "tenant")
    assert found.retry_ms > 0
    await append(kit, other, memory_of(0, "other"))
    await kit.fold(store, memory_of(1))
    await accepted(kit, acme, memory_of(0))


async def test_beyond_the_system_s_limit_every_tenant_is_refused(limited, store, kit):
    acme, other = await limited(backlog_memories_system=LIMIT)
    for at in range(LIMIT):
        await append(kit, acme, memory_of(at))
    found = await refusal(kit, other, memory_of(0, "other"))
    assert (found.reason, found.facts["limit"]) == ("BACKLOG_FULL", "system")
    assert "acme" not in found.message
    assert (await refusal(kit, acme, memory_of(0))).facts["limit"] == "system"
    await kit.fold(store, memory_of(0))
    await kit.fold(store, memory_of(1))
    await accepted(kit, other, memory_of(0, "other"))


async def test_a_stream_is_turned_away_too_and_goes_on(limited, store, kit, monkeypatch):
    monkeypatch.setattr(turn_stream, "_HOLD_S", 0.2)
    acme, _ = await limited(backlog_memories_tenant=LIMIT)
    for at in range(LIMIT):
        await append(kit, acme, memory_of(at))
    await refusal(kit, acme, memory_of(0))
    call = acme.memory.StreamTurns()
    await call.write(pb.StreamTurnsRequest(memory=memory_of(9), turn=kit.turn("x", "t"), allow_missing=True))
    assert (await call.read()).rejection.retry_after_ms > 0
    await kit.fold(store, memory_of(0))
    await accepted(kit, acme, memory_of(0))
    await kit.fold(store, memory_of(0))
    await asyncio.sleep(1.5)  # longer than the gateway takes to count again
    await call.write(pb.StreamTurnsRequest(memory=memory_of(9), turn=kit.turn("x", "t"), allow_missing=True))
    assert (await call.read()).appended.sequence == 1
    call.cancel()


async def test_the_limit_of_one_memory_is_named_as_such(limited, kit):
    acme, _ = await limited(backlog_memories_tenant=LIMIT, backlog_turns=1)
    await append(kit, acme, memory_of(0))
    found = await kit.failure(append(kit, acme, memory_of(0)))
    assert (found.reason, found.facts["limit"]) == ("BACKLOG_FULL", "memory")


async def test_waiting_memories_are_counted_by_tenant(store, kit, limited):
    acme, other = await limited()
    for at in range(4):
        await append(kit, acme, memory_of(at))
    await append(kit, other, memory_of(0, "other"))
    assert await store.count_waiting() == 5
    assert await store.count_waiting_by_tenant() == {"acme": 4, "other": 1}
    await kit.fold(store, memory_of(0, "other"))
    assert await store.count_waiting() == 4
    assert await store.count_waiting_by_tenant() == {"acme": 4}
