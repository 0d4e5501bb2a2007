"""Forgetting turns, as an operation: what follows on the moment in which all readers lose sight of them."""

from __future__ import annotations

import asyncio
from typing import Any

from memfold.api.errors import BacklogFullError, MemoryNotFoundError, OperationNotFoundError, RevisionMismatchError
from memfold.api.values import Memory, MemoryName, Operation, OperationKind, Revision
from memfold.store.erasing import FILES_LOOK_S, Erasing, erased
from memfold.store.jobs import Job
from memfold.store.operations import Step
from memfold.store.ranges import joined, pack, unpack, width
from memfold.store.removals import Aside, Removal
from memfold.store.selecting import Selecting
from memfold.store.server import Server
from memfold.store.values import Removed

_FOLD_LOOK_S = 0.25
_COPIES_LOOK_S = 0.25
_COPY_S = 0.5


class Forgetting(Erasing, Selecting):
    """Takes ``selector`` (as ``select_runs`` does), ``include_forks`` and ``expected``, a revision token or empty.

    Turns that come in after the operation was accepted stay.
    """

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self._steps[OperationKind.FORGET] = self._forget_step
        self._forget_steps: dict[str, Step] = {
            "": self._select,
            "writing": self._write_before_forgetting,
            "removing": self._forget,
            "copies": self._ask_copies,
            "scrubbing": self._scrub_forgotten,
            "rewriting": self._erase_forgotten,
            "folding": self._await_fold,
            "following": self._follow_copies,
        }

    async def _step(self, job: Job) -> float | None:
        delay_s = await super()._step(job)
        if job.done:
            _wipe(job)
        return delay_s

    async def _forget_step(self, job: Job) -> float | None:
        return await self._forget_steps[job.stage](job)

    async def _select(self, job: Job) -> float | None:
        request, work, memory = job.request, job.work, await self.get_memory(job.memory)
        attempt = work.get("attempt", -1) + 1
        if request.get("expected") and not attempt and request["expected"] != str(memory.revision):
            raise RevisionMismatchError(f"the log is at {memory.revision}", facts={"revision": str(memory.revision)})
        until = work.get("until") or min(memory.head, request.get("until") or memory.head)
        found = await self.select_runs(job.memory, request["selector"], until=until)
        work |= {"attempt": attempt, "until": until, "from": memory.incarnation, "aside": None}
        work |= {"runs": pack(found), "meant": pack(joined([*unpack(work.get("meant", "")), *found]))}
        if found:
            # What held the turns must not be copied any more.
            work["before"] = [*work.get("before", ()), memory.incarnation]
            job.go_to("removing", total=min(width(found), memory.turn_count))
        else:
            self._nothing_found(job, memory.revision, memory.folded_revision)
        return None

    def _nothing_found(self, job: Job, revision: Revision, folded: Revision) -> None:
        work = job.work
        # What did not hold them may be: barred, it could never be copied.
        work["before"] = [one for one in work.get("before", ()) if one != revision.incarnation]
        work["receipt"] = {"revision": str(revision)}
        if work["meant"] and work["attempt"]:
            # Somebody else took them out meanwhile, and may not have erased them yet.
            work["receipt"] |= {"restored_revision": str(folded), "removed_turns": 0}
            job.go_to("copies")
        elif job.request.get("include_forks"):
            job.go_to("copies")
        else:
            job.finish(**work["receipt"])

    async def _forget(self, job: Job) -> float | None:
        """From here on readers get what is clean, and nothing else."""
        removal = _removal(job)
        try:
            gone = await self.take_out(removal)
        except RevisionMismatchError:
            _select_again(job)
            return None
        if gone is None:
            self._note_aside(job, removal)
            return None
        if gone.count:
            job.work |= {"receipt": _receipt(gone), "aside": None}
            job.go_to("copies", total=gone.count)
        else:
            self._nothing_found(job, gone.revision, Revision(gone.revision.incarnation, gone.restored_to))
        return None

    async def _write_before_forgetting(self, job: Job) -> float | None:
        try:
            await self._write(job, _removal(job), then="removing")
        except RevisionMismatchError:
            _select_again(job)
        return None

    async def _ask_copies(self, job: Job) -> float | None:
        """Tell the copies to forget too, or see which of them hold the turns. The selector is not needed any more then."""
        work, request, receipt = job.work, job.request, job.work["receipt"]
        copies = await self.copies_of(job.memory, bar=work["before"])
        work["copies"] = []
        if request.get("include_forks"):
            for copy in copies:
                args = {"selector": request["selector"], "include_forks": True, "until": min(copy.until, work["until"])}
                try:
                    operation = await self._ask_copy(copy.name, args, f"copy {job.id}")
                except BacklogFullError as error:
                    # Not to be given up: the turns are gone already, and their text is not.
                    return error.retry_after_ms / 1000
                if operation is not None:
                    work["copies"].append([str(copy.name), operation.id])
        elif "removed_turns" in receipt:
            held = await self.held_copies(job.memory, unpack(work["meant"]))
            if held:
                receipt["forks"] = [{"memory": str(name), "held_turns": count} for name, count in held.items()]
        _wipe(job)
        job.go_to("scrubbing" if "removed_turns" in receipt else "following")
        return None

    async def _ask_copy(self, name: MemoryName, args: dict[str, Any], request_id: str) -> Operation | None:
        """Have a copy forget, and go on with it for a moment; None where it is gone."""
        try:
            operation = await self.request_operation(name, OperationKind.FORGET, args, request_id=request_id)
            return await self.advance(name, operation.id, until=asyncio.get_running_loop().time() + _COPY_S)
        except (MemoryNotFoundError, OperationNotFoundError):
            return None

    async def _scrub_forgotten(self, job: Job) -> float | None:
        if await self._scrub_log(job):
            job.go_to("rewriting")
        return None

    async def _erase_forgotten(self, job: Job) -> float | None:
        if not await self._rewrite_files(job):
            return FILES_LOOK_S
        job.go_to("folding")
        return None

    async def _await_fold(self, job: Job) -> float | None:
        """Both models' states have come back to where the log stood; or a turn that cannot be folded keeps one from it."""
        memory = await self.get_memory(job.memory)
        behind = min(Revision.parse(job.work["receipt"]["revision"]).sequence, memory.head)
        reached = min([*_folding(memory), behind])
        if reached < behind:
            job.go_to("folding", completed=reached, total=behind)
            return _FOLD_LOOK_S
        job.go_to("following")
        return await self._follow_copies(job)

    async def _follow_copies(self, job: Job) -> float | None:
        """Each copy that was told to forget has done so."""
        receipt = job.work["receipt"]
        forks: list[dict[str, Any]] = list(receipt.get("forks", ()))
        erasures = {"": receipt} if "removed_turns" in receipt else {}
        for name, operation_id in job.work["copies"]:
            copy = MemoryName.parse(name)
            try:
                operation = await self.advance(copy, operation_id, until=0)
            except OperationNotFoundError:
                continue  # the copy has been deleted
            if not operation.done:
                job.go_to("following", completed=len(forks), total=len(job.work["copies"]))
                return _COPIES_LOOK_S
            forgotten = operation.result.get("removed_turns", 0)
            if forgotten or operation.error:
                forks.append({"memory": name, "forgotten_turns": forgotten})
            forks += [fork for fork in operation.result.get("forks", ()) if fork not in forks]
            if "files_note" in operation.result:
                erasures[name] = operation.result
            elif operation.error:
                erasures[name] = {"files_note": operation.error}
        if forks:
            receipt["forks"] = forks
        if erasures:
            receipt |= erased(erasures)
        job.finish(**receipt)
        return None


