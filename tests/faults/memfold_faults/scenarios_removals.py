"""Taking back, forgetting, skipping."""

from __future__ import annotations

from memfold_faults.chain import NAMES, SHAPE, state_of
from memfold_faults.story import (
    NAME,
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
    MemfoldError,
    RevisionForeignError,
    TurnFoldedError,
)

# Taking back, forgetting, skipping -----------------------------------------------------------------------------------


@scenario
async def a_fold_from_before_a_rollback_loses(store, redis):
    await append(store, 1, 2, 3)
    await fold(store, 1)
    claim = await take(store)
    kept = (await store.list_revisions(NAME))[0].revision
    back = await store.rollback(NAME, kept)
    assert back.sequences == (2, 3)
    await append(store, 4, 5)
    assert not await finish(store, claim)
    await raises(RevisionForeignError, store.rollback(NAME, kept))
    await check(store, redis, 1, 4, 5)
    await append(store, 2)  # its id is free again
    await check(store, redis, 1, 4, 5, 2)


@scenario
async def a_rollback_leaves_no_state_from_later(store, redis):
    for at in range(1, 7):
        await append(store, at)
        await fold(store, anchor_at=at - 1 if at % 2 == 0 else 0)
    middle = next(one for one in await store.list_revisions(NAME) if one.revision.sequence == 4)
    await store.rollback(NAME, middle.revision)
    memory, state = await store.read_state(NAME)
    assert memory.applied == 4
    assert state.data == state_of(NAMES[0], turns(1, 2, 3, 4))
    await append(store, 7)
    await check(store, redis, 1, 2, 3, 4, 7)


@scenario
async def a_fold_from_before_a_forgetting_loses(store, redis):
    await append(store, 1, 2)
    await fold(store)
    await append(store, 3)
    claim = await take(store)
    incarnation = (await store.get_memory(NAME)).incarnation
    gone = await store.forget(NAME, [1], expected_incarnation=incarnation)
    assert gone.ids == ("turn-1",)
    assert gone.revision.incarnation != incarnation
    memory, state = await store.read_state(NAME)
    assert state is None, "a reader was given what is forgotten"
    assert memory.applied == 0
    assert not await finish(store, claim), "a fold of what is forgotten"
    await check(store, redis, 2, 3)
    await append(store, 1)
    await check(store, redis, 2, 3, 1)


@scenario
async def forgetting_keeps_what_came_before(store, redis):
    for at in range(1, 7):
        await append(store, at)
        await fold(store, anchor_at=at - 1 if at in (3, 5) else 0)
    incarnation = (await store.get_memory(NAME)).incarnation
    await store.forget(NAME, [5], expected_incarnation=incarnation)
    _, state = await store.read_state(NAME)
    assert state.data == state_of(NAMES[0], turns(1, 2, 3, 4))
    claim = await take(store)
    assert claim.applied == 4
    anchor = await store.read_anchor(claim)
    assert (anchor.sequence, anchor.data) == (2, state_of(NAMES[0], turns(1, 2)))
    assert await finish(store, claim)
    await check(store, redis, 1, 2, 3, 4, 6)


@scenario
async def numbers_of_another_incarnation_forget_nothing(store, redis):
    await append(store, 1, 2)
    await raises(MemfoldError, store.forget(NAME, [1], expected_incarnation="0123456789ab"))
    await check(store, redis, 1, 2)


@scenario
async def holes_at_the_end_are_passed_over(store, redis):
    await append(store, 1, 2, 3)
    incarnation = (await store.get_memory(NAME)).incarnation
    await store.forget(NAME, [3], expected_incarnation=incarnation)
    await fold(store, 2)
    assert await take(store) is None, "there is nothing to fold"
    memory = await store.get_memory(NAME)
    assert memory.applied == memory.head == 3
    await check(store, redis, 1, 2)


@scenario
async def nothing_of_what_is_forgotten_is_left(store, redis):
    redis.config_set("rdbcompression", "no")
    await append(store, *range(1, 601))
    await fold(store, 300)
    await fold(store)
    for gone in (100, 3):
        memory = await store.get_memory(NAME)
        await store.forget(NAME, [gone], expected_incarnation=memory.incarnation)
        await store.scrub(NAME)  # one page of two: the second forgetting finds it half done
    while not await store.scrub(NAME):
        pass
    for key in redis.keys("*"):
        dump = redis.dump(key)
        assert b'this is message 100"' not in dump, key
        assert b'this is message 3"' not in dump, key
        assert b"log-new" not in key
    left = [at for at in range(1, 601) if at not in (3, 100)]
    memory = await store.get_memory(NAME)
    assert memory.turn_count == 598
    await check(store, redis, *left)


@scenario
async def a_skipped_turn_is_in_no_state(store, redis):
    await append(store, 1, 2, 3)
    await fold(store, 1)
    claim = await take(store)
    await store.skip_turn(NAME, 2)
    again = await store.skip_turn(NAME, 2)
    assert again.sequence == 4
    assert not await store.commit(
        claim, applied=3, at=3, state=state_of(NAMES[0], turns(1, 2, 3)), shape=SHAPE, anchor=None, log_digest=bytes(32)
    ), "a fold of what is skipped"
    await raises(TurnFoldedError, store.skip_turn(NAME, 1))
    await check(store, redis, 1, 2, 3)
    _, state = await store.read_state(NAME)
    assert state.data == state_of(NAMES[0], turns(1, 3))


@scenario
async def a_rollback_to_before_a_skip_folds_the_turn(store, redis):
    await append(store, 1, 2, 3)
    await fold(store, 1)
    before = (await store.get_memory(NAME)).revision
    await store.skip_turn(NAME, 2)
    await append(store, 4)
    # The fold reaches turn 3, passing over 2, and not yet the entry that says so.
    await fold(store, 3)
    await store.rollback(NAME, before)
    await check(store, redis, 1, 2, 3)
    _, state = await store.read_state(NAME)
    assert state.data == state_of(NAMES[0], turns(1, 2, 3))
