"""What is forgotten or rolled back has never been: not in the state, not in the log, not in any key."""

import itertools
import random
from dataclasses import replace

import pytest

from memfold.api.errors import (
    MemoryNotFoundError,
    RevisionAheadError,
    RevisionForeignError,
    RevisionMismatchError,
    TurnFoldedError,
)
from memfold.api.values import Revision, Role, Turn
from memfold.store import Store, removals, removing
from memfold.store.digests import chain
from memfold.store.keys import memory_keys

CANARY = "canary-7f3a-nobody-says-this"
SECOND = "b" * 64


@pytest.fixture
def forget(store, name):
    async def forget(*sequences):
        incarnation = (await store.get_memory(name)).incarnation
        return await store.forget(name, sequences, expected_incarnation=incarnation)

    return forget


@pytest.fixture
def write(store, name, folder):
    """Append turns of these numbers, and fold so many entries at a time."""

    async def write(*numbers, fold=0, card=None):
        result = await store.append(name, [folder.turn(at) for at in numbers], create=True)
        if fold:
            await folder.catch_up(store, name, card.fingerprint, entries=fold)
        return result.revision

    return write


@pytest.fixture
def check(store, name, card, folder):
    """Fold what is left; then the memory is like one that has these turns and never had others."""

    async def check(*numbers):
        await folder.catch_up(store, name, card.fingerprint)
        memory, state = await store.read_state(name)
        log = await store.read_turns(name)
        turns = [folder.turn(at) for at in numbers]
        assert [entry.id for entry in log if not entry.skips] == [turn.id for turn in turns]
        assert (state.data if state else bytes(32)) == folder.fold([entry for entry in log if entry.folds])
        assert (memory.applied, memory.turn_count) == (memory.head, len(turns))
        assert memory.log_bytes == sum(len(turn.content.encode()) for turn in turns)
        assert await store.due_partitions(card.fingerprint) == []
        assert [one.name for one in await store.list_memories(name.tenant)] == [name]
        for kept in await store.list_revisions(name):
            upto = [entry for entry in log if entry.sequence <= kept.revision.sequence]
            assert kept.log_digest == chain(bytes(32), upto)
            assert (await store.read_state_at(name, kept.revision))[1].data == folder.fold(upto)

    return check


HOLES = {"head": [1, 2], "middle": [4, 7], "tail": [9, 10], "one": [5], "all": [*range(1, 11)]}


@pytest.mark.parametrize("hole", HOLES)
@pytest.mark.parametrize("folded", ["all", "some", "none"])
async def test_the_state_is_that_of_a_memory_that_never_had_the_turns(write, forget, check, card, hole, folded):
    before = await write(*range(1, 7), fold={"all": 1, "some": 2, "none": 0}[folded], card=card)
    before = await write(*range(7, 11), fold=3 if folded == "all" else 0, card=card)
    gone = await forget(*HOLES[hole])
    assert gone.revision.sequence == before.sequence
    assert gone.revision.incarnation != before.incarnation
    assert gone.sequences == tuple(HOLES[hole])
    assert gone.ids == tuple(f"id-{at}" for at in HOLES[hole])
    left = [at for at in range(1, 11) if at not in HOLES[hole]]
    await check(*left)
    assert (await write(11)).sequence == 11
    await check(*left, 11)


async def test_readers_get_what_is_clean_at_once(store, name, card, folder, write, forget):
    await write(*range(1, 9), fold=1, card=card)
    gone = await forget(7)
    assert (gone.restored_to, gone.dropped) == (6, (7, 8))
    memory, state = await store.read_state(name)
    assert memory.folded_revision == state.revision == replace(gone.revision, sequence=6)
    assert state.data == folder.fold([folder.turn(at) for at in range(1, 7)])
    with pytest.raises(RevisionForeignError):
        await store.wait_for(name, Revision("0" * 12, 8), 1)
    assert await store.due_partitions(card.fingerprint) == [name.partition]


async def test_forgetting_the_end_leaves_nothing_to_fold(store, name, card, write, forget, check):
    await write(*range(1, 9), fold=1, card=card)
    gone = await forget(7, 8)
    assert gone.restored_to == 8
    assert await store.due_partitions(card.fingerprint) == []
    assert (await store.list_revisions(name))[0].revision == gone.revision
    await check(*range(1, 7))


async def test_what_waits_can_be_forgotten_without_a_trace_in_the_state(store, name, card, write, forget, check):
    await write(1, 2, fold=2, card=card)
    await write(3, 4)
    assert (await forget(3)).dropped == ()
    await check(1, 2, 4)


