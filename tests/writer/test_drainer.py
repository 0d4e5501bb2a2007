"""The parts of a writer put together here, on a real store and the real model, to see what a process hides."""

from __future__ import annotations

import asyncio

import pytest

from memfold.api.values import MemoryName, Role, Turn
from memfold.store import Anchor
from memfold.store.digests import chain
from memfold_writer import claims as claiming
from memfold_writer import reconciler as reconciling
from memfold_writer.metrics import Metrics
from memfold_writer.reconciler import Drains, Reconciler

pytestmark = pytest.mark.timeout(600)


async def append_to(store, names, turns):
    for name in names:
        await store.append(name, turns, create=True)


async def test_a_batch_that_fails_is_folded_one_by_one_and_only_the_culprit_waits(
    store, registered, device, gatherer, drainer, some_turns, check_folded, line_of, monkeypatch
):
    ill, *well = names = [MemoryName("acme", name) for name in ("ill", "anna", "ben")]
    await append_to(store, [ill], [*some_turns(2), Turn("poison", Role.USER, "poison")])
    await append_to(store, well, some_turns(2))
    whole = device._folder.fold

    def fold(jobs):
        if any(message.content == "poison" for job in jobs for message in job.messages):
            raise RuntimeError("no kernel for this")
        return whole(jobs)

    monkeypatch.setattr(device._folder, "fold", fold)
    monkeypatch.setattr(
        claiming, "FIRST_BACKOFF_S", 60.0
    )  # so that a slow machine is not through with the rest already
    gatherer.note_due([name.partition for name in names])
    await drainer.drain(ill.partition)
    assert device.batches[0] == ["anna", "ben", "ill"]
    assert sorted(device.batches[1:]) == [["anna"], ["ben"], ["ill"]]
    for name in well:
        await check_folded(name, some_turns(2))
    line = await line_of(ill)
    assert (line["applied"], line["attempts"], line["claim"]) == ("0", "1", "")
    assert await store.due_partitions(registered) == [], "the culprit is due again only after a rest"


async def test_a_state_that_is_not_finite_spoils_no_other_of_its_batch(
    store, registered, served, device, gatherer, drainer, some_turns, check_folded, line_of
):
    ill, *well = names = [MemoryName("acme", name) for name in ("ill", "anna", "ben")]
    await append_to(store, [ill], some_turns(1))
    [claim] = await store.claim(registered, ill.partition, owner="test", lease_s=9, limit=1)
    layers, heads, rows, columns = served.state_shape
    size = 4 * layers * heads * rows * columns
    nan = Anchor(sequence=1, offset=0, data=b"\x00\x00\xc0\x7f" * (size // 4))
    digest = chain(bytes(32), await store.read_turns(ill))
    assert await store.commit(
        claim, applied=1, at=1, state=bytes(size), shape=served.state_shape, anchor=nan, log_digest=digest
    )
    await append_to(store, [ill], some_turns(2, start=2))
    await append_to(store, well, some_turns(2))

    gatherer.note_due([name.partition for name in names])
    await drainer.drain(ill.partition)
    assert device.batches[0] == ["anna", "ben", "ill"]
    assert device.batches[-1] == ["ill"]
    for name in well:
        await check_folded(name, some_turns(2))
    line = await line_of(ill)
    assert (line["applied"], line["attempts"], line["claim"]) == ("1", "1", "")


async def test_a_memory_that_failed_before_is_folded_alone(
    store, registered, device, gatherer, drainer, some_turns, check_folded
):
    suspect, other = names = [MemoryName("acme", name) for name in ("suspect", "other")]
    await append_to(store, names, some_turns(2))
    for _ in range(2):
        [claim] = await store.claim(registered, suspect.partition, owner="test", lease_s=9, limit=1)
        await store.release(claim, delay_s=0)
    gatherer.note_due([name.partition for name in names])
    await drainer.drain(suspect.partition)
    assert device.batches == [["suspect"]], "what is held along with a suspect dies with it"
    await drainer.drain(other.partition)
    assert device.batches == [["suspect"], ["other"]]
    for name in (suspect, other):
        await check_folded(name, some_turns(2))


async def test_a_writer_that_stops_claims_nothing_new(
    store, registered, device, drainer, stopping, name, some_turns, line_of
):
    await append_to(store, [name], some_turns(2))
    stopping.begin()
    await drainer.drain(name.partition)
    assert device.batches == []
    assert (await line_of(name)).get("fence", "0") == "0"


async def test_hints_that_never_come_round_are_noticed(store, registered, drainer, name, some_turns, monkeypatch):
    monkeypatch.setattr(reconciling, "STALLED_S", 0.2)
    monkeypatch.setattr(reconciling, "FRESH_S", 0.0)
    heard: asyncio.Queue[bool] = asyncio.Queue()
    hinted: list[int] = []
    reconciler = Reconciler(
        store,
        Metrics(),
        fingerprint=registered,
        hint=hinted.append,
        interval_s=0.05,
        drains=Drains(note_due=lambda _: None, idle_s=lambda: drainer.idle_s, live=heard.put),
    )
    running = asyncio.create_task(reconciler.run())
    await append_to(store, [name], some_turns(2))
    assert await heard.get() is False
    assert hinted == [name.partition]
    await drainer.drain(name.partition)
    assert await heard.get() is True
    running.cancel()
