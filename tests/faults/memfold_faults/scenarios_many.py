"""Taking out many turns: the log is written anew without them, aside, and then takes the old one's place."""

from __future__ import annotations

import asyncio

from memfold_faults.chain import NAMES, state_of
from memfold_faults.story import (
    NAME,
    append,
    carry_out,
    check,
    few_at_once,
    finish,
    fold,
    raises,
    scenario,
    take,
    turns,
)

from memfold.api.errors import RevisionMismatchError
from memfold.api.values import OperationKind, Policy, Revision
from memfold.store import Store, keys
from memfold.store.keys import memory_keys
from memfold.store.ranges import runs_of
from memfold.store.removals import Aside, Removal

NEW, OTHER = "a" * 12, "b" * 12


async def forgetting(store: Store, *sequences: int, incarnation: str = NEW) -> Removal:
    memory = await store.get_memory(NAME)
    return Removal.of_turns(NAME, runs_of(sequences), memory.revision, incarnation)


async def write_all(store: Store, removal: Removal) -> None:
    while not await store.write_aside(removal):
        pass


@scenario
async def many_are_taken_out_at_one_moment(store, redis):
    with few_at_once():
        await append(store, *range(1, 11))
        await fold(store, 5)
        claim = await take(store)
        removal = await forgetting(store, 2, 3, 4, 8)
        assert await store.take_out(removal) is None
        await write_all(store, removal)
        assert len(await store.read_turns(NAME)) == 10, "half of it is seen"
        await append(store, 11, 1)  # one that is new, one that was there
        gone = await store.take_out(removal)
        assert gone is not None
        assert (gone.count, gone.runs, gone.ids) == (4, ((2, 4), (8, 8)), ("turn-2", "turn-3", "turn-4", "turn-8"))
        assert await store.take_out(removal) == gone, "another answer for the same removal"
        assert (await store.read_state(NAME))[1] is None
        assert not await finish(store, claim), "a fold of what is forgotten"
        assert await store.scrub(NAME)
        await check(store, redis, 1, 5, 6, 7, 9, 10, 11)
        await append(store, 3, 11)
        await check(store, redis, 1, 5, 6, 7, 9, 10, 11, 3)
        assert redis.ttl(memory_keys(NAME, "").log) == redis.ttl(memory_keys(NAME, "").ids) == -1


@scenario
async def much_that_comes_in_meanwhile_is_written_aside_first(store, redis):
    with few_at_once():
        await append(store, *range(1, 6))
        removal = await forgetting(store, 1, 2, 3)
        await write_all(store, removal)
        await append(store, *range(6, 12))
        assert await store.take_out(removal) is None
        await write_all(store, removal)
        assert (await store.take_out(removal)).count == 3
        await check(store, redis, *range(4, 12))


@scenario
async def readers_get_what_is_clean_before_many_are_gone(store, redis):
    with few_at_once():
        for some in ((1, 2, 3), (4, 5), (6, 7)):
            await append(store, *some)
            await fold(store)
        removal = await forgetting(store, 4, 5, 6)
        await store.write_aside(removal)
        memory, state = await store.read_state(NAME)
        assert memory.applied == 3
        assert state.data == state_of(NAMES[0], turns(1, 2, 3)), "a reader was given what is being forgotten"
        await append(store, 8)
        assert await take(store) is None, "what is being forgotten is folded again"
        await write_all(store, removal)
        gone = await store.take_out(removal)
        assert gone is not None
        assert (gone.restored_to, gone.dropped) == (3, (5, 7))
        await check(store, redis, 1, 2, 3, 7, 8)


@scenario
async def folding_goes_on_where_nobody_goes_on_with_forgetting(store, redis):
    with few_at_once():
        await append(store, *range(1, 8))
        await fold(store)
        removal = await forgetting(store, 4, 5, 6)
        await store.write_aside(removal)
        redis.hset(memory_keys(NAME, "").rewrite, "ms", 1)
        await check(store, redis, *range(1, 8))
        await store.write_aside(removal)
        assert (await store.get_memory(NAME)).applied == 0, "what is being forgotten is read again"
        await write_all(store, removal)
        assert (await store.take_out(removal)).count == 3
        await check(store, redis, 1, 2, 3, 7)


