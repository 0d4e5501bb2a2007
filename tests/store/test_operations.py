"""Operations are entered once, carried on by whoever is there, and end in a receipt of ids and numbers."""

import asyncio
import contextlib
import itertools
import random

import pytest

from memfold.api.errors import (
    BacklogFullError,
    MemoryNotFoundError,
    OperationConflictError,
    OperationNotFoundError,
    StoreUnavailableError,
)
from memfold.api.values import MemoryName, OperationKind, Revision, Role, Turn
from memfold.store import Store, forgetting, keys, operations
from memfold.store.keys import memory_keys, operations_due
from memfold.store.ranges import joined, numbers, pack, runs_of, unpack

FORK = OperationKind.FORK


@pytest.fixture
def write(card, folder):
    async def write(store, name, count: int, *, every: int = 5, start: int = 1) -> None:
        for at in range(start, start + count):
            await store.append(name, [folder.turn(at)], create=True)
            if at % every == 0:
                await folder.drain(store, card)

    return write


def ids(turns) -> list[str]:
    return [turn.id for turn in turns]


async def check_folded(store, card, folder, name, expected: list[str]) -> None:
    """The memory holds these turns, and the state of a memory that never had others."""
    await folder.drain(store, card)
    turns = await store.read_turns(name)
    assert ids(turns) == expected
    memory, state = await store.read_state(name)
    assert memory.applied == memory.head
    assert (state.data if state else bytes(32)) == folder.fold(turns)
    assert memory.turn_count == len(expected)


# --- the framework


async def test_an_operation_can_be_looked_up_and_listed(store, name, write):
    await write(store, name, 3)
    first = await store.request_operation(name, "fork", {"target": "tenants/acme/memories/a", "revision": ""})
    second = await store.request_operation(name, "verify", {})
    assert (first.done, first.kind, first.memory) == (False, FORK, name)
    assert first.create_ms > 0
    assert await store.get_operation(name, first.id) == first
    listed = await store.list_operations(name)
    assert {one.id for one in listed} == {first.id, second.id}
    assert await store.list_operations(name, limit=1) == listed[:1]
    assert await store.list_operations(name, after=listed[0].id) == listed[1:]
    with pytest.raises(OperationNotFoundError):
        await store.get_operation(name, "none")
    with pytest.raises(OperationNotFoundError):
        await store.advance(name, "none", until=0)
    with pytest.raises(MemoryNotFoundError):
        await store.request_operation(MemoryName("acme", "none"), "verify", {})


async def test_one_request_is_one_operation(store, name, write, carrier):
    await write(store, name, 3)
    args = {"target": "tenants/acme/memories/a", "revision": ""}
    asked = await asyncio.gather(*(store.request_operation(name, "fork", args, request_id="r") for _ in range(5)))
    assert len({one.id for one in asked}) == 1
    done = await carrier.finish(store, name, asked[0].id)
    assert await store.request_operation(name, "fork", args, request_id="r") == done
    for kind, other in (("fork", {**args, "revision": "0" * 12 + ".1"}), ("verify", {})):
        with pytest.raises(OperationConflictError):
            await store.request_operation(name, kind, other, request_id="r")
    assert (await store.request_operation(name, "fork", args, request_id="s")).id != asked[0].id


async def test_what_is_not_done_is_due_until_it_is(store, any_redis_url, name, write, carrier, monkeypatch):
    monkeypatch.setattr(operations, "LEASE_MS", 1)
    other = await Store.open(any_redis_url)
    await write(store, name, 3)
    operation = await store.request_operation(name, "verify", {})
    await asyncio.sleep(0.002)
    assert await other.due_operations(10) == [(name, operation.id)]
    await carrier.finish(other, name, operation.id)
    assert await other.due_operations(10) == []
    await other.close()


