"""What is kept of earlier states, what proves it, and what becomes of damage."""

import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfold.api.errors import (
    RevisionAheadError,
    RevisionForeignError,
    RevisionNotKeptError,
    StateDamagedError,
    TurnFoldedError,
    TurnNotFoundError,
)
from memfold.api.values import Policy, Revision, Role, Turn
from memfold.store.digests import chain, leaf
from memfold.store.history import nearest, thin, thin_anchors
from memfold.store.keys import memory_keys
from memfold.store.values import START, Kept, Place

steps = st.lists(st.integers(1, 40), min_size=1, max_size=300)


def commits(gaps, keep_last):
    """Commits with these gaps between them, thinned at each; yields what is kept after each."""
    kept, newest = [], 0
    for gap in gaps:
        newest += gap
        before = [*kept, newest]
        dropped = thin(before, newest, keep_last)
        kept = [sequence for sequence in before if sequence not in set(dropped)]
        yield before, dropped, kept, newest


@settings(deadline=None, max_examples=100)
@given(steps, st.integers(1, 8))
def test_the_newest_are_kept_and_of_older_ones_a_logarithm(gaps, keep_last):
    done = []
    for before, dropped, kept, newest in commits(gaps, keep_last):
        done.append(newest)
        assert dropped == sorted(dropped)
        assert set(dropped) < set(before)
        assert kept[-keep_last:] == done[-keep_last:]
        assert len(kept) <= keep_last + newest.bit_length()


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 500), st.integers(1, 8))
def test_going_back_to_any_turn_leaves_little_to_fold_again(count, keep_last):
    *_, (_, _, kept, newest) = commits([1] * count, keep_last)
    for target in range(1, newest + 1):
        start = max((sequence for sequence in kept if sequence <= target), default=0)
        assert newest - start <= 4 * (newest - target + 1), (target, kept)


def test_the_first_of_an_age_is_kept():
    assert thin(range(1, 17), 16, 4) == [*range(2, 9), 10, 11, 12]
    assert thin([], 5, 4) == thin([5], 5, 1) == thin([4, 5], 5, 2) == []


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), max_size=12), st.data())
def test_anchors_are_kept_as_long_as_a_kept_revision_stands_on_them(places, data):
    history = [Kept(at + 1, at + 1, "i", b"", b"", Place(*place), b"", 0) for at, place in enumerate(sorted(places))]
    dropped = data.draw(st.sets(st.sampled_from([one.sequence for one in history]))) if history else set()
    open_block = Place(5, 0)
    gone = thin_anchors(history, dropped, open_block)
    needed = {one.anchor for one in history if one.sequence not in dropped} | {open_block, START}
    assert set(gone) == {one.anchor for one in history} - needed


def test_the_nearest_kept_revisions_are_named():
    assert nearest([1, 4, 9], 5) == (4, 9)
    assert nearest([1, 4, 9], 0) == (None, 1)
    assert nearest([1, 4, 9], 10) == (9, None)


def test_a_log_digest_is_the_chain_that_the_document_says():
    turn = Turn("a", Role.USER, "yes", sequence=1, nonce=b"n" * 16)
    skip = Turn("", Role.SYSTEM, "", sequence=2, nonce=b"m" * 16, skips=1)
    first = hashlib.sha256(bytes(7) + b"\1" + b"turn" + turn.to_bytes() + b"n" * 16).digest()
    second = hashlib.sha256(bytes(7) + b"\2" + b"skip" + b"1" + b"m" * 16).digest()
    assert [leaf(turn), leaf(skip)] == [first, second]
    expected = hashlib.sha256(hashlib.sha256(bytes(32) + first).digest() + second).digest()
    assert chain(bytes(32), [turn, skip]) == chain(chain(bytes(32), [turn]), [skip]) == expected


@pytest.mark.parametrize("change", [{"sequence": 2}, {"content": "no"}, {"nonce": b"o" * 16}, {"id": "b"}])
def test_a_log_digest_covers_all_of_an_entry(change):
    turn = Turn("a", Role.USER, "yes", sequence=1, nonce=b"n" * 16)
    assert leaf(replace(turn, **change)) != leaf(turn)


async def test_each_turn_has_a_nonce_of_its_own_that_repeating_does_not_change(store, name, folder):
    await store.append(name, [folder.turn(1), folder.turn(2)], create=True)
    first = await store.read_turns(name)
    await store.append(name, [folder.turn(1), folder.turn(3)])
    again = await store.read_turns(name)
    assert again[:2] == first
    assert len({turn.nonce for turn in again}) == 3
    assert {len(turn.nonce) for turn in again} == {16}


