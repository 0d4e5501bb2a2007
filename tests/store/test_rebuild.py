"""Another model folds the same log while the first one serves, and takes over when it has caught up."""

import asyncio
import itertools

import pytest

from memfold.api.errors import ModelNotFoundError
from memfold.api.values import MemoryName, ModelCard
from memfold.store import Store, operations, rebuilding
from memfold.store.keys import memory_keys


@pytest.fixture
def second(card) -> ModelCard:
    return ModelCard("e" * 64, "another", "adapter", card.state_shape, 64, 256)


@pytest.fixture
def third(card) -> ModelCard:
    return ModelCard("f" * 64, "a third", "adapter", card.state_shape, 64, 256)


@pytest.fixture
def write(folder):
    async def write(store, name, first: int, last: int) -> None:
        for at in range(first, last + 1):
            await store.append(name, [folder.turn(at)], create=True)

    return write


@pytest.fixture
def begin(second, third):
    async def begin(store, name, card=second, request_id: str = ""):
        await store.register_model(second, default=False)
        await store.register_model(third, default=False)
        args = {"fingerprint": card.fingerprint}
        operation = await store.request_operation(name, "rebuild", args, request_id=request_id)
        return await store.advance(name, operation.id, until=0)

    return begin


async def check(store, card, folder, name) -> None:
    memory, state = await store.read_state(name)
    assert (memory.fingerprint, memory.building, memory.applied) == (card.fingerprint, "", memory.head)
    assert state.data == folder.fold(await store.read_turns(name))


async def test_the_second_model_catches_up_and_takes_over(store, name, card, folder, write, second, begin):
    await write(store, name, 1, 6)
    await folder.drain(store, card)
    operation = await begin(store, name)
    memory = await store.get_memory(name)
    assert (memory.fingerprint, memory.building, memory.applied, memory.building_applied) == (
        card.fingerprint,
        second.fingerprint,
        6,
        0,
    )
    before = (await store.read_state(name))[1]
    operation = await store.advance(name, operation.id, until=0)
    assert (operation.done, operation.progress) == (False, {"stage": "folding", "completed": 0, "total": 6})
    await folder.drain(store, second)
    assert (await store.get_memory(name)).building_applied == 6
    assert (await store.read_state(name))[1] == before
    operation = await store.advance(name, operation.id, until=0)
    memory = await store.get_memory(name)
    assert operation.result == {
        "fingerprint": second.fingerprint,
        "replaced_fingerprint": card.fingerprint,
        "revision": str(memory.revision),
    }
    assert memory.incarnation == before.revision.incarnation
    await check(store, second, folder, name)
    assert [kept.fingerprint for kept in await store.list_revisions(name)] == [second.fingerprint]
    assert await store.due_partitions(card.fingerprint) == []


async def test_nothing_of_the_replaced_model_stays(plain_store, redis, name, card, folder, write, second, begin):
    await write(plain_store, name, 1, 4)
    await folder.drain(plain_store, card)
    operation = await begin(plain_store, name)
    await folder.drain(plain_store, second)
    await write(plain_store, name, 5, 6)
    assert (await plain_store.advance(name, operation.id, until=0)).done
    old = memory_keys(name, card.fingerprint)
    assert not redis.exists(old.line, old.state, old.history, old.revisions, old.dirty, old.behind)
    await folder.drain(plain_store, second)
    await check(plain_store, second, folder, name)


async def test_it_does_not_take_over_before_it_is_as_far(store, name, card, folder, write, second, begin):
    await write(store, name, 1, 3)
    operation = await begin(store, name)
    await folder.drain(store, second)
    await write(store, name, 4, 5)
    await folder.drain(store, card)  # the first is at 5 now, the second at 3
    assert not (await store.advance(name, operation.id, until=0)).done
    await folder.drain(store, second)
    assert (await store.advance(name, operation.id, until=0)).done
    await check(store, second, folder, name)