async def test_a_fold_in_flight_loses(store, name, card, folder, write, forget, check):
    for removal in ("forget", "rollback"):
        revision = await write(*range(1, 4))
        [claim] = await store.claim(card.fingerprint, name.partition, owner="w", lease_s=30, limit=1)
        await (forget(2) if removal == "forget" else store.rollback(name, replace(revision, sequence=2)))
        assert not await folder.commit(store, claim, b"\xff" * 32, 3)
        assert not await store.renew(claim, lease_s=30)
        await store.release(claim, delay_s=60)
        await check(*((1, 3) if removal == "forget" else (1, 2)))
        await store.delete_memory(name)


async def test_a_forgotten_id_is_free_again(store, name, write, forget, check):
    await write(1, 2, 3)
    await forget(2)
    again = await store.append(
        name, [Turn("id-2", Role.USER, "message 2 über Grüße"), Turn("id-3", Role.USER, "x")][:1]
    )
    assert [(turn.sequence, turn.duplicate) for turn in again.turns] == [(4, False)]
    await check(1, 3, 2)


async def test_holes_do_not_wait_for_a_fold(store, name, card, folder, write):
    revision = await write(*range(1, 101), fold=200, card=card)
    await store.rollback(name, replace(revision, sequence=2))
    await folder.catch_up(store, name, card.fingerprint)
    for at in range(200, 203):
        await store.append(name, [folder.turn(at)], backlog=3)
    await folder.catch_up(store, name, card.fingerprint)
    assert (await store.append(name, [folder.turn(300)], backlog=3)).revision.sequence == 104


async def test_scattered_turns_go_all_of_them(store, write, forget, check, card):
    await write(*range(1, 701), fold=350, card=card)
    gone = await forget(*range(1, 701, 2))
    assert (gone.count, gone.sequences) == (350, tuple(range(1, 701, 2)))
    await check(*range(2, 701, 2))


async def test_turns_that_are_not_there_change_nothing(store, name, write, forget, check, card):
    revision = await write(1, 2, 3, fold=1, card=card)
    for sequences in ((), (4, 99)):
        gone = await forget(*sequences)
        assert (gone.revision, gone.sequences, gone.restored_to) == (revision, (), 3)
    await check(1, 2, 3)


async def test_a_repeated_forgetting_answers_like_the_first(store, name, write, check, card):
    before = await write(1, 2, 3, 4, fold=1, card=card)
    again = "a" * 12

    async def call():
        return await store.forget(name, [2, 4], expected_incarnation=before.incarnation, incarnation=again)

    first = await call()
    assert first.revision == Revision(again, 4)
    assert await call() == first
    await write(5)
    assert replace(await call(), revision=first.revision) == first
    await check(1, 3, 5)
    with pytest.raises(RevisionMismatchError):
        await store.forget(name, [1], expected_incarnation=before.incarnation)
    await check(1, 3, 5)


async def test_a_repeated_rollback_answers_like_the_first(store, name, write, check, card):
    before = await write(1, 2, 3, 4, fold=2, card=card)
    first = await store.rollback(name, replace(before, sequence=3), incarnation="a" * 12)
    assert await store.rollback(name, replace(before, sequence=3), incarnation="a" * 12) == first
    assert (first.ids, first.dropped, first.restored_to) == (("id-4",), (4,), 2)
    await check(1, 2, 3)


@pytest.mark.parametrize("to", range(0, 11, 2))
async def test_a_rollback_is_as_if_nothing_had_come_after(store, name, write, check, card, to):
    await write(*range(1, 7), fold=2, card=card)
    head = await write(*range(7, 11))
    back = await store.rollback(name, replace(head, sequence=to), expected=head)
    assert back.revision.sequence == to
    assert (await store.get_memory(name)).last == 10
    await check(*range(1, to + 1))
    assert (await write(11)).sequence == 11
    await check(*range(1, to + 1), 11)


async def test_a_rollback_to_a_hole_is_one_to_what_is_before_it(store, name, write, forget, check, card):
    await write(*range(1, 7), fold=1, card=card)
    gone = await forget(3, 4)
    await store.rollback(name, replace(gone.revision, sequence=4))
    await check(1, 2)


async def test_a_rollback_to_where_the_log_is_not_is_refused(store, name, write, check):
    head = await write(1, 2)
    with pytest.raises(RevisionAheadError):
        await store.rollback(name, replace(head, sequence=3))
    with pytest.raises(RevisionForeignError):
        await store.rollback(name, Revision("0" * 12, 1))
    with pytest.raises(RevisionMismatchError):
        await store.rollback(name, head, expected=replace(head, sequence=1))
    await check(1, 2)
    await store.delete_memory(name)
    with pytest.raises(MemoryNotFoundError):
        await store.rollback(name, head)
    assert await store.list_memories(name.tenant) == []


