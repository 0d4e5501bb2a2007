"""What stories about one memory are told with: in process, on a real Redis, folded by the hash chain."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

from memfold_faults.chain import NAMES, SHAPE, ChainModel, fingerprint, state_of
from redis import Redis

from memfold.api.errors import (
    MemfoldError,
    MemoryNotFoundError,
)
from memfold.api.values import MemoryName, OperationKind, Role, Turn
from memfold.store import Anchor, Claim, Store, removals, removing
from memfold.store import keys as store_keys
from memfold.store.digests import chain, state_digest
from memfold.store.keys import memory_keys

A, B = map(fingerprint, NAMES)
NAME, COPY = MemoryName("acme", "bob"), MemoryName("acme", "copy")
_CHAINS = {A: NAMES[0], B: NAMES[1]}

Scenario = Callable[[Store, Redis], Awaitable[None]]
SCENARIOS: dict[str, Scenario] = {}


def scenario(story: Scenario) -> Scenario:
    """Enter it by its name."""
    SCENARIOS[story.__name__] = story
    return story


async def prepare(store: Store, redis: Redis) -> None:
    """An empty store that knows both models."""
    redis.flushall()
    store._guesses.clear()
    store._told.clear()
    store._held.clear()
    for name in reversed(NAMES):
        await store.register_model(ChainModel(name).card)


def turns(*numbers: int) -> list[Turn]:
    """Turns by their numbers."""
    return [Turn(f"turn-{at}", Role.USER, f"this is message {at}") for at in numbers]


async def append(store: Store, *numbers: int, name: MemoryName = NAME) -> None:
    """Append turns of these numbers."""
    await store.append(name, turns(*numbers), create=True)


async def take(store: Store, line: str = A, *, name: MemoryName = NAME, lease_s: float = 30) -> Claim | None:
    """Claim the memory, if that can be done now."""
    claims = await store.claim(line, name.partition, owner="w", lease_s=lease_s, limit=10)
    return next((claim for claim in claims if claim.name == name), None)


async def finish(store: Store, claim: Claim, until: int = 0, *, anchor_at: int = 0) -> bool:
    """Fold and commit as far as ``until``, all of it by default. ``anchor_at``: a block opens behind this turn."""
    until = until or claim.head
    log: list[Turn] = []
    with contextlib.suppress(MemoryNotFoundError):
        log = [one for one in await store.read_turns(claim.name) if one.sequence <= until]
    folded = [entry for entry in log if entry.folds]
    anchor = None
    if anchor_at:
        before = [entry for entry in folded if entry.sequence <= anchor_at]
        anchor = Anchor(anchor_at, 0, state_of(_CHAINS[claim.fingerprint], before))
    return await store.commit(
        claim,
        applied=until,
        at=folded[-1].sequence if folded else claim.at,
        state=state_of(_CHAINS[claim.fingerprint], folded),
        shape=SHAPE,
        anchor=anchor,
        log_digest=chain(claim.log_digest, [one for one in log if one.sequence > claim.applied]),
    )


async def fold(store: Store, until: int = 0, *, line: str = A, name: MemoryName = NAME, anchor_at: int = 0) -> None:
    """Claim and commit once."""
    claim = await take(store, line, name=name)
    assert claim is not None, "nothing is due"
    assert await finish(store, claim, until, anchor_at=anchor_at)


async def check(store: Store, redis: Redis, *numbers: int, name: MemoryName = NAME, folded: bool = True) -> None:
    """The memory holds exactly these turns; fold what is left, and see whether everything agrees."""
    memory = await store.get_memory(name)
    for line in filter(None, (memory.fingerprint, memory.building)):
        while memory.quarantined == 0 and (claim := await take(store, line, name=name)):
            assert await finish(store, claim)
    memory = await store.get_memory(name)
    log = await store.read_turns(name)
    found = [entry for entry in log if not entry.skips]
    assert [turn.id for turn in found] == [f"turn-{at}" for at in numbers]
    assert [turn.content for turn in found] == [f"this is message {at}" for at in numbers]
    assert (memory.turn_count, memory.log_bytes) == (len(found), sum(len(turn.content) for turn in found))
    ids = {turn.id.encode(): str(turn.sequence).encode() for turn in found}
    assert redis.hgetall(memory_keys(name, memory.fingerprint).ids) == ids
    if not folded:
        return
    assert memory.applied == memory.head
    assert memory.head >= max((entry.sequence for entry in log), default=0)
    keys = memory_keys(name, memory.fingerprint)
    assert redis.zscore(keys.dirty, store_keys.member(name)) is None
    assert redis.zscore(keys.behind, store_keys.member(name)) is None
    assert redis.hget(keys.line, "attempts") in (None, b"0")
    _, state = await store.read_state(name)
    whole = [entry for entry in log if entry.folds]
    assert (state.data if state else None) == (state_of(_CHAINS[memory.fingerprint], whole) if whole else None)
    await check_history(store, redis, log, name)


async def check_history(store: Store, redis: Redis, log: Sequence[Turn], name: MemoryName = NAME) -> None:
    """Every kept revision is what it says, and nothing else is kept."""
    memory = await store.get_memory(name)
    keys = memory_keys(name, memory.fingerprint)
    revisions = await store.list_revisions(name)
    for kept in revisions:
        until = [entry for entry in log if entry.sequence <= kept.revision.sequence]
        assert kept.log_digest == chain(bytes(32), until)
        data = state_of(_CHAINS[kept.fingerprint], [entry for entry in until if entry.folds])
        assert kept.state_digest == state_digest(data)
        _, state = await store.read_state_at(name, kept.revision)
        assert state is not None
        assert state.data == data
    older = {str(kept.revision.sequence).encode() for kept in revisions if kept.revision.sequence != memory.applied}
    stored = set(redis.hkeys(keys.history))
    assert {field for field in stored if not field.startswith(b"@")} == older
    told = redis.hgetall(keys.revisions).values()
    named = {f"@{json.loads(one)['anchor']}".encode() for one in told}
    assert {field for field in stored if field.startswith(b"@")} == named - {b"@0.0"}


@contextlib.asynccontextmanager
async def twice(store: Store) -> AsyncIterator[None]:
    """Every script runs twice, and the second answer counts: as when a connection breaks after the first."""
    server = store._server
    names = ("run", "write", "run_each")

    def doubled(call):
        async def both(*args):
            await call(*args)
            return await call(*args)

        return both

    for name in names:
        setattr(server, name, doubled(getattr(server, name)))
    try:
        yield
    finally:
        for name in names:
            delattr(server, name)


@contextlib.contextmanager
def few_at_once(page: int = 2) -> Iterator[None]:
    """Three turns are many, and so many entries a page."""
    before = removals.MANY, removing._PAGE_ENTRIES
    removals.MANY, removing._PAGE_ENTRIES = 2, page
    try:
        yield
    finally:
        removals.MANY, removing._PAGE_ENTRIES = before


async def raises(kind: type[MemfoldError], call: Awaitable[object]) -> None:
    try:
        await call
    except kind:
        return
    raise AssertionError(f"no {kind.__name__}")


async def carry_out(store: Store, kind: OperationKind, *, name: MemoryName = NAME, key: str = "", **args):
    """An operation, to its end."""
    operation = await store.request_operation(name, kind, args, request_id=key)
    for _ in range(200):
        operation = await store.advance(name, operation.id, until=0)
        if operation.done:
            return operation
        for line in (A, B):
            claim = await take(store, line, name=name)
            if claim is not None:
                assert await finish(store, claim)
        await asyncio.sleep(0.02)
    raise AssertionError(operation)
