"""Every turn is folded exactly once, in order, whoever dies or comes late."""

import asyncio
import random

import pytest

from memfold.api.errors import StateDamagedError
from memfold.api.values import MemoryName, Revision
from memfold.store import ZERO_ANCHOR, Anchor, Store
from memfold.store.keys import memory_keys

LEASE_S = 30
STATE = b"\x01" * 32


@pytest.fixture
def claim_one(store, name, card):
    async def claim(lease_s: float = LEASE_S, owner: str = "one"):
        claims = await store.claim(card.fingerprint, name.partition, owner=owner, lease_s=lease_s, limit=10)
        return claims[0] if claims else None

    return claim


@pytest.fixture
def plain_claim(plain_store, name, card):
    async def claim():
        [claimed] = await plain_store.claim(card.fingerprint, name.partition, owner="one", lease_s=LEASE_S, limit=10)
        return claimed

    return claim


async def test_what_is_behind_is_due_and_what_is_folded_is_not(store, name, card, folder):
    assert await store.due_partitions(card.fingerprint) == []
    await store.append(name, [folder.turn(1)], create=True)
    assert await store.due_partitions(card.fingerprint) == [name.partition]
    assert await store.due_partitions("0" * 64) == []
    assert await folder.drain(store, card) == 1
    assert await store.due_partitions(card.fingerprint) == []


async def test_a_claim_says_what_there_is_to_fold(store, name, card, folder, claim_one):
    appended = await store.append(name, [folder.turn(1), folder.turn(2)], create=True)
    claim = await claim_one()
    assert (claim.name, claim.fingerprint) == (name, card.fingerprint)
    assert claim.incarnation == appended.revision.incarnation
    assert (claim.applied, claim.head, claim.fence, claim.attempts) == (0, 2, 1, 1)
    assert await store.read_anchor(claim) == ZERO_ANCHOR


async def test_a_claimed_memory_is_nobody_elses(store, name, card, folder, claim_one):
    await store.append(name, [folder.turn(1)], create=True)
    assert await claim_one() is not None
    assert await claim_one(owner="two") is None
    await store.append(name, [folder.turn(2)])
    assert await claim_one(owner="two") is None
    assert await store.due_partitions(card.fingerprint) == []


async def test_many_claim_at_once_and_one_gets_it(store, name, folder, claim_one):
    await store.append(name, [folder.turn(1)], create=True)
    await asyncio.gather(*(store.ping() for _ in range(10)))  # connects, so that the claims meet
    claims = await asyncio.gather(*(claim_one(owner=f"w{at}") for at in range(10)))
    assert sum(claim is not None for claim in claims) == 1


async def test_a_claim_takes_no_more_than_it_asks_for(store, card, folder):
    partition, names = None, []
    for at in range(5000):
        candidate = MemoryName("acme", f"m{at}")
        if partition is None or candidate.partition == partition:
            partition = candidate.partition
            names.append(candidate)
    assert len(names) > 2
    for name in names:
        await store.append(name, [folder.turn(1)], create=True)
    first = await store.claim(card.fingerprint, partition, owner="w", lease_s=LEASE_S, limit=2)
    rest = await store.claim(card.fingerprint, partition, owner="w", lease_s=LEASE_S, limit=100)
    assert len(first) == 2
    assert {claim.name for claim in first + rest} == set(names)


async def test_a_commit_is_what_a_reader_reads(store, name, card, folder, claim_one):
    revision = (await store.append(name, [folder.turn(1), folder.turn(2)], create=True)).revision
    claim = await claim_one()
    assert await folder.commit(store, claim, STATE, 2)
    memory, state = await store.read_state(name)
    assert memory.folded_revision == state.revision == revision
    assert (state.data, state.shape, state.fingerprint) == (STATE, folder.shape, card.fingerprint)
    assert memory.state_bytes == 32