async def test_one_goes_on_with_it_at_a_time(store, any_redis_url, name, write, monkeypatch):
    await write(store, name, 3)
    other = await Store.open(any_redis_url)
    operation = await store.request_operation(name, "verify", {})
    assert (await other.advance(name, operation.id, until=0)).progress == {"stage": ""}
    assert (await store.advance(name, operation.id, until=0)).progress["stage"] == "refold"
    await other.close()


async def test_what_is_left_for_others_is_told_to_them(store, any_redis_url, name, write):
    await write(store, name, 3)
    operation = await store.request_operation(name, "verify", {})
    other = await Store.open(any_redis_url)
    async with asyncio.timeout(20), other.operations_left() as left:
        while keys.LEFT_CHANNEL.encode() not in other._ear._pubsub.channels:  # noqa: ASYNC110 - Redis sets no event
            await asyncio.sleep(0.01)
        assert (await store.advance(name, operation.id, until=0)).progress["stage"] == "refold"
        await left.wait()
        assert await other.due_operations(10) == [(name, operation.id)]
    await other.close()


async def test_who_has_lost_the_lease_changes_nothing(store, any_redis_url, name, write, monkeypatch):
    monkeypatch.setattr(operations, "LEASE_MS", 1)
    await write(store, name, 3)
    slow = await Store.open(any_redis_url)
    operation = await slow.request_operation(name, "verify", {})
    read, waiting, go = slow.read_turns, asyncio.Event(), asyncio.Event()

    async def late(*args, **more):
        waiting.set()
        await go.wait()
        return await read(*args, **more)

    monkeypatch.setattr(slow, "read_turns", late)
    stepping = asyncio.create_task(slow.advance(name, operation.id, until=0))
    await waiting.wait()
    await asyncio.sleep(0.002)
    while (await store.advance(name, operation.id, until=0)).progress["stage"] != "refold":
        pass
    done = await store.finish_verify(name, operation.id, ok=True, relative_error=0)
    go.set()
    assert await stepping == done == await store.get_operation(name, operation.id)
    await slow.close()


async def test_a_store_that_does_not_answer_ends_nothing(plain_store, name, write, carrier, monkeypatch):
    monkeypatch.setattr(operations, "LEASE_MS", 1)
    await write(plain_store, name, 3)
    operation = await plain_store.request_operation(name, "verify", {})

    async def silent(*args, **more):
        raise StoreUnavailableError("nobody there")

    with monkeypatch.context() as broken:
        broken.setattr(plain_store, "read_turns", silent)
        with pytest.raises(StoreUnavailableError):
            await plain_store.advance(name, operation.id, until=0)
    await asyncio.sleep(0.002)
    assert (await carrier.finish(plain_store, name, operation.id)).result["ok"]


async def test_old_receipts_go_and_running_operations_stay(store, name, write, carrier, monkeypatch):
    monkeypatch.setattr(operations, "KEPT", 4)
    await write(store, name, 3)
    running = [(await store.request_operation(name, "verify", {})).id for _ in range(2)]
    ended = [
        (await carrier.ask(store, name, "forget", selector={"ids": ["x"]}, include_forks=False)).id for _ in range(4)
    ]
    assert {one.id for one in await store.list_operations(name)} == {*running, *ended[2:]}
    for _ in range(2):
        await store.request_operation(name, "verify", {})
    with pytest.raises(BacklogFullError):
        await store.request_operation(name, "verify", {})


async def test_a_deleted_memory_takes_its_operations_along(plain_store, redis, name, write):
    await write(plain_store, name, 3)
    operation = await plain_store.request_operation(name, "verify", {})
    await plain_store.delete_memory(name)
    assert not redis.exists(operations_due(name.partition), memory_keys(name, "").ops)
    with pytest.raises(OperationNotFoundError):
        await plain_store.advance(name, operation.id, until=0)
    await write(plain_store, name, 1)
    assert await plain_store.list_operations(name) == []


