"""The log of a memory: turns in the server's order. It is the truth; all else can be made from it."""

from __future__ import annotations

import secrets
import struct
from collections.abc import Container, Sequence
from typing import Any

from memfold.api.errors import (
    BacklogFullError,
    InvalidFieldError,
    MemoryNotFoundError,
    TurnFoldedError,
    TurnIdConflictError,
    TurnNotFoundError,
)
from memfold.api.values import MemoryName, Revision, Role, Turn
from memfold.store import keys
from memfold.store.digests import NONCE_BYTES
from memfold.store.memories import Memories, new_incarnation, token
from memfold.store.new_turns import NewTurns
from memfold.store.packing import packed, packed_random
from memfold.store.part import Lines, missing
from memfold.store.server import Argument
from memfold.store.values import AppendResult

_BACKLOG_RETRY_MS = 1000


class Log(Memories):
    """Appending and reading turns."""

    async def append(
        self,
        name: MemoryName,
        turns: Sequence[Turn] | NewTurns,
        *,
        expected: Revision | None = None,
        create: bool = False,
        backlog: int = 0,
    ) -> AppendResult:
        """Append turns, all or none; durable when it returns. A turn that is in the log already changes nothing.

        Args:
            name: the memory.
            turns: in order, each with an id; at least one.
            expected: fail unless the log stands here. Not looked at where every turn is in the log already.
            create: create the memory where there is none; not together with ``expected``, which such a memory cannot meet.
            backlog: so many turns may wait to be folded; 0 for no limit.

        Raises:
            MemoryNotFoundError: there is no such memory.
            TurnIdConflictError: an id is in the log, or earlier in ``turns``, with other content.
            RevisionMismatchError: the log is not at ``expected``.
            BacklogFullError: too many turns wait.
            NotDurableError: written, but not confirmed; append the same turns again.
            ModelLoadingError: the memory would have to be created, and no model has been registered yet.
        """
        if not turns:
            raise InvalidFieldError("turns", "at least one turn is needed")
        new = turns if isinstance(turns, NewTurns) else NewTurns.of(turns)
        given = _arguments(new)
        try:
            reply = await self._append(name, given, expected, backlog)
        except MemoryNotFoundError:
            if not create or expected is not None:
                raise
            reply = await self._append_to_new(name, given, backlog)
        lines = self._guess(name)
        result = _result(lines.fingerprint, new.ids, reply)
        if result.behind:
            await self._tell_partition(name.partition, lines.fingerprint)
        if reply[4]:
            await self._tell_partition(name.partition, lines.building)
        return result

    async def read_turns(
        self, name: MemoryName, *, after: int = 0, limit: int = 1000, max_bytes: int = 0
    ) -> list[Turn]:
        """At most ``limit`` log entries behind the sequence ``after``, ascending: turns, and notes to pass over some.

        ``max_bytes`` (0: any) bounds their bytes in the store; the first of them comes in any case.

        Raises:
            MemoryNotFoundError: there is no such memory.
        """
        return await self._read(name, after + 1, 0, limit, max_bytes, "")

    async def read_tail(self, name: MemoryName, *, until: int, limit: int) -> list[Turn]:
        """The newest turns up to the sequence ``until``, at most ``limit``, ascending; none only where there is none.

        Raises:
            MemoryNotFoundError: there is no such memory.
        """
        if until < 1:
            await self.get_memory(name)
            return []
        while True:
            entries = await self._read(name, 1, until, limit, 0, "newest")
            turns = [entry for entry in reversed(entries) if not entry.skips]
            if turns or not entries:
                return turns
            until = entries[-1].sequence - 1

    async def skip_turn(self, name: MemoryName, sequence: int) -> Revision:
        """Say in the log that a turn is not to be folded; ends a quarantine. Skipping it again changes nothing.

        Returns:
            the revision of the log with the entry that says so.

        Raises:
            MemoryNotFoundError: there is no such memory.
            TurnNotFoundError: the log holds no turn of this number.
            TurnFoldedError: it is in a state already; it can be forgotten.
            NotDurableError: written, but not confirmed; skip it again.
        """
        nonce = secrets.token_bytes(NONCE_BYTES)
        reply = await self._on_memory("skip", name, sequence, nonce, keys.member(name), durable=True)
        match reply[0]:
            case b"NO_TURN":
                raise TurnNotFoundError(f"{name} has no turn {sequence}", facts={"sequence": str(sequence)})
            case b"FOLDED":
                raise TurnFoldedError(
                    f"turn {sequence} of {name} has been folded; forget it instead", facts={"sequence": str(sequence)}
                )
        for fingerprint in filter(None, self._guess(name)):
            await self._tell_partition(name.partition, fingerprint)
        return Revision(reply[1].decode(), int(reply[2]))

    async def _append(
        self, name: MemoryName, given: Sequence[Argument], expected: Revision | None, backlog: int
    ) -> list[Any]:
        said = token(expected), backlog, "", keys.member(name)
        reply = await self._on_memory("append", name, *said, *given, durable=True, keys_of=keys.hot_keys)
        return _accepted(reply)

    async def _append_to_new(self, name: MemoryName, given: Sequence[Argument], backlog: int) -> list[Any]:
        """Create the memory and append to it in one script; another caller may create it first."""
        default = Lines((await self.default_model()).fingerprint)
        incarnation = new_incarnation()
        said = "", backlog, incarnation, keys.member(name)
        await self._index(name, incarnation)
        reply = await self._on_memory("append", name, *said, *given, durable=True, guess=default, keys_of=keys.hot_keys)
        if reply[0] != b"OK" or reply[1].decode() != incarnation:
            await self._unindex(name, incarnation)
        return _accepted(reply)

    async def _read(self, name: MemoryName, *args: Argument) -> list[Turn]:
        reply = await self._server.run("read_turns", keys.hot_keys(name, "", "")[:2], *args)
        if reply[0] == b"MISSING":
            raise missing(name)
        skipped = {int(pair.split(b":")[0]) for pair in reply[1].split(b",") if pair}
        return [_entry(entry, skipped) for entry in reply[2:]]


