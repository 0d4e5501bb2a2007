"""Redis dies, hangs, and comes back."""

import asyncio
import os
import signal
import time
from functools import partial

import pytest

from memfold.api.errors import StoreUnavailableError
from memfold.local.redis_server import RedisServer
from memfold.store import Durability, Store


@pytest.fixture
def server(tmp_path):
    """A Redis of its own, to be killed."""
    server = RedisServer.start(tmp_path / "redis")
    yield server
    server.stop()


@pytest.fixture
async def own_store(server, card):
    store = await Store.open(server.url, durability=Durability.FSYNC)
    await store.register_model(card)
    yield store
    await store.close()


async def test_a_killed_redis_keeps_every_acknowledged_turn(server, own_store, name, card, folder, until):
    acknowledged: list[tuple[int, str]] = []
    stop = asyncio.Event()

    async def write(writer: int) -> None:
        at = 0
        while not stop.is_set():
            turn = folder.turn(writer * 100_000 + at)
            try:
                result = await own_store.append(name, [turn], create=True)
            except StoreUnavailableError:
                await asyncio.sleep(0.02)
                continue
            acknowledged.append((result.turns[0].sequence, turn.id))
            at += 1

    writers = [asyncio.create_task(write(writer)) for writer in range(4)]
    for goal in (30, 60, 90):
        await until(partial(_reaches, acknowledged, goal), seconds=60)
        server.kill()
        await asyncio.sleep(0.2)
        await asyncio.to_thread(server.restart)
    await until(partial(_reaches, acknowledged, 120), seconds=60)
    stop.set()
    await asyncio.gather(*writers)

    turns = await own_store.read_turns(name, limit=10_000)
    assert [turn.sequence for turn in turns] == list(range(1, len(turns) + 1))
    assert len({turn.id for turn in turns}) == len(turns)
    assert set(acknowledged) <= {(turn.sequence, turn.id) for turn in turns}
    assert len(turns) == len(acknowledged)
    assert await own_store.due_partitions(card.fingerprint) == [name.partition]
    await folder.drain(own_store, card)
    assert (await own_store.read_state(name))[1].data == folder.fold(turns)


async def test_what_was_folded_and_what_was_claimed_survives_a_crash(server, own_store, name, card, folder):
    await own_store.append(name, [folder.turn(1)], create=True)
    await folder.drain(own_store, card)
    await own_store.append(name, [folder.turn(2)])
    [claim] = await own_store.claim(card.fingerprint, name.partition, owner="w", lease_s=30, limit=1)
    server.kill()
    server.restart()
    assert (await own_store.read_state(name))[1].data == folder.fold(await own_store.read_turns(name, limit=1))
    assert await own_store.due_partitions(card.fingerprint) == []
    turns = await own_store.read_turns(name)
    assert await folder.commit(own_store, claim, folder.fold(turns), 2)


async def test_while_redis_is_gone_every_call_says_so_soon(server, own_store, name, card, folder):
    revision = (await own_store.append(name, [folder.turn(1)], create=True)).revision
    server.kill()
    calls = [
        own_store.append(name, [folder.turn(2)]),
        own_store.create_memory(name),
        own_store.get_memory(name),
        own_store.list_memories("acme"),
        own_store.delete_memory(name),
        own_store.read_turns(name),
        own_store.read_state(name),
        own_store.wait_for(name, revision, 60),
        own_store.due_partitions(card.fingerprint),
        own_store.claim(card.fingerprint, 1, owner="w", lease_s=1, limit=1),
        own_store.backlog(card.fingerprint),
        own_store.default_model(),
        own_store.ping(),
    ]
    started = time.monotonic()
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(outcome, StoreUnavailableError), outcome
        assert outcome.retry_after_ms > 0
        assert str(server.port) not in str(outcome)
    assert time.monotonic() - started < 20
    server.restart()
    assert (await own_store.append(name, [folder.turn(2)])).revision.sequence == 2


async def test_a_hanging_redis_is_given_up_and_comes_back(server, own_store, name, folder):
    await own_store.append(name, [folder.turn(1)], create=True)
    os.kill(server.pid, signal.SIGSTOP)
    started = time.monotonic()
    try:
        with pytest.raises(StoreUnavailableError):
            await own_store.append(name, [folder.turn(2)])
        assert time.monotonic() - started < 20
    finally:
        os.kill(server.pid, signal.SIGCONT)
    again = await own_store.append(name, [folder.turn(2)])
    assert again.revision.sequence == 2


async def test_a_waiter_hears_again_after_a_restart(server, own_store, name, card, folder):
    revision = (await own_store.append(name, [folder.turn(1)], create=True)).revision
    task = asyncio.create_task(own_store.wait_for(name, revision, 30))
    await asyncio.sleep(0.1)
    server.kill()
    server.restart()
    await folder.drain(own_store, card)
    try:
        assert await task == revision
    except StoreUnavailableError:
        # It may bridge the gap, or be told of it; then the caller waits again.
        assert await own_store.wait_for(name, revision, 10) == revision


async def test_cancelled_calls_take_no_connections_and_no_answers_with_them(store, name, folder):
    await store.append(name, [folder.turn(0)], create=True)
    for _ in range(10):
        tasks = [asyncio.create_task(store.append(name, [folder.turn(at)])) for at in range(30)]
        await asyncio.sleep(0.002)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    results = await asyncio.gather(*(store.append(name, [folder.turn(at)]) for at in range(100)))
    turns = {turn.id: turn.sequence for turn in await store.read_turns(name)}
    assert {result.turns[0].id: result.turns[0].sequence for result in results} == turns


async def test_forgotten_scripts_are_sent_again(plain_store, redis, name, card, folder):
    await plain_store.append(name, [folder.turn(1)], create=True)
    redis.script_flush()
    assert (await plain_store.append(name, [folder.turn(2)])).revision.sequence == 2
    redis.script_flush()
    assert len(await plain_store.list_memories("acme")) == 1
    redis.script_flush()
    assert await folder.drain(plain_store, card) == 1


async def test_a_full_redis_takes_nothing_and_loses_nothing(plain_store, redis, name, folder):
    await plain_store.append(name, [folder.turn(1)], create=True)
    redis.config_set("maxmemory", "1")
    try:
        with pytest.raises(StoreUnavailableError):
            await plain_store.append(name, [folder.turn(2), folder.turn(3)])
        assert len(await plain_store.read_turns(name)) == 1
    finally:
        redis.config_set("maxmemory", "0")
    assert (await plain_store.append(name, [folder.turn(2), folder.turn(3)])).revision.sequence == 3


async def test_a_redis_wiped_while_the_platform_ran_is_used_again(plain_store, redis, name, card, folder):
    await plain_store.append(name, [folder.turn(1)], create=True)
    redis.flushall()
    await plain_store.register_model(card)
    await plain_store.append(name, [folder.turn(1)], create=True)
    plain_store._next_sweep.clear()
    assert await folder.drain(plain_store, card) == 1


async def _reaches(items, count) -> bool:
    return len(items) >= count
