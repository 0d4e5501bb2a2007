"""Operations: work on a memory that may take longer than a call, and goes on wherever it was left."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from memfold.api.errors import (
    BacklogFullError,
    MemfoldError,
    NotDurableError,
    OperationConflictError,
    OperationNotFoundError,
    StoreUnavailableError,
)
from memfold.api.values import PARTITIONS, MemoryName, Operation, OperationKind
from memfold.store import keys
from memfold.store.jobs import Job
from memfold.store.keys import operation_entry, operation_keys
from memfold.store.part import missing
from memfold.store.server import Server
from memfold.store.waiting import Waiting

LEASE_MS = 20_000
"""How long nothing is heard of whoever takes a step before somebody else takes over."""

_RENEW_S = 5.0

KEPT = 100
"""So many operations of a memory are kept; of those that have ended, the oldest go first."""

_TRIES = 10
_TOLD = "operations"

Step = Callable[[Job], Awaitable[float | None]]
"""One step of an operation, fit to be taken again. Returns when to go on: None at once, else after so many seconds."""


class Operations(Waiting):
    """Asking for operations, looking at them, going on with them. The kinds enter their steps."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self._steps: dict[OperationKind, Step] = {}
        self._held: dict[tuple[MemoryName, str], tuple[str, Job]] = {}

    async def request_operation(
        self, name: MemoryName, kind: OperationKind | str, args: Mapping[str, Any], *, request_id: str = ""
    ) -> Operation:
        """Enter an operation, durably; ``advance`` carries it out, here or elsewhere.

        Args:
            name: the memory that it works on.
            kind: what to do.
            args: how; the kinds say what they take. JSON.
            request_id: the same again is the same operation, and its present state the answer.

        Raises:
            MemoryNotFoundError: there is no such memory.
            OperationConflictError: the request id was used for something else.
            BacklogFullError: too many operations of this memory are under way.
        """
        operation_id = _operation_id(name, request_id)
        job, holder = Job.new(operation_id, name, OperationKind(kind), args), secrets.token_hex(8)
        entry = operation_entry(name, operation_id)
        said = job.where(), job.record()
        status, *stored = await self._server.write(
            "operation_request", operation_keys(name), operation_id, entry, holder, LEASE_MS, *said, KEPT
        )
        match status:
            case b"MISSING":
                raise missing(name)
            case b"FULL":
                raise BacklogFullError(
                    f"{int(stored[0])} operations of {name} are under way",
                    facts={"memory": str(name)},
                    retry_after_ms=1000,
                )
        found = Job.read(operation_id, name, *stored)
        if not _same(found, job):
            raise OperationConflictError(
                f"the request id {request_id!r} was used for another operation", facts={"operation": operation_id}
            )
        if status == b"OK":
            self._held[name, operation_id] = holder, found
            await self._tell_partition(name.partition, _TOLD)
        return found.operation()

    async def get_operation(self, name: MemoryName, operation_id: str) -> Operation:
        """Look an operation up.

        Raises:
            OperationNotFoundError: there is none of this id; operations are gone with their memory.
        """
        return (await self._read_job(name, operation_id)).operation()

    async def list_operations(self, name: MemoryName, *, after: str = "", limit: int = 50) -> list[Operation]:
        """At most ``limit`` operations of a memory, the newest first, strictly behind the one with the id ``after``."""
        at = operation_keys(name)
        stored, records = await self._server.commands([("HGETALL", at.ops), ("HGETALL", at.records)])
        listed = [
            Job.read(key.decode(), name, value, records[key]).operation()
            for key, value in stored.items()
            if key in records
        ]
        listed.sort(key=lambda one: (one.create_ms, one.id), reverse=True)
        start = next((at + 1 for at, one in enumerate(listed) if one.id == after), 0)
        return listed[start : start + limit]

    async def due_operations(self, limit: int) -> list[tuple[MemoryName, str]]:
        """Operations that somebody should go on with now, the longest overdue first."""
        entries = await self._due(_TOLD, keys.operations_due, limit)
        return [keys.operation_of(entry) for entry in entries]

    async def advance(self, name: MemoryName, operation_id: str, *, until: float) -> Operation:
        """Go on with an operation until it is done, has to wait, or the event loop's clock has reached ``until``.

        Does nothing where somebody else is at it. One step is taken in any case.

        Raises:
            OperationNotFoundError: there is no such operation, or no more.
            StoreUnavailableError: it stands where it stood and goes on when it is due again.
        """
        held = self._held.pop((name, operation_id), None)
        holder, job = held or await self._lease(name, operation_id)
        clock = asyncio.get_running_loop().time
        while holder and not job.done:
            async with self._holding(job, holder):
                delay_s = await self._step(job)
            late = clock() >= until
            if delay_s is None and late:
                delay_s = 0.0
            job, ours = await self._save(job, holder, delay_s)
            if delay_s is not None or not ours:
                break
        return job.operation()

    async def hold_operation(self, name: MemoryName, operation_id: str, *, lease_s: float, holder: str = "") -> str:
        """Keep others from going on with an operation while something that it waits for is done outside.

        Returns:
            the holder's token, to hold it for longer with; empty: somebody else is at it, or it is done.

        Raises:
            OperationNotFoundError: there is no such operation, or no more.
        """
        holder, _ = await self._lease(name, operation_id, round(lease_s * 1000), holder)
        return holder

    @contextlib.asynccontextmanager
    async def operations_left(self) -> AsyncIterator[asyncio.Event]:
        """An event that is set when somebody leaves an operation for others to go on with at once. May be lost."""
        async with self._ear.listen(keys.LEFT_CHANNEL, keys.LEFT) as left:
            yield left

    @contextlib.asynccontextmanager
    async def _holding(self, job: Job, holder: str) -> AsyncIterator[None]:
        """Renew the lease for as long as a step takes: else nobody would ever finish one that takes longer."""

        async def renew() -> None:
            fence = job.fence
            while fence == job.fence:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), _RENEW_S)
                    return
                with contextlib.suppress(StoreUnavailableError, OperationNotFoundError):
                    fence = (await self._lease(job.memory, job.id, holder=holder))[1].fence

        ended = asyncio.Event()
        renewing = asyncio.create_task(renew())
        try:
            yield
        finally:
            ended.set()
            await renewing

    async def _read_job(self, name: MemoryName, operation_id: str) -> Job:
        at = operation_keys(name)
        stored, record = await self._server.commands(
            [("HGET", at.ops, operation_id), ("HGET", at.records, operation_id)]
        )
        if stored is None or record is None:
            raise _not_found(name, operation_id)
        return Job.read(operation_id, name, stored, record)

    async def _step(self, job: Job) -> float | None:
        try:
            delay_s = await self._steps[job.kind](job)
        except (StoreUnavailableError, NotDurableError):
            raise
        except MemfoldError as error:
            tries = int(job.work.get("tries", 0)) + 1
            if not error.retry_after_ms or tries > _TRIES:
                job.fail(error)
                return None
            job.work["tries"] = tries
            return error.retry_after_ms / 1000
        job.work.pop("tries", None)
        return delay_s

    async def _lease(self, name: MemoryName, operation_id: str, lease_ms: int = 0, holder: str = "") -> tuple[str, Job]:
        """The right to go on, as the holder's token, and the operation; no token where somebody else has it."""
        holder = holder or secrets.token_hex(8)
        entry = operation_entry(name, operation_id)
        status, *stored = await self._server.run(
            "operation_lease", operation_keys(name), operation_id, entry, holder, lease_ms or LEASE_MS
        )
        if status == b"MISSING":
            raise _not_found(name, operation_id)
        return holder if status == b"OK" else "", Job.read(operation_id, name, *stored)

    async def _save(self, job: Job, holder: str, delay_s: float | None) -> tuple[Job, bool]:
        """Note how far it has come; also whether it is still ours to go on with. What has not changed is not written again."""
        how: tuple[str, int] = ("hold", LEASE_MS) if delay_s is None else ("wait", round(delay_s * 1000))
        if job.done:
            how = ("done", 0)
        entry, record = operation_entry(job.memory, job.id), job.record()
        said = job.where(), "" if record == job.stored else record
        status, *stored = await self._server.write(
            "operation_save",
            operation_keys(job.memory),
            job.id,
            entry,
            job.fence,
            holder,
            *said,
            *how,
            keys.LEFT_CHANNEL,
            keys.LEFT,
        )
        if status == b"MISSING":
            raise _not_found(job.memory, job.id)
        return Job.read(job.id, job.memory, *stored), status == b"OK"

    async def _due(self, told: str, key: Callable[[int], str], limit: int) -> list[bytes]:
        """Entries of a kind of sorted set that are due, over the partitions that were told of, now and then over all."""
        now = await self._server.now_ms()
        sweeping = self._sweep_is_due(told)
        watched = range(PARTITIONS) if sweeping else await self._told_partitions(told)
        found = await self._server.commands(
            [("ZRANGEBYSCORE", key(at), "-inf", now, "WITHSCORES", "LIMIT", 0, limit) for at in watched]
        )
        due = sorted(
            (float(score), entry, at) for at, pairs in zip(watched, found, strict=True) for entry, score in pairs
        )
        if sweeping and due:
            await self._server.command("SADD", keys.partitions(told), *{at for _, _, at in due})
        return [entry for _, entry, _ in due[:limit]]


def _operation_id(name: MemoryName, request_id: str) -> str:
    if not request_id:
        return secrets.token_hex(12)
    return hashlib.sha256(f"{name}\0{request_id}".encode()).hexdigest()[:24]


def _same(found: Job, asked: Job) -> bool:
    """Whether a request is the one that was entered. What has been wiped from a record cannot be compared any more."""
    wiped = set(found.request.get("wiped", ()))
    there = {key: value for key, value in found.request.items() if key not in wiped and key != "wiped"}
    given = {key: value for key, value in asked.request.items() if key not in wiped}
    return found.kind is asked.kind and there == given


def _not_found(name: MemoryName, operation_id: str) -> OperationNotFoundError:
    return OperationNotFoundError(
        f"{name} has no operation {operation_id!r}", facts={"memory": str(name), "operation": operation_id}
    )
