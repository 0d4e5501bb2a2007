"""A checker that never complains proves nothing: each way to break a history is found out by name."""

from __future__ import annotations

import dataclasses

import pytest
from memfold_faults.chain import NAMES, ChainModel, state_of
from memfold_faults.history import Book, Seen, judge
from memfold_faults.story import NAME, A, fold, turns
from redis import Redis

from memfold.api.values import Revision, Role, Turn
from memfold.store import Store
from memfold.store.keys import memory_keys


@pytest.fixture
async def store(redis_url):
    store = await Store.open(redis_url)
    await store.register_model(ChainModel(NAMES[0]).card)
    yield store
    await store.close()


@pytest.fixture
def redis(redis_url):
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
async def book(store) -> Book:
    """Of four turns, all folded, the last three in one go."""
    book = Book(NAME)
    for some in (turns(1), turns(2, 3, 4)):
        result = await store.append(NAME, some, create=True)
        for turn, ack in zip(some, result.turns, strict=True):
            book.acknowledge(turn, ack.sequence, result.revision, duplicate=ack.duplicate)
        await fold(store)
    _, state = await store.read_state(NAME)
    book.see(Seen(state.revision, state.fingerprint, state.data))
    return book


async def test_a_sound_history_is_let_pass(store, book):
    assert (await judge(store, [book])).broken == {}


async def test_a_lost_turn_is_found(store, book, redis):
    redis.xdel(memory_keys(NAME, A).log, "2-0")
    assert {"lost", "wrong"} <= (await judge(store, [book])).broken.keys()


async def test_a_changed_turn_is_found(store, book):
    book.log[2] = dataclasses.replace(book.log[2], content="something else")
    assert "lost" in (await judge(store, [book])).broken


async def test_a_turn_of_nobody_is_found(store, book):
    await store.append(NAME, [Turn("strange-9", Role.USER, "who is this?")])
    await fold(store)
    assert (await judge(store, [book])).broken.keys() == {"foreign"}


async def test_a_doubled_turn_is_found(store, book, redis):
    keys = memory_keys(NAME, A)
    [(_, fields)] = redis.xrange(keys.log, "2-0", "2-0")
    redis.xadd(keys.log, fields, id="5-0")
    assert "doubled" in (await judge(store, [book])).broken


async def test_turns_in_another_order_are_found(store, book, redis):
    log = memory_keys(NAME, A).log
    entries = [fields for _, fields in redis.xrange(log)]
    redis.delete(log)
    for at, index in enumerate((0, 2, 1, 3), 1):
        redis.xadd(log, entries[index], id=f"{at}-0")
    assert {"reordered", "wrong"} <= (await judge(store, [book])).broken.keys()


async def test_a_state_that_is_not_the_logs_is_found(store, book):
    turn = turns(5)
    result = await store.append(NAME, turn)
    book.acknowledge(turn[0], result.turns[0].sequence, result.revision, duplicate=False)
    [claim] = await store.claim(A, NAME.partition, owner="w", lease_s=30, limit=1)
    assert await store.commit(
        claim, applied=5, at=5, state=state_of(NAMES[0], turns(1, 2, 4, 3, 5)), shape=(1, 1, 4, 8), anchor=None,
        log_digest=bytes(32),
    )  # fmt: skip
    assert (await judge(store, [book])).broken.keys() == {"wrong"}


async def test_what_clients_were_told_wrongly_is_found(store, book):
    revision = (await store.get_memory(NAME)).revision
    book.acknowledge(book.log[1], 3, revision, duplicate=True)
    book.acknowledge(turns(9)[0], 4, revision, duplicate=False)
    book.acknowledge(turns(10)[0], 11, Revision("0123456789ab", 11), duplicate=False)
    book.see(Seen(Revision(revision.incarnation, 1), A, b""))
    broken = (await judge(store, [book])).broken
    assert len(broken["told"]) == 4
    assert "wrong" in broken
