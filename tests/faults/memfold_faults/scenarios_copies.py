"""Deleting, copying, exchanging the model; operations, and everything twice."""

from __future__ import annotations

import asyncio

from memfold_faults.chain import SHAPE
from memfold_faults.story import (
    COPY,
    NAME,
    A,
    B,
    append,
    carry_out,
    check,
    finish,
    fold,
    raises,
    scenario,
    take,
    turns,
    twice,
)

from memfold.api.errors import (
    MemoryExistsError,
    MemoryNotFoundError,
)
from memfold.api.values import OperationKind
from memfold.store import keys as store_keys
from memfold.store.keys import memory_keys

# Deleting, copying, exchanging the model --------------------------------------------------------------------------------


@scenario
async def a_memory_made_anew_knows_nothing_of_the_old_one(store, redis):
    await append(store, 1, 2)
    await fold(store, 1)
    claim = await take(store)
    await store.delete_memory(NAME)
    assert not [key for key in redis.keys("memfold:{*") if redis.type(key) != b"zset"], redis.keys("memfold:{*")
    assert redis.zcard(memory_keys(NAME, A).dirty) == redis.zcard(memory_keys(NAME, A).behind) == 0
    await append(store, 3, 4)
    other = await take(store)
    assert (other.fence, other.applied) == (claim.fence - 1, 0) or other.fence == 1
    assert not await store.commit(
        claim, applied=2, at=2, state=bytes(128), shape=SHAPE, anchor=None, log_digest=bytes(32)
    ), "a fold of the memory that was deleted"
    again = await take(store)
    assert again is None
    assert await finish(store, other)
    await check(store, redis, 3, 4)


@scenario
async def a_commit_of_a_former_life_loses_even_where_its_numbers_fit(store, redis):
    await append(store, 1, 2)
    claim = await take(store)
    await store.delete_memory(NAME)
    await append(store, 3, 4)
    other = await take(store)
    assert (other.fence, other.applied, other.head) == (claim.fence, claim.applied, claim.head)
    assert not await store.commit(
        claim, applied=2, at=2, state=bytes(128), shape=SHAPE, anchor=None, log_digest=bytes(32)
    )
    assert not await store.renew(claim, lease_s=0)
    await store.release(claim, delay_s=0)
    assert await take(store) is None, "a former life gave the claim back"
    assert await finish(store, other)
    await check(store, redis, 3, 4)


@scenario
async def a_copy_is_whole_or_not_there(store, redis):
    await append(store, 1, 2, 3)
    await fold(store, 2)
    await carry_out(store, OperationKind.FORK, target=str(COPY), revision="")
    assert (await store.get_memory(COPY)).applied == 2
    await check(store, redis, 1, 2, 3, name=COPY)
    await store.append(COPY, turns(4))
    await check(store, redis, 1, 2, 3, 4, name=COPY)
    await append(store, 5)
    await check(store, redis, 1, 2, 3, 5)


@scenario
async def a_copy_never_takes_a_memorys_place(store, redis):
    await append(store, 1, 2)
    await store.append(COPY, turns(7), create=True)
    failed = await carry_out(store, OperationKind.FORK, target=str(COPY), revision="")
    assert failed.error == MemoryExistsError.reason
    await check(store, redis, 7, name=COPY)
    await check(store, redis, 1, 2)


@scenario
async def a_copy_that_was_made_is_not_made_again(store, redis):
    await append(store, 1, 2)
    done = await carry_out(store, OperationKind.FORK, target=str(COPY), revision="", key="k")
    assert done.error == ""
    await store.delete_memory(COPY)
    again = await carry_out(store, OperationKind.FORK, target=str(COPY), revision="", key="k")
    assert again.id == done.id
    await raises(MemoryNotFoundError, store.get_memory(COPY))


@scenario
async def a_copy_shows_nothing_that_its_source_has_forgotten_meanwhile(store, redis):
    await append(store, 1, 2, 3)
    operation = await store.request_operation(NAME, OperationKind.FORK, {"target": str(COPY), "revision": ""})
    read = store._read_source

    async def read_then_forgotten(job, target):
        page = await read(job, target)
        store._read_source = read
        await carry_out(store, OperationKind.FORGET, selector={"ids": ["turn-2"]}, include_forks=False, expected="")
        return page

    store._read_source = read_then_forgotten
    try:
        for _ in range(50):
            operation = await store.advance(NAME, operation.id, until=0)
            if operation.done:
                break
            await asyncio.sleep(0.02)
    finally:
        store._read_source = read
    await check(store, redis, 1, 3, name=COPY)


@scenario
async def a_model_takes_over_once_it_has_caught_up(store, redis):
    await append(store, 1, 2)
    await fold(store)
    operation = await store.request_operation(NAME, OperationKind.REBUILD, {"fingerprint": B})
    await store.advance(NAME, operation.id, until=0)
    memory = await store.get_memory(NAME)
    assert (memory.fingerprint, memory.building, memory.building_applied) == (A, B, 0)
    await fold(store, line=B)
    await append(store, 3)
    assert await take(store, B) is not None, "the second model does not follow the log"
    await fold(store)
    redis.zadd(memory_keys(NAME, B).dirty, {store_keys.member(NAME): 0})
    done = await carry_out(store, OperationKind.REBUILD, fingerprint=B, key="other")
    assert done.error == ""
    memory = await store.get_memory(NAME)
    assert (memory.fingerprint, memory.building) == (B, "")
    assert not redis.exists(memory_keys(NAME, A).line, memory_keys(NAME, A).state, memory_keys(NAME, A).history)
    await check(store, redis, 1, 2, 3)