async def test_a_skip_that_is_rolled_back_no_longer_holds(store, name, card, folder, write, check):
    """A state may stand between the skipped turn and the entry that skips it: it must not stay."""
    revision = await write(1, 2, 3)
    await store.skip_turn(name, 2)
    await folder.catch_up(store, name, card.fingerprint, entries=1)
    await store.rollback(name, replace(revision, sequence=3))
    assert (await store.get_memory(name)).applied == 1
    await check(1, 2, 3)
    assert not any(turn.skipped for turn in await store.read_turns(name))


async def test_a_skipped_turn_is_forgotten_with_the_entry_that_skips_it(store, name, write, forget, check):
    await write(1, 2, 3)
    await store.skip_turn(name, 2)
    assert (await forget(2)).ids == ("id-2",)
    assert [turn.sequence for turn in await store.read_turns(name)] == [1, 3]
    await check(1, 3)


async def test_forgetting_the_turn_ends_its_quarantine(store, name, card, write, forget, check):
    await write(1, 2, 3)
    [claim] = await store.claim(card.fingerprint, name.partition, owner="w", lease_s=30, limit=1)
    await store.quarantine(claim, sequence=2, reason="NOT_FINITE")
    await forget(2)
    assert (await store.get_memory(name)).quarantined == 0
    await check(1, 3)


async def test_scrubbing_keeps_the_log_and_what_comes_in_meanwhile(store, name, write, forget, check, monkeypatch):
    monkeypatch.setattr(removing, "_PAGE_ENTRIES", 4)
    await write(*range(1, 12))
    assert await store.scrub(name)
    await forget(3)
    assert not await store.scrub(name)
    await write(12)
    assert not await store.scrub(name)
    await forget(1, 11)
    assert not await store.scrub(name)
    await write(13, 14)
    while not await store.scrub(name):
        pass
    assert await store.scrub(name)
    await check(2, *range(4, 11), 12, 13, 14)


async def test_scrubbing_a_log_that_lost_everything_leaves_an_empty_one(store, name, write, forget, check):
    await write(1, 2)
    await forget(1, 2)
    assert await store.scrub(name)
    await check()
    assert (await write(3)).sequence == 3
    await check(3)


@pytest.mark.parametrize("removal", ["forget", "rollback", "delete"])
async def test_no_key_holds_the_text(plain_store, redis, name, card, folder, removal):
    redis.config_set("rdbcompression", "no")  # so that a dump shows the bytes as they lie in memory
    others = [folder.turn(at) for at in range(1, 40)]
    secret = Turn(f"id-{CANARY}", Role.USER, f"I say {CANARY}", CANARY, {CANARY: CANARY})
    await plain_store.append(name, [*others[:20], secret], create=True)
    await folder.catch_up(plain_store, name, card.fingerprint, entries=2)
    revision = (await plain_store.append(name, others[20:])).revision
    assert CANARY.encode() in everything(redis)
    match removal:
        case "forget":
            await plain_store.forget(name, [21], expected_incarnation=revision.incarnation)
        case "rollback":
            await plain_store.rollback(name, replace(revision, sequence=20))
        case "delete":
            await plain_store.delete_memory(name)
    if removal != "delete":
        # The receipt names the turn by its id, for a day; the text is what must be gone.
        redis.delete(memory_keys(name, card.fingerprint).receipts)
        assert CANARY.encode() in everything(redis), "a stream no longer keeps what was removed: scrubbing is idle"
        assert await plain_store.scrub(name)
        await folder.catch_up(plain_store, name, card.fingerprint)
    assert CANARY.encode() not in everything(redis)
    redis.config_set("rdbcompression", "yes")


async def test_both_lines_forget(store, name, card, folder, write, forget, check):
    await write(1, 2, 3, fold=1, card=card)
    await build(store, name)
    assert (await write(4)).sequence == 4
    for fingerprint in (card.fingerprint, SECOND):
        assert await folder.catch_up(store, name, fingerprint, entries=2) > 0
    memory = await store.get_memory(name)
    assert (memory.applied, memory.building_applied, memory.building) == (4, 4, SECOND)
    gone = await forget(3)
    memory = await store.get_memory(name)
    assert (memory.applied, memory.building_applied) == (2, 2)
    assert [one.revision.sequence for one in await store.list_revisions(name, fingerprint=SECOND)] == [2]
    [claim] = await store.claim(SECOND, name.partition, owner="w", lease_s=30, limit=1)
    assert claim.incarnation == gone.revision.incarnation
    assert await folder.advance(store, claim)
    await check(1, 2, 4)
    memory = await store.get_memory(name)
    assert memory.building_applied == 4
    first, second = [await store.list_revisions(name, fingerprint=one) for one in (card.fingerprint, SECOND)]
    assert first[0].state_digest == second[0].state_digest


