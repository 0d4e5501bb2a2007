"""Proof that a memory is what its log makes of it: the chain of digests here, the state itself by whoever has the model."""

from __future__ import annotations

import base64
from collections.abc import Mapping

from memfold.api.errors import OperationNotFoundError
from memfold.api.values import KeptRevision, MemoryName, Operation, OperationKind, Revision
from memfold.store.digests import EMPTY_LOG, chain
from memfold.store.jobs import Job
from memfold.store.operations import Operations
from memfold.store.server import Server

_PAGE = 1000
_PAGE_BYTES = 4_000_000
_LOOK_S = 0.25

REFOLD = "refold"
"""The stage at which somebody with the model folds the log again, and tells ``finish_verify``."""


class Verifying(Operations):
    """The operation that checks a memory against its log. Takes nothing."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self._steps[OperationKind.VERIFY] = self._verify

    async def finish_verify(
        self, name: MemoryName, operation_id: str, *, ok: bool, relative_error: float, state_matches: bool = True
    ) -> Operation:
        """Tell how the state compares with the one folded again; ends the operation, whoever holds its lease.

        Args:
            name: the memory.
            operation_id: of an operation at the stage ``refold``.
            ok: the states agree.
            relative_error: how far they are apart, relative to the norm.
            state_matches: the stored state's bytes have the digest that was noted with them.

        Raises:
            OperationNotFoundError: there is no such operation, it is none of this kind, or it is not at that stage.
        """
        while True:
            job = await self._read_job(name, operation_id)
            if job.kind is not OperationKind.VERIFY or (job.stage != REFOLD and not job.done):
                raise OperationNotFoundError(
                    f"{name} has no verification {operation_id!r} that waits for a state",
                    facts={"operation": operation_id},
                )
            if job.done:
                return job.operation()
            said = job.work["receipt"]
            everything = bool(ok and state_matches and said["log_matches"])
            job.finish(**{**said, "ok": everything, "state_matches": state_matches, "relative_error": relative_error})
            saved, _ = await self._save(job, "-", None)
            if saved.done:
                return saved.operation()

    async def state_awaited(self, name: MemoryName, operation_id: str) -> tuple[Revision, str] | None:
        """The revision, and the model's fingerprint, at which a verification waits for a state; None where it does not.

        Raises:
            OperationNotFoundError: there is no such operation, or no more.
        """
        job = await self._read_job(name, operation_id)
        if job.kind is not OperationKind.VERIFY or job.done or job.stage != REFOLD:
            return None
        receipt = job.work["receipt"]
        return Revision.parse(receipt["revision"]), receipt["fingerprint"]

    async def _verify(self, job: Job) -> float | None:
        if job.stage == REFOLD:
            return await self._await_state(job)
        kept = await self.list_revisions(job.memory)
        if not kept:
            memory = await self.get_memory(job.memory)
            kept = [KeptRevision(Revision(memory.incarnation, 0), memory.fingerprint, EMPTY_LOG, b"", 0)]
        newest = kept[0]
        if job.work.get("incarnation") != newest.revision.incarnation:
            # Something was forgotten or taken back meanwhile: the chain is another one.
            _begin(job, newest)
        ended = await self._check_page(job, {one.revision.sequence: one.log_digest for one in kept})
        job.go_to("reading", completed=job.work["receipt"]["turn_count"])
        if not ended:
            return None
        receipt = job.work["receipt"]
        receipt["log_digest"] = _base64(bytes.fromhex(job.work["digest"]))
        job.go_to(REFOLD, completed=0, total=receipt["turn_count"])
        return 0.0

    async def _await_state(self, job: Job) -> float | None:
        """Begins again where the log or the model is no longer the one that was looked at."""
        memory, work = await self.get_memory(job.memory), job.work
        if (memory.incarnation, memory.fingerprint) == (work["incarnation"], work["receipt"]["fingerprint"]):
            return _LOOK_S
        del work["incarnation"]
        job.go_to("reading", completed=0)
        return None

    async def _check_page(self, job: Job, kept: Mapping[int, bytes]) -> bool:
        """Continue the chain by one page, and compare it with what is known at each kept revision; True at the end."""
        work, receipt = job.work, job.work["receipt"]
        entries = await self.read_turns(job.memory, after=work["cursor"], limit=_PAGE, max_bytes=_PAGE_BYTES)
        mine = [entry for entry in entries if entry.sequence <= work["until"]]
        ended = len(mine) < len(entries) or not entries
        digest = bytes.fromhex(work["digest"])
        marks = [mark for mark in sorted(kept) if work["cursor"] <= mark <= work["until"]]
        for entry in mine:
            while marks and marks[0] < entry.sequence:
                receipt["log_matches"] &= kept[marks.pop(0)] == digest
            digest = chain(digest, [entry])
        if ended:
            receipt["log_matches"] &= all(kept[mark] == digest for mark in marks)
        receipt["turn_count"] += sum(not entry.skips for entry in mine)
        work |= {"digest": digest.hex(), "cursor": mine[-1].sequence if mine else work["cursor"]}
        return ended


def _begin(job: Job, newest: KeptRevision) -> None:
    revision = newest.revision
    job.work |= {
        "incarnation": revision.incarnation,
        "until": revision.sequence,
        "cursor": 0,
        "digest": EMPTY_LOG.hex(),
    }
    job.work["receipt"] = {
        "revision": str(revision),
        "fingerprint": newest.fingerprint,
        "turn_count": 0,
        "log_matches": True,
        "state_digest": _base64(newest.state_digest),
    }


def _base64(data: bytes) -> str:
    """As bytes stand in JSON."""
    return base64.b64encode(data).decode()
