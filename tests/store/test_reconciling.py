"""The queues: what they have lost is found, and a hint that is on its way is waited for."""

from __future__ import annotations

import asyncio

import pytest

from memfold.api.values import MemoryName
from memfold.store.keys import both_lines, memory_keys

NAMES = [MemoryName("acme", f"memory-{at}") for at in range(12)]


@pytest.fixture
def audit_all(store):
    async def audit():
        place, found = await store.audit("", limit=1)
        while place:
            place, more = await store.audit(place, limit=1)
            found += more
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