def test_sequences_survive_being_packed():
    rng = random.Random(4)
    for size in (0, 1, 2, 50):
        sequences = sorted(rng.sample(range(1, 80), size))
        assert list(numbers(unpack(pack(runs_of(sequences))))) == sequences
    assert pack(runs_of([1, 2, 3, 7, 9, 10])) == "1-3,7,9-10"
    assert joined([(5, 9), (1, 2), (3, 3), (8, 12)]) == ((1, 3), (5, 12))


# --- forgetting


SELECTORS = {
    "ids": ({"ids": ["id-2", "id-7", "none"]}, {2, 7}),
    "range": ({"first": 4, "last": 6}, {4, 5, 6}),
    "speaker": ({"metadata": {}, "role": "", "speaker": "Caroline"}, {3, 6, 9, 12}),
    "metadata": ({"metadata": {"mood": "gedrückt"}, "role": "user", "speaker": ""}, {4, 8}),
    "all": ({"first": 1, "last": 100}, set(range(1, 13))),
}


@pytest.mark.parametrize("chosen", SELECTORS)
async def test_forgetting_removes_what_is_selected_and_says_so(store, name, card, folder, carrier, chosen):
    for at in range(1, 13):
        speaker, mood = "Caroline" if at % 3 == 0 else "", {"mood": "gedrückt"} if at % 4 == 0 else {}
        role = Role.ASSISTANT if at == 12 else Role.USER
        await store.append(name, [Turn(f"id-{at}", role, f"message {at}", speaker, mood)], create=True)
        if at % 2 == 0:
            await folder.drain(store, card)
    selector, gone = SELECTORS[chosen]
    assert list(numbers(await store.select_runs(name, selector, until=12))) == sorted(gone)
    before = await store.get_memory(name)
    operation = await carrier.ask(store, name, "forget", selector=selector, include_forks=False, expected="")
    memory = await store.get_memory(name)
    assert memory.incarnation != before.incarnation
    result = dict(operation.result)
    restored = Revision.parse(result.pop("restored_revision"))
    assert restored.sequence < min(gone) or chosen == "all"  # of nothing, nothing is left to fold
    assert min(result.pop("dropped_revisions")) >= min(gone)
    assert result == {
        "revision": str(memory.revision),
        "removed_turns": len(gone),
        "ranges": [{"first": first, "last": last} for first, last in runs_of(sorted(gone))],
        "sequences": sorted(gone),
        "turn_ids": [f"id-{at}" for at in sorted(gone)],
        "log_rewritten": True,
        "files_rewritten": True,
        "files_note": "",
    }
    await check_folded(store, card, folder, name, [f"id-{at}" for at in range(1, 13) if at not in gone])
    assert "Caroline" not in str(operation.request)
    assert "gedrückt" not in str(operation.request)


async def test_readers_get_the_clean_checkpoint_as_soon_as_it_is_accepted(store, name, card, folder, write):
    await write(store, name, 12)
    operation = await store.request_operation(name, "forget", {"selector": {"ids": ["id-8"]}, "include_forks": False})
    while (operation := await store.advance(name, operation.id, until=0)).progress["stage"] == "removing":
        pass
    memory, state = await store.read_state(name)
    assert (memory.applied, state.data) == (5, folder.fold((await store.read_turns(name))[:5]))


async def test_what_comes_after_the_acceptance_stays(store, name, card, folder, write, carrier):
    await write(store, name, 6)
    operation = await store.request_operation(
        name, "forget", {"selector": {"first": 5, "last": 99}, "include_forks": False}
    )
    await store.advance(name, operation.id, until=0)
    await write(store, name, 3, start=7)
    await carrier.finish(store, name, operation.id)
    await check_folded(store, card, folder, name, ["id-1", "id-2", "id-3", "id-4", "id-7", "id-8", "id-9"])


async def test_nothing_selected_is_done_at_once(store, name, card, folder, write):
    await write(store, name, 5)
    before = await store.get_memory(name)
    operation = await store.request_operation(name, "forget", {"selector": {"ids": ["none"]}, "include_forks": False})
    operation = await store.advance(name, operation.id, until=0)
    assert (operation.done, operation.result) == (True, {"revision": str(before.revision)})
    assert await store.get_memory(name) == before