async def test_a_memory_keeps_what_thinning_leaves_and_each_is_what_it_was(plain_store, redis, name, card, folder):
    for at in range(1, 31):
        await plain_store.append(name, [folder.turn(at)], create=True)
        assert await folder.catch_up(plain_store, name, card.fingerprint) == 1
    *_, (_, _, kept, _) = commits([1] * 30, 4)
    log = await plain_store.read_turns(name)
    listed = await plain_store.list_revisions(name)
    incarnation = (await plain_store.get_memory(name)).incarnation
    assert [one.revision for one in listed] == [Revision(incarnation, sequence) for sequence in reversed(kept)]
    for one in listed:
        upto = log[: one.revision.sequence]
        _, state = await plain_store.read_state_at(name, one.revision)
        assert (state.revision, state.data) == (one.revision, folder.fold(upto))
        assert one.state_digest == hashlib.sha256(state.data).digest()
        assert one.log_digest == chain(bytes(32), upto)
        assert one.fingerprint == card.fingerprint
        assert one.commit_ms > 0
    line = memory_keys(name, card.fingerprint)
    anchors = {json.loads(value)["anchor"] for value in redis.hvals(line.revisions)} - {"0.0"}
    fields = {f"@{anchor}" for anchor in anchors} | {str(sequence) for sequence in kept[:-1]}
    assert {field.decode() for field in redis.hkeys(line.history)} == fields


async def test_how_many_are_kept_is_the_memorys_policy(plain_store, redis, name, card, folder):
    await plain_store.create_memory(name)
    redis.hset(memory_keys(name, card.fingerprint).meta, "policy", Policy(keep_last=20).to_json())
    await plain_store.append(name, [folder.turn(at) for at in range(1, 20)])
    await folder.catch_up(plain_store, name, card.fingerprint, entries=1)
    assert len(await plain_store.list_revisions(name)) == 19
    assert (await plain_store.get_memory(name)).policy.keep_last == 20


async def test_what_is_not_kept_is_refused_and_the_nearest_named(store, name, card, folder):
    await store.append(name, [folder.turn(at) for at in range(1, 5)], create=True)
    await folder.catch_up(store, name, card.fingerprint, entries=2)
    memory = await store.get_memory(name)
    assert [one.revision.sequence for one in await store.list_revisions(name)] == [4, 2]
    assert (await store.read_state_at(name, Revision(memory.incarnation, 0))) == (memory, None)
    with pytest.raises(RevisionNotKeptError) as caught:
        await store.read_state_at(name, Revision(memory.incarnation, 3))
    assert caught.value.facts == {"before": f"{memory.incarnation}.2", "after": f"{memory.incarnation}.4"}
    with pytest.raises(RevisionNotKeptError) as caught:
        await store.read_state_at(name, Revision(memory.incarnation, 1))
    assert caught.value.facts == {"before": f"{memory.incarnation}.0", "after": f"{memory.incarnation}.2"}
    with pytest.raises(RevisionForeignError):
        await store.read_state_at(name, Revision("0" * 12, 2))
    with pytest.raises(RevisionAheadError):
        await store.read_state_at(name, Revision(memory.incarnation, 5))
    assert await store.list_revisions(name, fingerprint="0" * 64) == []


@pytest.mark.parametrize("damage", ["flipped", "swapped"])
async def test_a_kept_state_that_is_damaged_is_kept_no_longer(plain_store, redis, name, card, folder, damage):
    await plain_store.append(name, [folder.turn(at) for at in range(1, 4)], create=True)
    await folder.catch_up(plain_store, name, card.fingerprint, entries=1)
    line, revision = memory_keys(name, card.fingerprint), (await plain_store.get_memory(name)).revision
    blob = redis.hget(line.history, "1")
    damaged = blob[:-40] + bytes([blob[-40] ^ 1]) + blob[-39:] if damage == "flipped" else redis.hget(line.history, "2")
    redis.hset(line.history, "1", damaged)
    with pytest.raises(StateDamagedError):
        await plain_store.read_state_at(name, replace(revision, sequence=1))
    with pytest.raises(RevisionNotKeptError):
        await plain_store.read_state_at(name, replace(revision, sequence=1))
    assert [one.revision.sequence for one in await plain_store.list_revisions(name)] == [3, 2]


async def test_a_log_that_lost_an_entry_is_not_folded(plain_store, redis, name, card, folder):
    await plain_store.append(name, [folder.turn(at) for at in range(1, 4)], create=True)
    redis.xdel(memory_keys(name, card.fingerprint).log, "2-0")
    assert await folder.catch_up(plain_store, name, card.fingerprint) == 0
    assert (await plain_store.get_memory(name)).quarantined == 1
    assert not (await plain_store.append(name, [folder.turn(4)])).behind
    assert await plain_store.due_partitions(card.fingerprint) == []


async def test_what_was_read_of_a_torn_log_is_not_committed(plain_store, redis, name, card, folder):
    await plain_store.append(name, [folder.turn(at) for at in range(1, 5)], create=True)
    [slow] = await plain_store.claim(card.fingerprint, name.partition, owner="slow", lease_s=0, limit=1)
    redis.xdel(memory_keys(name, "").log, "3-0")
    assert not await plain_store.claim(card.fingerprint, name.partition, owner="w", lease_s=30, limit=1)
    assert not await folder.finish(plain_store, slow)
    assert (await plain_store.read_state(name))[1] is None