async def test_both_lines_follow_the_log_and_neither_forgets_the_other(store, any_redis_url, name, card, folder, write):
    await write(1, 2, fold=1, card=card)
    await build(store, name)
    other = await Store.open(any_redis_url)  # knows nothing of either line yet
    result = await other.append(name, [folder.turn(3)])
    assert (result.fingerprint, result.behind) == (card.fingerprint, True)
    for fingerprint in (card.fingerprint, SECOND):
        assert await other.due_partitions(fingerprint) == [name.partition]
        assert (await other.backlog(fingerprint)).memories == 1
    with pytest.raises(TurnFoldedError):
        await other.skip_turn(name, 2)
    await other.skip_turn(name, 3)
    for fingerprint in (card.fingerprint, SECOND):
        await folder.catch_up(other, name, fingerprint)
        listed = await other.list_revisions(name, fingerprint=fingerprint)
        assert listed[0].revision.sequence == 4
    await other.delete_memory(name)
    for fingerprint in (card.fingerprint, SECOND):
        assert await store.due_partitions(fingerprint) == []
        assert (await store.backlog(fingerprint)).memories == 0
    assert (await store.append(name, [folder.turn(1)], create=True)).revision.sequence == 1
    assert (await store.get_memory(name)).building == ""
    await other.close()


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_is_done_in_whatever_order_the_state_is_that_of_the_log(
    store, name, card, folder, check, monkeypatch, seed
):
    if seed % 2:  # few are many: the log is written anew before they go
        monkeypatch.setattr(removals, "MANY", 1)
        monkeypatch.setattr(removing, "_PAGE_ENTRIES", 4)
    anybody = Anybody(store, name, card, folder, random.Random(seed))
    await store.create_memory(name)
    for _ in range(60):
        await anybody.do_something()
        if anybody.dice.random() < 0.1:
            await anybody.compare(check)
    await anybody.compare(check)


class Anybody:
    """Does everything to one memory, at random; ``control`` holds the turns that must be left, by sequence."""

    def __init__(self, store, name, card, folder, dice):
        self.store, self.name, self.card, self.folder, self.dice = store, name, card, folder, dice
        self.numbers, self.control, self.skipped = itertools.count(1), {}, {}

    async def do_something(self) -> None:
        deeds = {self.append: 6, self.fold: 6, self.forget: 2, self.rollback: 1, self.skip: 1, self.scrub: 2}
        [deed] = self.dice.choices([*deeds], [*deeds.values()])
        await deed(await self.store.get_memory(self.name))

    async def compare(self, check) -> None:
        await check(*self.control.values())
        log = await self.store.read_turns(self.name)
        assert [turn.sequence for turn in log if not turn.skips] == [*self.control]
        assert {turn.sequence for turn in log if turn.skipped} == set(self.skipped)
        assert {turn.skips: turn.sequence for turn in log if turn.skips} == self.skipped

    async def append(self, _) -> None:
        some = list(itertools.islice(self.numbers, self.dice.randint(1, 5)))
        result = await self.store.append(self.name, [self.folder.turn(at) for at in some])
        self.control |= {turn.sequence: at for turn, at in zip(result.turns, some, strict=True)}

    async def fold(self, _) -> None:
        fingerprint, partition = self.card.fingerprint, self.name.partition
        for claim in await self.store.claim(fingerprint, partition, owner="w", lease_s=30, limit=1):
            assert await self.folder.advance(self.store, claim, self.dice.randint(1, 6))

    async def forget(self, memory) -> None:
        some = sorted(self.dice.sample(sorted(self.control), min(len(self.control), self.dice.randint(1, 4))))
        gone = await self.store.forget(self.name, some, expected_incarnation=memory.incarnation)
        assert gone.sequences == tuple(some)
        self.control = {sequence: at for sequence, at in self.control.items() if sequence not in some}
        self.skipped = {turn: entry for turn, entry in self.skipped.items() if turn not in some}

    async def rollback(self, memory) -> None:
        to = self.dice.randint(max(0, memory.head - 10), memory.head)
        await self.store.rollback(self.name, Revision(memory.incarnation, to))
        self.control = {sequence: at for sequence, at in self.control.items() if sequence <= to}
        self.skipped = {turn: entry for turn, entry in self.skipped.items() if entry <= to}

    async def skip(self, memory) -> None:
        if waiting := [at for at in self.control if at > memory.applied and at not in self.skipped]:
            turn = self.dice.choice(waiting)
            self.skipped[turn] = (await self.store.skip_turn(self.name, turn)).sequence

    async def scrub(self, _) -> None:
        await self.store.scrub(self.name)


async def build(store, name):
    """Let a second model fold the memory."""
    line = memory_keys(name, SECOND)
    await store._server.command("HSET", line.meta, "building", SECOND)
    for queue in (line.dirty, line.behind):
        await store._server.command("ZADD", queue, 1, f"{name.tenant}/{name.memory}")


def everything(redis) -> bytes:
    """All keys, and the bytes in which they lie in Redis."""
    return b"".join(key + redis.dump(key) for key in redis.scan_iter())
