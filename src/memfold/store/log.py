"""The log of a memory: turns in the server's order. It is the truth; all else can be made from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memfold.api.errors import BacklogFullError, InvalidFieldError, MemoryNotFoundError, TurnIdConflictError
from memfold.api.values import MemoryName, Revision, Turn
from memfold.store import keys
from memfold.store.memories import Memories, new_incarnation, token
from memfold.store.part import missing
from memfold.store.server import Argument
from memfold.store.values import AppendedTurn, AppendResult

_BACKLOG_RETRY_MS = 1000


class Log(Memories):
    """Appending and reading turns."""

    async def append(
        self,
        name: MemoryName,
        turns: Sequence[Turn],
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
        given = [value for turn in turns for value in (turn.id, turn.to_bytes(), len(turn.content.encode()))]
        try:
            reply = await self._append(name, given, expected, backlog)
        except MemoryNotFoundError:
            if not create or expected is not None:
                raise
            reply = await self._append_to_new(name, given, backlog)
        result = _result(self._guess(name), turns, reply)
        if result.behind:
            await self._tell_partition(name.partition, result.fingerprint)
        return result

    async def read_turns(
        self, name: MemoryName, *, after: int = 0, limit: int = 1000, max_bytes: int = 0
    ) -> list[Turn]:
        """At most ``limit`` turns behind the sequence ``after``, ascending.

        ``max_bytes`` (0: any) bounds their bytes in the store; the first of them comes in any case.

        Raises:
            MemoryNotFoundError: there is no such memory.
        """
        return await self._read(name, after + 1, 0, limit, max_bytes, "")

    async def read_tail(self, name: MemoryName, *, until: int, limit: int) -> list[Turn]:
        """The newest ``limit`` turns up to the sequence ``until``, ascending.

        Raises:
            MemoryNotFoundError: there is no such memory.
        """
        if until < 1:
            await self.get_memory(name)
            return []
        return (await self._read(name, 1, until, limit, 0, "newest"))[::-1]

    async def _append(
        self, name: MemoryName, given: Sequence[Argument], expected: Revision | None, backlog: int
    ) -> list[Any]:
        def args(fingerprint: str) -> tuple[Argument, ...]:
            return fingerprint, token(expected), backlog, "", keys.member(name), *given

        return _accepted(await self._on_memory("append", name, args, durable=True))

    async def _append_to_new(self, name: MemoryName, given: Sequence[Argument], backlog: int) -> list[Any]:
        """Create the memory and append to it in one script; another caller may create it first."""
        default = (await self.default_model()).fingerprint
        incarnation = new_incarnation()

        def args(fingerprint: str) -> tuple[Argument, ...]:
            return fingerprint, "", backlog, incarnation, keys.member(name), *given

        await self._index(name, incarnation)
        reply = await self._on_memory("append", name, args, durable=True, guess=default)
        if reply[0] != b"OK" or reply[1].decode() != incarnation:
            await self._unindex(name, incarnation)
        return _accepted(reply)

    async def _read(self, name: MemoryName, *args: Argument) -> list[Turn]:
        reply = await self._server.run("read_turns", self._keys(name), *args)
        if reply[0] == b"MISSING":
            raise missing(name)
        return [_turn(entry) for entry in reply[1:]]


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


def _result(fingerprint: str, turns: Sequence[Turn], reply: Sequence[Any]) -> AppendResult:
    _, incarnation, last, marked, placed = reply
    return AppendResult(
        revision=Revision(incarnation.decode(), int(last)),
        turns=tuple(
            AppendedTurn(id=turn.id, sequence=int(placed[2 * at]), duplicate=placed[2 * at + 1] == 1)
            for at, turn in enumerate(turns)
        ),
        behind=marked == 1,
        fingerprint=fingerprint,
    )


def _turn(entry: Sequence[Any]) -> Turn:
    entry_id, fields = entry
    return Turn.from_bytes(fields[1], sequence=int(entry_id.split(b"-")[0]), append_ms=int(fields[3]))
