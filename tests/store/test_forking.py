"""A copy is what its source was at a revision, or it is not there."""

import asyncio
import contextlib
import itertools

import pytest
from redis import Redis

from memfold.api.errors import MemoryNotFoundError
from memfold.api.values import MemoryName, Policy, Revision
from memfold.store import Anchor, Store, forking, operations
from memfold.store.digests import EMPTY_LOG, chain
from memfold.store.keys import forks, memory_keys, stage_keys

COPY = MemoryName("acme", "copy")


@pytest.fixture
def write(card, folder):
    """Appends turns, folding after every few; the last may stay unfolded."""

    async def write(store, name, count: int, *, every: int = 5, start: int = 1) -> None:
        for at in range(start, start + count):
            await store.append(name, [folder.turn(at)], create=True)
            if at % every == 0:
                await folder.drain(store, card)

    return write


@pytest.fixture
def fork(carrier):
    async def fork(store, name, at: int | None = None, to: MemoryName = COPY, **more):
        revision = "" if at is None else str(Revision((await store.get_memory(name)).incarnation, at))
        return await carrier.ask(store, name, "fork", target=str(to), revision=revision, **more)

    return fork


async def check_copy(store, card, folder, name, at: int, copy: MemoryName = COPY) -> None:
    """The copy's log is the source's up to a revision, and folding makes of it what it makes of those turns."""
    source = [entry for entry in await store.read_turns(name) if entry.sequence <= at]
    copied = await store.read_turns(copy)
    assert copied == source
    assert [entry.nonce for entry in copied] == [entry.nonce for entry in source]
    memory = await store.get_memory(copy)
    turns = [entry for entry in source if not entry.skips]
    assert (memory.head, memory.last, memory.turn_count) == (at, at, len(turns))
    assert memory.log_bytes == sum(len(turn.content.encode()) for turn in turns)
    again = await store.append(copy, [turns[0]]) if turns else None
    assert again is None or again.turns[0].duplicate
    for kept in await store.list_revisions(copy):
        entries = [entry for entry in source if entry.sequence <= kept.revision.sequence]
        assert kept.log_digest == chain(EMPTY_LOG, entries)
        _, state = await store.read_state_at(copy, kept.revision)
        assert state.data == folder.fold(entries)
    await folder.drain(store, card)
    memory, state = await store.read_state(copy)
    assert memory.applied == memory.head
    assert (state.data if state else bytes(32)) == folder.fold(source)


@pytest.mark.parametrize("at", [None, 23, 20, 17, 5, 3, 0])
async def test_a_copy_equals_the_source_up_to_the_revision(store, name, card, folder, write, fork, at):
    await write(store, name, 23)
    operation = await fork(store, name, at)
    assert not operation.error
    memory, source = await store.get_memory(COPY), await store.get_memory(name)
    upto = 23 if at is None else at
    assert operation.result == {
        "memory": str(COPY),
        "revision": str(Revision(memory.incarnation, upto)),
        "source_revision": str(Revision(source.incarnation, upto)),
        "turn_count": upto,
    }
    assert memory.incarnation != source.incarnation
    assert memory.applied == max((kept for kept in (5, 10, 15, 20) if kept <= upto), default=0)
    assert memory.forked_from == str(name)
    assert [one.name.memory for one in await store.list_memories("acme")] == ["bob", "copy"]
    await check_copy(store, card, folder, name, upto)


async def test_source_and_copy_go_their_own_ways(store, name, card, folder, write, fork):
    await write(store, name, 10)
    await fork(store, name)
    await store.append(COPY, [folder.turn(100)])
    await store.append(name, [folder.turn(200)])
    await folder.drain(store, card)
    for memory, last in ((COPY, "id-100"), (name, "id-200")):
        turns = await store.read_turns(memory)
        assert (turns[-1].id, turns[-1].sequence) == (last, 11)
        assert (await store.read_state(memory))[1].data == folder.fold(turns)


async def test_names_labels_policy_and_anchors_come_along(store, name, card, folder, fork):
    await store.create_memory(name, display_name="Bob", labels={"a": "1"}, policy=Policy(keep_last=2))
    await store.append(name, [folder.turn(at) for at in range(8)])
    [claim] = await store.claim(card.fingerprint, name.partition, owner="w", lease_s=30, limit=1)
    anchor = Anchor(4, 2, b"anchored" * 4)
    assert await folder.finish(store, claim, anchor=anchor)
    await fork(store, name)
    copy = await store.get_memory(COPY)
    assert (copy.display_name, dict(copy.labels), copy.policy) == ("Bob", {"a": "1"}, Policy(keep_last=2))
    await store.append(COPY, [folder.turn(100)])
    [claim] = await store.claim(card.fingerprint, COPY.partition, owner="w", lease_s=30, limit=1)
    assert await store.read_anchor(claim) == anchor


