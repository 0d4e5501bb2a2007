"""How work is put together: many memories in one batch, a budget of tokens, and no memory held up by another's trouble."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memfold.api.values import MemoryName, Role, Turn
from memfold.store import Anchor, Claim
from memfold.store.digests import chain
from memfold.store.keys import dirty
from memfold_writer.claims import LONG_BACKOFF_S, Claims, backoff_s, describe
from memfold_writer.metrics import Metrics
from memfold_writer.work import Batch, Work

pytestmark = pytest.mark.timeout(600)


def work(*lengths: int, applied: int = 0, anchor: Anchor | None = None) -> Work:
    anchor = anchor or Anchor(0, 0, None)
    turns = tuple(Turn(str(i), Role.USER, "x", sequence=anchor.sequence + i + 1) for i in range(len(lengths)))
    claim = Claim(MemoryName("acme", "alice"), "f" * 64, "0" * 12, applied, anchor.sequence + len(turns), 1, 1)
    return Work(claim, anchor, turns, lengths, complete=True)


def test_a_batch_takes_as_many_turns_as_its_budget_allows():
    batch = Batch(tokens=100, memories=8)
    assert batch.take(work(30, 30))
    assert batch.take(work(30, 30))
    assert [each.lengths for each in batch.works] == [(30, 30), (30,)]
    assert not batch.take(work(30))
    assert batch.places == 0


def test_a_batch_takes_its_first_memory_whatever_it_costs_but_no_more_of_it_than_needed():
    batch = Batch(tokens=10, memories=8)
    assert batch.take(work(50, 60, 70, applied=1))
    assert [each.lengths for each in batch.works] == [(50, 60)]
    assert batch.places == 0


def test_turns_that_only_bring_the_open_block_back_count_and_are_no_progress():
    replay = work(40, 40, 40, applied=22, anchor=Anchor(20, 15, b""))
    assert replay.tokens == 105
    assert replay.fresh_tokens == 40
    assert [turn.sequence for turn in replay.fresh] == [23]
    assert replay.within(104) is None
    assert replay.within(105) == replay


def test_the_end_of_the_log_is_reached_although_its_last_numbers_lost_their_turns():
    whole = work(30, 30)
    holes = replace(whole, claim=replace(whole.claim, head=9))
    assert (holes.applied, holes.at) == (9, 2)
    part = holes.within(30)
    assert (part.applied, part.at) == (1, 1)


def test_turns_to_pass_over_are_not_folded_but_move_the_revision():
    turns = (
        Turn("a", Role.USER, "x", sequence=1),
        Turn("b", Role.USER, "x", sequence=2, skipped=True),
        Turn("", Role.SYSTEM, "", sequence=3, skips=2),
    )
    passing = replace(work(10, 0, 0), turns=turns)
    assert ([turn.id for turn in passing.folded], passing.at, passing.applied) == (["a"], 1, 3)
    assert [turn.sequence for turn in passing.fresh] == [1, 2, 3]
    nothing = replace(passing, claim=replace(passing.claim, applied=1, at=1), turns=turns[1:], lengths=(0, 0))
    assert (list(nothing.folded), nothing.at, nothing.applied) == ([], 1, 3)


def test_a_batch_takes_no_more_memories_than_it_has_places():
    batch = Batch(tokens=100, memories=2)
    assert [batch.take(work(1)) for _ in range(3)] == [True, True, False]


def test_rests_double_and_end_at_a_minute():
    assert [backoff_s(attempts) for attempts in (1, 2, 3, 4, 5, 6, 50)] == [0.5, 1, 2, 4, 60, 60, 60]


def test_the_log_names_an_error_without_quoting_a_turn():
    with pytest.raises(KeyError) as caught:
        _ = {}["the user's secret"]
    assert "secret" not in describe(caught.value)
    assert describe(caught.value).startswith("KeyError at ")
    assert describe(RuntimeError("out of\nmemory")) == "RuntimeError: out of memory"


async def test_a_memory_that_kills_its_writers_is_left_alone_for_a_minute(store, registered, name, some_turns, until):
    await store.create_memory(name)
    await store.append(name, some_turns(1))
    claims = Claims(store, Metrics(), fingerprint=registered, owner="test", lease_s=0.05)

    async def due() -> bool:
        return await store.due_partitions(registered) == [name.partition]

    for attempt in range(1, 6):
        await until(due)
        assert [claim.attempts for claim in await claims.take(name.partition, 8)] == [attempt]
        claims._held.clear()  # as if the process had died
    seconds, _ = await store._server.command("TIME")
    due_ms = await store._server.command("ZSCORE", dirty(name.partition, registered), f"{name.tenant}/{name.memory}")
    assert float(due_ms) / 1000 - int(seconds) > LONG_BACKOFF_S - 10


async def test_memories_of_many_partitions_share_a_batch(store, registered, start_writer, some_turns, check_folded):
    names = [MemoryName("acme", f"memory-{i}") for i in range(20)]
    assert len({name.partition for name in names}) > 10
    logs = {name: some_turns(3 + i, salt=f"{i}:") for i, name in enumerate(names)}
    for name, turns in logs.items():
        await store.create_memory(name)
        await store.append(name, turns)
    writer = start_writer()
    for name, turns in logs.items():
        await check_folded(name, turns)
    assert writer.metric("memfold_fold_memories_total") == len(names)
    assert writer.metric("memfold_fold_seconds_count") <= 5
    assert writer.metric("memfold_fold_lag_seconds_count") == sum(map(len, logs.values()))
    assert writer.metric("memfold_fold_lost_total") == 0


async def test_a_log_larger_than_a_batch_and_a_turn_larger_than_that_are_folded(
    store, registered, start_writer, some_turns, check_folded
):
    turns = [*some_turns(20), Turn("large", Role.USER, "large " * 300), *some_turns(20, start=100)]
    names = [MemoryName("acme", "alice"), MemoryName("acme", "bob")]
    for name in names:
        await store.create_memory(name)
        await store.append(name, turns)
    start_writer(batch_tokens=200)
    for name in names:
        await check_folded(name, turns)


async def test_a_state_that_is_not_finite_is_never_committed_and_holds_nobody_else_up(
    store, registered, served, start_writer, some_turns, check_folded, line_of, until
):
    ill, well = MemoryName("acme", "ill"), MemoryName("acme", "well")
    await store.create_memory(ill)
    await store.append(ill, some_turns(1))
    [claim] = await store.claim(registered, ill.partition, owner="test", lease_s=9, limit=1)
    layers, heads, rows, columns = served.state_shape
    numbers = layers * heads * rows * columns
    nan = Anchor(sequence=1, offset=0, data=b"\x00\x00\xc0\x7f" * numbers)
    good = bytes(4 * numbers)
    digest = chain(bytes(32), await store.read_turns(ill))
    assert await store.commit(
        claim, applied=1, at=1, state=good, shape=served.state_shape, anchor=nan, log_digest=digest
    )
    await store.append(ill, some_turns(5, start=2))
    await store.create_memory(well)
    await store.append(well, some_turns(5))

    writer = start_writer()
    await check_folded(well, some_turns(5))

    async def tried_thrice() -> bool:
        return "attempt 3 to fold" in writer.log

    await until(tried_thrice)
    _, state = await store.read_state(ill)
    assert state.revision.sequence == 1
    assert state.data == good
    assert int((await line_of(ill))["attempts"]) >= 3
    assert "w1" not in writer.log, "the log quotes a turn"
