"""A turn that cannot be folded holds up its own memory alone, is found, and can be passed over; whatever it does to writers."""

from __future__ import annotations

import asyncio

import pytest
from memfold_faults.chain import NAMES, state_of
from memfold_faults.rig import Rig, until

from memfold.api.values import MemoryName, Role, Turn
from memfold.store import Store

POISONS = ("raise", "nan", "memory", "hang", "die")


def turns(*contents: str, start: int = 1) -> list[Turn]:
    return [Turn(f"turn-{at}", Role.USER, content) for at, content in enumerate(contents, start)]


async def keep_alive(rig: Rig) -> None:
    """As Kubernetes would."""
    while True:
        if not [writer for writer in rig.writers if writer.alive]:
            await rig.start_writer(fold_limit_s=0.3, hurry=True, ready=False)
        await asyncio.sleep(0.05)


@pytest.mark.timeout(180)
async def test_poison_is_quarantined_and_can_be_skipped_while_others_go_on(tmp_path, nursery):
    rig = Rig(tmp_path, nursery, lease_s=1, reconcile_s=0.2)
    await rig.start()
    await rig.start_writer(fold_limit_s=0.3, hurry=True)
    store = await Store.open(rig.redis.url)
    keeper = asyncio.create_task(keep_alive(rig))
    names = {poison: MemoryName("acme", f"memory-{poison}") for poison in POISONS}
    well = MemoryName("acme", "well")
    before, after = turns("hello", "there"), turns("and", "so", "on", start=4)
    try:
        for name in names.values():
            appended = await store.append(name, before, create=True)
            await store.wait_for(name, appended.revision, 30)
        for poison, name in names.items():
            await store.append(name, turns(f"poison: {poison}", start=3) + after)
        await store.append(well, before, create=True)

        for name in names.values():

            async def found(name=name) -> bool:
                return (await store.get_memory(name)).quarantined == 3

            await until(found, timeout_s=90, why=f"{name} is not quarantined")
        for name in names.values():
            memory, state = await store.read_state(name)
            assert (memory.applied, state.data) == (2, state_of(NAMES[0], before))
        assert (await store.get_memory(well)).quarantined == 0
        appended = await store.append(well, after)
        await store.wait_for(well, appended.revision, 30)
        for name in names.values():
            skipped = await store.skip_turn(name, 3)
            await store.wait_for(name, skipped, 30)
            _, state = await store.read_state(name)
            assert state.data == state_of(NAMES[0], before + after)
    finally:
        keeper.cancel()
        await store.close()
        await rig.close()
