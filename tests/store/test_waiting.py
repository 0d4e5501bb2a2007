"""Waiting for a revision ends, one way or another, and soon."""

import asyncio
import time

import pytest

from memfold.api.errors import DeadlineError, MemoryNotFoundError, RevisionAheadError, RevisionForeignError
from memfold.api.values import MemoryName, Revision
from memfold.store import Store
from memfold.store.keys import moved_channel


@pytest.fixture
async def writer(any_redis_url):
    """Another process's store: what it does reaches the waiter through Redis alone."""
    writer = await Store.open(any_redis_url)
    yield writer
    await writer.close()


@pytest.fixture
def only_told(monkeypatch):
    """Waiters do not look by themselves: whatever wakes them was told."""
    monkeypatch.setattr("memfold.store.waiting._LOOK_S", 60)


async def waiting(store, name, revision, seconds=20) -> asyncio.Task:
    """A waiter that has told Redis what it wants to hear of."""
    task = asyncio.create_task(store.wait_for(name, revision, seconds))
    channel, deadline = moved_channel(name.partition).encode(), time.monotonic() + seconds
    while store._ear._pubsub is None or channel not in store._ear._pubsub.channels:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    assert not task.done()
    return task


async def test_what_is_reached_is_answered_at_once(store, name, card, folder):
    empty = (await store.create_memory(name)).revision
    assert await store.wait_for(name, empty, 0) == empty
    first = (await store.append(name, [folder.turn(1)])).revision
    await folder.drain(store, card)
    assert await store.wait_for(name, first, 0) == first
    assert await store.wait_for(name, empty, 0) == first


async def test_a_commit_wakes_the_waiter(store, writer, name, card, folder, only_told):
    revision = (await store.append(name, [folder.turn(1)], create=True)).revision
    tasks = [await waiting(store, name, revision) for _ in range(3)]
    await folder.drain(writer, card)
    assert await asyncio.gather(*tasks) == [revision] * 3


async def test_a_waiter_is_not_content_with_less(store, writer, name, card, folder):
    first = (await store.append(name, [folder.turn(1), folder.turn(2)], create=True)).revision
    task = await waiting(store, name, first)
    [claim] = await writer.claim(card.fingerprint, name.partition, owner="w", lease_s=30, limit=1)
    await folder.commit(writer, claim, bytes(32), 1)
    await asyncio.sleep(0.2)
    assert not task.done()
    await folder.drain(writer, card)
    assert await task == first


async def test_the_deadline_ends_it_and_says_how_far_it_came(store, name, folder):
    revision = (await store.append(name, [folder.turn(1)], create=True)).revision
    started = time.monotonic()
    with pytest.raises(DeadlineError) as caught:
        await store.wait_for(name, revision, 0.3)
    assert 0.3 <= time.monotonic() - started < 2
    assert caught.value.facts == {"folded_revision": f"{revision.incarnation}.0"}


async def test_foreign_and_future_revisions_are_refused(store, name, folder):
    revision = (await store.append(name, [folder.turn(1)], create=True)).revision
    with pytest.raises(RevisionForeignError):
        await store.wait_for(name, Revision("0" * 12, 1), 5)
    with pytest.raises(RevisionAheadError) as caught:
        await store.wait_for(name, Revision(revision.incarnation, 2), 5)
    assert caught.value.facts == {"revision": str(revision)}
    with pytest.raises(MemoryNotFoundError):
        await store.wait_for(MemoryName("acme", "nobody"), revision, 5)


async def test_a_deletion_wakes_the_waiter(store, writer, name, folder, only_told):
    revision = (await store.append(name, [folder.turn(1)], create=True)).revision
    task = await waiting(store, name, revision)
    await writer.delete_memory(name)
    with pytest.raises(MemoryNotFoundError):
        await task


async def test_a_successor_does_not_answer_for_the_deleted(store, writer, name, card, folder):
    revision = (await store.append(name, [folder.turn(1)], create=True)).revision
    task = await waiting(store, name, revision)
    await writer.delete_memory(name)
    await writer.append(name, [folder.turn(1)], create=True)
    await folder.drain(writer, card)
    with pytest.raises((RevisionForeignError, MemoryNotFoundError)):
        await task


async def test_a_lost_wake_up_costs_a_moment_and_no_more(plain_store, name, card, folder):
    revision = (await plain_store.append(name, [folder.turn(1)], create=True)).revision
    task = await waiting(plain_store, name, revision)
    plain_store._ear._task.cancel()
    await folder.drain(plain_store, card)
    assert await task == revision


async def test_an_ear_that_was_cut_off_hears_again(plain_store, redis, name, card, folder, only_told, until):
    revision = (await plain_store.append(name, [folder.turn(1)], create=True)).revision
    task = await waiting(plain_store, name, revision)
    assert redis.client_kill_filter(_type="pubsub") == 1

    async def listens() -> bool:
        return redis.pubsub_channels() != []

    await until(listens)
    await folder.drain(plain_store, card)
    assert await task == revision


async def test_closing_ends_even_where_a_cancellation_is_swallowed(any_redis_url, monkeypatch):
    """As by the client library, when it comes together with the end of a timeout."""
    swallowed = []

    async def swallowing(*_, **__):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            swallowed.append(True)

    monkeypatch.setattr("redis.asyncio.client.PubSub.get_message", swallowing)
    store = await Store.open(any_redis_url)
    async with store._ear.listen("channel", "member"), asyncio.timeout(10):
        await asyncio.sleep(0.01)
        await store.close()
        assert swallowed


async def test_cancelled_waiters_leave_nothing_behind(plain_store, redis, name, folder, until):
    revision = (await plain_store.append(name, [folder.turn(1)], create=True)).revision
    tasks = [await waiting(plain_store, name, revision) for _ in range(3)]
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert not plain_store._ear._events
    assert not plain_store._ear._subscribers

    async def nobody_listens() -> bool:
        return redis.pubsub_channels() == []

    await until(nobody_listens)