async def test_forgetting_holds_to_the_expected_revision(store, name, write, carrier):
    await write(store, name, 5)
    expected = str((await store.get_memory(name)).revision)
    await write(store, name, 1, start=6)
    args = {"selector": {"ids": ["id-1"]}, "include_forks": False, "expected": expected}
    assert (await carrier.ask(store, name, "forget", **args)).error == "REVISION_MISMATCH"
    assert len(await store.read_turns(name)) == 6


async def test_copies_are_named_or_forget_too(store, name, card, folder, write, carrier):
    copies = [MemoryName("acme", f"copy-{at}") for at in range(3)]
    await write(store, name, 10)
    await carrier.ask(store, name, "fork", target=str(copies[0]), revision="")
    await carrier.ask(store, copies[0], "fork", target=str(copies[1]), revision="")
    early = str(Revision((await store.get_memory(name)).incarnation, 3))
    await carrier.ask(store, name, "fork", target=str(copies[2]), revision=early)
    # The copy's own turn has a forgotten turn's number, and is another one.
    await store.append(copies[2], [folder.turn(at) for at in range(50, 54)])
    named = await carrier.ask(store, name, "forget", selector={"ids": ["id-2", "id-5"]}, include_forks=False)
    assert {fork["memory"]: fork["held_turns"] for fork in named.result["forks"]} == {
        str(copies[0]): 2,
        str(copies[1]): 2,
        str(copies[2]): 1,
    }
    reached = await carrier.ask(store, name, "forget", selector={"first": 1, "last": 5}, include_forks=True)
    assert reached.result["turn_ids"] == ["id-1", "id-3", "id-4"]
    assert {fork["memory"]: fork["forgotten_turns"] for fork in reached.result["forks"]} == {
        str(copies[0]): 5,
        str(copies[1]): 5,
        str(copies[2]): 3,
    }
    rest = [f"id-{at}" for at in range(6, 11)]
    for memory, expected in zip([name, *copies], [rest, rest, rest, [f"id-{at}" for at in range(50, 54)]], strict=True):
        await check_folded(store, card, folder, memory, expected)


@pytest.mark.parametrize("after", [False, True])
async def test_whoever_dies_wherever_what_is_forgotten_is_the_same(
    swift_store, swift_url, card, folder, write, carrier, kills, killed, monkeypatch, after
):
    monkeypatch.setattr(operations, "LEASE_MS", 1)
    monkeypatch.setattr(forgetting, "_COPIES_LOOK_S", 0)
    doomed = await Store.open(swift_url)
    deaths = kills(doomed)
    for calls in itertools.count():
        name, copy = MemoryName("acme", f"m{calls}"), MemoryName("acme", f"copy-{calls}")
        await write(swift_store, name, 8, every=4)
        await carrier.ask(swift_store, name, "fork", target=str(copy), revision="")
        args = {"selector": {"metadata": {}, "role": "user", "speaker": ""}, "include_forks": True, "until": 3}
        operation = await doomed.request_operation(name, "forget", args, request_id="f")
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
        assert not done.error
        assert (done.result["sequences"], done.result["turn_ids"]) == ([1, 2, 3], ["id-1", "id-2", "id-3"])
        assert done.result["revision"] == str((await swift_store.get_memory(name)).revision)
        assert done.result["forks"] == [{"memory": str(copy), "forgotten_turns": 3}]
        for memory in (name, copy):
            await check_folded(swift_store, card, folder, memory, [f"id-{at}" for at in range(4, 9)])
        if not died:
            break
    assert calls > 10
    await doomed.close()


