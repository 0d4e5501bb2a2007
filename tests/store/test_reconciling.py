"""The queues: what they have lost is found, and a hint that is on its way is waited for."""

from __future__ import annotations

import asyncio

import pytest

from memfold.api.values import MemoryName
from memfold.store import Store, auditing
from memfold.store.keys import AUDIT, both_lines, index_entry, memory_keys, tenant_index

NAMES = [MemoryName("acme", f"memory-{at}") for at in range(12)]


@pytest.fixture
def audit_all(store):
    async def audit():
        found, look = [], None
        while look is None or not look.ended:
            look = await store.audit(holder="one", lease_s=60, limit=1)
            found += look.queued
        return found

    return audit


async def claim_of(store, name, card):
    [claim] = await store.claim(card.fingerprint, name.partition, owner="one", lease_s=30, limit=10)
    return claim


async def lose(store, name, fingerprint):
    keys = memory_keys(name, fingerprint)
    await store._server.command("ZREM", keys.dirty, f"{name.tenant}/{name.memory}")
    await store._server.command("ZREM", keys.behind, f"{name.tenant}/{name.memory}")


async def test_an_audit_queues_what_no_queue_holds_and_nothing_else(store, card, folder, audit_all):
    for name in NAMES:
        await store.append(name, [folder.turn(1)], create=True)
    await folder.drain(store, card)
    lost, queued, quarantined, *_ = NAMES
    for name in (lost, queued, quarantined):
        await store.append(name, [folder.turn(2)])
    await store.quarantine(await claim_of(store, quarantined, card), sequence=2, reason="RuntimeError")
    await lose(store, lost, card.fingerprint)
    assert await audit_all() == [lost]
    assert await audit_all() == []
    assert await folder.drain(store, card) == 2
    assert (await store.get_memory(lost)).applied == 2


async def test_an_audit_looks_at_both_models_of_a_memory(store, name, card, folder, audit_all):
    await store.append(name, [folder.turn(1)], create=True)
    await folder.drain(store, card)
    other = "b" * 64
    keys = both_lines(name, card.fingerprint, other)
    await store._server.command("HSET", keys[0], "building", other)
    assert await audit_all() == [name]
    assert await store.due_partitions(other) == [name.partition]
    assert await store.due_partitions(card.fingerprint) == []


@pytest.fixture
def look_at_all(store):
    async def look():
        listed, unlisted, ended = [], [], False
        while not ended:
            look = await store.audit(holder="one", lease_s=60, limit=1)
            listed, unlisted, ended = listed + look.listed, unlisted + look.unlisted, look.ended
        return listed, unlisted

    return look


async def test_an_audit_lists_what_an_index_has_lost(store, folder, look_at_all):
    for name in NAMES:
        await store.append(name, [folder.turn(1)], create=True)
    before = await store.list_memories("acme")
    lost = before[3]
    await store._unindex(lost.name, lost.incarnation)
    assert await look_at_all() == ([lost.name], [])
    assert await look_at_all() == ([], [])
    assert await store.list_memories("acme") == before


async def test_an_audit_removes_from_an_index_what_has_long_been_gone(store, name, folder, look_at_all, monkeypatch):
    """Not sooner: whoever creates a memory enters it before it is there."""
    here = (await store.append(name, [folder.turn(1)], create=True)).revision.incarnation
    gone = MemoryName("other", "alice")
    await store._index(name, "0" * 12)
    await store._index(gone, "1" * 12)
    assert await look_at_all() == ([], [])
    assert await store._server.command("ZCARD", tenant_index("other")) == 1
    monkeypatch.setattr(auditing, "STALE_S", 0.0)
    _, unlisted = await look_at_all()
    assert sorted(unlisted) == [name, gone]
    assert await store._server.command("EXISTS", tenant_index("other")) == 0
    left = await store._server.command("ZRANGE", tenant_index("acme"), 0, -1)
    assert left == [index_entry(name, here).encode()]


async def test_of_many_one_looks_at_everything(plain_store, redis, redis_url, folder):
    """The others do not even begin; where the one ended, another goes on."""
    for name in NAMES:
        await plain_store.append(name, [folder.turn(1)], create=True)
    others = [await Store.open(redis_url) for _ in range(3)]

    def scans() -> int:
        return redis.info("commandstats").get("cmdstat_scan", {"calls": 0})["calls"]

    before = scans()
    looks = [await other.audit(holder=str(at), lease_s=0.3, limit=1000) for at, other in enumerate(others)]
    assert [look is None for look in looks] == [False, True, True]
    assert scans() == before + 1
    place = redis.hget(AUDIT, "place")
    await asyncio.sleep(0.31)
    assert await others[2].audit(holder="2", lease_s=60, limit=1000) is not None
    assert redis.hget(AUDIT, "place") != place
    assert await others[0].audit(holder="0", lease_s=60, limit=1000) is None
    for other in others:
        await other.close()


async def test_what_has_just_come_in_is_told_from_what_somebody_left(store, name, card, folder):
    async def fresh(within_s: float = 60) -> bool:
        return await store.just_in(card.fingerprint, [name.partition], within_s=within_s) == {name.partition}

    await store.append(name, [folder.turn(1)], create=True)
    assert await fresh()
    await asyncio.sleep(0.02)
    assert not await fresh(within_s=0.01)
    await store.release(await claim_of(store, name, card), delay_s=0)
    assert not await fresh()


async def test_nothing_is_fresh_where_nothing_is_due(store, name, card):
    assert await store.just_in(card.fingerprint, [name.partition], within_s=60) == set()


async def test_a_claim_can_go_on_from_the_state_that_it_found(store, name, card, folder):
    await store.append(name, [folder.turn(1)], create=True)
    first = await claim_of(store, name, card)
    assert await store.read_claimed(first) is None
    await folder.finish(store, first)
    await store.append(name, [folder.turn(2)])
    second = await claim_of(store, name, card)
    assert await store.read_claimed(second) == folder.fold([folder.turn(1)])
    await folder.finish(store, second)
    assert await store.read_claimed(second) is None, "that state is no longer there"


async def test_attempts_can_outlast_a_commit(store, name, card, folder):
    await store.append(name, [folder.turn(1), folder.turn(2)], create=True)
    claim = await claim_of(store, name, card)
    assert await store.commit(
        claim, applied=1, at=1, state=bytes(32), shape=folder.shape, anchor=None, log_digest=bytes(32), attempts=4
    )
    assert (await claim_of(store, name, card)).attempts == 5


async def test_a_verification_begins_again_where_the_log_is_another_one(store, name, card, folder):
    loop = asyncio.get_running_loop()
    await store.append(name, [folder.turn(at) for at in (1, 2, 3)], create=True)
    await folder.drain(store, card)
    operation = await store.request_operation(name, "verify", {})
    await store.advance(name, operation.id, until=loop.time() + 10)
    before, fingerprint = await store.state_awaited(name, operation.id)
    assert (before.sequence, fingerprint) == (3, card.fingerprint)
    await store.forget(name, [2], expected_incarnation=before.incarnation)
    await folder.drain(store, card)
    await asyncio.sleep(1)
    await store.advance(name, operation.id, until=loop.time() + 10)
    after, _ = await store.state_awaited(name, operation.id)
    assert after.incarnation != before.incarnation
    assert (await store.finish_verify(name, operation.id, ok=True, relative_error=0.0)).result["ok"]
    assert await store.state_awaited(name, operation.id) is None
