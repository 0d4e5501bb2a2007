"""Memories as things."""

import asyncio
import contextlib
import itertools
from dataclasses import replace

import pytest

from memfold.api.errors import MemoryExistsError, MemoryNotFoundError, ModelNotFoundError, RevisionMismatchError
from memfold.api.values import MemoryName, Role, Turn
from memfold.store import Anchor, Store
from memfold.store.keys import index_entry, tenant_index


async def test_a_new_memory_is_empty_and_says_so(store, name, card):
    memory = await store.create_memory(name, display_name="Bob", labels={"team": "blau"})
    assert (memory.display_name, dict(memory.labels)) == ("Bob", {"team": "blau"})
    assert (memory.head, memory.applied, memory.turn_count, memory.log_bytes, memory.state_bytes) == (0, 0, 0, 0, 0)
    assert memory.fingerprint == card.fingerprint
    assert memory.create_ms == memory.update_ms > 0
    assert await store.get_memory(name) == memory
    assert await store.read_state(name) == (memory, None)


async def test_a_name_is_given_once(store, name):
    first = await store.create_memory(name, request_id="r1")
    with pytest.raises(MemoryExistsError):
        await store.create_memory(name)
    with pytest.raises(MemoryExistsError):
        await store.create_memory(name, request_id="r2")
    assert await store.list_memories(name.tenant) == [first]
    nameless = MemoryName("acme", "carol")
    await store.create_memory(nameless)
    with pytest.raises(MemoryExistsError):
        await store.create_memory(nameless)


async def test_the_same_request_is_answered_alike(store, name):
    answers = await asyncio.gather(*(store.create_memory(name, display_name="B", request_id="r1") for _ in range(8)))
    assert {answer.incarnation for answer in answers} == {answers[0].incarnation}
    assert [memory.name for memory in await store.list_memories(name.tenant)] == [name]


async def test_an_update_changes_what_it_names(store, name, folder):
    await store.create_memory(name, display_name="Bob", labels={"a": "1"})
    await store.append(name, [folder.turn(1)])
    assert (await store.update_memory(name, display_name="Robert", labels=None)).display_name == "Robert"
    memory = await store.update_memory(name, display_name=None, labels={})
    assert (memory.display_name, dict(memory.labels), memory.head) == ("Robert", {}, 1)
    assert await store.get_memory(name) == memory


async def test_an_update_holds_to_the_expected_revision(store, name, folder):
    empty = (await store.create_memory(name)).revision
    await store.append(name, [folder.turn(1)])
    with pytest.raises(RevisionMismatchError):
        await store.update_memory(name, display_name="late", labels=None, expected=empty)
    assert (await store.get_memory(name)).display_name == ""


async def test_what_is_not_there_is_not_found(store, name):
    for call in (
        store.get_memory(name),
        store.update_memory(name, display_name="x", labels=None),
        store.delete_memory(name),
        store.read_state(name),
    ):
        with pytest.raises(MemoryNotFoundError):
            await call


async def test_lists_page_through_one_tenant_by_id(store, folder):
    ids = ["a", "a-b", "a.b", "a1", "aa", "b", "B", "ab~", "Z9"]
    for memory_id in ids:
        await store.append(MemoryName("acme", memory_id), [folder.turn(1)], create=True)
        await store.append(MemoryName("acme-2", memory_id), [folder.turn(1)], create=True)
    listed: list[str] = []
    while page := await store.list_memories("acme", after=listed[-1] if listed else "", limit=2):
        assert len(page) <= 2
        assert {memory.name.tenant for memory in page} == {"acme"}
        listed += [memory.name.memory for memory in page]
    assert listed == sorted(ids)
    assert await store.list_memories("nobody") == []


async def test_a_page_is_full_although_deleted_memories_left_traces_in_the_index(plain_store, redis):
    names = [MemoryName("acme", f"m{at}") for at in range(6)]
    for name in names:
        await plain_store.create_memory(name)
    for name in names[:4]:
        # As if the deleter had died between the memory and the index.
        redis.zadd("memfold:tenant:acme", {f"{name.memory}\0{'0' * 12}": 0})
    for name in names[:3]:
        await plain_store.delete_memory(name)
    listed = await plain_store.list_memories("acme", limit=2)
    assert [memory.name for memory in listed] == names[3:5]
    assert [memory.name for memory in await plain_store.list_memories("acme", after="m4", limit=2)] == names[5:]


async def test_deleting_needs_the_expected_revision(store, name, folder):
    empty = (await store.create_memory(name)).revision
    head = (await store.append(name, [folder.turn(1)])).revision
    with pytest.raises(RevisionMismatchError):
        await store.delete_memory(name, expected=empty)
    assert await store.delete_memory(name, expected=head) == head
    with pytest.raises(MemoryNotFoundError):
        await store.delete_memory(name)


async def test_a_forgetting_that_comes_between_does_not_save_a_memory_from_deletion(store, name, folder, monkeypatch):
    await store.append(name, [folder.turn(1), folder.turn(2)], create=True)
    write = store._server.write

    async def overtaken(script, *args):
        if script == "delete":
            monkeypatch.setattr(store._server, "write", write)
            await store.forget(name, [1], expected_incarnation=(await store.get_memory(name)).incarnation)
        return await write(script, *args)

    monkeypatch.setattr(store._server, "write", overtaken)
    await store.delete_memory(name)
    with pytest.raises(MemoryNotFoundError):
        await store.get_memory(name)
    assert await store.list_memories(name.tenant) == []