async def test_what_was_removed_by_one_that_died_is_seen_to_even_after_another_removal(
    swift_store, swift_url, name, card, folder, write, carrier, killed, monkeypatch
):
    monkeypatch.setattr(operations, "LEASE_MS", 1)
    await write(swift_store, name, 8)
    copy = MemoryName("acme", "copy")
    await carrier.ask(swift_store, name, "fork", target=str(copy), revision="")
    doomed = await Store.open(swift_url)
    operation = await doomed.request_operation(name, "forget", {"selector": {"ids": ["id-3"]}, "include_forks": True})
    await doomed.advance(name, operation.id, until=0)

    async def dying(*args):
        raise killed

    monkeypatch.setattr(doomed, "_save", dying)
    with pytest.raises(killed):
        await doomed.advance(name, operation.id, until=0)
    assert not await swift_store.select_runs(name, {"ids": ["id-3"]}, until=99)
    await carrier.ask(swift_store, name, "forget", selector={"ids": ["id-5"]}, include_forks=False)
    await asyncio.sleep(0.002)
    done = await carrier.finish(swift_store, name, operation.id)
    assert (done.result["turn_ids"], done.result["sequences"], done.result["log_rewritten"]) == (["id-3"], [3], True)
    assert done.result["forks"] == [{"memory": str(copy), "forgotten_turns": 1}]
    await check_folded(swift_store, card, folder, name, [f"id-{at}" for at in (1, 2, 4, 6, 7, 8)])
    await doomed.close()


async def test_a_forgetting_that_failed_keeps_no_predicate(plain_store, redis, name, folder, write, carrier):
    await write(plain_store, name, 2)
    stale = str((await plain_store.get_memory(name)).revision)
    await write(plain_store, name, 1, start=3)
    selector = {"metadata": {"about": "canary"}, "role": "", "speaker": ""}
    args = {"selector": selector, "include_forks": False, "expected": stale}
    assert (await carrier.ask(plain_store, name, "forget", request_id="f", **args)).error == "REVISION_MISMATCH"
    assert b"canary" not in b"".join(redis.dump(key) for key in redis.scan_iter())
    assert (await plain_store.request_operation(name, "forget", args, request_id="f")).error == "REVISION_MISMATCH"


async def test_a_copy_that_is_busy_holds_up_the_forgetting_and_does_not_end_it(
    plain_store, name, card, folder, write, carrier, monkeypatch
):
    await write(plain_store, name, 5)
    copies = [MemoryName("acme", f"copy-{at}") for at in range(2)]
    for copy in copies:
        await carrier.ask(plain_store, name, "fork", target=str(copy), revision="")
    monkeypatch.setattr(operations, "KEPT", 3)
    busy = [await plain_store.request_operation(copies[1], "verify", {}) for _ in range(3)]
    operation = await plain_store.request_operation(
        name, "forget", {"selector": {"ids": ["id-2"]}, "include_forks": True}
    )
    for _ in range(15):
        operation = await plain_store.advance(name, operation.id, until=0)
        await asyncio.sleep(0)
        redis_due = operations_due(name.partition)
        await plain_store._server.command("ZADD", redis_due, 0, f"acme/bob|{operation.id}")
    assert not operation.done
    await carrier.finish(plain_store, copies[1], busy[0].id)
    await folder.drain(plain_store, card)
    done = await carrier.finish(plain_store, name, operation.id)
    assert not done.error
    assert done.result["forks"] == [{"memory": str(copy), "forgotten_turns": 1} for copy in copies]


async def test_a_turn_that_cannot_be_folded_does_not_hold_up_the_forgetting_of_another(
    plain_store, name, card, folder, write, carrier
):
    await write(plain_store, name, 4, every=2)
    await plain_store.append(name, [folder.turn(5), folder.turn(6)])
    operation = await plain_store.request_operation(
        name, "forget", {"selector": {"ids": ["id-3"]}, "include_forks": False}
    )
    while operation.progress.get("stage") != "folding":
        operation = await plain_store.advance(name, operation.id, until=0)
        await asyncio.sleep(0.01)
    [claim] = await plain_store.claim(card.fingerprint, name.partition, owner="w", lease_s=30, limit=1)
    await plain_store.quarantine(claim, sequence=5, reason="FOLD_RAISED")
    done = await plain_store.advance(name, operation.id, until=asyncio.get_running_loop().time() + 1)
    assert done.done
    assert done.result["turn_ids"] == ["id-3"]


