"""Many turns go at one moment, and no script takes long for it; what they were is told in few words."""

import asyncio
import itertools

import pytest

from memfold.api.values import MemoryName, Revision, Role, Turn
from memfold.store import Store, erasing, operations, removals, removing
from memfold.store.keys import memory_keys
from memfold.store.removals import LISTED

PAGE = 20


@pytest.fixture
def paged(monkeypatch):
    """Few turns are many."""
    monkeypatch.setattr(removals, "MANY", PAGE)
    monkeypatch.setattr(removing, "_PAGE_ENTRIES", PAGE)
    monkeypatch.setattr(erasing, "_WRITE_S", 0)


def turns(first: int, last: int) -> list[Turn]:
    return [Turn(f"id-{at}", Role.USER, f"message {at}", "", {"odd": str(at % 2)}) for at in range(first, last + 1)]


async def check(store, card, folder, name, expected: list[str]) -> None:
    """The memory holds these turns, and the state of a memory that never had others."""
    await folder.catch_up(store, name, card.fingerprint)
    log = await store.read_turns(name, limit=10_000)
    assert [turn.id for turn in log] == expected
    memory, state = await store.read_state(name)
    assert memory.applied == memory.head
    assert (state.data if state else bytes(32)) == folder.fold(log)
    assert memory.turn_count == len(expected)
    assert memory.log_bytes == sum(len(turn.content) for turn in log)
    again = await store.append(name, log[-1:])
    assert [turn.duplicate for turn in again.turns] == [True]
    keys = memory_keys(name, "")
    left = await store._server.command("HLEN", keys.ids), await store._server.command("EXISTS", keys.fresh_log)
    assert left == (len(expected), 0)


ASKED = {
    "range": ("forget", {"selector": {"first": 51, "last": 150}, "include_forks": False}, set(range(51, 151))),
    "scattered": (
        "forget",
        {"selector": {"metadata": {"odd": "1"}, "role": "", "speaker": ""}, "include_forks": False},
        set(range(1, 201, 2)),
    ),
    "all": ("forget", {"selector": {"first": 1, "last": 200}, "include_forks": False}, set(range(1, 201))),
    "tail": ("rollback", {"revision": "80", "expected": ""}, set(range(81, 201))),
}


@pytest.mark.parametrize("asked", ASKED)
async def test_many_go_as_few_do(store, name, card, folder, carrier, paged, asked):
    kind, args, gone = ASKED[asked]
    for first in range(1, 200, 50):
        await store.append(name, turns(first, first + 49), create=True)
        await folder.drain(store, card)
    if kind == "rollback":
        args = {**args, "revision": f"{(await store.get_memory(name)).incarnation}.{args['revision']}"}
    done = await carrier.ask(store, name, kind, **args)
    assert (done.error, done.result["removed_turns"]) == ("", len(gone))
    assert done.result["log_rewritten"]
    assert done.result["files_rewritten"]
    await store.append(name, turns(201, 205))
    await check(store, card, folder, name, [f"id-{at}" for at in range(1, 206) if at not in gone])


@pytest.mark.parametrize("asked", ASKED)
async def test_no_script_looks_at_more_than_a_page(plain_store, redis, name, card, folder, carrier, paged, asked):
    kind, args, _ = ASKED[asked]
    await plain_store.append(name, turns(1, 200), create=True)
    await folder.drain(plain_store, card)
    if kind == "rollback":
        args = {**args, "revision": f"{(await plain_store.get_memory(name)).incarnation}.{args['revision']}"}
    most = 0

    def counted() -> int:
        stats = redis.info("commandstats")
        return sum(stats.get(f"cmdstat_{one}", {"calls": 0})["calls"] for one in ("xrange", "xadd", "xdel"))

    def counting(call):
        async def counted_call(*given):
            nonlocal most
            before = counted()
            reply = await call(*given)
            most = max(most, counted() - before)
            return reply

        return counted_call

    for method in ("run", "write"):
        setattr(plain_store._server, method, counting(getattr(plain_store._server, method)))
    operation = await plain_store.request_operation(name, kind, args)
    while not operation.done and operation.progress["stage"] not in ("rewriting", "folding"):
        operation = await plain_store.advance(name, operation.id, until=0)
    assert 0 < most <= 2 * PAGE + 10


async def test_readers_get_what_is_clean_while_the_log_is_written(store, name, card, folder, carrier, paged):
    await store.append(name, turns(1, 50), create=True)
    await folder.drain(store, card)
    await store.append(name, turns(51, 100))
    await folder.drain(store, card)
    operation = await store.request_operation(
        name, "forget", {"selector": {"first": 55, "last": 90}, "include_forks": False}
    )
    while operation.progress["stage"] != "writing" or not operation.progress["completed"]:
        operation = await store.advance(name, operation.id, until=0)
    memory, state = await store.read_state(name)
    assert (memory.applied, state.data) == (50, folder.fold(turns(1, 50)))
    assert await folder.drain(store, card) == 0
    done = await carrier.finish(store, name, operation.id)
    assert done.result["restored_revision"].endswith(".50")
    assert done.result["dropped_revisions"] == [100]
    await check(store, card, folder, name, [f"id-{at}" for at in range(1, 101) if not 55 <= at <= 90])