async def test_an_anchor_stays_until_another_comes(store, name, folder, claim_one):
    await store.append(name, [folder.turn(1), folder.turn(2)], create=True)
    anchor = Anchor(sequence=1, offset=7, data=b"\x02" * 32)
    assert await folder.commit(store, await claim_one(), STATE, 2, anchor)
    await store.append(name, [folder.turn(3)])
    claim = await claim_one()
    assert await store.read_anchor(claim) == anchor
    assert await folder.commit(store, claim, STATE, 3)
    await store.append(name, [folder.turn(4)])
    assert await store.read_anchor(await claim_one()) == anchor


async def test_turns_that_came_during_a_fold_are_due_at_once(store, name, card, folder, claim_one):
    await store.append(name, [folder.turn(1)], create=True)
    claim = await claim_one()
    assert not (await store.append(name, [folder.turn(2)])).behind
    assert await folder.commit(store, claim, STATE, 1)
    assert await store.due_partitions(card.fingerprint) == [name.partition]
    assert (await store.backlog(card.fingerprint)).memories == 1
    second = await claim_one()
    assert (second.applied, second.head, second.attempts) == (1, 2, 1)


async def test_a_part_of_the_turns_can_be_committed(store, name, folder, claim_one):
    await store.append(name, [folder.turn(at) for at in range(5)], create=True)
    assert await folder.commit(store, await claim_one(), STATE, 3)
    claim = await claim_one()
    assert (claim.applied, claim.head) == (3, 5)


async def test_a_lease_that_ended_makes_it_due_again_and_the_late_worker_loses(
    store, name, card, folder, claim_one, until
):
    await store.append(name, [folder.turn(1)], create=True)
    late = await claim_one(lease_s=0.1)
    claims = []

    async def claimed_again() -> bool:
        claims.append(await claim_one(owner="two"))
        return claims[-1] is not None

    await until(claimed_again)
    assert (claims[-1].fence, claims[-1].attempts) == (2, 2)
    assert not await folder.commit(store, late, b"\xff" * 32, 1)
    assert (await store.read_state(name))[1] is None
    await store.release(late, delay_s=0)
    assert await store.due_partitions(card.fingerprint) == []
    assert await folder.commit(store, claims[-1], STATE, 1)
    assert not await folder.commit(store, late, b"\xff" * 32, 1)
    assert (await store.read_state(name))[1].data == STATE


async def test_a_late_worker_may_commit_while_nobody_else_has_claimed(store, name, folder, claim_one, until, card):
    await store.append(name, [folder.turn(1)], create=True)
    late = await claim_one(lease_s=0.05)

    async def due() -> bool:
        return bool(await store.due_partitions(card.fingerprint))

    await until(due)
    assert await folder.commit(store, late, STATE, 1)


async def test_a_second_fold_from_an_old_state_is_refused(store, name, folder, claim_one):
    """The fence is right and the incarnation is right; only ``applied`` has moved on."""
    await store.append(name, [folder.turn(at) for at in range(3)], create=True)
    claim = await claim_one()
    assert await folder.commit(store, claim, STATE, 1)
    assert not await folder.commit(store, claim, b"\xff" * 32, 3)
    assert (await store.read_state(name))[1].data == STATE


async def test_repeating_a_commit_that_won_wins_and_changes_nothing(store, name, card, folder, claim_one):
    await store.append(name, [folder.turn(1)], create=True)
    claim = await claim_one()
    assert await folder.commit(store, claim, STATE, 1)
    await store.append(name, [folder.turn(2)])
    assert await folder.commit(store, claim, STATE, 1)
    assert await store.due_partitions(card.fingerprint) == [name.partition]


async def test_a_fold_cannot_reach_beyond_the_log(store, name, folder, claim_one):
    await store.append(name, [folder.turn(1)], create=True)
    assert not await folder.commit(store, await claim_one(), STATE, 2)
    assert (await store.read_state(name))[1] is None


async def test_a_fold_in_flight_loses_to_a_deletion(store, name, card, folder, claim_one):
    await store.append(name, [folder.turn(1)], create=True)
    claim = await claim_one()
    await store.delete_memory(name)
    assert not await folder.commit(store, claim, STATE, 1)
    await store.release(claim, delay_s=0)
    assert await store.due_partitions(card.fingerprint) == []
    assert (await store.backlog(card.fingerprint)).memories == 0