async def test_a_long_step_keeps_its_lease(store, any_redis_url, name, write, monkeypatch):
    monkeypatch.setattr(operations, "LEASE_MS", 150)
    monkeypatch.setattr(operations, "_RENEW_S", 0.03)
    await write(store, name, 3)
    other = await Store.open(any_redis_url)
    find = store.select_runs

    async def slow(*args, **more):
        await asyncio.sleep(0.4)
        return await find(*args, **more)

    monkeypatch.setattr(store, "select_runs", slow)
    operation = await store.request_operation(name, "forget", {"selector": {"ids": ["id-2"]}, "include_forks": False})
    step = asyncio.create_task(store.advance(name, operation.id, until=0))
    await asyncio.sleep(0.3)
    assert not await other.hold_operation(name, operation.id, lease_s=1)
    assert (await step).progress["stage"] == "removing"
    await other.close()


async def test_a_receipt_tells_what_was_erased_where_only_a_copy_held_it(store, name, card, write, carrier):
    await write(store, name, 5)
    copy = MemoryName("acme", "copy")
    await carrier.ask(store, name, "fork", target=str(copy), revision="")
    await carrier.ask(store, name, "forget", selector={"ids": ["id-2"]}, include_forks=False)
    done = await carrier.ask(store, name, "forget", selector={"ids": ["id-2"]}, include_forks=False, request_id="2")
    assert done.result == {"revision": str((await store.get_memory(name)).revision)}
    done = await carrier.ask(store, name, "forget", selector={"ids": ["id-2"]}, include_forks=True)
    assert done.result == {
        "revision": str((await store.get_memory(name)).revision),
        "forks": [{"memory": str(copy), "forgotten_turns": 1}],
        "log_rewritten": True,
        "files_rewritten": True,
        "files_note": "",
    }


async def test_a_receipt_does_not_say_erased_where_a_copy_could_not_be(store, name, write, carrier, monkeypatch):
    await write(store, name, 5)
    copy = MemoryName("acme", "copy")
    await carrier.ask(store, name, "fork", target=str(copy), revision="")
    want = store.want_rewrite

    async def refused(key):
        ticket = await want(key)
        return ticket if "copy" not in key else {**ticket, "files": {}, "notes": ["aof: refused"]}

    monkeypatch.setattr(store, "want_rewrite", refused)
    done = await carrier.ask(store, name, "forget", selector={"ids": ["id-2"]}, include_forks=True)
    assert (done.result["log_rewritten"], done.result["files_rewritten"]) == (True, False)
    assert done.result["files_note"] == f"{copy}: aof: refused"


async def test_no_key_and_no_file_holds_a_word_of_what_was_forgotten(
    plain_store, redis, redis_server, name, card, folder, carrier
):
    for at in range(6):
        said = "canary-text" if at == 3 else "all is well"
        await plain_store.append(
            name, [Turn(f"id-{at}", Role.USER, said, "canary-speaker" if at == 3 else "")], create=True
        )
        await folder.drain(plain_store, card)
    copy = "tenants/acme/memories/copy"
    await carrier.ask(plain_store, name, "fork", target=copy, revision="")
    assert b"canary" in redis_server.data_dir.joinpath("appendonly.aof").read_bytes()
    selector = {"metadata": {}, "role": "", "speaker": "canary-speaker"}
    operation = await carrier.ask(plain_store, name, "forget", selector=selector, include_forks=True)
    assert operation.result["turn_ids"] == ["id-3"]
    assert b"canary" not in b"".join(redis.dump(key) for key in redis.scan_iter())
    assert b"canary" not in redis_server.data_dir.joinpath("appendonly.aof").read_bytes()