async def test_a_rollback_takes_a_torn_log_as_it_is(plain_store, redis, name, card, folder):
    revision = (await plain_store.append(name, [folder.turn(at) for at in range(1, 5)], create=True)).revision
    redis.xdel(memory_keys(name, card.fingerprint).log, "2-0")
    assert await folder.catch_up(plain_store, name, card.fingerprint) == 0
    await plain_store.rollback(name, replace(revision, sequence=3))
    assert await folder.catch_up(plain_store, name, card.fingerprint) == 1
    assert (await plain_store.read_state(name))[1].data == folder.fold([folder.turn(1), folder.turn(3)])


async def test_a_turn_that_is_skipped_is_passed_over_by_every_fold(store, name, card, folder):
    await store.append(name, [folder.turn(at) for at in range(1, 5)], create=True)
    await folder.catch_up(store, name, card.fingerprint, entries=1)
    await store.append(name, [folder.turn(5), folder.turn(6)])
    skipped = await store.skip_turn(name, 6)
    assert skipped.sequence == 7
    assert await store.skip_turn(name, 6) == skipped
    log = await store.read_turns(name)
    assert [(one.sequence, one.skips, one.skipped) for one in log[4:]] == [(5, 0, False), (6, 0, True), (7, 6, False)]
    assert [turn.sequence for turn in await store.read_tail(name, until=7, limit=2)] == [6]
    assert [turn.sequence for turn in await store.read_tail(name, until=7, limit=1)] == [6]
    await folder.catch_up(store, name, card.fingerprint)
    memory, state = await store.read_state(name)
    assert (memory.head, memory.applied, memory.turn_count) == (7, 7, 6)
    assert state.data == folder.fold([folder.turn(at) for at in range(1, 6)])
    assert (await store.list_revisions(name))[0].log_digest == chain(bytes(32), log)
    assert (await store.append(name, [folder.turn(6)])).turns[0].duplicate


async def test_a_memory_of_nothing_but_skipped_turns_is_folded(store, name, card, folder):
    await store.append(name, [folder.turn(1)], create=True)
    revision = await store.skip_turn(name, 1)
    await folder.catch_up(store, name, card.fingerprint)
    memory, state = await store.read_state(name)
    assert (memory.folded_revision, state.data) == (revision, bytes(32))
    await store.append(name, [folder.turn(2)])
    await folder.catch_up(store, name, card.fingerprint)
    assert (await store.read_state(name))[1].data == folder.fold([folder.turn(2)])


async def test_only_a_turn_that_waits_can_be_skipped(store, name, card, folder):
    await store.append(name, [folder.turn(1), folder.turn(2)], create=True)
    await folder.catch_up(store, name, card.fingerprint, entries=2)
    await store.append(name, [folder.turn(3)])
    await store.skip_turn(name, 3)
    with pytest.raises(TurnFoldedError):
        await store.skip_turn(name, 2)
    for missing in (0, 4, 99):
        with pytest.raises(TurnNotFoundError):
            await store.skip_turn(name, missing)


async def test_a_fold_in_flight_loses_to_a_skip(store, name, card, folder):
    await store.append(name, [folder.turn(1), folder.turn(2)], create=True)
    [claim] = await store.claim(card.fingerprint, name.partition, owner="w", lease_s=30, limit=1)
    await store.skip_turn(name, 2)
    assert not await folder.finish(store, claim)
    await store.release(claim, delay_s=60)
    assert await folder.catch_up(store, name, card.fingerprint) == 1
    assert (await store.read_state(name))[1].data == folder.fold([folder.turn(1)])


async def test_a_quarantined_memory_waits_for_its_turn_to_be_skipped(store, name, card, folder):
    await store.append(name, [folder.turn(1), folder.turn(2)], create=True)
    await folder.catch_up(store, name, card.fingerprint)
    await store.append(name, [folder.turn(3)])
    [claim] = await store.claim(card.fingerprint, name.partition, owner="w", lease_s=30, limit=1)
    await store.quarantine(claim, sequence=3, reason="NOT_FINITE")
    await store.release(claim, delay_s=0)
    assert not (await store.append(name, [folder.turn(4)])).behind
    assert await store.due_partitions(card.fingerprint) == []
    assert (await store.backlog(card.fingerprint)).memories == 0
    memory, state = await store.read_state(name)
    assert (memory.quarantined, memory.applied, memory.head) == (3, 2, 4)
    assert state.data == folder.fold([folder.turn(1), folder.turn(2)])
    await store.skip_turn(name, 3)
    assert (await store.get_memory(name)).quarantined == 0
    assert await folder.catch_up(store, name, card.fingerprint) == 1
    expected = folder.fold([folder.turn(at) for at in (1, 2, 4)])
    assert (await store.read_state(name))[1].data == expected


async def test_a_claim_that_is_not_the_newest_quarantines_nothing(store, name, card, folder):
    await store.append(name, [folder.turn(1), folder.turn(2)], create=True)
    [claim] = await store.claim(card.fingerprint, name.partition, owner="w", lease_s=30, limit=1)
    await store.skip_turn(name, 2)
    await store.quarantine(claim, sequence=1, reason="NOT_FINITE")
    assert (await store.get_memory(name)).quarantined == 0
    assert await folder.catch_up(store, name, card.fingerprint) == 1
