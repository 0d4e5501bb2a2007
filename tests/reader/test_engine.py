"""Requests take turns, leave when nobody waits for them, and never hold each other up."""

from __future__ import annotations

import asyncio
import math
import threading
import time

import pytest
import torch

from memfold.api.errors import DeadlineError, MemfoldError, ReaderUnavailableError, ShuttingDownError
from memfold_reader import work as work_module
from memfold_reader.engine import WAITING_PER_PLACE, Engine
from memfold_reader.outbox import Outbox
from memfold_reader.runner import Runner
from memfold_reader.work import Work


class Counting(Work):
    """Counts to ``last``, one number a step."""

    def __init__(self, engine: Engine, last: int, *, deadline: float = math.inf, capacity: int = 4) -> None:
        super().__init__(deadline)
        self.outbox: Outbox[int] = Outbox(capacity, engine.wake)
        self.last = last
        self.steps = 0

    def can_step(self) -> bool:
        return self.outbox.has_room()

    def step(self, runner: Runner) -> bool:
        self.steps += 1
        self.outbox.put(self.steps)
        if self.steps == self.last:
            self.outbox.close()
        return self.steps == self.last

    def fail(self, error: MemfoldError) -> None:
        self.outbox.close(error)

    async def rest(self) -> list[int]:
        return [number async for number in self.outbox]


class Faulty(Counting):
    error: Exception = RuntimeError("a secret text")

    def step(self, runner: Runner) -> bool:
        raise self.error


class Broken(Faulty):
    error = torch.AcceleratorError("the device is gone")


@pytest.fixture
def engine(served):
    engine = Engine(Runner(served), places=2, on_broken=lambda: None)
    engine.start()
    yield engine
    engine.stop()


async def test_every_item_arrives_in_order(engine):
    works = [Counting(engine, 200) for _ in range(5)]
    for work in works:
        engine.submit(work)
    assert await asyncio.gather(*(work.rest() for work in works)) == [list(range(1, 201))] * 5


async def test_a_client_that_takes_nothing_pauses_and_stalls_nobody(engine, eventually):
    slow, quick = Counting(engine, 100), Counting(engine, 100)
    engine.submit(slow)
    await eventually(lambda: slow.steps == 4)
    engine.submit(quick)
    assert await quick.rest() == list(range(1, 101))
    assert slow.steps == 4
    assert await slow.rest() == list(range(1, 101))


async def test_paused_work_does_not_keep_the_engine_busy(engine, eventually):
    slow, waiting = [Counting(engine, 100) for _ in range(2)], Counting(engine, 1)
    for work in [*slow, waiting]:
        engine.submit(work)
    await eventually(lambda: [work.steps for work in slow] == [4, 4])
    began, spent = time.monotonic(), time.process_time()
    await asyncio.sleep(0.5)
    assert time.process_time() - spent < 0.5 * (time.monotonic() - began)
    slow[0].cancel()
    engine.wake()
    assert await waiting.rest() == [1]


async def test_cancelled_work_leaves_before_its_next_step(engine, eventually):
    work = Counting(engine, 10**9, capacity=10**9)
    engine.submit(work)
    await eventually(lambda: work.steps > 10)
    work.cancel()
    steps = work.steps
    engine.wake()
    await eventually(lambda: engine.open_count == 0)
    assert work.steps <= steps + 1


async def test_paused_and_waiting_work_can_be_cancelled(engine, eventually):
    works = [Counting(engine, 100) for _ in range(4)]
    for work in works:
        engine.submit(work)
    await eventually(lambda: works[0].steps == works[1].steps == 4)
    for work in works:
        work.cancel()
    engine.wake()
    await eventually(lambda: engine.open_count == 0)
    assert works[3].steps == 0


async def test_the_deadline_ends_running_paused_and_waiting_work(engine, eventually):
    deadline = time.monotonic() + 0.2
    works = [Counting(engine, 10**9, deadline=deadline, capacity=capacity) for capacity in (10**9, 4, 4)]
    for work in works:
        engine.submit(work)
    for work in works:
        with pytest.raises(DeadlineError):
            await work.rest()
    await eventually(lambda: engine.open_count == 0, 5)


async def test_a_client_that_takes_nothing_for_long_loses_its_place(engine, eventually, monkeypatch):
    monkeypatch.setattr(work_module, "STALL_S", 0.1)
    work = Counting(engine, 100)
    engine.submit(work)
    await eventually(lambda: engine.open_count == 0)
    with pytest.raises(DeadlineError, match="took nothing"):
        await work.rest()


async def test_a_fault_ends_its_own_request_only(engine, caplog):
    faulty, sound = Faulty(engine, 5), Counting(engine, 50)
    engine.submit(sound)
    engine.submit(faulty)
    with pytest.raises(MemfoldError) as caught:
        await faulty.rest()
    assert caught.value.reason == "INTERNAL"
    assert "secret" not in str(caught.value)
    assert len(await sound.rest()) == 50
    assert "a secret text" not in caplog.text


async def test_a_broken_device_ends_everything_and_is_reported(served, eventually):
    broken = threading.Event()
    engine = Engine(Runner(served), places=2, on_broken=broken.set)
    engine.start()
    works = [Counting(engine, 10**9, capacity=10**9), Broken(engine, 5), Counting(engine, 5)]
    for work in works:
        engine.submit(work)
    for work in works:
        with pytest.raises(MemfoldError):
            await work.rest()
    await eventually(broken.is_set)
    with pytest.raises(ShuttingDownError):
        engine.submit(Counting(engine, 1))


async def test_a_full_engine_says_when_to_come_again(engine):
    def fill() -> None:
        for _ in range(2 + 2 * WAITING_PER_PLACE + 1):
            engine.submit(Counting(engine, 100))

    with pytest.raises(ReaderUnavailableError) as caught:
        fill()
    assert caught.value.retry_after_ms > 0


async def test_stopping_ends_what_is_open(served):
    engine = Engine(Runner(served), places=1, on_broken=lambda: None)
    engine.start()
    works = [Counting(engine, 10**9, capacity=10**9), Counting(engine, 5)]
    for work in works:
        engine.submit(work)
    await asyncio.to_thread(engine.stop)
    for work in works:
        with pytest.raises(ShuttingDownError):
            await work.rest()
    with pytest.raises(ShuttingDownError):
        engine.submit(Counting(engine, 1))
