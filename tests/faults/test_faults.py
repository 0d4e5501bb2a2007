"""The short form: a platform under load, fault after fault; at the end nothing is lost, doubled, reordered or wrong.

The tests share one platform and build on each other: each fault must be overcome before the next one comes.
"""

from __future__ import annotations

import asyncio

import pytest
import pytest_asyncio
from memfold_faults.proxy import MODES
from memfold_faults.rig import until
from memfold_faults.world import POINTS, World, waits

SEED, LEASE_S, RECONCILE_S = 4, 1.5, 0.5
BUSY_S = 1.5  # among other tests; the long form, which has the machine to itself, holds the bound
ACKNOWLEDGED, WRITER_KILLS, REDIS_KILLS = 5000, 15, 3

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory, nursery):
    world = World(tmp_path_factory.mktemp("world"), nursery, SEED, lease_s=LEASE_S, reconcile_s=RECONCILE_S)
    await world.start(pause_s=0.07)
    yield world
    await world.close()


@pytest.mark.parametrize("point", POINTS)
async def test_a_writer_killed(world, point):
    await asyncio.gather(*(world.kill_writer(point, passage) for passage in (1, 2, 3)))
    await world.recover()


async def test_a_writer_stopped_past_its_lease(world):
    await world.stop_writer()
    await world.recover()


async def test_the_broker_wiped(world):
    world.wipe_broker()
    await world.recover()


async def test_the_broker_killed(world):
    await world.kill_broker()
    await world.recover()


async def test_scripts_flushed(world):
    world.flush_scripts()
    await world.recover()


async def test_the_store_full(world):
    await world.fill_store()
    await world.recover()


async def test_the_gateway_killed_in_the_middle_of_a_stream(world):
    await world.kill_gateway()
    await world.recover()


@pytest.mark.parametrize("time", [1, 2, 3])
async def test_redis_killed(world, time):
    await world.kill_redis()
    await world.recover()


@pytest.mark.parametrize("mode", MODES)
async def test_every_link_broken(world, mode):
    links = [*world.rig.links]
    if mode == "half-open":
        links.remove("client to gateway")  # gRPC's keepalive takes half a minute to notice: left to the long form
    await asyncio.gather(*(world.break_link(link, mode, 1.0, at / 2) for at, link in enumerate(links)))
    await world.recover()


async def test_after_all_that_nothing_is_lost_doubled_reordered_foreign_or_wrong(world, record_property):
    await until(lambda: world.acknowledged >= ACKNOWLEDGED, timeout_s=120)
    verdict = await world.finish()
    waited, hints = waits(world.kills), world.hints()
    bound = LEASE_S + 2 * RECONCILE_S
    operations = [getattr(client, "done", None) for client in world.clients]
    for line in (
        f"faults, seed {SEED}: {dict(world.counts)}; hints: {dict(hints)}",
        f"history: {verdict.counts()}; operations: {[dict(done) for done in operations if done]}",
        f"kill to folded: {len(waited)} of {len(world.kills)} kills, worst {max(waited):.2f} s, bound {bound:.2f} s",
    ):
        record_property("told", line)
    assert verdict.broken == {}
    assert verdict.acknowledged >= ACKNOWLEDGED
    assert world.counts["writers killed"] >= WRITER_KILLS
    assert world.counts["redis killed"] >= REDIS_KILLS
    assert 0.15 < hints["lost"] / hints["sent"] < 0.25
    assert waited[len(waited) // 2] <= bound
    assert max(waited) <= bound + BUSY_S