async def test_appends_and_a_forget_go_on_meanwhile(store, name, card, folder, write, second, begin, carrier):
    await write(store, name, 1, 8)
    await folder.drain(store, card)
    operation = await begin(store, name)
    await folder.drain(store, second)
    await write(store, name, 9, 12)
    forgetting = await store.request_operation(name, "forget", {"selector": {"ids": ["id-3"]}, "include_forks": False})
    while (await store.advance(name, forgetting.id, until=0)).progress["stage"] == "removing":
        pass
    memory = await store.get_memory(name)
    assert memory.building_applied < 3
    assert not (await store.advance(name, operation.id, until=0)).done
    await folder.drain(store, second)
    await write(store, name, 13, 13)
    await folder.drain(store, card)
    await folder.drain(store, second)
    assert (await store.advance(name, operation.id, until=0)).done
    assert (await carrier.finish(store, name, forgetting.id)).result["turn_ids"] == ["id-3"]
    await check(store, second, folder, name)
    assert len(await store.read_turns(name)) == 12


async def test_a_forget_waits_for_both_models(store, name, card, folder, write, second, begin, until):
    await write(store, name, 1, 4)
    await begin(store, name)
    for model in (card, second):
        await folder.drain(store, model)
    forgetting = await store.request_operation(name, "forget", {"selector": {"ids": ["id-1"]}, "include_forks": False})

    async def waits() -> bool:
        return (await store.advance(name, forgetting.id, until=0)).progress["stage"] == "folding"

    await until(waits)
    await folder.drain(store, card)
    assert not (await store.advance(name, forgetting.id, until=0)).done
    await folder.drain(store, second)
    assert (await store.advance(name, forgetting.id, until=0)).done


async def quarantine(store, name, fingerprint, sequence: int) -> None:
    [claim] = await store.claim(fingerprint, name.partition, owner="w", lease_s=30, limit=1)
    await store.quarantine(claim, sequence=sequence, reason="RuntimeError")


async def test_a_turn_that_the_new_model_cannot_fold_ends_the_rebuild(
    plain_store, redis, name, card, folder, write, second, begin
):
    await write(plain_store, name, 1, 4)
    await folder.drain(plain_store, card)
    operation = await begin(plain_store, name)
    await quarantine(plain_store, name, second.fingerprint, 3)
    while not operation.done:
        operation = await plain_store.advance(name, operation.id, until=0)
    assert operation.error == "TURN_QUARANTINED"
    assert "turn 3" in operation.message
    await check(plain_store, card, folder, name)
    line = memory_keys(name, second.fingerprint)
    assert not redis.exists(line.line, line.state, line.history, line.revisions, line.dirty)
    await plain_store.skip_turn(name, (await plain_store.append(name, [folder.turn(5)])).revision.sequence)
    await folder.drain(plain_store, card)
    again = await begin(plain_store, name, request_id="again")
    await folder.drain(plain_store, second)
    assert (await plain_store.advance(name, again.id, until=0)).done
    await check(plain_store, second, folder, name)


async def test_a_rebuild_that_ends_leaves_the_one_that_took_its_place_alone(
    store, name, card, folder, write, second, third, begin
):
    await write(store, name, 1, 4)
    first = await begin(store, name)
    await quarantine(store, name, second.fingerprint, 3)
    assert (await store.advance(name, first.id, until=0)).progress["stage"] == "stopping"
    newer = await begin(store, name, third)
    newer = await store.advance(name, newer.id, until=0)
    assert (await store.advance(name, first.id, until=0)).error == "TURN_QUARANTINED"
    assert (await store.get_memory(name)).building == third.fingerprint
    for model in (card, third):
        await folder.drain(store, model)
    assert (await store.advance(name, newer.id, until=0)).done


