"""A turn that cannot be folded: found, set apart, and everybody else served, whatever it does to its writer."""

from __future__ import annotations

import asyncio

import pytest

from memfold.api.errors import StoreUnavailableError
from memfold.api.values import MemoryName, Role, Turn
from memfold_osam.state import state_from_bytes
from memfold_writer import claims as claiming
from memfold_writer.device import DeviceFailedError

pytestmark = pytest.mark.timeout(600)

POISON = Turn("poison", Role.USER, "poison")
AT = 8  # its number
COUNT = 13


@pytest.fixture(autouse=True)
def short_rests(monkeypatch):
    monkeypatch.setattr(claiming, "FIRST_BACKOFF_S", 0.001)
    monkeypatch.setattr(claiming, "LONG_BACKOFF_S", 0.05)


@pytest.fixture
def turns(some_turns):
    return [*some_turns(AT - 1, words=1), POISON, *some_turns(COUNT - AT, start=AT + 1, words=1)]


@pytest.fixture
def fold_until(store, drainer):
    """Drain as hints come round, until nothing is due any more or something holds."""

    async def fold(name, holds, *, tries=200):
        died = 0
        for _ in range(tries):
            if holds(await store.get_memory(name)):
                return died
            try:
                await drainer.drain(name.partition)
            except DeviceFailedError:
                died += 1
            await asyncio.sleep(0.02)
        raise AssertionError(await store.get_memory(name))

    return fold


@pytest.fixture
def poisoned(device, monkeypatch):
    """Make a fold with the poison in it do something."""
    whole = device._folder.fold

    def install(act):
        def fold(jobs):
            if any(message.content == "poison" for job in jobs for message in job.messages):
                act()
            return whole(jobs)

        monkeypatch.setattr(device._folder, "fold", fold)

    return install


def fail():
    raise RuntimeError("no kernel for poison")


def die():
    raise DeviceFailedError("nobody is left")


@pytest.fixture
def mortal(drainer, claims, monkeypatch):
    """A writer that dies releases nothing."""

    async def die(error):
        claims._held.clear()

    monkeypatch.setattr(claims, "_lease_s", 0.01)
    monkeypatch.setattr(claims, "fail_all", die)


async def check(store, name, fold_here, turns):
    _, state = await store.read_state(name)
    expected = fold_here(turns)
    assert (state_from_bytes(state.data, state.shape) - expected).abs().max() <= 1e-5 * expected.abs().max()


async def reason_of(line_of, name):
    return (await line_of(name))["reason"]


async def test_a_turn_that_fails_is_found_and_all_before_it_is_folded(
    store, registered, name, poisoned, fold_until, turns, fold_here, line_of, caplog
):
    poisoned(fail)
    await store.append(name, turns, create=True)
    await fold_until(name, lambda memory: memory.quarantined)
    memory = await store.get_memory(name)
    assert (memory.quarantined, memory.applied) == (AT, AT - 1)
    assert await reason_of(line_of, name) == "RuntimeError"
    await check(store, name, fold_here, turns[: AT - 1])
    assert await store.due_partitions(registered) == []
    assert "w1" not in caplog.text, "the log quotes a turn"


async def test_a_skipped_turn_frees_its_memory(store, registered, name, poisoned, fold_until, turns, fold_here):
    poisoned(fail)
    await store.append(name, turns, create=True)
    await fold_until(name, lambda memory: memory.quarantined)
    await store.skip_turn(name, AT)
    await fold_until(name, lambda memory: memory.applied == memory.head)
    memory = await store.get_memory(name)
    assert (memory.quarantined, memory.applied) == (0, COUNT + 1)
    await check(store, name, fold_here, [turn for turn in turns if turn is not POISON])


async def test_a_turn_that_cannot_even_be_tokenised_is_found(
    store, registered, name, device, fold_until, turns, fold_here, line_of, monkeypatch
):
    whole = device._measure

    def measure(given):
        if any(turn.content == "poison" for turn in given):
            raise KeyError("poison")
        return whole(given)

    monkeypatch.setattr(device, "_measure", measure)
    await store.append(name, turns, create=True)
    await fold_until(name, lambda memory: memory.quarantined)
    assert (await store.get_memory(name)).quarantined == AT
    assert await reason_of(line_of, name) == "KeyError"
    await check(store, name, fold_here, turns[: AT - 1])


async def test_a_turn_that_kills_its_writers_kills_five_of_them(
    store, registered, name, poisoned, mortal, fold_until, turns, fold_here, line_of
):
    poisoned(die)
    await store.append(name, turns, create=True)
    assert await fold_until(name, lambda memory: memory.quarantined) == 5
    assert (await store.get_memory(name)).quarantined == AT
    assert await reason_of(line_of, name) == "WRITER_DIED"
    await check(store, name, fold_here, turns[: AT - 1])


async def test_others_are_folded_meanwhile(
    store, registered, name, poisoned, gatherer, fold_until, turns, some_turns, check_folded
):
    poisoned(fail)
    others = [MemoryName("acme", other) for other in ("anna", "ben")]
    await store.append(name, turns, create=True)
    for other in others:
        await store.append(other, some_turns(5), create=True)
    gatherer.note_due([other.partition for other in others])
    await fold_until(name, lambda memory: memory.quarantined)
    for other in others:
        await check_folded(other, some_turns(5))


async def test_a_device_that_folds_nothing_blames_no_turn(
    store, registered, name, device, fold_until, fold_here, line_of, turns, monkeypatch
):
    def broken(jobs):
        raise RuntimeError("out of everything")

    whole = device._folder.fold
    monkeypatch.setattr(device._folder, "fold", broken)
    await store.append(name, turns[: AT - 1], create=True)
    with pytest.raises(AssertionError):
        await fold_until(name, lambda memory: memory.quarantined, tries=40)
    assert (await line_of(name))["attempts"] == "4"
    monkeypatch.setattr(device._folder, "fold", whole)
    await fold_until(name, lambda memory: memory.applied == memory.head)
    await check(store, name, fold_here, turns[: AT - 1])
    assert (await line_of(name))["attempts"] == "0"


async def test_attempts_that_the_store_spoilt_do_not_count(
    store, registered, name, drainer, claims, turns, line_of, monkeypatch
):
    await store.append(name, turns, create=True)

    async def gone(*args, **kwargs):
        raise StoreUnavailableError("gone")

    with monkeypatch.context() as patched:
        patched.setattr(store, "commit", gone)
        await drainer.drain(name.partition)
    assert (await line_of(name))["attempts"] == "1"
    await claims._pay()
    line = await line_of(name)
    assert (line["attempts"], line["claim"]) == ("0", "")
    assert await store.due_partitions(registered) == [name.partition]
