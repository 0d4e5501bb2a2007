"""One StreamTurns call: turns in, an acknowledgement for each out, in order."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from itertools import groupby

from memfold import telemetry
from memfold.api.convert import new_turn_from_message
from memfold.api.errors import (
    BacklogFullError,
    InvalidFieldError,
    MemfoldError,
    MemoryNotFoundError,
    ShuttingDownError,
    TenantMismatchError,
    TurnIdConflictError,
)
from memfold.api.v1 import memory_service_pb2 as pb
from memfold.api.values import MemoryName
from memfold.store import AppendedTurn, NewTurns
from memfold_gateway.appender import Appender
from memfold_gateway.guard import Guard, own_memory
from memfold_gateway.held import HeldMemories
from memfold_gateway.plain import plain_turn

# What the turn itself is to blame for: it is rejected and the stream goes on. Anything else, such as a store that
# does not answer, ends the stream. Were it only a rejection, later turns would overtake this one.
_REJECTIONS = (InvalidFieldError, TenantMismatchError, MemoryNotFoundError, TurnIdConflictError, BacklogFullError)
_MOST_TURNS = 128
_MOST_BYTES = 4 * 2**20
# A full backlog first holds the stream up, so that a client is slowed to the writer's pace; then turns are rejected.
_HOLD_S = 5.0


class _Entry:
    """A turn on its way, from its request to its response."""

    def __init__(self, request: pb.StreamTurnsRequest) -> None:
        self.request = request
        self.received = time.perf_counter()
        self.name: MemoryName | None = None
        self.turn: NewTurns | None = None
        # The response; None where a fault has kept it from coming.
        self.answered: asyncio.Future[pb.StreamTurnsResponse | None] = asyncio.get_running_loop().create_future()

    def accept(self, turn: AppendedTurn, incarnation: str) -> None:
        self.answered.set_result(
            pb.StreamTurnsResponse(
                memory=self.request.memory,
                appended=pb.AppendedTurn(id=turn.id, sequence=turn.sequence, duplicate=turn.duplicate),
                revision=f"{incarnation}.{turn.sequence}",
            )
        )

    def reject(self, error: MemfoldError) -> None:
        rejection = pb.TurnRejection(
            id=self.request.turn.id,
            reason=f"ERROR_REASON_{error.reason}",
            message=error.message,
            retry_after_ms=error.retry_after_ms,
        )
        self.answered.set_result(pb.StreamTurnsResponse(memory=self.request.memory, rejection=rejection))


class TurnStream:
    """Takes turns in as long as its window has room, and appends those that wait in one go.

    Turns of one memory keep their order: behind one that was turned away because too much waits, all others of its
    memory are turned away too, until the client sends that one again. When the window is full nothing more is read, so that gRPC's flow control
    slows the client down.
    """

    def __init__(self, appender: Appender, guard: Guard, tenant: str, stopping: asyncio.Event) -> None:
        self._appender = appender
        self._guard = guard
        self._tenant = tenant
        self._stopping = stopping
        self._window = _Window()
        self._held = HeldMemories()

    async def run(self, requests: AsyncIterator[pb.StreamTurnsRequest]) -> AsyncIterator[pb.StreamTurnsResponse]:
        """The responses to a stream of requests.

        Raises:
            MemfoldError: what ends the stream; turns that were not acknowledged may or may not be in the log.
        """
        tasks: set[asyncio.Task[None]] = set()
        try:
            tasks |= {asyncio.create_task(self._feed(requests)), asyncio.create_task(self._watch_stop())}
            while entries := await self._window.take():
                appending = asyncio.create_task(self._append(entries))
                tasks.add(appending)
                for entry in entries:
                    response = await entry.answered
                    if response is None:
                        break
                    telemetry.instruments().append_ack_seconds.record(time.perf_counter() - entry.received)
                    yield response
                await appending  # raises the fault
                tasks.discard(appending)
        finally:
            for task in tasks:
                task.cancel()

    async def _feed(self, requests: AsyncIterator[pb.StreamTurnsRequest]) -> None:
        end: BaseException | None = None
        try:
            async for request in requests:
                await self._window.put(_Entry(request), request.ByteSize())
        except Exception as error:  # noqa: BLE001  carried over to the task that answers
            end = error
        self._window.close(end)

    async def _watch_stop(self) -> None:
        await self._stopping.wait()
        self._window.close(ShuttingDownError("the server is stopping"))

    async def _append(self, entries: Sequence[_Entry]) -> None:
        """Answer every entry.

        Raises:
            BaseException: what has kept some from being answered.
        """
        hold_until = time.monotonic() + _HOLD_S
        groups: dict[MemoryName, list[_Entry]] = {}
        for entry in entries:
            if self._read(entry):
                assert entry.name is not None
                groups.setdefault(entry.name, []).append(entry)
        try:
            if len(groups) == 1:
                ((name, group),) = groups.items()
                await self._append_memory(name, group, hold_until)
            else:
                await self._append_groups(groups, hold_until)
        finally:
            for entry in entries:
                if not entry.answered.done():
                    entry.answered.set_result(None)

    async def _append_groups(self, groups: dict[MemoryName, list[_Entry]], hold_until: float) -> None:
        """Append to several memories side by side; a fault of one waits until the others are through."""
        appends = [self._append_memory(name, group, hold_until) for name, group in groups.items()]
        for fault in await asyncio.gather(*appends, return_exceptions=True):
            if fault is not None:
                raise fault

    def _read(self, entry: _Entry) -> bool:
        request = entry.request
        turn_id = request.turn.id or secrets.token_hex(16)
        try:
            turn = plain_turn(request, turn_id)
            if turn is None:
                self._guard.check(request)
                turn = NewTurns.of([new_turn_from_message(request.turn, turn_id)])
            entry.name = own_memory(request.memory, self._tenant)
            entry.turn = turn
        except _REJECTIONS as error:
            entry.reject(error)
        return entry.turn is not None

    async def _append_memory(self, name: MemoryName, entries: list[_Entry], hold_until: float) -> None:
        """Append turns of one memory in order; those that follow one another alike go in at once."""
        if self._held.holds(name):
            hold_until = 0.0  # it was waited for once; the stream's other memories are not kept waiting again
        admitted = []
        for entry in entries:
            held = self._held.admit(name, entry.request.turn)
            if held is None:
                admitted.append(entry)
            else:
                entry.reject(held)
        full: BacklogFullError | None = None
        for create, run in groupby(admitted, key=lambda entry: bool(entry.request.allow_missing)):
            full = await self._append_run(name, create, [*run], hold_until, full)

    async def _append_run(
        self, name: MemoryName, create: bool, entries: list[_Entry], hold_until: float, full: BacklogFullError | None
    ) -> BacklogFullError | None:
        """Append all at once, or where that is refused one by one, so that each has its own say.

        Once one has found the memory full, those behind it are turned away too: sent again, they keep their order.
        """
        if full is not None:
            for entry in entries:
                entry.reject(full)
            return full
        try:
            await self._append_turns(name, create, entries)
        except _REJECTIONS as error:
            if len(entries) > 1:
                for entry in entries:
                    full = await self._append_run(name, create, [entry], hold_until, full)
            elif isinstance(error, BacklogFullError) and time.monotonic() < hold_until:
                await asyncio.sleep(max(0.05, min(error.retry_after_ms / 1000, hold_until - time.monotonic())))
                return await self._append_run(name, create, entries, hold_until, full)
            else:
                if isinstance(error, BacklogFullError):
                    self._held.hold(name, entries[0].request.turn, error)
                    full = error
                entries[0].reject(error)
        return full

    async def _append_turns(self, name: MemoryName, create: bool, entries: list[_Entry]) -> None:
        turns = NewTurns.joined([entry.turn for entry in entries if entry.turn is not None])
        result = await self._appender.append(name, turns, create=create)
        for entry, turn in zip(entries, result.turns, strict=True):
            entry.accept(turn, result.revision.incarnation)


class _Window:
    """Turns that were received and not yet taken up: so many, and so many bytes of them."""

    def __init__(self) -> None:
        self._entries: deque[_Entry] = deque()
        self._bytes = 0
        self._end: BaseException | None = None
        self._closed = False
        self._filled = asyncio.Event()
        self._roomy = asyncio.Event()
        self._roomy.set()

    async def put(self, entry: _Entry, size: int) -> None:
        """Add a turn, when there is room; it is dropped once the window is closed."""
        await self._roomy.wait()
        if self._closed:
            return
        self._entries.append(entry)
        self._bytes += size
        if len(self._entries) >= _MOST_TURNS or self._bytes >= _MOST_BYTES:
            self._roomy.clear()
        self._filled.set()

    async def take(self) -> list[_Entry]:
        """Everything that waits, once there is something; empty at the end of the stream.

        Raises:
            BaseException: what the window was closed with, after the last turn.
        """
        await self._filled.wait()
        entries = list(self._entries)
        self._entries.clear()
        self._bytes = 0
        self._roomy.set()
        if not self._closed:
            self._filled.clear()
        if not entries and self._end is not None:
            raise self._end
        return entries

    def close(self, end: BaseException | None) -> None:
        """Nothing more comes. The first end counts."""
        if not self._closed:
            self._closed, self._end = True, end
        self._filled.set()
