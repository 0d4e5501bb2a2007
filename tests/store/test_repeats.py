"""When a connection breaks, the client library sends a script again by itself: running twice is like running once."""

import pytest

from memfold.api.errors import MemoryExistsError, MemoryNotFoundError
from memfold.api.values import Revision
from memfold.store import Anchor, Store
from memfold.store.server import Server

STATE = b"\x01" * 32


class StutteringServer(Server):
    """Runs everything that changes anything twice, and answers with the second outcome: the first was lost on the way."""

    async def run(self, script, keys, *args):
        await super().run(script, keys, *args)
        return await super().run(script, keys, *args)

    async def run_each(self, script, calls):
        await super().run_each(script, calls)
        return await super().run_each(script, calls)


@pytest.fixture
async def stuttering(store):
    stuttering = Store(StutteringServer(store._server._url, store._server._client, 1))
    yield stuttering
    await stuttering._ear.close()


async def test_a_creation_succeeds_once(stuttering, store, name):
    memory = await stuttering.create_memory(name, display_name="Bob")
    assert await store.list_memories(name.tenant) == [memory]
    with pytest.raises(MemoryExistsError):
        await stuttering.create_memory(name)


async def test_an_append_appends_once(stuttering, store, name, folder):
    result = await stuttering.append(name, [folder.turn(1), folder.turn(2)], create=True)
    again = await stuttering.append(name, [folder.turn(3)], expected=result.revision)
    assert again.revision.sequence == 3
    assert len(await store.read_turns(name)) == 3
    assert [memory.revision for memory in await store.list_memories(name.tenant)] == [again.revision]


async def test_a_claim_counts_once_and_its_commit_wins(stuttering, store, name, card, folder):
    await store.append(name, [folder.turn(1), folder.turn(2)], create=True)
    [claim] = await stuttering.claim(card.fingerprint, name.partition, owner="w", lease_s=30, limit=10)
    assert (claim.fence, claim.attempts) == (1, 1)
    anchor = Anchor(1, 0, STATE)
    assert await folder.commit(stuttering, claim, STATE, 2, anchor)
    assert (await store.read_state(name))[1].data == STATE


async def test_an_attempt_is_given_back_once(stuttering, store, name, card, folder):
    await store.append(name, [folder.turn(1)], create=True)
    for expected in (1, 2, 2):
        [claim] = await store.claim(card.fingerprint, name.partition, owner="w", lease_s=30, limit=10)
        assert claim.attempts == expected
        await stuttering.release(claim, delay_s=0, give_back=expected == 2)


async def test_a_deletion_succeeds_and_spares_the_successor(stuttering, store, name, folder, monkeypatch):
    old = (await store.append(name, [folder.turn(1)], create=True)).revision
    before = await store.get_memory(name)
    assert await stuttering.delete_memory(name) == old
    with pytest.raises(MemoryNotFoundError):
        await store.get_memory(name)
    heir = await store.create_memory(name)

    async def as_it_was(_name):
        return before

    monkeypatch.setattr(stuttering, "get_memory", as_it_was)
    assert await stuttering.delete_memory(name) == old
    assert await store.get_memory(name) == heir


async def test_turns_are_removed_and_skipped_once(stuttering, store, name, card, folder):
    revision = (await store.append(name, [folder.turn(at) for at in range(1, 7)], create=True)).revision
    await folder.catch_up(store, name, card.fingerprint, entries=2)
    gone = await stuttering.forget(name, [4], expected_incarnation=revision.incarnation)
    assert (gone.sequences, gone.ids, gone.dropped, gone.restored_to) == ((4,), ("id-4",), (4, 6), 2)
    assert await stuttering.skip_turn(name, 5) == Revision(gone.revision.incarnation, 7)
    back = await stuttering.rollback(name, Revision(gone.revision.incarnation, 5))
    assert (back.sequences, back.ids) == ((6,), ("id-6",))
    assert await stuttering.scrub(name)
    assert [one.revision for one in await store.list_memories(name.tenant)] == [back.revision]
    assert await folder.catch_up(store, name, card.fingerprint) == 1
    assert (await store.read_state(name))[1].data == folder.fold([folder.turn(at) for at in (1, 2, 3, 5)])