async def test_a_fold_of_a_deleted_memory_does_not_get_into_its_successor(store, name, folder, claim_one):
    """Fence, applied and head are the same as before: only the incarnation tells them apart."""
    await store.append(name, [folder.turn(1)], create=True)
    zombie = await claim_one()
    await store.delete_memory(name)
    await store.append(name, [folder.turn(1, "new content")], create=True)
    heir = await claim_one()
    assert (zombie.applied, zombie.head, zombie.fence) == (heir.applied, heir.head, heir.fence)
    assert not await folder.commit(store, zombie, b"\xff" * 32, 1)
    await store.release(zombie, delay_s=0)
    assert await claim_one(owner="two") is None
    assert await folder.commit(store, heir, STATE, 1)
    assert (await store.read_state(name))[1].data == STATE


async def test_a_released_memory_is_due_after_the_delay(store, name, card, folder, claim_one, until):
    await store.append(name, [folder.turn(1)], create=True)
    await store.release(await claim_one(), delay_s=60)
    assert await store.due_partitions(card.fingerprint) == []
    assert (await store.backlog(card.fingerprint)).memories == 1

    await store.delete_memory(name)
    await store.append(name, [folder.turn(1)], create=True)
    await store.release(await claim_one(), delay_s=0.1)

    async def due() -> bool:
        return await store.due_partitions(card.fingerprint) == [name.partition]

    await until(due)
    assert (await claim_one()).attempts == 2


async def test_a_clean_shutdown_gives_the_attempt_back(store, name, folder, claim_one):
    await store.append(name, [folder.turn(1)], create=True)
    first = await claim_one()
    await store.release(first, delay_s=0, give_back=True)
    await store.release(first, delay_s=0, give_back=True)
    second = await claim_one()
    assert (second.fence, second.attempts) == (2, 1)


async def test_a_commit_resets_the_attempts(store, name, folder, claim_one):
    await store.append(name, [folder.turn(1)], create=True)
    await store.release(await claim_one(), delay_s=0)
    claim = await claim_one()
    assert claim.attempts == 2
    await folder.commit(store, claim, STATE, 1)
    await store.append(name, [folder.turn(2)])
    assert (await claim_one()).attempts == 1


async def test_a_state_of_the_wrong_size_is_never_written(store, name, folder, claim_one):
    await store.append(name, [folder.turn(1)], create=True)
    claim = await claim_one()
    with pytest.raises(ValueError, match="has 32 bytes, not 31"):
        await folder.commit(store, claim, STATE[:-1], 1)


async def test_the_backlog_counts_memories_and_ages(plain_store, redis, card, folder):
    assert await plain_store.backlog(card.fingerprint) == type(await plain_store.backlog(card.fingerprint))(0, 0.0)
    names = [MemoryName("acme", f"m{at}") for at in range(4)]
    for name in names:
        await plain_store.append(name, [folder.turn(1)], create=True)
    keys = memory_keys(names[0], card.fingerprint)
    redis.zincrby(keys.behind, -60_000, "acme/m0")
    backlog = await plain_store.backlog(card.fingerprint)
    assert backlog.memories == 4
    assert 60 <= backlog.oldest_s < 120


async def test_what_is_due_is_found_even_where_nobody_told_of_it(plain_store, redis, redis_url, name, card, folder):
    await plain_store.append(name, [folder.turn(1)], create=True)
    redis.delete(f"memfold:partitions:{card.fingerprint}")
    fresh = await Store.open(redis_url)
    assert await fresh.due_partitions(card.fingerprint) == [name.partition]
    assert await fresh.due_partitions(card.fingerprint) == [name.partition]
    await fresh.close()


DAMAGES = ["torn", "flipped", "gone", "older", "of another memory", "an anchor", "garbage"]