async def test_skips_come_along_and_a_later_one_does_not(store, name, card, folder, fork):
    await store.append(name, [folder.turn(at) for at in range(1, 5)], create=True)
    await store.skip_turn(name, 2)
    await store.append(name, [folder.turn(6)])
    [claim] = await store.claim(card.fingerprint, name.partition, owner="w", lease_s=30, limit=1)
    assert await folder.finish(store, claim, applied=4)
    await folder.drain(store, card)
    await fork(store, name, 6)
    assert [turn.sequence for turn in await store.read_turns(COPY) if turn.skipped] == [2]
    await check_copy(store, card, folder, name, 6)
    # What the source folded up to 4 knew already that 2 was to be passed over. A log of 4 turns does not say so.
    earlier = MemoryName("acme", "earlier")
    await fork(store, name, 4, earlier)
    assert (await store.get_memory(earlier)).applied < 2
    await folder.drain(store, card)
    turns = await store.read_turns(earlier)
    assert not any(turn.skipped for turn in turns)
    assert (await store.read_state(earlier))[1].data == folder.fold(turns)


async def test_a_long_log_is_copied_page_by_page(store, name, card, folder, write, fork, monkeypatch):
    monkeypatch.setattr(forking, "PAGE_ENTRIES", 7)
    await write(store, name, 40)
    assert not (await fork(store, name, 33)).error
    await check_copy(store, card, folder, name, 33)


async def test_a_copy_of_a_damaged_state_goes_on_from_the_sound_ones(
    plain_store, redis, name, card, folder, write, fork
):
    await write(plain_store, name, 20)
    key = memory_keys(name, card.fingerprint).state
    damaged = bytearray(redis.get(key))
    damaged[-1] ^= 1
    redis.set(key, bytes(damaged))
    await fork(plain_store, name)
    assert (await plain_store.get_memory(COPY)).applied == 15
    await check_copy(plain_store, card, folder, name, 20)


async def test_a_name_that_is_taken_is_not_overwritten(store, name, folder, write, fork):
    await write(store, name, 5)
    await write(store, COPY, 3, start=50)
    before = await store.get_memory(COPY)
    operation = await fork(store, name)
    assert (operation.done, operation.error) == (True, "MEMORY_ALREADY_EXISTS")
    assert await store.get_memory(COPY) == before
    assert len(await store.list_memories("acme")) == 2
    assert [turn.id for turn in await store.read_turns(COPY)] == ["id-50", "id-51", "id-52"]


async def test_what_is_not_there_cannot_be_copied(store, name, write, fork, carrier):
    with pytest.raises(MemoryNotFoundError):
        await fork(store, name)
    await write(store, name, 3)
    assert (await fork(store, name, 4)).error == "REVISION_AHEAD_OF_LOG"
    foreign = await carrier.ask(store, name, "fork", target=str(COPY), revision="0" * 12 + ".1")
    assert foreign.error == "REVISION_FOREIGN"
    assert (await carrier.ask(store, name, "fork", target=str(name), revision="")).error == "INVALID_FIELD"
    assert [one.name for one in await store.list_memories("acme")] == [name]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("page", [1000, 6])
async def test_whoever_dies_wherever_the_copy_is_made_once(
    swift_store, swift_url, name, card, folder, write, carrier, kills, killed, monkeypatch, after, page
):
    monkeypatch.setattr(forking, "PAGE_ENTRIES", page)
    monkeypatch.setattr(operations, "LEASE_MS", 1)
    await write(swift_store, name, 13)
    doomed = await Store.open(swift_url)
    deaths = kills(doomed)
    args = {"target": "", "revision": ""}
    for calls in itertools.count():
        copy = MemoryName("acme", f"copy-{calls}")
        args = {"target": str(copy), "revision": ""}
        operation = await doomed.request_operation(name, "fork", args, request_id=f"fork {calls}")
        deaths.at(calls, after=after)
        with contextlib.suppress(killed):
            await doomed.advance(name, operation.id, until=asyncio.get_running_loop().time() + 60)
        died = deaths.off()
        await asyncio.sleep(0.002)
        operation = await carrier.finish(swift_store, name, operation.id)
        assert not operation.error
        assert operation.result["revision"] == str((await swift_store.get_memory(copy)).revision)
        await check_copy(swift_store, card, folder, name, 13, copy)
        with Redis.from_url(swift_url) as redis:
            assert not redis.exists(*stage_keys(copy)[1:])
        if not died:
            break
    assert calls >= 4
    assert len(await swift_store.list_memories("acme", limit=100)) == calls + 2
    await doomed.close()


