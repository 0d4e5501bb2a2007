"""Writers die, sleep, stop and lose their Redis; the state ends as if nothing had happened."""

from __future__ import annotations

import asyncio
import signal
import sys
import time

import pytest

from memfold.api.values import MemoryName, Role, Turn

pytestmark = pytest.mark.timeout(600)

LONG = Turn("long", Role.USER, "many words " * 1500)  # a second of work or more, at a token a byte
LONGER = Turn("longer", Role.USER, "many words " * 6000)  # more than a lease
HUGE = Turn("huge", Role.USER, "many words " * 20000)  # more than any grace time


@pytest.fixture
def folding(until):
    """Wait until a writer has something on its device."""

    async def wait(writer) -> None:
        async def running() -> bool:
            return await asyncio.to_thread(writer.metric, "memfold_fold_running") > len(LONG.content)

        await until(running)

    return wait


async def test_a_writer_killed_in_the_middle_of_a_fold_leaves_no_trace(
    store, start_writer, hinter, name, some_turns, check_folded, folding, line_of
):
    writer = start_writer(lease_s=2)
    await store.create_memory(name)
    before = some_turns(30)
    await store.append(name, before)
    await check_folded(name, before)

    turns = [*before, LONG, *some_turns(5, start=100)]
    result = await store.append(name, turns[30:])
    hinter.hint(result.fingerprint, name.partition)
    await folding(writer)
    writer.kill()
    line = await line_of(name)
    assert line["claim"] != "", "the fold was over before the kill"
    assert line["applied"] == "30"

    start_writer(lease_s=2)
    await check_folded(name, turns)
    assert (await line_of(name))["attempts"] == "0"


async def test_a_long_fold_keeps_its_lease_and_a_writer_that_slept_past_it_commits_nothing(
    store, start_writer, hinter, check_folded, folding, line_of, until
):
    writers = [start_writer(lease_s=3) for _ in range(2)]
    turns = [LONGER]
    kept, slept = MemoryName("acme", "kept"), MemoryName("acme", "slept")

    async def begin(name: MemoryName) -> None:
        await store.create_memory(name)
        result = await store.append(name, turns)
        hinter.hint(result.fingerprint, name.partition)

    await begin(kept)
    await check_folded(kept, turns)
    assert (await line_of(kept))["fence"] == "1"

    await begin(slept)

    async def claimed() -> bool:
        return (await line_of(slept)).get("owner", "") != ""

    await until(claimed)
    owner = (await line_of(slept))["owner"]
    [sleeper] = [writer for writer in writers if f"-{writer.process.pid}-" in owner]
    await folding(sleeper)
    sleeper.process.send_signal(signal.SIGSTOP)
    assert (await line_of(slept))["applied"] == "0"
    await check_folded(slept, turns)
    sleeper.process.send_signal(signal.SIGCONT)

    async def lost() -> bool:
        return await asyncio.to_thread(sleeper.metric, "memfold_fold_lost_total") == 1

    await until(lost)
    await check_folded(slept, turns)


async def test_a_writer_asked_to_stop_finishes_what_it_folds(
    store, start_writer, hinter, name, some_turns, check_folded, folding
):
    writer = start_writer(grace_s=100)
    await store.create_memory(name)
    turns = [*some_turns(3), LONG]
    result = await store.append(name, turns)
    hinter.hint(result.fingerprint, name.partition)
    await folding(writer)
    assert await asyncio.to_thread(writer.stop) == 0
    await check_folded(name, turns, timeout_s=0.1)


async def test_a_writer_asked_to_stop_gives_back_what_it_cannot_finish_in_time(
    store, start_writer, hinter, name, folding, line_of
):
    writer = start_writer(grace_s=5, lease_s=60)
    await store.create_memory(name)
    result = await store.append(name, [HUGE])
    hinter.hint(result.fingerprint, name.partition)
    await folding(writer)
    started = time.monotonic()
    assert await asyncio.to_thread(writer.stop) == 0
    assert time.monotonic() - started < 5
    line = await line_of(name)
    assert (line["applied"], line["attempts"], line["claim"]) == ("0", "0", "")
    assert await store.due_partitions(result.fingerprint) == [name.partition]


async def test_a_writer_that_has_not_begun_stops_with_success(start_writer, until):
    writer = start_writer(ready=False)

    async def listening() -> bool:
        return "listening" in writer.log

    await until(listening)
    assert await asyncio.to_thread(writer.stop) == 0


async def test_ten_seconds_without_redis_lose_nothing(
    store, start_writer, hinter, redis, name, some_turns, check_folded, folding
):
    writer = start_writer()
    await store.create_memory(name)
    turns = [*some_turns(10), LONG, *some_turns(10, start=50)]
    result = await store.append(name, turns[:11])
    hinter.hint(result.fingerprint, name.partition)
    await folding(writer)
    redis.kill()
    await asyncio.sleep(10)
    assert writer.process.poll() is None
    redis.restart()
    await store.append(name, turns[11:])
    await check_folded(name, turns)


async def test_a_writer_started_before_redis_waits_for_it(
    redis, store, start_writer, name, some_turns, check_folded, until
):
    redis.stop()
    writer = start_writer(ready=False)

    async def waiting() -> bool:
        return "waiting for the store" in writer.log

    await until(waiting)
    redis.restart()
    await asyncio.to_thread(writer.wait_ready)
    await store.create_memory(name)
    turns = some_turns(3)
    await store.append(name, turns)
    await check_folded(name, turns)


async def test_a_broken_device_ends_the_process_with_a_failure(store, start_writer, hinter, name, some_turns, line_of):
    broken = (
        "import sys, torch, memfold_osam.fold as fold\n"
        "whole = fold.Folder.fold\n"
        "def broken(self, jobs):\n"
        "    if len(jobs[0].messages) > 1:\n"
        "        raise torch.AcceleratorError('CUDA error: an illegal memory access was encountered')\n"
        "    return whole(self, jobs)\n"
        "fold.Folder.fold = broken\n"
        "from memfold_writer.__main__ import main\n"
        "sys.exit(main())\n"
    )
    writer = start_writer(command=[sys.executable, "-P", "-c", broken])
    await store.create_memory(name)
    result = await store.append(name, some_turns(3))
    hinter.hint(result.fingerprint, name.partition)
    assert await asyncio.to_thread(writer.process.wait, 120) == 1
    line = await line_of(name)
    assert (line["applied"], line["attempts"], line["claim"]) == ("0", "1", "")


@pytest.mark.parametrize(
    ("settings", "code", "words"),
    [
        ({"batch_tokens": "none"}, 2, "MEMFOLD_BATCH_TOKENS"),
        ({"durability": "hope"}, 2, "MEMFOLD_DURABILITY"),
        ({"durability": "replica"}, 1, "needs 1 connected replicas"),
        ({"backbone": "/no/such/model"}, 1, "/no/such/model"),
        ({"listen": "203.0.113.1:50053"}, 1, "cannot listen on 203.0.113.1:50053"),
    ],
)
def test_a_writer_that_cannot_start_says_why(start_writer, settings, code, words):
    writer = start_writer(ready=False, **settings)
    assert writer.process.wait(120) == code
    assert words in writer.log
    assert "Traceback" not in writer.log