@scenario
async def a_rollback_over_many_takes_all_of_them(store, redis):
    with few_at_once():
        await append(store, *range(1, 5))
        await fold(store)
        kept = (await store.get_memory(NAME)).revision
        await append(store, *range(5, 11))
        removal = Removal.behind(NAME, kept, None, NEW)
        assert await store.take_out(removal) is None
        await write_all(store, removal)
        await append(store, 11)
        back = await store.take_out(removal)
        assert back is not None
        assert (back.count, back.restored_to, back.ids[-1]) == (7, 4, "turn-11")
        await check(store, redis, 1, 2, 3, 4)
        await append(store, 7)
        await check(store, redis, 1, 2, 3, 4, 7)


@scenario
async def whoever_dies_while_writing_aside_is_followed_by_another(store, redis):
    """The other one begins with what the first had noted: less than it had written, or nothing."""
    with few_at_once():
        for noted in (0, 1, 3):
            await append(store, *range(1, 11))
            first = await forgetting(store, 1, 4, 5, 9)
            for _ in range(noted):
                await store.write_aside(first)
            second = await forgetting(store, 1, 4, 5, 9)
            second.aside = Aside.from_work((first.aside or Aside()).to_work())
            await write_all(store, first)
            await append(store, 11)
            await write_all(store, second)
            gone = await store.take_out(second)
            assert gone is not None
            assert gone.sequences == (1, 4, 5, 9)
            await check(store, redis, 2, 3, 6, 7, 8, 10, 11)
            await store.delete_memory(NAME)


@scenario
async def what_was_lost_of_a_log_written_aside_is_written_again(store, redis):
    with few_at_once():
        for lost in ("fresh_log", "fresh_ids", "rewrite"):
            await append(store, *range(1, 9))
            removal = await forgetting(store, 1, 2, 3, incarnation=lost[:3] + NEW[3:])
            await write_all(store, removal)
            redis.delete(getattr(memory_keys(NAME, ""), lost))
            assert await store.take_out(removal) is None, "what was lost is lost"
            await write_all(store, removal)
            gone = await store.take_out(removal)
            assert gone is not None
            assert gone.count == 3
            await check(store, redis, 4, 5, 6, 7, 8)
            await store.delete_memory(NAME)
        await append(store, *range(1, 9))
        removal = await forgetting(store, 1, 2, 3)
        await store.write_aside(removal)
        await store.write_aside(removal)
        redis.delete(*(getattr(memory_keys(NAME, ""), lost) for lost in ("fresh_log", "fresh_ids", "rewrite")))
        assert not await store.write_aside(removal)
        assert not await store.write_aside(await forgetting(store, 7, incarnation=OTHER))
        await write_all(store, removal)
        assert (await store.take_out(removal)).count == 3
        await check(store, redis, 4, 5, 6, 7, 8)


@scenario
async def a_log_written_aside_before_another_removal_is_thrown_away(store, redis):
    with few_at_once():
        await append(store, *range(1, 9))
        many = await forgetting(store, 4, 5, 6)
        await write_all(store, many)
        memory = await store.get_memory(NAME)
        await store.forget(NAME, [2], expected_incarnation=memory.incarnation)
        await raises(RevisionMismatchError, store.take_out(many))
        await raises(RevisionMismatchError, store.write_aside(many))
        assert not redis.exists(memory_keys(NAME, "").fresh_log), "it holds what is forgotten"
        await check(store, redis, 1, 3, 4, 5, 6, 7, 8)


@scenario
async def two_who_write_aside_do_not_mix(store, redis):
    with few_at_once():
        await append(store, *range(1, 9))
        one, two = await forgetting(store, 1, 2, 3), await forgetting(store, 6, 7, 8, incarnation=OTHER)
        await store.write_aside(one)
        assert not await store.write_aside(two)
        assert two.aside == Aside(), "two write at once"
        redis.hset(memory_keys(NAME, "").rewrite, "ms", 1)  # nothing has been heard of the first for long
        await write_all(store, two)
        assert await store.take_out(one) is None
        gone = await store.take_out(two)
        assert gone is not None
        assert gone.ids == ("turn-6", "turn-7", "turn-8")
        await check(store, redis, 1, 2, 3, 4, 5)


