"""Requests that nobody would send are answered by documented codes, and harm nobody."""

from __future__ import annotations

from memfold_faults.fuzz import fuzz, resident_mib
from memfold_faults.rig import API_KEY, Rig

from memfold.api.values import Role, Turn
from memfold.client import AsyncMemfold

REQUESTS, SEED, MOST_GROWTH_MIB = 3000, 5, 24


async def test_mutated_requests_get_documented_codes_and_leave_no_trace_in_memory(tmp_path, nursery):
    rig = Rig(tmp_path, nursery, lease_s=2, reconcile_s=0.5)
    await rig.start()
    await rig.start_writer()
    gateway = await rig.start_gateway()
    try:
        async with AsyncMemfold(rig.target, API_KEY) as memfold:
            appended = await memfold.append("alice", [Turn("t-0", Role.USER, "hello")], create=True)
            warm = await fuzz(rig.target, REQUESTS // 3, SEED, str(appended.revision))
            before = resident_mib(gateway.pid)
            found = await fuzz(rig.target, REQUESTS, SEED + 1, str(appended.revision))
            assert warm.bad + found.bad == []
            assert resident_mib(gateway.pid) - before < MOST_GROWTH_MIB
            assert gateway.alive
            assert "Traceback" not in gateway.log.read_text()
            assert {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"} <= found.codes.keys()
            assert len(found.methods) == 23
            await memfold.append("zoe", [Turn("t-1", Role.USER, "still there?")], create=True)
            await memfold.wait("zoe")
    finally:
        await rig.close()
