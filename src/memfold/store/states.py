"""Reading states, the committed one and those that are kept from earlier; damage is noticed here, and mended."""

from __future__ import annotations

import logging
from typing import Any

from memfold import telemetry
from memfold.api.errors import RevisionAheadError, RevisionForeignError, RevisionNotKeptError, StateDamagedError
from memfold.api.values import KeptRevision, Memory, MemoryName, Revision
from memfold.store import keys
from memfold.store.blob import BlobKind, StateBlob, decode
from memfold.store.digests import state_digest
from memfold.store.history import nearest, read_history
from memfold.store.keys import memory_keys
from memfold.store.log import Log
from memfold.store.memories import memory_of
from memfold.store.values import START, ZERO_ANCHOR, Anchor, Kept, Place, State

_LOG = logging.getLogger(__name__)


class States(Log):
    """The states of a memory."""

    async def read_state(self, name: MemoryName) -> tuple[Memory, State | None]:
        """A memory and its state, as one consistent pair; None where no turn has been folded.

        Raises:
            MemoryNotFoundError: there is no such memory.
            StateDamagedError: the stored state is damaged. The newest kept one that is sound has taken its place, and
                what came later is being folded anew.
        """
        _, described, fence, at, made, digest, blob = await self._on_memory("read_state", name)
        memory = memory_of(name, described)
        if not digest:
            return memory, None
        try:
            found = _open(blob, BlobKind.STATE, memory.fingerprint, made.decode(), Place(int(at), 0), digest)
        except StateDamagedError as error:
            note_damage(f"the state of {name} at {memory.folded_revision}", error)
            await self._refold(memory, int(fence))
            raise _damaged(memory.name, memory.folded_revision, error) from error
        return memory, State(memory.folded_revision, memory.fingerprint, found.shape, found.data)

    async def read_open_block(self, name: MemoryName) -> tuple[Memory, Anchor | None]:
        """A memory and where its open block starts, as one consistent pair: for a fold beside the writer's.

        No anchor where the log is torn. Where the anchor is damaged, the log's beginning; the writer mends it.

        Raises:
            MemoryNotFoundError: there is no such memory.
        """
        _, described, told, digest, *blob = await self._on_memory("read_anchor", name)
        memory = memory_of(name, described)
        if not told:
            return memory, None
        place = Place.parse(told.decode())
        try:
            found = open_anchor(blob[0] if blob else None, memory.fingerprint, place, bytes.fromhex(digest.decode()))
        except StateDamagedError as error:
            note_damage(f"the anchor of {name} at {place}", error)
            return memory, ZERO_ANCHOR
        return memory, ZERO_ANCHOR if found is None else Anchor(found.sequence, found.offset, found.data)

    async def read_state_at(self, name: MemoryName, revision: Revision) -> tuple[Memory, State | None]:
        """A memory and the state that is kept at a revision; None at the very start.

        Raises:
            MemoryNotFoundError: there is no such memory.
            RevisionForeignError: the revision is of another incarnation.
            RevisionAheadError: it lies beyond the end of the log.
            RevisionNotKeptError: no state is kept there; ``before`` and ``after`` in the facts name the nearest that are.
            StateDamagedError: the state that was kept is damaged; it is kept no longer.
        """
        _, described, stored, blob = await self._on_memory("read_revision", name, revision.sequence)
        memory = memory_of(name, described)
        check_revision(memory, revision)
        if revision.sequence == 0:
            return memory, None
        if revision.sequence == memory.applied:
            return await self.read_state(name)
        known = read_history(stored)
        kept = next((one for one in known if one.sequence == revision.sequence), None)
        if kept is None:
            raise _not_kept(memory, revision, [one.sequence for one in known])
        try:
            found = open_state(blob, memory.fingerprint, kept)
        except StateDamagedError as error:
            note_damage(f"the state of {name} at {revision}", error)
            await self._drop_revision(name, stored, kept.sequence)
            raise _damaged(name, revision, error) from error
        return memory, State(revision, memory.fingerprint, found.shape, found.data)

    async def list_revisions(self, name: MemoryName, *, fingerprint: str = "") -> list[KeptRevision]:
        """The revisions at which a state is kept, the newest first; of the model that serves, or of another that folds.

        Raises:
            MemoryNotFoundError: there is no such memory.
        """
        _, described, *stored = await self._on_memory("revisions", name)
        memory = memory_of(name, described)
        lines = dict(zip((memory.fingerprint, memory.building), stored, strict=False))
        chosen = fingerprint or memory.fingerprint
        return [
            KeptRevision(
                revision=Revision(memory.incarnation, kept.sequence),
                fingerprint=chosen,
                log_digest=kept.log_digest,
                state_digest=kept.state_digest,
                commit_ms=kept.ms,
            )
            for kept in reversed(read_history(lines.get(chosen, [])))
        ]

    async def _refold(self, memory: Memory, fence: int) -> None:
        """Take the line that serves back to the newest kept revision that is sound, unless it has moved meanwhile."""
        line = memory_keys(memory.name, memory.fingerprint)
        limit = await self._newest_sound(memory, line.history, line.revisions)
        member = keys.member(memory.name)
        await self._server.run(
            "refold", line, memory.fingerprint, memory.incarnation, memory.applied, fence, limit, member
        )

    async def _newest_sound(self, memory: Memory, history: str, revisions: str) -> int:
        known = read_history(await self._server.command("HGETALL", revisions))
        for kept in reversed([one for one in known if one.sequence < memory.applied]):
            fields = str(kept.sequence), f"@{kept.anchor}"
            blob, anchor = await self._server.command("HMGET", history, *fields)
            try:
                open_state(blob, memory.fingerprint, kept)
                open_anchor(anchor, memory.fingerprint, kept.anchor, kept.anchor_digest)
            except StateDamagedError as error:
                note_damage(f"what is kept of {memory.name} at {kept.sequence}", error)
            else:
                return kept.sequence
        return 0

    async def _drop_revision(self, name: MemoryName, stored: Any, sequence: int) -> None:
        known = stored if isinstance(stored, dict) else dict(zip(stored[::2], stored[1::2], strict=True))
        await self._on_memory("drop_revision", name, sequence, known[str(sequence).encode()])