def _removal(job: Job) -> Removal:
    work = job.work
    removal = Removal.of_turns(
        job.memory, unpack(work["runs"]), Revision(work["from"], 0), job.incarnation(work["attempt"])
    )
    removal.aside = Aside.from_work(work.get("aside"))
    return removal


def _select_again(job: Job) -> None:
    """Something else was removed meanwhile. Numbers are never given twice: what was meant can be meant again."""
    job.go_to("")


def _folding(memory: Memory) -> list[int]:
    """How far the states of a memory are that somebody folds on."""
    serving = [] if memory.quarantined else [memory.applied]
    building = [memory.building_applied] if memory.building and not memory.building_quarantined else []
    return [*serving, *building]


def _receipt(gone: Removed) -> dict[str, Any]:
    """What the operation's receipt says of the turns that are gone."""
    return {
        "revision": str(gone.revision),
        "restored_revision": str(Revision(gone.revision.incarnation, gone.restored_to)),
        "removed_turns": gone.count,
        "ranges": [{"first": first, "last": last} for first, last in gone.runs],
        "sequences": list(gone.sequences),
        "turn_ids": list(gone.ids),
        "dropped_revisions": list(gone.dropped),
    }


def _wipe(job: Job) -> None:
    """A predicate quotes what was said about the turns: gone with them."""
    if "selector" in job.request and "ids" not in job.request["selector"] and "first" not in job.request["selector"]:
        del job.request["selector"]
        job.request["wiped"] = ["selector"]
