"""What the writer folds is what the model folds, however the turns came in, and whatever becomes of the hints."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from memfold.hints import TASK, celery_app, queue_name

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def redis(lasting_redis):
    return lasting_redis


@pytest.fixture
def writer(lasting_writer):
    return lasting_writer


async def test_the_state_is_what_the_model_makes_of_the_turns(writer, store, hinter, name, some_turns, check_folded):
    await store.create_memory(name)
    turns = some_turns(40)
    result = await store.append(name, turns)
    hinter.hint(result.fingerprint, name.partition)
    await check_folded(name, turns)


async def test_the_state_does_not_show_how_the_turns_were_grouped(
    writer, store, hinter, name, some_turns, check_folded
):
    await store.create_memory(name)
    turns = some_turns(40)
    for start, end in ((0, 1), (1, 2), (2, 20), (20, 21), (21, 40)):
        result = await store.append(name, turns[start:end])
        hinter.hint(result.fingerprint, name.partition)
        await store.wait_for(name, result.revision, 120)
    await check_folded(name, turns)


async def test_turns_that_come_in_while_folding_are_folded_next(writer, store, hinter, name, some_turns, check_folded):
    await store.create_memory(name)
    turns = some_turns(60)
    for turn in turns:
        result = await store.append(name, [turn])
        if result.behind:
            hinter.hint(result.fingerprint, name.partition)
        await asyncio.sleep(0.005)
    await check_folded(name, turns)


async def test_without_any_hint_the_reconciler_finds_what_is_behind(writer, store, name, some_turns, check_folded):
    turns = some_turns(10)
    await store.create_memory(name)
    await store.append(name, turns)
    await check_folded(name, turns)


async def test_repeated_hints_fold_every_turn_once(writer, store, name, some_turns, check_folded, redis):
    fingerprint = (await store.default_model()).fingerprint
    await store.create_memory(name)
    turns = some_turns(30)
    folded_before = writer.metric("memfold_fold_lag_seconds_count")
    app = celery_app(redis.url)
    for turn in turns:
        await store.append(name, [turn])
        for _ in range(3):
            app.send_task(TASK, [fingerprint, name.partition], queue=queue_name(fingerprint))
    app.close()
    await check_folded(name, turns)
    assert writer.metric("memfold_fold_lag_seconds_count") - folded_before == len(turns)


async def test_hints_that_mean_nothing_are_dropped(writer, store, hinter, name, some_turns, check_folded, redis):
    fingerprint = (await store.default_model()).fingerprint
    app = celery_app(redis.url)
    for arguments in ([], ["other", 1], [fingerprint, -1], [fingerprint, 4096], [fingerprint, "seven"], [1, 2, 3]):
        app.send_task(TASK, arguments, queue=queue_name(fingerprint))
    app.close()
    turns = some_turns(5)
    await store.create_memory(name)
    result = await store.append(name, turns)
    hinter.hint(result.fingerprint, name.partition)
    await check_folded(name, turns)
    assert writer.process.poll() is None


async def test_a_memory_made_anew_under_its_old_name_starts_from_nothing(
    writer, store, hinter, name, some_turns, check_folded
):
    for salt in ("first", "second"):
        await store.create_memory(name)
        turns = some_turns(10, salt=salt)
        result = await store.append(name, turns)
        hinter.hint(result.fingerprint, name.partition)
        await check_folded(name, turns)
        await store.delete_memory(name)
        hinter.hint(result.fingerprint, name.partition)


async def test_the_model_is_registered_and_probes_hear_that_the_writer_serves(writer, store, served):
    card = await store.default_model()
    assert card.fingerprint == served.fingerprint
    assert card.state_shape == served.state_shape
    async with grpc.aio.insecure_channel(writer.wait_ready()["address"]) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_nothing_is_behind_when_all_is_folded(writer, store, name, some_turns, check_folded, until):
    turns = some_turns(3)
    await store.create_memory(name)
    await store.append(name, turns)
    await check_folded(name, turns)

    async def clear() -> bool:
        return await asyncio.to_thread(writer.metric, "memfold_behind_memories") == 0

    await until(clear)
    assert writer.metric("memfold_behind_oldest_seconds") == 0