async def test_nobody_ever_sees_some_of_them_gone(store, any_redis_url, name, card, folder, carrier, paged):
    """Readers see all of the log or all but what went, appends go on, and what was forgotten is in no later state."""
    await store.append(name, turns(1, 100), create=True)
    await folder.drain(store, card)
    other = await Store.open(any_redis_url)
    seen, appended = set(), itertools.count(101)

    async def look() -> None:
        while not operation.done:
            at = next(appended)
            await other.append(name, turns(at, at))
            memory = await other.get_memory(name)
            log = [turn for turn in await other.read_turns(name, limit=10_000) if turn.sequence <= 100]
            if (await other.get_memory(name)).incarnation == memory.incarnation:
                seen.add((memory.incarnation, len(log)))
            await folder.drain(other, card)

    operation = await store.request_operation(
        name, "forget", {"selector": {"first": 11, "last": 60}, "include_forks": False}
    )
    before = (await store.get_memory(name)).incarnation
    looking = asyncio.create_task(look())
    operation = await carrier.finish(store, name, operation.id)
    await looking
    after = (await store.get_memory(name)).incarnation
    assert seen == {(before, 100), (after, 50)}
    await check(store, card, folder, name, [f"id-{at}" for at in range(1, next(appended)) if not 11 <= at <= 60])
    await other.close()


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("kind", ["forget", "rollback"])
async def test_whoever_dies_wherever_many_go_once(
    swift_store, swift_url, card, folder, carrier, kills, killed, monkeypatch, kind, after
):
    monkeypatch.setattr(removals, "MANY", 2)
    monkeypatch.setattr(removing, "_PAGE_ENTRIES", 4)
    monkeypatch.setattr(erasing, "_WRITE_S", 0)
    monkeypatch.setattr(operations, "LEASE_MS", 1)
    doomed = await Store.open(swift_url)
    deaths = kills(doomed)
    for calls in itertools.count():
        name = MemoryName("acme", f"m{calls}")
        await swift_store.append(name, turns(1, 7), create=True)
        await folder.drain(swift_store, card)
        to = Revision((await swift_store.get_memory(name)).incarnation, 3)
        args = {
            "forget": {"selector": {"first": 4, "last": 7}, "include_forks": False},
            "rollback": {"revision": str(to), "expected": ""},
        }
        operation = await doomed.request_operation(name, kind, args[kind])
        deaths.at(calls, after=after)
        try:
            for _ in range(30):
                await doomed.advance(name, operation.id, until=asyncio.get_running_loop().time() + 60)
                await folder.drain(swift_store, card)
        except killed:
            pass
        died = deaths.off()
        await asyncio.sleep(0.002)
        done = await carrier.finish(swift_store, name, operation.id)
        assert (done.error, done.result["removed_turns"]) == ("", 4)
        listed = await swift_store.list_memories("acme", limit=1000)
        assert [one.name for one in listed].count(name) == 1
        await check(swift_store, card, folder, name, ["id-1", "id-2", "id-3"])
        if not died:
            break
    assert calls > 15
    await doomed.close()


async def test_a_receipt_of_many_is_short_and_counts_all(plain_store, redis, name, card, folder, carrier):
    count = 2 * LISTED + 400
    for first in range(1, count, 400):
        await plain_store.append(name, turns(first, first + 399), create=True)
    await folder.drain(plain_store, card)
    selector = {"metadata": {"odd": "1"}, "role": "", "speaker": ""}
    done = await carrier.ask(plain_store, name, "forget", selector=selector, include_forks=False)
    odd = range(1, count, 2)
    assert done.result["removed_turns"] == len(odd) > LISTED
    assert done.result["sequences"] == list(odd[:LISTED])
    assert done.result["turn_ids"] == [f"id-{at}" for at in odd[:LISTED]]
    assert done.result["ranges"] == [{"first": at, "last": at} for at in odd[:LISTED]]
    rest = {"selector": {"first": 1, "last": count}, "include_forks": False}
    done = await carrier.ask(plain_store, name, "forget", **rest)
    assert done.result["removed_turns"] == len(odd)
    assert len(done.result["turn_ids"]) == LISTED
    held = redis.hgetall(memory_keys(name, "").receipts)
    assert max(map(len, held.values())) < 40 * LISTED


async def test_looking_after_an_operation_does_not_write_its_receipt_again(plain_store, name, card, folder):
    await plain_store.append(name, turns(1, 300), create=True)
    await folder.drain(plain_store, card)
    operation = await plain_store.request_operation(
        name, "forget", {"selector": {"first": 1, "last": 200}, "include_forks": False}
    )
    while operation.progress.get("stage") != "folding":
        operation = await plain_store.advance(name, operation.id, until=0)
        await asyncio.sleep(0.005)
    written, write = [], plain_store._server.write

    async def noting(script, keys, *args):
        written.append((script, sum(len(str(arg)) for arg in args)))
        return await write(script, keys, *args)

    plain_store._server.write = noting
    for _ in range(3):
        operation = await plain_store.advance(name, operation.id, until=0)
    assert operation.progress == {"stage": "folding", "completed": 0, "total": 300}
    assert len(written) == 3
    assert all(size < 400 for _, size in written)
    del plain_store._server.write
    await folder.drain(plain_store, card)
    assert (await plain_store.advance(name, operation.id, until=0)).result["removed_turns"] == 200


async def test_copies_of_what_many_were_taken_from_are_counted(store, name, card, folder, carrier, paged):
    await store.append(name, turns(1, 100), create=True)
    await folder.drain(store, card)
    copy = MemoryName("acme", "copy")
    await carrier.ask(store, name, "fork", target=str(copy), revision="")
    await store.append(copy, turns(101, 140))
    selector = {"metadata": {"odd": "1"}, "role": "", "speaker": ""}
    done = await carrier.ask(store, name, "forget", selector=selector, include_forks=False)
    assert done.result["forks"] == [{"memory": str(copy), "held_turns": 50}]
