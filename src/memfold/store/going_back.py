"""Going back to an earlier revision, as an operation."""

from __future__ import annotations

from memfold.api.errors import RevisionMismatchError
from memfold.api.values import OperationKind, Revision
from memfold.store.erasing import FILES_LOOK_S, Erasing
from memfold.store.jobs import Job
from memfold.store.operations import Step
from memfold.store.removals import Aside, Removal
from memfold.store.server import Server


class GoingBack(Erasing):
    """Takes ``revision`` and ``expected``, revision tokens; the latter may be empty."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self._steps[OperationKind.ROLLBACK] = self._rollback_step
        self._rollback_steps: dict[str, Step] = {
            "": self._go_back,
            "writing": self._write_before,
            "scrubbing": self._scrub_after,
            "rewriting": self._erase,
        }

    async def _rollback_step(self, job: Job) -> float | None:
        return await self._rollback_steps[job.stage](job)

    async def _go_back(self, job: Job) -> float | None:
        """From here on nobody sees what came later."""
        removal = _removal(job)
        back = await self.take_out(removal)
        if back is None:
            self._note_aside(job, removal)
            return None
        await self.copies_of(job.memory, bar=[removal.known.incarnation])
        receipt = {
            "revision": str(back.revision),
            "restored_revision": str(Revision(back.revision.incarnation, back.restored_to)),
            "removed_turns": back.count,
        }
        job.work = {"receipt": receipt}
        if back.count:
            job.go_to("scrubbing")
        else:
            job.finish(**receipt)
        return None

    async def _write_before(self, job: Job) -> float | None:
        try:
            await self._write(job, _removal(job), then="")
        except RevisionMismatchError:
            job.go_to("")  # where that is an error, and one that says more
        return None

    async def _scrub_after(self, job: Job) -> float | None:
        if await self._scrub_log(job):
            job.go_to("rewriting")
        return None

    async def _erase(self, job: Job) -> float | None:
        if not await self._rewrite_files(job):
            return FILES_LOOK_S
        job.finish(**job.work["receipt"])
        return None


def _removal(job: Job) -> Removal:
    request = job.request
    expected = Revision.parse(request["expected"], "expected") if request.get("expected") else None
    removal = Removal.behind(job.memory, Revision.parse(request["revision"]), expected, job.incarnation())
    removal.aside = Aside.from_work(job.work.get("aside"))
    return removal