@pytest.fixture
async def three_folded(plain_store, redis, plain_claim, name, card, folder):
    """Turns 1 and 2 committed, then turn 3; returns a function that damages the state."""
    line = memory_keys(name, card.fingerprint)
    turns = [folder.turn(at) for at in range(1, 4)]
    await plain_store.append(name, turns[:2], create=True)
    anchor = Anchor(1, 0, folder.fold(turns[:1]))
    assert await folder.finish(plain_store, await plain_claim(), anchor=anchor)
    await plain_store.append(name, turns[2:])
    assert await folder.finish(plain_store, await plain_claim())
    other = MemoryName("acme", "carol")
    await plain_store.append(other, turns, create=True)
    await folder.drain(plain_store, card)

    def damage(what: str) -> None:
        whole = redis.get(line.state)
        damaged = {
            "torn": whole[:-5],
            "flipped": whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:],
            "gone": None,
            "older": redis.hget(line.history, "2"),
            "of another memory": redis.get(memory_keys(other, card.fingerprint).state),
            "an anchor": redis.hget(line.history, "@1.0"),
            "garbage": b"x" * 500,
        }[what]
        redis.delete(line.state) if damaged is None else redis.set(line.state, damaged)

    return damage


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_state_is_never_read_and_the_kept_one_before_it_is_folded_on(
    plain_store, plain_claim, three_folded, name, folder, damage
):
    three_folded(damage)
    with pytest.raises(StateDamagedError):
        await plain_store.read_state(name)
    turns = await plain_store.read_turns(name)
    memory, state = await plain_store.read_state(name)
    assert (memory.head, memory.applied, state.data) == (3, 2, folder.fold(turns[:2]))
    claim = await plain_claim()
    assert (claim.applied, claim.kept) == (2, (2,))
    assert await plain_store.read_anchor(claim) == Anchor(1, 0, folder.fold(turns[:1]))
    assert await folder.finish(plain_store, claim)
    assert (await plain_store.read_state(name))[1].data == folder.fold(turns)


@pytest.mark.parametrize("kept", ["2", "@1.0"])
async def test_a_kept_state_that_is_damaged_too_is_no_place_to_go_back_to(
    plain_store, redis, plain_claim, three_folded, name, card, folder, kept
):
    line = memory_keys(name, card.fingerprint)
    blob = redis.hget(line.history, kept)
    redis.hset(line.history, kept, blob[:-40] + bytes([blob[-40] ^ 1]) + blob[-39:])
    three_folded("garbage")
    with pytest.raises(StateDamagedError):
        await plain_store.read_state(name)
    memory, state = await plain_store.read_state(name)
    assert (memory.head, memory.applied, state) == (3, 0, None)
    assert redis.hgetall(line.history) == redis.hgetall(line.revisions) == {}
    claim = await plain_claim()
    assert (claim.applied, claim.log_digest, await plain_store.read_anchor(claim)) == (0, bytes(32), ZERO_ANCHOR)
    assert await folder.finish(plain_store, claim)
    assert (await plain_store.read_state(name))[1].data == folder.fold(await plain_store.read_turns(name))


async def test_a_fold_in_flight_loses_when_its_start_turned_out_damaged(
    plain_store, redis, plain_claim, name, card, folder
):
    keys = memory_keys(name, card.fingerprint)
    await plain_store.append(name, [folder.turn(1)], create=True)
    await folder.commit(plain_store, await plain_claim(), STATE, 1)
    await plain_store.append(name, [folder.turn(2)])
    claim = await plain_claim()
    redis.set(keys.state, b"garbage")
    with pytest.raises(StateDamagedError):
        await plain_store.read_state(name)
    assert not await folder.commit(plain_store, claim, STATE, 2)


async def test_a_claim_from_before_the_damage_commits_no_more(plain_store, redis, plain_claim, name, card, folder):
    await plain_store.append(name, [folder.turn(1)], create=True)
    claim = await plain_claim()
    await folder.commit(plain_store, claim, STATE, 1)
    redis.set(memory_keys(name, card.fingerprint).state, b"garbage")
    with pytest.raises(StateDamagedError):
        await plain_store.read_state(name)
    assert not await folder.commit(plain_store, claim, STATE, 1)


async def test_damage_that_a_commit_has_mended_is_left_alone(store, name, folder, claim_one):
    await store.append(name, [folder.turn(1)], create=True)
    await folder.commit(store, await claim_one(), STATE, 1)
    seen = await store.get_memory(name)
    await store.append(name, [folder.turn(2)])
    await folder.commit(store, await claim_one(), STATE, 2)
    await store._refold(seen, fence=1)
    assert (await store.read_state(name))[1].revision.sequence == 2