@scenario
async def a_model_that_is_behind_does_not_take_over(store, redis):
    await append(store, 1, 2)
    await fold(store)
    operation = await store.request_operation(NAME, OperationKind.REBUILD, {"fingerprint": B})
    for _ in range(2):
        operation = await store.advance(NAME, operation.id, until=0)
        await asyncio.sleep(0.26)
    assert not operation.done
    assert (await store.get_memory(NAME)).fingerprint == A
    await check(store, redis, 1, 2)


@scenario
async def a_rebuild_that_was_called_off_leaves_no_claim_behind(store, redis):
    await append(store, 1, 2)
    operation = await store.request_operation(NAME, OperationKind.REBUILD, {"fingerprint": B})
    await store.advance(NAME, operation.id, until=0)
    claim = await take(store, B)
    assert claim is not None
    await carry_out(store, OperationKind.REBUILD, fingerprint=A)
    operation = await store.request_operation(NAME, OperationKind.REBUILD, {"fingerprint": B})
    await store.advance(NAME, operation.id, until=0)
    newer = await take(store, B)
    assert newer is not None
    assert not await finish(store, claim), "a fold of the rebuild that was called off"
    assert await finish(store, newer)
    await check(store, redis, 1, 2)


# Operations, and everything twice ----------------------------------------------------------------------------------------


@scenario
async def an_operation_is_one_holders_at_a_time(store, redis):
    await append(store, 1)
    operation = await store.request_operation(NAME, OperationKind.VERIFY, {}, request_id="k")
    again = await store.request_operation(NAME, OperationKind.VERIFY, {}, request_id="k")
    assert again.id == operation.id
    assert redis.hlen(memory_keys(NAME, A).ops) == 1
    _, mine = store._held.pop((NAME, operation.id))
    holder, _ = await store._lease(NAME, operation.id)
    assert holder == "", "leased twice"
    redis.hset(memory_keys(NAME, A).ops, operation.id, _expired(redis.hget(memory_keys(NAME, A).ops, operation.id)))
    other, theirs = await store._lease(NAME, operation.id)
    assert other
    assert theirs.fence > mine.fence
    mine.go_to("somewhere")
    _, ours = await store._save(mine, "old", None)
    assert not ours, "an old holder saved"
    assert (await store.get_operation(NAME, operation.id)).progress["stage"] == ""


def _expired(stored: bytes) -> bytes:
    fence, ended, _, rest = stored.split(b" ", 3)
    return b" ".join((fence, ended, b"1", rest))


@scenario
async def an_operation_asked_for_again_goes_on_where_it_was(store, redis):
    await append(store, 1)
    await fold(store)
    operation = await store.request_operation(NAME, OperationKind.VERIFY, {}, request_id="k")
    before = await store.advance(NAME, operation.id, until=asyncio.get_running_loop().time() + 1)
    again = await store.request_operation(NAME, OperationKind.VERIFY, {}, request_id="k")
    assert again.id == before.id
    assert again.progress == before.progress != {"stage": ""}


@scenario
async def everything_may_run_twice(store, redis):
    async with twice(store):
        await store.create_memory(NAME)
        await append(store, 1, 2, 3)
        await fold(store, 2)
        incarnation = (await store.get_memory(NAME)).incarnation
        gone = await store.forget(NAME, [1], expected_incarnation=incarnation)
        assert gone.ids == ("turn-1",)
        await fold(store)
        kept = (await store.list_revisions(NAME))[0].revision
        await append(store, 4)
        back = await store.rollback(NAME, kept)
        assert back.ids == ("turn-4",)
        await append(store, 5)
        await store.skip_turn(NAME, 5)
        await fold(store)
        done = await carry_out(store, OperationKind.FORK, target=str(COPY), revision="")
        assert done.error == ""
        done = await carry_out(store, OperationKind.REBUILD, fingerprint=B)
        assert done.error == ""
    await check(store, redis, 2, 3, 5)
    await check(store, redis, 2, 3, 5, name=COPY)
    async with twice(store):
        await store.delete_memory(COPY)


@scenario
async def a_model_that_cannot_fold_a_turn_does_not_keep_others_waiting(store, redis):
    await append(store, 1, 2)
    await fold(store)
    operation = await store.request_operation(NAME, OperationKind.REBUILD, {"fingerprint": B})
    await store.advance(NAME, operation.id, until=0)
    await store.quarantine(await take(store, B), sequence=2, reason="RuntimeError")
    operation = await store.advance(NAME, operation.id, until=asyncio.get_running_loop().time() + 1)
    assert (operation.done, operation.error) == (True, "TURN_QUARANTINED")
    assert (await store.get_memory(NAME)).building == ""
    await check(store, redis, 1, 2)


@scenario
async def of_many_one_looks_at_everything(store, redis):
    await append(store, 1)
    assert await store.audit(holder="one", lease_s=60, limit=1) is not None
    assert await store.audit(holder="two", lease_s=60, limit=1) is None
    assert await store.audit(holder="one", lease_s=0.001, limit=1) is not None
    await asyncio.sleep(0.01)
    assert await store.audit(holder="two", lease_s=60, limit=1) is not None
