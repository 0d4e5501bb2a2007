"""Requests take turns, leave when nobody waits for them, and never hold each other up."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import threading
import time

import pytest
import torch

from memfold.api.errors import DeadlineError, MemfoldError, ReaderUnavailableError, ShuttingDownError
from memfold_reader import work as work_module
from memfold_reader.engine import Engine
from memfold_reader.load import Load, Rate
from memfold_reader.outbox import Outbox
from memfold_reader.runner import Runner
from memfold_reader.scheduler import WAITING_PER_PLACE
from memfold_reader.sequence import Sequence


class Counting(Sequence):
    """Counts to ``last``, one number a step."""

    def __init__(self, engine: Engine, last: int, *, deadline: float = math.inf, capacity: int = 4) -> None:
        super().__init__([7, 8], steering=None, deadline=deadline)
        self.outbox: Outbox[int] = Outbox(capacity, engine.wake)
        self.last = last
        self.steps = 0

    def can_step(self) -> bool:
        return self.outbox.has_room()

    def wanted(self, count: int) -> int:
        return 1

    def take(self, logits: torch.Tensor, best: list[int]) -> bool:
        self.steps += 1
        self.tokens = [7] * (self.row.length + 1)
        if self.row.length > 64:
            self.row.rewind(1)
            self.tokens = [7, 8]
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

    def take(self, logits: torch.Tensor, best: list[int]) -> bool:
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


async def test_a_client_that_takes_a_little_now_and_then_keeps_its_place(by_hand, served):
    playing = by_hand(served)
    reply = playing.submit([5, 6, 7])
    playing.step()
    reply._outbox.is_full = True
    long_ago = reply._moved_at = time.monotonic() - 2 * work_module.STALL_S
    assert reply.overdue(time.monotonic()) is not None
    reply._outbox.taken_at = long_ago + 1.5 * work_module.STALL_S
    assert reply.overdue(time.monotonic()) is None


async def test_an_outbox_that_was_full_lets_half_of_it_be_taken_first():
    woken = []
    outbox: Outbox[int] = Outbox(4, lambda: woken.append(True))
    for number in range(4):
        assert outbox.has_room()
        outbox.put(number)
    items, room = aiter(outbox), []
    for _ in range(4):
        assert not outbox.has_room() or room[-1]
        await anext(items)
        room.append(outbox.has_room())
    assert room == [False, False, True, True]
    assert woken


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


async def test_draining_hands_back_what_waits_and_finishes_what_runs(engine, eventually):
    works = [Counting(engine, 50) for _ in range(5)]
    for work in works:
        engine.submit(work)
    await eventually(lambda: works[0].steps == works[1].steps == 4)
    engine.drain()
    for work in works[2:]:
        with pytest.raises(ShuttingDownError):
            await work.rest()
    with pytest.raises(ShuttingDownError):
        engine.submit(Counting(engine, 1))
    assert await asyncio.gather(*(work.rest() for work in works[:2])) == [list(range(1, 51))] * 2


async def test_a_function_runs_on_the_engines_thread_between_two_steps(engine):
    busy = Counting(engine, 10**9, capacity=10**9)
    engine.submit(busy)
    names = [await engine.call(lambda: threading.current_thread().name) for _ in range(3)]
    assert names == ["engine"] * 3

    def stumble() -> None:
        raise LookupError("not there")

    with pytest.raises(LookupError, match="not there"):
        await engine.call(stumble)
    busy.cancel()
    engine.wake()
    assert await engine.call(lambda: 1) == 1  # also with nothing else to do


async def test_a_function_that_never_had_its_turn_is_told_so(served):
    engine = Engine(Runner(served), places=1, on_broken=lambda: None)
    call = asyncio.create_task(engine.call(lambda: 1))
    await asyncio.sleep(0)
    engine.start()
    await asyncio.to_thread(engine.stop)
    with contextlib.suppress(ShuttingDownError):
        assert await call == 1
    with pytest.raises(ShuttingDownError):
        await engine.call(lambda: 1)


async def test_the_load_tells_who_is_in_and_what_is_held(engine, eventually):
    assert engine.load() == Load(active=0, waiting=0, slots=2, kv_tokens=0, tokens_per_s=0.0)
    works = [Counting(engine, 100) for _ in range(5)]
    for work in works:
        engine.submit(work)
    await eventually(lambda: works[0].steps == works[1].steps == 4)
    load = engine.load()
    assert (load.active, load.waiting, load.slots) == (2, 3, 2)
    assert load.tokens_per_s > 0
    for work in works:
        work.cancel()
    engine.wake()
    await eventually(lambda: engine.load().kv_tokens == engine.load().active == 0)


def test_a_rate_fades():
    rate = Rate(0.0)
    for second in range(100):
        rate.add(10, float(second))
    assert rate.at(99.5) == pytest.approx(10, rel=0.15)
    assert rate.at(200.0) == pytest.approx(0, abs=1e-6)


def test_whatever_way_a_request_ends_nothing_of_it_stays(by_hand, served, random_state):
    playing = by_hand(served, places=4)
    runner = playing.engine._runner
    replies = [playing.submit([5, 6, 7], state=random_state(n), max_tokens=5 + n) for n in range(8)]
    for _ in range(3):
        playing.step()
    assert runner.held > 0
    replies[0].cancel()
    replies[1].deadline = 0.0
    replies[2].take = None  # a fault
    playing.finish(*replies[3:])
    assert runner.held == 0
    assert len(runner._steerer._states._free) == runner._steerer._states._pool.shape[1] - 1
    assert not playing.engine._scheduler._service


def test_a_batch_that_fails_ends_only_those_who_fail_alone(by_hand, served, random_state, monkeypatch, caplog):
    jobs = [{"prompt": [5 + n, 6, 7], "state": random_state(n)} for n in range(4)]
    alone = by_hand(served)
    expected = [alone.finish(alone.submit(**job))[0] for job in jobs]
    playing = by_hand(served)
    replies = [playing.submit(**job) for job in jobs]
    runner, bad, steps = playing.engine._runner, replies[2], itertools.count()
    forward = runner._forward

    def fail(tokens, inputs, keep):
        if len(bad.generated) > 5 and ((len(tokens) > 1 and next(steps) < 3) or tokens == [[bad.tokens[-1]]]):
            raise RuntimeError("cannot")
        return forward(tokens, inputs, keep)

    monkeypatch.setattr(runner, "_forward", fail)
    while playing.engine.open_count:
        playing.step()
    said = [reply.generated for reply in replies]
    assert [said[n] for n in (0, 1, 3)] == [expected[n] for n in (0, 1, 3)]
    assert isinstance(bad._outbox.error, MemfoldError)
    assert said[2] == expected[2][: len(said[2])]
    assert "a batch of 4 failed" in caplog.text


def test_a_memory_that_has_become_infinite_spoils_its_own_reply_only(by_hand, served, random_state):
    jobs = [{"prompt": [5 + n, 6, 7], "state": random_state(n), "max_tokens": 30} for n in range(3)]
    alone, playing = by_hand(served), by_hand(served, places=4)
    expected = [alone.finish(alone.submit(**job))[0] for job in jobs]
    spoiled = random_state(5) * torch.inf
    for _ in range(2):  # the second round takes over the places that the spoiled rows leave
        ill = [playing.submit([9] * 40, state=spoiled, max_tokens=n) for n in (3, 9)]
        replies = [playing.submit(**job) for job in jobs]
        assert playing.finish(*ill, *replies)[2:] == expected