async def test_no_file_holds_a_word_of_what_was_taken_back(plain_store, redis, redis_server, name, write, carrier):
    await write(plain_store, name, 4)
    before = (await plain_store.get_memory(name)).revision
    await plain_store.append(name, [Turn("id-5", Role.USER, "canary-text")])
    log = redis_server.data_dir / "appendonly.aof"
    assert b"canary" in log.read_bytes()
    done = await carrier.ask(plain_store, name, "rollback", revision=str(before), expected="")
    assert (done.result["removed_turns"], done.result["files_rewritten"], done.result["files_note"]) == (1, True, "")
    assert b"canary" not in b"".join(redis.dump(key) for key in redis.scan_iter())
    assert b"canary" not in log.read_bytes()


# --- rolling back


@pytest.mark.parametrize("to", [12, 10, 7, 3, 0])
async def test_going_back_says_what_it_removed(store, name, card, folder, write, carrier, to):
    await write(store, name, 12)
    before = await store.get_memory(name)
    operation = await carrier.ask(store, name, "rollback", revision=str(Revision(before.incarnation, to)), expected="")
    memory = await store.get_memory(name)
    assert memory.incarnation != before.incarnation
    assert operation.result == {
        "revision": str(Revision(memory.incarnation, to)),
        "restored_revision": str(Revision(memory.incarnation, {12: 10, 10: 10, 7: 5, 3: 0, 0: 0}[to])),
        "removed_turns": 12 - to,
        **({"log_rewritten": True, "files_rewritten": True, "files_note": ""} if to < 12 else {}),
    }
    await check_folded(store, card, folder, name, [f"id-{at}" for at in range(1, to + 1)])


async def test_going_back_fails_where_it_cannot(store, name, write, carrier):
    await write(store, name, 5)
    memory = await store.get_memory(name)
    ask = {
        "REVISION_AHEAD_OF_LOG": {"revision": str(Revision(memory.incarnation, 6)), "expected": ""},
        "REVISION_FOREIGN": {"revision": "0" * 12 + ".3", "expected": ""},
        "REVISION_MISMATCH": {"revision": f"{memory.incarnation}.2", "expected": f"{memory.incarnation}.4"},
    }
    for error, args in ask.items():
        assert (await carrier.ask(store, name, "rollback", **args)).error == error
    assert await store.get_memory(name) == memory


@pytest.mark.parametrize("after", [False, True])
async def test_whoever_dies_wherever_it_goes_back_once(
    swift_store, swift_url, card, folder, write, carrier, kills, killed, monkeypatch, after
):
    monkeypatch.setattr(operations, "LEASE_MS", 1)
    doomed = await Store.open(swift_url)
    deaths = kills(doomed)
    for calls in itertools.count():
        name = MemoryName("acme", f"m{calls}")
        await write(swift_store, name, 8, every=4)
        to = Revision((await swift_store.get_memory(name)).incarnation, 6)
        operation = await doomed.request_operation(name, "rollback", {"revision": str(to), "expected": ""})
        deaths.at(calls, after=after)
        with contextlib.suppress(killed):
            await doomed.advance(name, operation.id, until=asyncio.get_running_loop().time() + 60)
        died = deaths.off()
        await write(swift_store, name, 1, start=20)
        await asyncio.sleep(0.002)
        done = await carrier.finish(swift_store, name, operation.id)
        rolled_back_first = not await swift_store.select_runs(name, {"ids": ["id-8"]}, until=99)
        assert rolled_back_first
        assert done.result["removed_turns"] in (2, 3)
        kept = [] if done.result["removed_turns"] == 3 else ["id-20"]
        await check_folded(swift_store, card, folder, name, [f"id-{at}" for at in range(1, 7)] + kept)
        if not died:
            break
    assert calls >= 4
    await doomed.close()