def _arguments(turns: NewTurns) -> list[Argument]:
    """What the script takes of the turns."""
    many = len(turns)
    return [
        packed([*map(str.encode, turns.ids)]),
        packed(turns.said),
        packed_random(many, NONCE_BYTES),
        struct.pack(f">{many}I", *turns.content_bytes),
        sum(turns.content_bytes),
        "distinct" if len(set(turns.ids)) == many else "",
    ]


def _accepted(reply: list[Any]) -> list[Any]:
    match reply[0]:
        case b"CONFLICT":
            turn_id = reply[1].decode()
            raise TurnIdConflictError(
                f"turn {turn_id!r} is in the log with other content",
                facts={"turn_id": turn_id, "sequence": str(int(reply[2]))},
            )
        case b"BACKLOG":
            lag = int(reply[1])
            raise BacklogFullError(
                f"{lag} turns wait to be folded", facts={"lag_turns": str(lag)}, retry_after_ms=_BACKLOG_RETRY_MS
            )
    return reply


def _result(fingerprint: str, ids: Sequence[str], reply: Sequence[Any]) -> AppendResult:
    _, incarnation, last, marked, _, told = reply
    reached = int(last)
    placed = told.split()  # nothing where all of them are new
    return AppendResult(
        revision=Revision(incarnation.decode(), reached),
        ids=ids,
        sequences=[*map(int, placed[::2])] or range(reached - len(ids) + 1, reached + 1),
        duplicates=[known == b"1" for known in placed[1::2]] or [False] * len(ids),
        behind=marked == 1,
        fingerprint=fingerprint,
    )


def _entry(entry: Sequence[Any], skipped: Container[int]) -> Turn:
    entry_id, (kind, said, _, ms, _, nonce) = entry
    sequence = int(entry_id.split(b"-")[0])
    if kind == b"skip":
        return Turn("", Role.SYSTEM, "", sequence=sequence, append_ms=int(ms), nonce=nonce, skips=int(said))
    return Turn.from_bytes(said, sequence=sequence, append_ms=int(ms), nonce=nonce, skipped=sequence in skipped)