@pytest.mark.parametrize("damage", ["torn", "of another memory", "gone", "a state"])
async def test_a_damaged_anchor_means_a_fold_from_the_start(
    plain_store, redis, plain_claim, name, card, folder, damage
):
    names = [name, MemoryName("acme", "carol")]
    for at, each in enumerate(names):
        await plain_store.append(each, [folder.turn(1), folder.turn(2 + at)], create=True)
        [claim] = await plain_store.claim(card.fingerprint, each.partition, owner="w", lease_s=LEASE_S, limit=1)
        assert await folder.commit(plain_store, claim, STATE, 1, Anchor(1, 0, bytes([at]) * 32))
    line, other = (memory_keys(each, card.fingerprint) for each in names)
    whole = redis.hget(line.history, "@1.0")
    damaged = {
        "torn": whole[:60],
        "of another memory": redis.hget(other.history, "@1.0"),
        "a state": redis.get(line.state),
        "gone": None,
    }[damage]
    redis.hdel(line.history, "@1.0") if damaged is None else redis.hset(line.history, "@1.0", damaged)
    claim = await plain_claim()
    assert await plain_store.read_anchor(claim) == ZERO_ANCHOR
    assert not redis.hexists(line.history, "@1.0")
    assert await folder.finish(plain_store, claim)
    await plain_store.append(name, [folder.turn(9)])
    assert await plain_store.read_anchor(await plain_claim()) == ZERO_ANCHOR


@pytest.mark.parametrize("seed", range(3))
async def test_appenders_writers_and_crashes_fold_every_turn_once(any_redis_url, store, card, folder, seed):
    """Writers die with their claims, stall past their leases, and commit late; the hash chain shows any slip."""
    other = await Store.open(any_redis_url)
    names = [MemoryName("acme", f"m{at}") for at in range(5)]
    dice, done = random.Random(seed), asyncio.Event()

    async def append() -> None:
        for at in range(60):
            await store.append(dice.choice(names), [folder.turn(at)], create=True)
        done.set()

    writers = [UnreliableWriter(mine, card, folder, dice, done) for mine in (store, other)]
    await asyncio.gather(append(), *(writer.run() for writer in writers))
    for name in names:
        memory, state = await store.read_state(name)
        turns = await store.read_turns(name)
        assert [turn.sequence for turn in turns] == list(range(1, memory.head + 1))
        assert state.revision == Revision(memory.incarnation, memory.head)
        assert state.data == folder.fold(turns)
    await other.close()


class UnreliableWriter:
    """Drops some of its claims until much later, gives some back, folds some in parts; reliable once ``done`` is set."""

    def __init__(self, store, card, folder, dice, done):
        self.store, self.card, self.folder, self.dice, self.done = store, card, folder, dice, done
        self.late = []

    async def run(self) -> None:
        while not self.done.is_set() or (await self.store.backlog(self.card.fingerprint)).memories:
            for partition in await self.store.due_partitions(self.card.fingerprint):
                await self.drain(partition)
            if self.late:
                await self.fold(self.late.pop(0))
            await asyncio.sleep(0)

    async def drain(self, partition: int) -> None:
        fingerprint = self.card.fingerprint
        for claim in await self.store.claim(fingerprint, partition, owner="w", lease_s=0.05, limit=4):
            fate = 1 if self.done.is_set() else self.dice.random()
            if fate < 0.2:
                self.late.append(claim)
            elif fate < 0.3:
                await self.store.release(claim, delay_s=0)
            else:
                await self.fold(claim)

    async def fold(self, claim) -> None:
        """Starts from the state that it finds, as a writer does."""
        _, state = await self.store.read_state(claim.name)
        limit = self.dice.randint(1, claim.head - claim.applied)
        turns = await self.store.read_turns(claim.name, after=claim.applied, limit=limit)
        data = self.folder.fold(turns, state.data if state else bytes(32))
        await self.folder.commit(self.store, claim, data, turns[-1].sequence)