@scenario
async def a_log_that_lost_entries_stays_one_that_did(store, redis):
    with few_at_once():
        await append(store, *range(1, 9))
        await fold(store, 2)
        redis.xdel(memory_keys(NAME, "").log, "7-0")
        memory = await store.get_memory(NAME)
        await store.forget(NAME, [3, 4, 5], expected_incarnation=memory.incarnation)
        assert await take(store) is None
        assert (await store.get_memory(NAME)).quarantined, "the hole is folded over"


@scenario
async def what_is_passed_over_and_goes_takes_its_note_along(store, redis):
    with few_at_once():
        await append(store, *range(1, 7))
        for sequence in (2, 5):
            await store.skip_turn(NAME, sequence)
        memory = await store.get_memory(NAME)
        await store.forget(NAME, [2, 3, 4], expected_incarnation=memory.incarnation)
        log = await store.read_turns(NAME)
        assert [entry.sequence for entry in log] == [1, 5, 6, 8]
        assert [entry.sequence for entry in log if entry.skipped] == [5]
        await check(store, redis, 1, 5, 6)


@scenario
async def scrubbing_waits_for_one_who_writes_aside(store, redis):
    with few_at_once():
        await append(store, *range(1, 9))
        memory = await store.get_memory(NAME)
        await store.forget(NAME, [2], expected_incarnation=memory.incarnation)
        removal = await forgetting(store, 4, 5, 6)
        await store.write_aside(removal)
        for _ in range(9):
            assert not await store.scrub(NAME)
        await write_all(store, removal)
        assert (await store.take_out(removal)).count == 3
        assert await store.scrub(NAME)
        await check(store, redis, 1, 3, 7, 8)


@scenario
async def a_removal_answers_for_itself_whatever_came_after(store, redis):
    await append(store, *range(1, 9))
    memory = await store.get_memory(NAME)
    first = await store.forget(NAME, [2], expected_incarnation=memory.incarnation, incarnation=NEW)
    await append(store, 9)
    back = await store.rollback(NAME, Revision(NEW, 7), incarnation=OTHER)
    await append(store, 10)
    assert await store.forget(NAME, [2], expected_incarnation=memory.incarnation, incarnation=NEW) == first
    assert await store.rollback(NAME, Revision(NEW, 7), incarnation=OTHER) == back
    assert (await store.get_memory(NAME)).incarnation == OTHER
    assert [one.name for one in await store.list_memories(NAME.tenant)] == [NAME]
    await check(store, redis, 1, 3, 4, 5, 6, 7, 10)


@scenario
async def a_memory_lives_as_long_after_its_last_turn_whatever_is_removed(store, redis):
    entry = keys.expires(NAME.partition), keys.member(NAME)

    async def ends() -> float:
        redis.zadd(entry[0], {entry[1]: 0})
        assert await store.sweep_expired(10) == []
        return redis.zscore(*entry)

    async def live_on(*numbers: int) -> float:
        await asyncio.sleep(0.002)  # by the millisecond
        await append(store, *numbers)
        return await ends()

    await store.create_memory(NAME, policy=Policy(ttl_s=3600))
    before = await live_on(1, 2)
    incarnation = (await store.get_memory(NAME)).incarnation
    await store.forget(NAME, [1, 2], expected_incarnation=incarnation)
    assert await ends() == before, "what was forgotten"
    before = await live_on(3, 4, 5)
    with few_at_once():
        await store.rollback(NAME, Revision((await store.get_memory(NAME)).incarnation, 0))
    assert await ends() == before, "what was taken back"
    before = await live_on(6)
    await store.skip_turn(NAME, 6)
    assert await ends() == before, "a note that is no turn"


@scenario
async def an_operation_notes_what_came_of_it(store, redis):
    await append(store, *range(1, 9))
    await fold(store)
    done = await carry_out(store, OperationKind.FORGET, selector={"first": 2, "last": 7}, include_forks=False)
    assert done.result["ranges"] == [{"first": 2, "last": 7}]
    assert (await store.get_operation(NAME, done.id)).result == done.result