async def test_a_copy_that_was_made_and_deleted_is_not_made_again(
    plain_store, name, write, kills, killed, carrier, monkeypatch
):
    monkeypatch.setattr(operations, "LEASE_MS", 1)
    await write(plain_store, name, 5)
    operation = await plain_store.request_operation(name, "fork", {"target": str(COPY), "revision": ""})
    # Read and index, then the flip; the note that it is done never comes.
    deaths = kills(plain_store)
    deaths.at(3, after=False)
    with pytest.raises(killed):
        await plain_store.advance(name, operation.id, until=0)
    assert deaths.off()
    await plain_store.delete_memory(COPY)
    await asyncio.sleep(0.002)
    assert not (await carrier.finish(plain_store, name, operation.id)).error
    with pytest.raises(MemoryNotFoundError):
        await plain_store.get_memory(COPY)


@pytest.mark.parametrize("page", [1000, 6])
async def test_what_is_forgotten_while_a_copy_is_made_is_not_in_it(
    swift_store, swift_url, name, card, folder, write, carrier, kills, killed, monkeypatch, page
):
    monkeypatch.setattr(forking, "PAGE_ENTRIES", page)
    monkeypatch.setattr(operations, "LEASE_MS", 1)
    slow = await Store.open(swift_url)
    deaths = kills(slow)
    for calls in itertools.count():
        source, copy = MemoryName("acme", f"source-{calls}"), MemoryName("acme", f"copy-{calls}")
        await write(swift_store, source, 13)
        operation = await slow.request_operation(source, "fork", {"target": str(copy), "revision": ""})
        deaths.at(calls, after=False)
        with contextlib.suppress(killed):
            await slow.advance(source, operation.id, until=asyncio.get_running_loop().time() + 60)
        died = deaths.off()
        forgotten = await carrier.ask(swift_store, source, "forget", selector={"ids": ["id-4"]}, include_forks=False)
        await asyncio.sleep(0.002)
        await carrier.finish(swift_store, source, operation.id)
        here = "id-4" in [turn.id for turn in await swift_store.read_turns(copy)]
        assert forgotten.result.get("forks", []) == ([{"memory": str(copy), "held_turns": 1}] if here else [])
        if not here:
            await check_copy(swift_store, card, folder, source, 13, copy)
        if not died:
            assert here
            break
    await slow.close()


async def test_a_stale_copier_cannot_bring_back_what_was_forgotten(
    plain_store, redis_url, name, write, carrier, monkeypatch
):
    """It read the source before the forgetting and writes long after."""
    await write(plain_store, name, 5)
    slow = await Store.open(redis_url)
    flip, waiting, go = slow._server.write, asyncio.Event(), asyncio.Event()

    async def late(script, *args):
        if script == "fork_flip" and not go.is_set():
            waiting.set()
            await go.wait()
        return await flip(script, *args)

    monkeypatch.setattr(slow._server, "write", late)
    operation = await slow.request_operation(name, "fork", {"target": str(COPY), "revision": ""})
    copying = asyncio.create_task(slow.advance(name, operation.id, until=asyncio.get_running_loop().time() + 10))
    await waiting.wait()
    await carrier.ask(plain_store, name, "forget", selector={"ids": ["id-2"]}, include_forks=False)
    go.set()
    assert not (await copying).error
    assert [turn.id for turn in await plain_store.read_turns(COPY)] == ["id-1", "id-3", "id-4", "id-5"]
    await slow.close()


