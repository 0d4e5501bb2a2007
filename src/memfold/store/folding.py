"""Folding: who may fold what, from where, and how the result gets in."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Sequence
from typing import Any

from memfold.api.errors import StateDamagedError
from memfold.api.values import PARTITIONS, MemoryName, Policy
from memfold.store import keys
from memfold.store.blob import BlobKind, StateBlob
from memfold.store.digests import EMPTY_LOG, state_digest
from memfold.store.history import read_history, thin, thin_anchors
from memfold.store.keys import memory_keys
from memfold.store.server import Call, Server
from memfold.store.states import States, note_damage, open_anchor, open_state
from memfold.store.values import START, ZERO_ANCHOR, Anchor, Backlog, Claim, Place, Shape

_LOG = logging.getLogger(__name__)

_SWEEP_S = 10


class Folding(States):
    """States: claimed, folded elsewhere, committed."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self._next_sweep: dict[str, float] = {}

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
        for name, reply in zip(names, replies, strict=True):
            if reply and reply[0] == b"TORN":
                _LOG.critical(
                    "the log of %s holds %d entries, not %d: nothing is folded", name, reply[1], int(reply[2])
                )
        return [
            _claim(name, fingerprint, reply[1:])
            for name, reply in zip(names, replies, strict=True)
            if reply and reply[0] == b"OK"
        ]

    async def read_anchor(self, claim: Claim) -> Anchor:
        """Where the open block of a claimed memory starts.

        A damaged anchor is removed and the zero anchor given: the fold then starts from the log's beginning.
        """
        line = memory_keys(claim.name, claim.fingerprint)
        blob = await self._server.command("HGET", line.history, f"@{claim.anchor}") if claim.anchor != START else None
        try:
            found = open_anchor(blob, claim.fingerprint, claim.anchor, claim.anchor_digest)
        except StateDamagedError as error:
            note_damage(f"the anchor of {claim.name} at {claim.anchor}", error)
            place = str(claim.anchor)
            await self._server.run("drop_anchor", line, claim.fingerprint, claim.incarnation, claim.fence, place)
            return ZERO_ANCHOR
        return ZERO_ANCHOR if found is None else Anchor(found.sequence, found.offset, found.data)

    async def read_claimed(self, claim: Claim) -> bytes | None:
        """The state that a claim goes on from, fp32; None where there is none, or somebody has gone on with it already.

        Also where it is damaged: replaying the open block from its anchor makes it again.
        """
        kept = next((one for one in claim.history if one.sequence == claim.applied), None)
        if kept is None:
            return None
        blob = await self._server.command("GET", memory_keys(claim.name, claim.fingerprint).state)
        try:
            return open_state(blob, claim.fingerprint, kept).data
        except StateDamagedError:
            return None

    async def commit(
        self,
        claim: Claim,
        *,
        applied: int,
        at: int,
        state: bytes,
        shape: Shape,
        anchor: Anchor | None,
        log_digest: bytes,
        keep_last: int | None = None,
        attempts: int = 0,
    ) -> bool:
        """Commit the state of revision ``applied``, if nothing has come between.

        Turns that came in meanwhile leave the memory due at once. False: the claim was lost, throw the result away.
        Not confirmed as durable beyond what the server does by itself: a lost state is folded anew from the log.

        Args:
            claim: by what right.
            applied: the revision that is reached: ``claim.head`` where the log's end is.
            at: the last turn that the state holds.
            state: fp32, little-endian.
            shape: of the state.
            anchor: where the open block starts; None leaves it where ``read_anchor`` said.
            log_digest: ``claim.log_digest`` continued over the log's entries up to ``applied``.
            keep_last: how many of the newest revisions to keep; what the memory's policy says by default.
            attempts: so many count on, for a memory that is still suspected.
        """
        assert claim.applied < applied, (claim, applied)
        keep = claim.keep_last if keep_last is None else keep_last
        dropped = thin(claim.kept, applied, keep)
        place = None if anchor is None else Place(anchor.sequence, anchor.offset)
        anchors = thin_anchors(claim.history, dropped, place or claim.anchor)
        committed = await self._server.run(
            "commit",
            memory_keys(claim.name, claim.fingerprint),
            claim.fingerprint,
            claim.incarnation,
            claim.applied,
            claim.fence,
            applied,
            at,
            _blob(BlobKind.STATE, claim, shape, Place(at, 0), state),
            len(state),
            state_digest(state).hex(),
            log_digest.hex(),
            *_anchor(claim, shape, anchor),
            keys.member(claim.name),
            keys.moved_channel(claim.name.partition),
            attempts,
            len(dropped),
            *dropped,
            *(f"@{one}" for one in anchors),
        )
        return bool(committed)

    async def quarantine(self, claim: Claim, *, sequence: int, reason: str) -> None:
        """Stop folding a claimed memory: the turn ``sequence`` cannot be folded. Readers go on with what there is.

        Ends with ``skip_turn``, with forgetting, with rolling back, or with another model. ``reason`` quotes no turn.
        """
        await self._server.run(
            "quarantine",
            memory_keys(claim.name, claim.fingerprint),
            claim.fingerprint,
            claim.incarnation,
            claim.fence,
            sequence,
            reason,
            keys.member(claim.name),
        )

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


def _claim(name: MemoryName, fingerprint: str, reply: Sequence[Any]) -> Claim:
    incarnation, applied, head, fence, attempts, log_digest, state, at, anchor, anchor_digest, policy, stored = reply
    return Claim(
        name=name,
        fingerprint=fingerprint,
        incarnation=incarnation.decode(),
        applied=int(applied),
        head=int(head),
        fence=int(fence),
        attempts=int(attempts),
        log_digest=bytes.fromhex(log_digest.decode()) or EMPTY_LOG,
        state_digest=bytes.fromhex(state.decode()),
        at=int(at),
        anchor=Place.parse(anchor.decode()),
        anchor_digest=bytes.fromhex(anchor_digest.decode()),
        history=read_history(stored),
        keep_last=Policy.from_json(policy).keep_last,
    )


def _anchor(claim: Claim, shape: Shape, anchor: Anchor | None) -> tuple[str, bytes, str]:
    """Place, blob and digest of a new anchor, as the script takes them."""
    if anchor is None:
        return "", b"", ""
    assert anchor.data is not None, "the zero anchor is where every memory starts; it is never committed"
    place = Place(anchor.sequence, anchor.offset)
    return str(place), _blob(BlobKind.ANCHOR, claim, shape, place, anchor.data), state_digest(anchor.data).hex()


def _blob(kind: BlobKind, claim: Claim, shape: Shape, place: Place, data: bytes) -> bytes:
    return StateBlob(
        kind=kind,
        fingerprint=claim.fingerprint,
        incarnation=claim.incarnation,
        sequence=place.sequence,
        offset=place.offset,
        shape=shape,
        data=data,
    ).encode()
