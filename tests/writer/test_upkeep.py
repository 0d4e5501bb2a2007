"""Operations go on without whoever asked for them, logs are folded again to prove a state, queues are looked after."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace

import pytest

from memfold.api.values import MemoryName, Policy
from memfold.hints import queue_name
from memfold.store.digests import chain
from memfold.store.keys import memory_keys
from memfold_writer import reconciler as reconciling
from memfold_writer import upkeep as keeping
from memfold_writer import verifier as verifying
from memfold_writer.loop_thread import end
from memfold_writer.metrics import Metrics
from memfold_writer.reconciler import Reconciler
from memfold_writer.upkeep import Upkeep
from memfold_writer.verifier import Verifier

pytestmark = pytest.mark.timeout(600)


class CountingMetrics(Metrics):
    found = 0

    def audited(self, found: int) -> None:
        self.found += found


@pytest.fixture
def metrics():
    return CountingMetrics()


@pytest.fixture
async def running(store, registered, served, device, drainer, metrics, monkeypatch):
    monkeypatch.setattr(keeping, "ROUND_S", 0.05)
    verifier = Verifier(store, device, fingerprint=registered, exact=served.exact, idle=lambda: drainer.idle_s > 0)
    upkeep = Upkeep(store, metrics, refold=verifier.offer)
    task = asyncio.create_task(upkeep.run())
    yield upkeep
    await end([task])
    await verifier.close()


@pytest.fixture
def folded(store, drainer, some_turns):
    async def fold(name, count=20):
        await store.append(name, some_turns(count, words=3), create=True)
        await drainer.drain(name.partition)

    return fold


@pytest.fixture
def done(store, until):
    """Ask for an operation and wait for its end."""

    async def ask(name, kind, **args):
        asked = await store.request_operation(name, kind, args)
        store._held.clear()  # as if whoever asked had died

        async def ended():
            return (await store.get_operation(name, asked.id)).done

        await until(ended)
        return await store.get_operation(name, asked.id)

    return ask


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setattr("memfold.store.operations.LEASE_MS", 100)


async def test_an_operation_that_nobody_carries_on_is_finished(store, registered, name, hurried, folded, running, done):
    await folded(name)
    copy = MemoryName("acme", "copy")
    operation = await done(name, "fork", target=str(copy), revision="")
    assert operation.error == "", operation.message
    assert (await store.get_memory(copy)).applied == 20


async def test_what_has_expired_goes(store, registered, name, running, until):
    await store.create_memory(name)
    await store.update_memory(name, policy=Policy(ttl_s=1))

    async def gone():
        return not await store.list_memories("acme")

    await until(gone)


async def test_a_sound_memory_passes_verification(store, registered, name, hurried, folded, running, done, monkeypatch):
    monkeypatch.setattr(verifying, "PAGE_TURNS", 3)
    await folded(name)
    result = (await done(name, "verify")).result
    assert result["ok"]
    assert result["state_matches"]
    assert result["log_matches"]
    assert 0 <= result["relative_error"] <= 1e-5


async def test_upkeep_is_called_where_a_verification_waits(
    store, registered, name, folded, running, until, monkeypatch
):
    await folded(name)
    look, rounds = running._round, []

    async def last():
        rounds.append(await look())
        monkeypatch.setattr(keeping, "ROUND_S", 600)  # what it finds from now on, it was told of
        return rounds[-1]

    monkeypatch.setattr(running, "_round", last)

    async def looked():
        return bool(rounds)

    await until(looked)
    operation = await store.request_operation(name, "verify", {})
    await store.advance(name, operation.id, until=0)

    async def ended():
        return (await store.get_operation(name, operation.id)).done

    await until(ended)


async def test_a_memory_without_a_turn_passes_verification(store, registered, name, hurried, running, done):
    await store.create_memory(name)
    assert (await done(name, "verify")).result["ok"]


async def test_a_state_that_is_not_what_the_log_makes_of_it_fails_verification(
    store, registered, served, name, hurried, folded, running, done, some_turns
):
    await folded(name)
    await store.append(name, some_turns(1, start=21))
    [claim] = await store.claim(registered, name.partition, owner="liar", lease_s=9, limit=1)
    _, state = await store.read_state(name)
    wrong = state.data[4:] + state.data[:4]
    digest = chain(claim.log_digest, await store.read_turns(name, after=20))
    assert await store.commit(
        claim, applied=21, at=21, state=wrong, shape=served.state_shape, anchor=None, log_digest=digest
    )
    result = (await done(name, "verify")).result
    assert not result["ok"]
    assert result["log_matches"]
    assert result["relative_error"] > 0.01


async def test_what_no_queue_holds_is_queued_again(
    store, registered, name, some_turns, metrics, running, drainer, check_folded, until, monkeypatch
):
    await store.append(name, some_turns(3), create=True)
    keys, member = memory_keys(name, registered), f"{name.tenant}/{name.memory}"
    await store._server.command("ZREM", keys.dirty, member)
    running._audit_at = 0.0

    async def found():
        return metrics.found == 1

    await until(found)
    await drainer.drain(name.partition)
    await check_folded(name, some_turns(3))


async def test_the_reconciler_lets_the_gateways_own_hint_come_first(
    store, registered, name, some_turns, until, monkeypatch
):
    monkeypatch.setattr(reconciling, "FRESH_S", 0.5)
    hinted: list[float] = []
    clock = asyncio.get_running_loop().time
    reconciler = Reconciler(
        store, Metrics(), fingerprint=registered, hint=lambda _: hinted.append(clock()), interval_s=0.02
    )
    task = asyncio.create_task(reconciler.run())
    await asyncio.sleep(0.1)
    appended = clock()
    await store.append(name, some_turns(1), create=True)

    async def was_hinted():
        return bool(hinted)

    await until(was_hinted)
    assert hinted[0] - appended >= 0.4
    await end([task])


async def test_the_reconciler_runs_without_a_model(
    store, registered, name, start_writer, some_turns, check_folded, served, hurried, until
):
    code = (
        "import sys; sys.argv += ['--reconcile-only']\n"
        "from memfold_writer.__main__ import main\n"
        "code = main(); assert 'torch' not in sys.modules; sys.exit(code)"
    )
    alone = start_writer(command=[sys.executable, "-P", "-c", code], reconcile_s=0.1, backbone="/no/such/model")
    await store.append(name, some_turns(5), create=True)

    async def hinted():
        return await store._server.command("LLEN", queue_name(registered)) > 0

    await until(hinted)
    writer = start_writer(reconcile_s=60)
    await check_folded(name, some_turns(5))
    asked = await store.request_operation(name, "fork", {"target": str(replace(name, memory="copy")), "revision": ""})
    store._held.clear()

    async def copied():
        return (await store.get_operation(name, asked.id)).done

    await until(copied)
    assert alone.stop() == 0
    assert writer.stop() == 0
    assert "ERROR" not in alone.log