async def test_a_stale_copier_is_barred_although_who_forgot_died_and_another_removal_came_between(
    plain_store, redis_url, name, write, carrier, killed, monkeypatch
):
    monkeypatch.setattr(operations, "LEASE_MS", 1)
    await write(plain_store, name, 5)
    slow, doomed = await Store.open(redis_url), await Store.open(redis_url)
    flip, waiting, go = slow._server.write, asyncio.Event(), asyncio.Event()

    async def late(script, *args):
        if script == "fork_flip" and not go.is_set():
            waiting.set()
            await go.wait()
        return await flip(script, *args)

    async def dying(*args):
        raise killed

    monkeypatch.setattr(slow._server, "write", late)
    copying_id = (await slow.request_operation(name, "fork", {"target": str(COPY), "revision": ""})).id
    copying = asyncio.create_task(slow.advance(name, copying_id, until=asyncio.get_running_loop().time() + 10))
    await waiting.wait()
    args = {"selector": {"ids": ["id-2"]}, "include_forks": False}
    operation = await doomed.request_operation(name, "forget", args)
    await doomed.advance(name, operation.id, until=0)
    monkeypatch.setattr(doomed, "_save", dying)
    with pytest.raises(killed):
        await doomed.advance(name, operation.id, until=0)
    between = (await plain_store.get_memory(name)).incarnation
    await plain_store.forget(name, [4], expected_incarnation=between)
    await asyncio.sleep(0.002)
    assert not (await carrier.finish(plain_store, name, operation.id)).error
    go.set()
    with contextlib.suppress(MemoryNotFoundError):
        await copying
    await asyncio.sleep(0.002)
    await carrier.finish(plain_store, name, copying_id)
    assert [turn.id for turn in await plain_store.read_turns(COPY)] == ["id-1", "id-3", "id-5"]
    await slow.close()
    await doomed.close()


async def test_a_forgetting_that_finds_nothing_does_not_stop_a_copy(plain_store, name, write, carrier, monkeypatch):
    monkeypatch.setattr(forking, "PAGE_ENTRIES", 4)
    await write(plain_store, name, 10)
    operation = await plain_store.request_operation(name, "fork", {"target": str(COPY), "revision": ""})
    assert not (await plain_store.advance(name, operation.id, until=0)).done
    await carrier.ask(plain_store, name, "forget", selector={"ids": ["id-99"]}, include_forks=True)
    assert not (await carrier.finish(plain_store, name, operation.id)).error
    assert len(await plain_store.read_turns(COPY)) == 10


async def test_a_source_that_is_deleted_ends_the_copying(plain_store, redis_url, redis, name, write, monkeypatch):
    monkeypatch.setattr(forking, "PAGE_ENTRIES", 4)
    await write(plain_store, name, 20)
    operation = await plain_store.request_operation(name, "fork", {"target": str(COPY), "revision": ""})
    assert not (await plain_store.advance(name, operation.id, until=0)).done
    assert redis.ttl(stage_keys(COPY).log) > 0  # whatever happens, it does not stay
    await plain_store.delete_memory(name)
    assert not redis.exists(*stage_keys(COPY)[1:])
    with pytest.raises(Exception, match="has no operation"):
        await plain_store.advance(name, operation.id, until=0)
    assert await plain_store.list_memories("acme") == []


async def test_a_copy_of_what_was_rolled_back_meanwhile_fails_cleanly(
    plain_store, redis, name, write, carrier, monkeypatch
):
    monkeypatch.setattr(forking, "PAGE_ENTRIES", 4)
    await write(plain_store, name, 20)
    before = await plain_store.get_memory(name)
    operation = await plain_store.request_operation(
        name, "fork", {"target": str(COPY), "revision": str(before.revision)}
    )
    assert not (await plain_store.advance(name, operation.id, until=0)).done
    await plain_store.rollback(name, Revision(before.incarnation, 10))
    assert (await carrier.finish(plain_store, name, operation.id)).error == "REVISION_AHEAD_OF_LOG"
    assert [one.name for one in await plain_store.list_memories("acme")] == [name]
    assert not redis.exists(*stage_keys(COPY)[1:], forks(name))


async def test_copies_of_a_deleted_copy_are_still_known(store, name, write, fork, carrier):
    await write(store, name, 10)
    grandchild = MemoryName("acme", "grandchild")
    await fork(store, name, 8)
    await fork(store, COPY, 6, grandchild)
    await store.delete_memory(COPY)
    operation = await carrier.ask(store, name, "forget", selector={"first": 5, "last": 7}, include_forks=False)
    assert operation.result["forks"] == [{"memory": str(grandchild), "held_turns": 2}]
    operation = await carrier.ask(store, name, "forget", selector={"ids": ["id-5"]}, include_forks=True)
    assert operation.result.get("forks", []) == [{"memory": str(grandchild), "forgotten_turns": 1}]
    assert [turn.id for turn in await store.read_turns(grandchild)] == [f"id-{at}" for at in (1, 2, 3, 4, 6)]