async def test_a_rollback_that_was_done_by_one_that_died_is_no_error_after_another_removal(
    swift_store, swift_url, name, card, folder, write, carrier, killed, monkeypatch
):
    monkeypatch.setattr(operations, "LEASE_MS", 1)
    await write(swift_store, name, 8)
    head = (await swift_store.get_memory(name)).revision
    doomed = await Store.open(swift_url)
    args = {"revision": f"{head.incarnation}.6", "expected": str(head)}
    operation = await doomed.request_operation(name, "rollback", args)

    async def dying(*args):
        raise killed

    monkeypatch.setattr(doomed, "_save", dying)
    with pytest.raises(killed):
        await doomed.advance(name, operation.id, until=0)
    gone_back = (await swift_store.get_memory(name)).revision
    assert gone_back.sequence == 6
    await write(swift_store, name, 1, start=9)
    await carrier.ask(swift_store, name, "forget", selector={"ids": ["id-5"]}, include_forks=False)
    await asyncio.sleep(0.002)
    done = await carrier.finish(swift_store, name, operation.id)
    assert (done.error, done.result["removed_turns"], done.result["revision"]) == ("", 2, str(gone_back))
    await check_folded(swift_store, card, folder, name, [f"id-{at}" for at in (1, 2, 3, 4, 6, 9)])
    assert [one.name for one in await swift_store.list_memories(name.tenant)] == [name]
    await doomed.close()


# --- verifying


async def test_a_memory_that_is_whole_is_found_whole(store, name, card, folder, write, carrier):
    await write(store, name, 20)
    await carrier.ask(store, name, "forget", selector={"ids": ["id-7"]}, include_forks=False)
    await write(store, name, 6, start=30)
    operation = await carrier.ask(store, name, "verify")
    newest = (await store.list_revisions(name))[0]
    result = dict(operation.result)
    assert result.pop("log_digest")
    assert result.pop("state_digest")
    assert result == {
        "ok": True,
        "revision": str(newest.revision),
        "fingerprint": card.fingerprint,
        "turn_count": 25,
        "log_matches": True,
        "state_matches": True,
        "relative_error": 0.0,
    }


@pytest.mark.parametrize("page", [1000, 3])
async def test_a_log_that_was_tampered_with_is_noticed(
    plain_store, redis, name, card, write, carrier, monkeypatch, page
):
    monkeypatch.setattr("memfold.store.verifying._PAGE", page)
    await write(plain_store, name, 20)
    assert (await carrier.ask(plain_store, name, "verify")).result["log_matches"]
    key = memory_keys(name, "").log
    entries = redis.xrange(key)
    redis.delete(key)
    for entry_id, fields in entries:
        changed = {b"turn": fields[b"turn"].replace(b"message 4", b"message 5")} if entry_id == b"4-0" else {}
        redis.xadd(key, {**fields, **changed}, id=entry_id)
    operation = await carrier.ask(plain_store, name, "verify")
    assert (operation.result["ok"], operation.result["log_matches"]) == (False, False)


async def test_an_empty_memory_can_be_verified(store, name, carrier):
    await store.create_memory(name)
    operation = await carrier.ask(store, name, "verify")
    assert (operation.result["ok"], operation.result["turn_count"]) == (True, 0)


async def test_whoever_folds_again_keeps_others_off(store, any_redis_url, name, write):
    await write(store, name, 5)
    other = await Store.open(any_redis_url)
    operation = await store.request_operation(name, "verify", {})
    with pytest.raises(OperationNotFoundError):
        await store.finish_verify(name, operation.id, ok=True, relative_error=0)
    while (await store.advance(name, operation.id, until=0)).progress["stage"] != "refold":
        pass
    holder = await store.hold_operation(name, operation.id, lease_s=10)
    assert holder
    assert await store.hold_operation(name, operation.id, lease_s=10, holder=holder) == holder
    assert not await other.hold_operation(name, operation.id, lease_s=10)
    assert await other.due_operations(10) == []
    done = await store.finish_verify(name, operation.id, ok=False, relative_error=0.5, state_matches=True)
    assert (done.result["ok"], done.result["relative_error"]) == (False, 0.5)
    assert await other.finish_verify(name, operation.id, ok=True, relative_error=0) == done
    await other.close()
