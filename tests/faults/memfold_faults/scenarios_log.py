"""Appending, claiming, committing."""

from __future__ import annotations

import asyncio

from memfold_faults.story import (
    NAME,
    A,
    append,
    check,
    finish,
    fold,
    raises,
    scenario,
    take,
    turns,
)

from memfold.api.errors import (
    BacklogFullError,
    MemfoldError,
    RevisionMismatchError,
    TurnIdConflictError,
)
from memfold.api.values import Role, Turn
from memfold.store.keys import memory_keys

# Appending ---------------------------------------------------------------------------------------------------------


@scenario
async def a_turn_sent_again_is_the_same_turn(store, redis):
    await append(store, 1, 2)
    again = await store.append(NAME, turns(2, 3, 3))
    assert [(one.sequence, one.duplicate) for one in again.turns] == [(2, True), (3, False), (3, True)]
    await raises(TurnIdConflictError, store.append(NAME, [Turn("turn-1", Role.USER, "something else")]))
    await raises(TurnIdConflictError, store.append(NAME, [*turns(4), Turn("turn-4", Role.USER, "something else")]))
    await check(store, redis, 1, 2, 3)


@scenario
async def an_append_that_expects_another_revision_is_refused(store, redis):
    first = await store.append(NAME, turns(1), create=True)
    await append(store, 2)
    await raises(RevisionMismatchError, store.append(NAME, turns(3), expected=first.revision))
    await store.append(NAME, turns(3), expected=(await store.get_memory(NAME)).revision)
    await check(store, redis, 1, 2, 3)


@scenario
async def too_many_turns_that_wait_hold_up_others(store, redis):
    await append(store, 1, 2, 3)
    await raises(BacklogFullError, store.append(NAME, turns(4), backlog=3))
    await check(store, redis, 1, 2, 3)
    await store.append(NAME, turns(4), backlog=3)
    await check(store, redis, 1, 2, 3, 4)


@scenario
async def turns_that_come_during_a_fold_are_folded_next(store, redis):
    await append(store, 1)
    claim = await take(store)
    await append(store, 2)
    assert await take(store) is None, "claimed twice"
    assert await finish(store, claim)
    assert (await store.get_memory(NAME)).applied == 1
    assert await store.due_partitions(A) == [NAME.partition]
    await check(store, redis, 1, 2)


@scenario
async def numbers_are_never_given_twice(store, redis):
    await append(store, 1, 2, 3)
    await fold(store, 1)
    kept = (await store.list_revisions(NAME))[0].revision
    await store.rollback(NAME, kept)
    while not await store.scrub(NAME):
        pass
    result = await store.append(NAME, turns(4))
    assert result.turns[0].sequence == 4
    await check(store, redis, 1, 4)


# Claims and commits ----------------------------------------------------------------------------------------------------


@scenario
async def a_claim_is_one_writers_until_its_lease_ends(store, redis):
    await append(store, 1)
    first = await take(store, lease_s=0.05)
    assert await take(store) is None, "claimed twice"
    await asyncio.sleep(0.06)
    second = await take(store)
    assert (first.attempts, second.attempts) == (1, 2)
    assert second.fence > first.fence
    assert not await store.renew(first, lease_s=30)
    await store.release(first, delay_s=0)
    assert await take(store) is None, "a writer whose lease was over gave another's claim back"
    await store.quarantine(first, sequence=1, reason="late")
    assert not await finish(store, first), "a commit after the lease"
    assert (await store.get_memory(NAME)).applied == 0
    assert await store.renew(second, lease_s=30)
    assert await finish(store, second)
    await check(store, redis, 1)


@scenario
async def of_many_who_claim_at_once_one_gets_it(store, redis):
    await append(store, 1)
    all_have_looked, run_each = asyncio.Barrier(3), store._server.run_each

    async def together(*args):
        await all_have_looked.wait()
        return await run_each(*args)

    store._server.run_each = together
    try:
        claims = await asyncio.gather(*(take(store) for _ in range(3)))
    finally:
        del store._server.run_each
    [claim] = filter(None, claims)
    assert await finish(store, claim)
    await check(store, redis, 1)


@scenario
async def a_claim_commits_once(store, redis):
    await append(store, 1, 2, 3)
    claim = await take(store)
    assert not await finish(store, claim, 4), "a commit beyond the log"
    assert await finish(store, claim, 1)
    assert await finish(store, claim, 1), "repeating a commit is no loss"
    assert not await finish(store, claim, 2)
    assert (await store.get_memory(NAME)).applied == 1
    await check(store, redis, 1, 2, 3)


@scenario
async def attempts_are_counted_and_given_back(store, redis):
    await append(store, 1)
    claim = await take(store)
    await store.release(claim, delay_s=0, give_back=True)
    claim = await take(store)
    assert claim.attempts == 1
    await store.release(claim, delay_s=0)
    claim = await take(store)
    assert claim.attempts == 2
    assert await finish(store, claim)
    await check(store, redis, 1)


@scenario
async def a_released_claim_is_due_only_after_its_rest(store, redis):
    await append(store, 1)
    await store.release(await take(store), delay_s=0.05)
    assert await take(store) is None
    await asyncio.sleep(0.06)
    await check(store, redis, 1)


@scenario
async def a_log_that_lost_an_entry_is_not_folded(store, redis):
    await append(store, 1, 2)
    redis.xdel(memory_keys(NAME, A).log, "2-0")
    assert await take(store) is None
    assert (await store.get_memory(NAME)).quarantined == 1


@scenario
async def earlier_revisions_are_kept(store, redis):
    for at in range(1, 13):
        await append(store, at)
        await fold(store, anchor_at=at - 1 if at % 3 == 0 else 0)
    assert len(await store.list_revisions(NAME)) >= 4
    await check(store, redis, *range(1, 13))


@scenario
async def a_quarantined_memory_is_left_alone_until_it_is_freed(store, redis):
    await append(store, 1, 2)
    await store.quarantine(await take(store), sequence=1, reason="poison")
    await append(store, 3)
    assert await store.due_partitions(A) == []
    assert await take(store) is None
    await store.skip_turn(NAME, 1)
    assert (await store.get_memory(NAME)).quarantined == 0
    await check(store, redis, 1, 2, 3)


@scenario
async def a_damaged_state_is_made_anew_from_the_log(store, redis):
    for at in (1, 2, 3):
        await append(store, at)
        await fold(store)
    await append(store, 4)
    claim = await take(store)
    keys = memory_keys(NAME, A)
    redis.set(keys.state, b"damaged" + redis.get(keys.state)[7:])
    await raises(MemfoldError, store.read_state(NAME))
    assert not await finish(store, claim), "a fold from before the damage"
    await check(store, redis, 1, 2, 3, 4)
