"""Folding: who may fold what, from where, and how the result gets in. Also how readers get it out."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Sequence
from typing import Any

from memfold.api.errors import StateDamagedError
from memfold.api.values import PARTITIONS, Memory, MemoryName, Revision
from memfold.store import keys
from memfold.store.blob import BlobKind, StateBlob, decode
from memfold.store.keys import memory_keys
from memfold.store.log import Log
from memfold.store.memories import memory_of
from memfold.store.server import Call, Server
from memfold.store.values import ZERO_ANCHOR, Anchor, Backlog, Claim, Shape, State

_LOG = logging.getLogger(__name__)

_SWEEP_S = 10


class Folding(Log):
    """States: claimed, folded elsewhere, committed, read."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self._next_sweep: dict[str, float] = {}

    async def read_state(self, name: MemoryName) -> tuple[Memory, State | None]:
        """A memory and its state, as one consistent pair; None before the first fold.

        Raises:
            MemoryNotFoundError: there is no such memory.
            StateDamagedError: the stored state is damaged. The memory has been marked to be folded anew from its log.
        """
        reply = await self._on_memory("read_state", name, lambda fingerprint: (fingerprint,))
        memory = memory_of(name, reply[1])
        if memory.applied == 0:
            return memory, None
        try:
            return memory, _state(memory, reply[3])
        except StateDamagedError as error:
            _LOG.error("the state of %s at %s is damaged: %s", name, memory.folded_revision, error)
            await self._refold(memory, fence=int(reply[2]))
            raise StateDamagedError(
                f"the state of {name} is damaged ({error}); it is being folded anew from the log",
                facts={"memory": str(name), "revision": str(memory.folded_revision)},
                retry_after_ms=1000,
            ) from error

    async def due_partitions(self, fingerprint: str, *, limit: int = PARTITIONS) -> list[int]:
        """Partitions in which something is due now, the longest overdue first."""
        now = await self._server.now_ms()
        sweeping = self._sweep_is_due(fingerprint)
        watched = range(PARTITIONS) if sweeping else await self._told_partitions(fingerprint)
        heads = await self._server.commands(
            [("ZRANGEBYSCORE", keys.dirty(at, fingerprint), "-inf", now, "WITHSCORES", "LIMIT", 0, 1) for at in watched]
        )
        due = sorted((float(head[0][1]), at) for at, head in zip(watched, heads, strict=True) if head)
        if sweeping and due:
            await self._server.command("SADD", keys.partitions(fingerprint), *(at for _, at in due))
        return [at for _, at in due[:limit]]

    async def claim(self, fingerprint: str, partition: int, *, owner: str, lease_s: float, limit: int) -> list[Claim]:
        """Claim at most ``limit`` memories of a partition that are due, the longest overdue first.

        Each has its attempt counted, its fence raised and its lease set; it is due again when the lease ends. A memory
        that turns out to be folded already is taken off the queue.
        """
        now = await self._server.now_ms()
        members: list[bytes] = await self._server.command(
            "ZRANGEBYSCORE", keys.dirty(partition, fingerprint), "-inf", now, "LIMIT", 0, limit
        )
        names = [keys.name_of(member) for member in members]
        lease_ms, claim_id = round(lease_s * 1000), secrets.token_hex(8)
        replies = await self._server.run_each(
            "claim",
            [
                Call(memory_keys(name, fingerprint), (fingerprint, keys.member(name), lease_ms, claim_id, owner))
                for name in names
            ],
        )
        return [_claim(name, fingerprint, reply) for name, reply in zip(names, replies, strict=True) if reply]

    async def read_anchor(self, claim: Claim) -> Anchor:
        """Where the open block of a claimed memory starts.

        A damaged or foreign anchor is removed and the zero anchor given: the fold then starts from the log's beginning.
        """
        key = memory_keys(claim.name, claim.fingerprint).anchor
        blob = await self._server.command("GET", key)
        if blob is None:
            return ZERO_ANCHOR
        try:
            return _anchor(claim, blob)
        except StateDamagedError as error:
            _LOG.error("the anchor of %s is damaged, folding anew from the log: %s", claim.name, error)
            await self._server.run("drop_anchor", [key], blob)
            return ZERO_ANCHOR

    async def commit(self, claim: Claim, *, applied: int, state: bytes, shape: Shape, anchor: Anchor | None) -> bool:
        """Commit the state at the turn ``applied``, if nothing has come between; an anchor of None leaves it unchanged.

        Turns that came in meanwhile leave the memory due at once. False: the claim was lost, throw the result away.
        Not confirmed as durable beyond what the server does by itself: a lost state is folded anew from the log.
        """
        assert claim.applied < applied, (claim, applied)
        blob = _blob(BlobKind.STATE, claim, shape, Anchor(applied, 0, state))
        anchor_blob = b"" if anchor is None else _blob(BlobKind.ANCHOR, claim, shape, anchor)
        committed = await self._server.run(
            "commit",
            memory_keys(claim.name, claim.fingerprint),
            claim.fingerprint,
            claim.incarnation,
            claim.applied,
            claim.fence,
            applied,
            blob,
            len(state),
            anchor_blob,
            keys.member(claim.name),
            keys.moved_channel(claim.name.partition),
        )
        return bool(committed)

    async def renew(self, claim: Claim, *, lease_s: float) -> bool:
        """Hold a claim for ``lease_s`` from now on. False: it is no longer the newest, its commit would lose."""
        renewed = await self._server.run(
            "renew",
            memory_keys(claim.name, claim.fingerprint),
            claim.fingerprint,
            claim.incarnation,
            claim.fence,
            round(lease_s * 1000),
            keys.member(claim.name),
        )
        return bool(renewed)

    async def release(self, claim: Claim, *, delay_s: float, give_back: bool = False) -> None:
        """Give a claim up; the memory is due again after ``delay_s``. ``give_back``: the attempt does not count."""
        await self._server.run(
            "release",
            memory_keys(claim.name, claim.fingerprint),
            claim.fingerprint,
            claim.incarnation,
            claim.fence,
            round(delay_s * 1000),
            int(give_back),
            keys.member(claim.name),
        )

    async def backlog(self, fingerprint: str) -> Backlog:
        """How far folding is behind, over all partitions."""
        now = await self._server.now_ms()
        watched = [keys.behind(at, fingerprint) for at in await self._told_partitions(fingerprint)]
        counts = await self._server.commands([("ZCARD", key) for key in watched])
        held = [key for key, count in zip(watched, counts, strict=True) if count]
        heads = await self._server.commands([("ZRANGE", key, 0, 0, "WITHSCORES") for key in held])
        oldest = min((float(head[0][1]) for head in heads if head), default=float(now))
        return Backlog(memories=sum(counts), oldest_s=max(0.0, (now - oldest) / 1000))

    def _sweep_is_due(self, fingerprint: str) -> bool:
        """Now and then all partitions are looked at, not only those that appenders told of.

        An appender may have died before it told, and what it told may have been lost in a failover.
        """
        now = time.monotonic()
        if now < self._next_sweep.get(fingerprint, now):
            return False
        self._next_sweep[fingerprint] = now + _SWEEP_S
        return True

    async def _told_partitions(self, fingerprint: str) -> Sequence[int]:
        return sorted(int(at) for at in await self._server.command("SMEMBERS", keys.partitions(fingerprint)))

    async def _refold(self, memory: Memory, fence: int) -> None:
        await self._server.run(
            "refold",
            memory_keys(memory.name, memory.fingerprint),
            memory.fingerprint,
            memory.incarnation,
            memory.applied,
            fence,
            keys.member(memory.name),
        )


