"""Another model for a memory: it folds the same log while the present one serves, and takes over once it has caught up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memfold.api.errors import OperationConflictError, TurnQuarantinedError
from memfold.api.values import MemoryName, Operation, OperationKind, Revision
from memfold.store import keys
from memfold.store.jobs import Job
from memfold.store.operations import Operations
from memfold.store.server import Server

_LOOK_S = 0.25


class Rebuilding(Operations):
    """The operation that exchanges the model. Takes ``fingerprint``; that of the model which serves calls a rebuild off.

    What another rebuild has begun, a new one ends.
    """

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self._steps[OperationKind.REBUILD] = self._rebuild

    async def request_operation(
        self, name: MemoryName, kind: OperationKind | str, args: Mapping[str, Any], *, request_id: str = ""
    ) -> Operation:
        """As all operations are entered.

        Raises:
            ModelNotFoundError: a rebuild asks for a model that has never been registered.
        """
        if OperationKind(kind) is OperationKind.REBUILD:
            await self.model(args["fingerprint"])
        return await super().request_operation(name, kind, args, request_id=request_id)

    async def _rebuild(self, job: Job) -> float | None:
        match job.stage:
            case "":
                return await self._begin_rebuild(job)
            case "stopping":
                return await self._give_up(job)
        return await self._cut_over(job)

    async def _begin_rebuild(self, job: Job) -> float | None:
        wanted = (await self.model(job.request["fingerprint"])).fingerprint
        memory = await self.get_memory(job.memory)
        if memory.fingerprint == wanted:
            reached = await self._stop(job.memory, "")
            job.finish(fingerprint=wanted, replaced_fingerprint="", revision=str(reached))
            return None
        reply = await self._start(job, wanted)
        if reply[0] == b"OTHER":
            await self._stop(job.memory, "")
            return None
        await self._tell_partition(job.memory.partition, wanted)
        job.work |= {"replaced": memory.fingerprint, "until": int(reply[2])}
        job.go_to("folding", completed=0, total=int(reply[2]))
        return None

    async def _start(self, job: Job, wanted: str) -> list[bytes]:
        def with_wanted(name: MemoryName, fingerprint: str, _: str) -> tuple[str, ...]:
            return keys.both_lines(name, fingerprint, wanted)

        reply: list[bytes] = await self._on_memory(
            "rebuild_start",
            job.memory,
            wanted,
            keys.member(job.memory),
            job.id,
            durable=True,
            keys_of=with_wanted,
        )
        return reply

    async def _cut_over(self, job: Job) -> float | None:
        name, wanted = job.memory, job.request["fingerprint"]
        told = keys.member(name), keys.moved_channel(name.partition)
        reply = await self._on_memory("rebuild_cut_over", name, wanted, job.work["until"], *told, durable=True)
        match reply[0]:
            case b"OTHER":
                raise OperationConflictError(
                    f"the rebuild of {name} was called off, or another one has taken its place",
                    facts={"memory": str(name)},
                )
            case b"QUARANTINED":
                job.work |= {"quarantined": int(reply[1]), "reason": reply[2].decode()}
                job.go_to("stopping")
                return None
            case b"BEHIND":
                job.go_to("folding", completed=int(reply[1]), total=int(reply[2]))
                return _LOOK_S
        reached = Revision(reply[1].decode(), int(reply[2]))
        job.finish(fingerprint=wanted, replaced_fingerprint=job.work["replaced"], revision=str(reached))
        return None

    async def _give_up(self, job: Job) -> float | None:
        """A turn cannot be folded by the new model: whoever waits for it would wait for ever. The present one goes on."""
        await self._stop(job.memory, job.request["fingerprint"])
        sequence = job.work["quarantined"]
        raise TurnQuarantinedError(
            f"the new model cannot fold turn {sequence} of {job.memory} ({job.work['reason']}); skip or forget it, then "
            "rebuild again",
            facts={"memory": str(job.memory), "sequence": str(sequence)},
        )

    async def _stop(self, name: MemoryName, fingerprint: str) -> Revision:
        """The second model, or only this one, folds no more. Returns the state's revision under the first."""
        reply = await self._on_memory("rebuild_stop", name, keys.member(name), fingerprint, durable=True)
        return Revision(reply[1].decode(), int(reply[2]))