async def test_after_deletion_no_key_holds_a_word_of_it(plain_store, redis, name, card, folder):
    other = MemoryName("acme", "carol")
    await plain_store.append(other, [folder.turn(1)], create=True)
    await plain_store.create_memory(name, display_name="a secret", labels={"secret": "secret"}, request_id="secret")
    await plain_store.append(name, [folder.turn(2, "a secret"), folder.turn(3, "another secret")])
    [claim] = await plain_store.claim(card.fingerprint, name.partition, owner="w", lease_s=30, limit=10)
    anchor = Anchor(1, 1, b"secret.." * 4)
    await folder.commit(plain_store, claim, b"secret.." * 4, 1, anchor)
    assert "secret" in _everything(redis)
    await plain_store.delete_memory(name)
    everything = _everything(redis)
    assert "secret" not in everything
    assert "bob" not in everything
    assert [turn.id for turn in await plain_store.read_turns(other)] == ["id-1"]


async def test_a_memory_made_again_knows_nothing_of_the_old_one(store, name, folder):
    old = (await store.append(name, [folder.turn(1), folder.turn(2)], create=True)).revision
    await store.delete_memory(name)
    new = await store.append(name, [folder.turn(1, "other content")], create=True)
    assert new.revision.incarnation != old.incarnation
    assert new.turns[0].sequence == 1
    assert not new.turns[0].duplicate
    assert [memory.revision for memory in await store.list_memories(name.tenant)] == [new.revision]


async def test_creating_and_deleting_at_once_never_leaves_a_memory_out_of_the_list(store, name):
    async def create() -> None:
        await store.create_memory(name)

    async def delete() -> None:
        await store.delete_memory(name)

    for _ in range(15):
        await asyncio.gather(create(), delete(), create(), delete(), return_exceptions=True)
        listed = [memory.incarnation for memory in await store.list_memories(name.tenant)]
        try:
            there = [(await store.get_memory(name)).incarnation]
        except MemoryNotFoundError:
            there = []
        assert listed == there


async def test_models_are_known_by_their_fingerprint(store, card):
    assert await store.default_model() == card
    assert await store.model(card.fingerprint) == card
    second = type(card)("e" * 64, "b", "a", (1, 2, 3, 3), 8, 16, "what it is", ("say this",))
    await store.register_model(second, default=False)
    assert await store.default_model() == card
    assert await store.model(second.fingerprint) == second
    with pytest.raises(ModelNotFoundError, match=f"{card.fingerprint} .*, {second.fingerprint} "):
        await store.model("d" * 64)


async def test_two_stores_see_the_same(store, any_redis_url, name, folder):
    await store.append(name, [folder.turn(1)], create=True)
    other = await Store.open(any_redis_url)
    assert await other.get_memory(name) == await store.get_memory(name)
    await other.close()


def _everything(redis) -> str:
    """All keys with all that they hold."""
    readers = {
        b"string": redis.get,
        b"hash": redis.hgetall,
        b"zset": lambda key: redis.zrange(key, 0, -1),
        b"set": redis.smembers,
        b"stream": redis.xrange,
    }
    return repr([(key, readers[redis.type(key)](key)) for key in redis.scan_iter()])


async def test_a_list_misses_no_memory_that_is_just_getting_another_incarnation(store, any_redis_url, name, folder):
    other = await Store.open(any_redis_url)
    await store.append(name, [folder.turn(1), folder.turn(2)], create=True)
    get = other._on_each

    async def late(script, names):
        memory = await store.get_memory(name)
        await store.forget(name, [1], expected_incarnation=memory.incarnation)
        return await get(script, names)

    other._on_each = late
    assert [memory.name for memory in await other.list_memories(name.tenant)] == [name]
    await other.close()


async def test_a_list_shows_each_memory_once_and_none_that_is_not_there(plain_store, redis, name, folder):
    """Entries of the index that crashes left behind: before a creation, behind a deletion, around a removal."""
    index = tenant_index(name.tenant)
    for memory in ("alice", "bob", "carol"):
        await plain_store.append(MemoryName("acme", memory), [folder.turn(1)], create=True)
    for memory in ("alice", "bob", "nobody", "carol"):
        for incarnation in ("0" * 12, "f" * 12):
            redis.zadd(index, {index_entry(MemoryName("acme", memory), incarnation): 0})
    for limit in (1, 2, 3, 50):
        listed: list[str] = []
        while page := await plain_store.list_memories("acme", after=listed[-1] if listed else "", limit=limit):
            listed += [memory.name.memory for memory in page]
        assert listed == ["alice", "bob", "carol"]


DEEDS = {
    "create": lambda store, name, _: store.create_memory(name),
    "append": lambda store, name, _: store.append(name, [Turn("1", Role.USER, "x")], create=True),
    "forget": lambda store, name, here: store.forget(name, [1], expected_incarnation=here.incarnation),
    "rollback": lambda store, name, here: store.rollback(name, replace(here, sequence=1)),
    "delete": lambda store, name, _: store.delete_memory(name),
}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("deed", DEEDS)
async def test_whoever_dies_wherever_lists_are_right(swift_store, swift_url, folder, kills, killed, deed, after):
    doomed = await Store.open(swift_url)
    deaths = kills(doomed)
    for calls in itertools.count():
        name, here = MemoryName(f"tenant-{calls}", "bob"), None
        if deed not in ("create", "append"):
            here = (await swift_store.append(name, [folder.turn(1), folder.turn(2)], create=True)).revision
        deaths.at(calls, after=after)
        with contextlib.suppress(killed):
            await DEEDS[deed](doomed, name, here)
        died, there = deaths.off(), []
        with contextlib.suppress(MemoryNotFoundError):
            there = [await swift_store.get_memory(name)]
        assert await swift_store.list_memories(name.tenant) == there
        if not died:
            break
    assert calls > 1
    await doomed.close()
