"""The embedded model under fire: writers die and Redis dies, and its states are those of a fold in one go."""

from __future__ import annotations

import random
import struct

import pytest
from memfold_faults.rig import Rig, until

from memfold.api.values import MemoryName, Role, Turn
from memfold.store import Durability, Store

TOLERANCE = 1e-5
SENTENCES = ("I live in Lisbon.", "My sister is called Ana.", "I like green tea.", "We met in May.", "The cat is grey.")


@pytest.mark.timeout(180)
async def test_states_of_the_embedded_model_survive_deaths_of_writers_and_redis(tmp_path, nursery):
    dice = random.Random(11)
    rig = Rig(tmp_path, nursery, lease_s=1, reconcile_s=0.25)
    await rig.start()
    store = await Store.open(rig.redis.url, durability=Durability.FSYNC)
    names = [MemoryName("acme", f"memory-{at}") for at in range(3)]
    logs: dict[MemoryName, list[Turn]] = {name: [] for name in names}

    async def say(count: int) -> None:
        for name, log in logs.items():
            start = len(log) + 1
            new = [Turn(f"turn-{at}", Role.USER, dice.choice(SENTENCES)) for at in range(start, start + count)]
            await store.append(name, new, create=True)
            log.extend(new)

    try:
        await rig.start_writer(real=True)
        await say(4)
        doomed = [
            await rig.start_writer(real=True, kill=(point, 2), ready=False) for point in ("after read", "before commit")
        ]

        async def both_dead() -> bool:
            await say(1)
            return not any(writer.alive for writer in doomed)

        await until(both_dead, timeout_s=60)
        rig.redis.kill()
        rig.redis.restart()
        await say(2)
        for name, log in logs.items():
            memory = await store.get_memory(name)
            assert memory.head == len(log)
            await store.wait_for(name, memory.revision, 60)
        for name, log in logs.items():
            path = rig.oracle([{"role": str(turn.role), "content": turn.content, "speaker": ""} for turn in log])
            await until(path.exists)
            _, state = await store.read_state(name)
            assert _distance(state.data, path.read_bytes()) <= TOLERANCE
    finally:
        await store.close()
        await rig.close()


def _distance(found: bytes, wanted: bytes) -> float:
    pairs = [*zip(*(struct.unpack(f"<{len(data) // 4}f", data) for data in (found, wanted)), strict=True)]
    norm = sum(wanted * wanted for _, wanted in pairs) ** 0.5
    return sum((found - wanted) ** 2 for found, wanted in pairs) ** 0.5 / norm