def _state(memory: Memory, blob: bytes | None) -> State:
    if blob is None:
        raise StateDamagedError("the blob is missing")
    found = decode(blob, kind=BlobKind.STATE, fingerprint=memory.fingerprint, incarnation=memory.incarnation)
    if found.sequence != memory.applied:
        raise StateDamagedError(f"the blob holds turn {found.sequence}, not {memory.applied}")
    return State(Revision(memory.incarnation, memory.applied), memory.fingerprint, found.shape, found.data)


def _claim(name: MemoryName, fingerprint: str, reply: Sequence[Any]) -> Claim:
    incarnation, applied, head, fence, attempts = reply
    return Claim(name, fingerprint, incarnation.decode(), int(applied), int(head), int(fence), int(attempts))


def _anchor(claim: Claim, blob: bytes) -> Anchor:
    found = decode(blob, kind=BlobKind.ANCHOR, fingerprint=claim.fingerprint, incarnation=claim.incarnation)
    if found.sequence > claim.applied:
        raise StateDamagedError(f"the anchor lies at turn {found.sequence}, the state only at {claim.applied}")
    return Anchor(found.sequence, found.offset, found.data)


def _blob(kind: BlobKind, claim: Claim, shape: Shape, at: Anchor) -> bytes:
    assert at.data is not None, "the zero anchor is where every memory starts; it is never committed"
    return StateBlob(
        kind=kind,
        fingerprint=claim.fingerprint,
        incarnation=claim.incarnation,
        sequence=at.sequence,
        offset=at.offset,
        shape=shape,
        data=at.data,
    ).encode()
