"""Where the open block starts, for whoever folds beside the writer."""

import pytest

from memfold.api.errors import MemoryNotFoundError
from memfold.store import ZERO_ANCHOR, Anchor
from memfold.store.keys import memory_keys

STATE, BEFORE = bytes(range(32)), bytes(32)


async def claim(store, name, card):
    (found,) = await store.claim(card.fingerprint, name.partition, owner="writer", lease_s=30, limit=1)
    return found


async def test_it_starts_where_a_claim_says_and_looking_claims_nothing(store, name, card, folder):
    await store.append(name, [folder.turn(1)], create=True)
    memory, anchor = await store.read_open_block(name)
    assert (memory.head, memory.applied, anchor) == (1, 0, ZERO_ANCHOR)
    taken = await claim(store, name, card)
    await store.read_open_block(name)
    assert await folder.commit(store, taken, STATE, anchor=Anchor(0, 17, BEFORE))
    await store.append(name, [folder.turn(2)])
    memory, anchor = await store.read_open_block(name)
    assert (memory.head, memory.applied, anchor) == (2, 1, Anchor(0, 17, BEFORE))
    taken = await claim(store, name, card)
    assert taken.attempts == 1
    assert await store.read_anchor(taken) == anchor


async def test_it_is_that_of_the_log_that_is_left(store, name, card, folder):
    await store.append(name, [folder.turn(at) for at in (1, 2, 3)], create=True)
    assert await folder.commit(store, await claim(store, name, card), STATE, 3, Anchor(2, 0, BEFORE))
    memory, _ = await store.read_open_block(name)
    await store.forget(name, [2], expected_incarnation=memory.incarnation)
    after, anchor = await store.read_open_block(name)
    assert (after.incarnation != memory.incarnation, after.applied, anchor) == (True, 0, ZERO_ANCHOR)


async def test_a_damaged_anchor_is_the_log_s_beginning_and_a_torn_log_has_none(plain_store, redis, name, card, folder):
    await plain_store.append(name, [folder.turn(1), folder.turn(2)], create=True)
    assert await folder.commit(plain_store, await claim(plain_store, name, card), STATE, 2, Anchor(1, 0, BEFORE))
    line = memory_keys(name, card.fingerprint)
    redis.hset(line.history, "@1.0", b"garbage")
    assert (await plain_store.read_open_block(name))[1] == ZERO_ANCHOR
    redis.hdel(line.history, "@1.0")
    assert (await plain_store.read_open_block(name))[1] == ZERO_ANCHOR
    redis.xdel(line.log, "1-0")
    memory, anchor = await plain_store.read_open_block(name)
    assert (memory.applied, anchor) == (2, None)


async def test_a_memory_that_is_not_there_has_none(store, name):
    with pytest.raises(MemoryNotFoundError):
        await store.read_open_block(name)
