"""What an append promises."""

import asyncio
import itertools

import pytest

from memfold.api.errors import (
    BacklogFullError,
    InvalidFieldError,
    MemoryNotFoundError,
    ModelLoadingError,
    RevisionMismatchError,
    TurnIdConflictError,
)
from memfold.api.values import MemoryName, Revision, Role, Turn
from memfold.store import AppendedTurn, Store


async def test_turns_get_dense_sequences_in_order(store, name, folder):
    await store.create_memory(name)
    first = await store.append(name, [folder.turn(1), folder.turn(2)])
    second = await store.append(name, [folder.turn(3)])
    assert first.turns == (AppendedTurn("id-1", 1, False), AppendedTurn("id-2", 2, False))
    assert first.revision.sequence == 2
    assert second.revision == Revision(first.revision.incarnation, 3)
    turns = await store.read_turns(name)
    assert [(turn.sequence, turn.id) for turn in turns] == [(1, "id-1"), (2, "id-2"), (3, "id-3")]


async def test_a_turn_is_read_back_as_it_was_said(store, name):
    said = Turn(
        "ä-1", Role.TOOL, "null\0byte, <|im_start|>, 日本語 \U0001f600", "Caroline", {"date": "8 May, 2023", "é": ""}
    )
    await store.append(name, [said], create=True)
    [read] = await store.read_turns(name)
    assert read.to_bytes() == said.to_bytes()
    assert read.append_ms > 0


async def test_only_the_first_append_of_a_memory_that_is_behind_asks_for_a_hint(store, name, card, folder):
    assert (await store.append(name, [folder.turn(1)], create=True)).behind
    assert not (await store.append(name, [folder.turn(2)])).behind
    assert await folder.drain(store, card) == 1
    assert (await store.append(name, [folder.turn(3)])).behind


async def test_appending_again_is_one_turn(store, name, folder):
    turns = [folder.turn(1), folder.turn(2)]
    first = await store.append(name, turns, create=True)
    await store.append(name, [folder.turn(3)])
    again = await store.append(name, turns)
    assert [(turn.sequence, turn.duplicate) for turn in again.turns] == [(1, True), (2, True)]
    assert again.revision == first.revision
    memory = await store.get_memory(name)
    assert (memory.head, memory.turn_count) == (3, 3)
    assert memory.log_bytes == sum(len(folder.turn(at).content.encode()) for at in (1, 2, 3))


async def test_old_and_new_turns_mix_in_one_call(store, name, folder):
    await store.append(name, [folder.turn(1)], create=True)
    mixed = await store.append(name, [folder.turn(2), folder.turn(1), folder.turn(3)])
    assert [(turn.sequence, turn.duplicate) for turn in mixed.turns] == [(2, False), (1, True), (3, False)]
    assert mixed.revision.sequence == 3


async def test_the_same_id_twice_in_one_call_is_one_turn(store, name, folder):
    result = await store.append(name, [folder.turn(1), folder.turn(1)], create=True)
    assert [(turn.sequence, turn.duplicate) for turn in result.turns] == [(1, False), (1, True)]
    assert len(await store.read_turns(name)) == 1


@pytest.mark.parametrize(
    "changed", [{"content": "other"}, {"role": Role.SYSTEM}, {"speaker": "X"}, {"metadata": {"a": "b"}}]
)
async def test_one_id_with_other_bytes_is_refused(store, name, changed):
    said = {"id": "one", "role": Role.USER, "content": "hello", "speaker": "", "metadata": {}}
    await store.append(name, [Turn(**said)], create=True)
    with pytest.raises(TurnIdConflictError) as caught:
        await store.append(name, [Turn(**{**said, **changed})])
    assert caught.value.facts == {"turn_id": "one", "sequence": "1"}


async def test_a_conflict_inside_one_call_leaves_nothing_behind(store, name, folder):
    await store.create_memory(name)
    with pytest.raises(TurnIdConflictError):
        await store.append(name, [folder.turn(1), folder.turn(2), folder.turn(1, "other")])
    assert await store.read_turns(name) == []
    assert (await store.get_memory(name)).head == 0


async def test_a_conflict_with_the_log_takes_none_of_the_new_turns(store, name, folder):
    await store.append(name, [folder.turn(1)], create=True)
    with pytest.raises(TurnIdConflictError):
        await store.append(name, [folder.turn(2), folder.turn(1, "other")])
    assert [turn.id for turn in await store.read_turns(name)] == ["id-1"]
    assert [turn.duplicate for turn in (await store.append(name, [folder.turn(2)])).turns] == [False]


async def test_an_append_that_fails_creates_no_memory(store, name, folder):
    with pytest.raises(TurnIdConflictError):
        await store.append(name, [folder.turn(1), folder.turn(1, "other")], create=True)
    with pytest.raises(MemoryNotFoundError):
        await store.get_memory(name)
    assert await store.list_memories(name.tenant) == []


async def test_an_expected_revision_holds_off_the_late(store, name, folder):
    empty = (await store.create_memory(name)).revision
    first = await store.append(name, [folder.turn(1)], expected=empty)
    with pytest.raises(RevisionMismatchError) as caught:
        await store.append(name, [folder.turn(2)], expected=empty)
    assert caught.value.facts == {"revision": str(first.revision)}
    with pytest.raises(RevisionMismatchError):
        await store.append(name, [folder.turn(2)], expected=Revision("0" * 12, 1))
    assert (await store.append(name, [folder.turn(2)], expected=first.revision)).revision.sequence == 2


async def test_repeating_an_append_with_an_expected_revision_succeeds(store, name, folder):
    empty = (await store.create_memory(name)).revision
    first = await store.append(name, [folder.turn(1)], expected=empty)
    again = await store.append(name, [folder.turn(1)], expected=empty)
    assert again.revision == first.revision