async def test_a_forget_does_not_wait_for_a_model_that_cannot_fold(store, name, card, folder, write, second, begin):
    await write(store, name, 1, 6)
    await begin(store, name)
    for model in (card, second):
        await folder.drain(store, model)
    forgetting = await store.request_operation(name, "forget", {"selector": {"ids": ["id-2"]}, "include_forks": False})
    while forgetting.progress.get("stage") != "folding":
        forgetting = await store.advance(name, forgetting.id, until=0)
        await asyncio.sleep(0.005)
    await quarantine(store, name, second.fingerprint, 4)
    assert not (await store.advance(name, forgetting.id, until=0)).done
    await folder.drain(store, card)
    assert (await store.advance(name, forgetting.id, until=0)).done


async def test_asking_for_the_serving_model_calls_it_off(plain_store, redis, name, card, folder, write, second, begin):
    await write(plain_store, name, 1, 4)
    await folder.drain(plain_store, card)
    running = await begin(plain_store, name)
    await folder.drain(plain_store, second)
    stop = await begin(plain_store, name, card)
    assert (stop.done, stop.result["replaced_fingerprint"]) == (True, "")
    assert (await plain_store.advance(name, running.id, until=0)).error == "OPERATION_CONFLICT"
    await check(plain_store, card, folder, name)
    line = memory_keys(name, second.fingerprint)
    assert not redis.exists(line.line, line.state, line.history, line.revisions, line.dirty)


async def test_a_newer_rebuild_ends_the_one_before(store, name, card, folder, write, second, third, begin):
    await write(store, name, 1, 4)
    first = await begin(store, name)
    newer = await begin(store, name, third)
    newer = await store.advance(name, newer.id, until=0)
    assert (await store.get_memory(name)).building == third.fingerprint
    assert (await store.advance(name, first.id, until=0)).error == "OPERATION_CONFLICT"
    for model in (card, third):
        await folder.drain(store, model)
    assert (await store.advance(name, newer.id, until=0)).done
    await check(store, third, folder, name)


async def test_a_fold_of_a_called_off_rebuild_is_lost(store, name, card, folder, write, second, begin):
    await write(store, name, 1, 4)
    await folder.drain(store, card)
    await begin(store, name)
    [claim] = await store.claim(second.fingerprint, name.partition, owner="w", lease_s=30, limit=1)
    await begin(store, name, card)
    assert not await folder.finish(store, claim)
    await check(store, card, folder, name)


async def test_an_unknown_model_folds_nothing(store, name, write):
    await write(store, name, 1, 1)
    with pytest.raises(ModelNotFoundError):
        await store.request_operation(name, "rebuild", {"fingerprint": "d" * 64})
    assert await store.list_operations(name) == []


@pytest.mark.parametrize("after", [False, True])
async def test_whoever_dies_wherever_the_model_is_exchanged(
    swift_store, swift_url, card, folder, write, second, kills, killed, monkeypatch, after
):
    monkeypatch.setattr(operations, "LEASE_MS", 1)
    monkeypatch.setattr(rebuilding, "_LOOK_S", 0)
    await swift_store.register_model(second, default=False)
    doomed = await Store.open(swift_url)
    deaths = kills(doomed)
    for calls in itertools.count():
        name = MemoryName("acme", f"m{calls}")
        await write(swift_store, name, 1, 4)
        await folder.drain(swift_store, card)
        operation = await doomed.request_operation(name, "rebuild", {"fingerprint": second.fingerprint})
        deaths.at(calls, after=after)
        try:
            for _ in range(5):
                await doomed.advance(name, operation.id, until=0)
                await folder.drain(swift_store, second)
        except killed:
            pass
        died = deaths.off()
        while not operation.done:
            await asyncio.sleep(0.002)
            operation = await swift_store.advance(name, operation.id, until=0)
            await folder.drain(swift_store, second)
        assert operation.result["replaced_fingerprint"] == card.fingerprint
        await check(swift_store, second, folder, name)
        if not died:
            break
    assert calls > 5
    await doomed.close()