def open_state(blob: bytes | None, fingerprint: str, kept: Kept) -> StateBlob:
    """Read the state of a kept revision.

    Raises:
        StateDamagedError: it is not what was kept.
    """
    return _open(blob, BlobKind.STATE, fingerprint, kept.made, Place(kept.at, 0), kept.state_digest.hex().encode())


def open_anchor(blob: bytes | None, fingerprint: str, place: Place, digest: bytes) -> StateBlob | None:
    """Read the anchor at a place; None stands for the zero state at the very start.

    Raises:
        StateDamagedError: it is not what was put there.
    """
    if place == START:
        return None
    return _open(blob, BlobKind.ANCHOR, fingerprint, None, place, digest.hex().encode())


def note_damage(what: str, error: StateDamagedError) -> None:
    """Log and count it."""
    _LOG.error("%s is damaged: %s", what, error)
    telemetry.instruments().states_damaged.add(1)


def check_revision(memory: Memory, revision: Revision) -> None:
    """Make sure that a revision is one of this memory's log.

    Raises:
        RevisionForeignError: it is of another incarnation.
        RevisionAheadError: it lies beyond the end of the log.
    """
    facts = {"revision": str(memory.revision)}
    if revision.incarnation != memory.incarnation:
        raise RevisionForeignError(f"revision {revision} is of another incarnation of {memory.name}", facts=facts)
    if revision.sequence > memory.head:
        raise RevisionAheadError(
            f"revision {revision} lies beyond the log, which ends at {memory.revision}", facts=facts
        )


def _open(
    blob: bytes | None, kind: BlobKind, fingerprint: str, made: str | None, place: Place, digest: bytes
) -> StateBlob:
    if blob is None:
        raise StateDamagedError("the blob is missing")
    found = decode(blob, kind=kind, fingerprint=fingerprint, incarnation=made)
    if (found.sequence, found.offset) != place:
        raise StateDamagedError(f"the blob is that of {found.sequence}.{found.offset}, not of {place}")
    if state_digest(found.data).hex().encode() != digest:
        raise StateDamagedError("the state in the blob is not the one that was committed")
    return found


def _damaged(name: MemoryName, revision: Revision, error: StateDamagedError) -> StateDamagedError:
    return StateDamagedError(
        f"the state of {name} at {revision} is damaged ({error}); an earlier one takes its place",
        facts={"memory": str(name), "revision": str(revision)},
        retry_after_ms=1000,
    )


def _not_kept(memory: Memory, revision: Revision, kept: list[int]) -> RevisionNotKeptError:
    before, after = nearest([0, *kept], revision.sequence)
    facts = {
        side: str(Revision(memory.incarnation, sequence))
        for side, sequence in (("before", before), ("after", after))
        if sequence is not None
    }
    return RevisionNotKeptError(f"no state is kept at {revision} of {memory.name}", facts=facts)