async def test_a_full_backlog_refuses_new_turns_but_knows_the_old(store, name, card, folder):
    await store.append(name, [folder.turn(at) for at in range(5)], create=True, backlog=3)
    with pytest.raises(BacklogFullError) as caught:
        await store.append(name, [folder.turn(5)], backlog=3)
    assert caught.value.retry_after_ms > 0
    assert caught.value.facts == {"lag_turns": "5"}
    assert (await store.append(name, [folder.turn(4)], backlog=3)).turns[0].duplicate
    await folder.drain(store, card)
    assert (await store.append(name, [folder.turn(5)], backlog=3)).revision.sequence == 6


async def test_no_memory_no_append(store, name, folder):
    with pytest.raises(MemoryNotFoundError):
        await store.append(name, [folder.turn(1)])
    with pytest.raises(MemoryNotFoundError):
        await store.append(name, [folder.turn(1)], create=True, expected=Revision("0" * 12, 0))
    with pytest.raises(MemoryNotFoundError):
        await store.read_turns(name)
    with pytest.raises(MemoryNotFoundError):
        await store.read_tail(name, until=0, limit=1)


async def test_an_append_without_turns_is_refused(store, name):
    with pytest.raises(InvalidFieldError):
        await store.append(name, [], create=True)


async def test_appending_creates_a_memory_of_the_default_model(store, name, card, folder):
    result = await store.append(name, [folder.turn(1)], create=True)
    memory = await store.get_memory(name)
    assert result.fingerprint == memory.fingerprint == card.fingerprint
    assert memory.revision == result.revision
    assert await store.list_memories(name.tenant) == [memory]


async def test_without_a_model_nothing_is_created(redis_url, name, folder):
    store = await Store.open(redis_url)
    with pytest.raises(ModelLoadingError):
        await store.append(name, [folder.turn(1)], create=True)
    with pytest.raises(ModelLoadingError):
        await store.create_memory(name)
    await store.close()


async def test_concurrent_appenders_share_one_dense_log(store, any_redis_url, name, folder):
    other = await Store.open(any_redis_url)
    stores, writers, each = [store, other], 8, 25

    async def write(writer: int) -> list[int]:
        sequences = []
        for at in range(each):
            result = await stores[writer % 2].append(name, [folder.turn(writer * 1000 + at)], create=True)
            sequences.append(result.turns[0].sequence)
        return sequences

    given = await asyncio.gather(*(write(writer) for writer in range(writers)))
    assert all(sequences == sorted(sequences) for sequences in given)
    assert sorted(itertools.chain(*given)) == list(range(1, writers * each + 1))
    turns = {turn.sequence: turn.id for turn in await store.read_turns(name)}
    for writer, sequences in enumerate(given):
        assert [turns[sequence] for sequence in sequences] == [f"id-{writer * 1000 + at}" for at in range(each)]
    assert len(await store.list_memories(name.tenant)) == 1
    await other.close()


async def test_the_same_turn_from_many_at_once_is_one_turn(store, name, folder):
    results = await asyncio.gather(*(store.append(name, [folder.turn(1)], create=True) for _ in range(20)))
    assert {result.revision for result in results} == {results[0].revision}
    assert [result.turns[0].duplicate for result in results].count(False) == 1


async def test_a_large_append_is_one_append(store, name, folder):
    result = await store.append(name, [folder.turn(at) for at in range(1000)], create=True)
    assert [turn.sequence for turn in result.turns] == list(range(1, 1001))


async def test_reading_pages_through_the_log(store, name, folder):
    await store.append(name, [folder.turn(at) for at in range(1, 8)], create=True)

    def numbers(turns):
        return [turn.sequence for turn in turns]

    assert numbers(await store.read_turns(name, limit=3)) == [1, 2, 3]
    assert numbers(await store.read_turns(name, after=3, limit=3)) == [4, 5, 6]
    assert numbers(await store.read_turns(name, after=7)) == []
    assert numbers(await store.read_turns(name, max_bytes=1)) == [1]
    two = 2 * len(folder.turn(1).to_bytes())
    assert numbers(await store.read_turns(name, after=2, max_bytes=two)) == [3, 4]
    assert numbers(await store.read_tail(name, until=5, limit=2)) == [4, 5]
    assert numbers(await store.read_tail(name, until=2, limit=5)) == [1, 2]
    assert numbers(await store.read_tail(name, until=0, limit=5)) == []


async def test_memories_of_two_tenants_are_apart(store, folder):
    one, two = MemoryName("acme", "bob"), MemoryName("other", "bob")
    await store.append(one, [folder.turn(1)], create=True)
    with pytest.raises(MemoryNotFoundError):
        await store.get_memory(two)
    await store.append(two, [folder.turn(1, "something else")], create=True)
    assert [turn.content for turn in await store.read_turns(two)] == ["something else"]


async def test_a_memory_goes_on_with_the_model_that_it_began_with(store, any_redis_url, name, card, folder):
    await store.append(name, [folder.turn(1)], create=True)
    newer = type(card)("f" * 64, "backbone", "newer", card.state_shape, 64, 256)
    await store.register_model(newer)
    fresh = await Store.open(any_redis_url)
    other = MemoryName("acme", "carol")
    assert (await fresh.append(other, [folder.turn(1)], create=True)).fingerprint == newer.fingerprint
    assert (await fresh.append(name, [folder.turn(2)], create=True)).fingerprint == card.fingerprint
    assert {memory.fingerprint for memory in await fresh.list_memories("acme")} == {card.fingerprint, newer.fingerprint}
    assert await fresh.due_partitions(newer.fingerprint) == [other.partition]
    assert await fresh.due_partitions(card.fingerprint) == [name.partition]
    await fresh.close()
