"""The open block's keys and values: what they save, what bounds them, and that nobody can tell whether they were there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from memfold.api.values import MemoryName, Role, Turn
from memfold.store import Claim
from memfold.store.digests import state_digest
from memfold_osam.open_block import OpenBlock
from memfold_osam.state import state_from_bytes
from memfold_writer.open_blocks import OpenBlocks

pytestmark = pytest.mark.timeout(600)

STATE = b"the state at 7"
CLAIM = Claim(MemoryName("acme", "alice"), "f" * 64, "0" * 12, 7, 9, 1, 1, state_digest=state_digest(STATE))
BLOCK_TURNS = 8  # of the tests' model


def block(size: int) -> OpenBlock:
    """Of so many bytes."""
    keys = torch.zeros(1, size // 8, 1)
    return OpenBlock(torch.zeros(1, 1, 1, 1), tokens=size // 8, keys=(keys,), values=(keys.clone(),))


def short_turns(count: int, start: int = 1) -> list[Turn]:
    return [Turn(f"turn-{at}", Role.USER, f"hi {at:03}") for at in range(start, start + count)]


def test_an_open_block_is_found_by_nobody_but_who_goes_on_from_its_state():
    others = {
        "name": MemoryName("acme", "bob"),
        "fingerprint": "e" * 64,
        "incarnation": "1" * 12,
        "applied": 8,
        "state_digest": state_digest(b"another state"),
    }
    for changed in others.items():
        blocks = OpenBlocks(1000)
        blocks.keep(replace(CLAIM, applied=5), 7, STATE, mine := block(80))
        assert blocks.find(CLAIM) is mine
        assert blocks.find(replace(CLAIM, **dict([changed]))) is None


def test_a_block_of_an_older_state_is_let_go_when_it_is_noticed():
    blocks = OpenBlocks(1000)
    blocks.keep(CLAIM, 7, STATE, block(80))
    assert blocks.find(replace(CLAIM, applied=8)) is None
    assert blocks.bytes == 0


def test_the_blocks_unused_for_longest_go_when_room_is_short():
    blocks, claims = OpenBlocks(240), [replace(CLAIM, name=MemoryName("acme", name)) for name in "abcd"]
    for claim in claims[:3]:
        blocks.keep(claim, 7, STATE, block(80))
    assert blocks.find(claims[0]) is not None
    blocks.keep(claims[3], 7, STATE, block(80))
    assert [blocks.find(claim) is not None for claim in claims] == [True, False, True, True]
    assert blocks.bytes == 240
    blocks.keep(claims[0], 7, STATE, block(160))
    assert [blocks.find(claim) is not None for claim in claims] == [True, False, False, True]
    assert blocks.bytes == 240


def test_a_block_larger_than_all_room_is_not_kept_and_takes_nobody_elses():
    blocks, other = OpenBlocks(100), replace(CLAIM, name=MemoryName("acme", "bob"))
    blocks.keep(CLAIM, 7, STATE, block(80))
    blocks.keep(other, 7, STATE, block(160))
    assert blocks.find(other) is None
    assert blocks.find(CLAIM) is not None
    blocks.clear()
    assert blocks.bytes == 0


def test_what_is_dropped_or_not_handed_back_frees_its_room():
    blocks = OpenBlocks(100)
    for forget in (blocks.drop, lambda claim: blocks.keep(claim, 8, STATE, None)):
        blocks.keep(CLAIM, 7, STATE, block(80))
        forget(CLAIM)
        assert (blocks.find(CLAIM), blocks.bytes) == (None, 0)


@pytest.fixture
def fold_steadily(store, drainer, device, served):
    """Turns come in one by one; returns tokens run for each appended."""

    async def fold(name, turns, at_once=1):
        for first in range(0, len(turns), at_once):
            await store.append(name, turns[first : first + at_once], create=True)
            await drainer.drain(name.partition)
        appended = await device.measure(await store.read_turns(name))
        return device.ran / sum(appended)

    return fold


@pytest.fixture
def cache_off(device, open_blocks):
    device._folder._keep_bytes = open_blocks._limit = 0


async def test_on_a_steady_stream_hardly_more_runs_than_comes_in(store, registered, name, fold_steadily, check_folded):
    turns = short_turns(40)
    assert await fold_steadily(name, turns) <= 1.5
    await check_folded(name, turns)


async def test_without_the_cache_a_block_is_run_again_for_each_of_its_turns(
    store, registered, name, cache_off, fold_steadily, check_folded
):
    turns = short_turns(40)
    assert 2 < await fold_steadily(name, turns) <= 1.1 * (BLOCK_TURNS + 1) / 2
    await check_folded(name, turns)


async def test_without_the_cache_a_backlog_costs_at_most_three_times_its_tokens(
    store, registered, name, cache_off, gatherer, fold_steadily, check_folded
):
    gatherer._batch_tokens = 96
    turns = short_turns(60)
    assert await fold_steadily(name, turns, at_once=20) <= 3
    await check_folded(name, turns)


async def test_losing_open_blocks_leaves_no_trace(
    store, registered, name, drainer, open_blocks, device, check_folded, some_turns
):
    turns, hits = some_turns(30, words=1), 0
    for at, turn in enumerate(turns):
        await store.append(name, [turn], create=True)
        if at % 3 == 0:
            open_blocks.clear()
        hits += open_blocks.bytes > 0
        await drainer.drain(name.partition)
    assert hits > 10
    await check_folded(name, turns)


async def test_memories_with_and_without_an_open_block_share_a_batch(
    store, registered, gatherer, drainer, device, check_folded, some_turns
):
    names = [MemoryName("acme", name) for name in ("anna", "ben", "carl")]
    logs = {name: some_turns(4 + at, words=1, salt=name.memory) for at, name in enumerate(names)}
    for name in names[:2]:
        await store.append(name, logs[name][:2], create=True)
        await drainer.drain(name.partition)
    ran = device.ran
    for name in names:
        await store.append(name, logs[name][2 if name in names[:2] else 0 :], create=True)
    gatherer.note_due([name.partition for name in names])
    await drainer.drain(names[0].partition)
    assert device.batches[-1] == ["anna", "ben", "carl"]
    fresh = [turn for name in names for turn in logs[name][2 if name in names[:2] else 0 :]]
    assert device.ran - ran == sum(await device.measure(fresh))
    for name in names:
        await check_folded(name, logs[name])


async def test_after_forgetting_nothing_goes_on_from_what_was_there(
    store, registered, name, drainer, fold_here, some_turns
):
    turns = some_turns(6, words=1)
    for turn in turns:
        await store.append(name, [turn], create=True)
        await drainer.drain(name.partition)
    memory = await store.get_memory(name)
    await store.forget(name, [3], expected_incarnation=memory.incarnation)
    await drainer.drain(name.partition)
    memory, state = await store.read_state(name)
    assert memory.applied == memory.head
    expected = fold_here([*turns[:2], *turns[3:]])
    assert (state_from_bytes(state.data, state.shape) - expected).abs().max() <= 1e-5 * expected.abs().max()
