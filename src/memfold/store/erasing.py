"""Forgetting turns and going back, as operations: what follows on the first moment, in which all readers lose sight of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from memfold.api.errors import BacklogFullError, MemoryNotFoundError, OperationNotFoundError, RevisionMismatchError
from memfold.api.values import MemoryName, Operation, OperationKind, Revision
from memfold.store.copies import Copies
from memfold.store.jobs import Job
from memfold.store.keys import memory_keys
from memfold.store.operations import Step
from memfold.store.persistence import Persistence
from memfold.store.ranges import pack, unpack
from memfold.store.selecting import Selecting
from memfold.store.server import Server

_FILES_LOOK_S = 0.2
_FOLD_LOOK_S = 0.25
_COPIES_LOOK_S = 0.25
_COPY_S = 0.5


class Erasing(Copies, Selecting, Persistence):
    """The operations that take turns out of a memory.

    Forgetting takes ``selector`` (as ``select_turns`` does), ``include_forks`` and ``expected``, a revision token or empty;
    rolling back takes ``revision`` and ``expected``. Turns that come in after an operation was accepted stay.
    """

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self._steps[OperationKind.FORGET] = self._forget_step
        self._forget_steps: dict[str, Step] = {
            "": self._forget_select,
            "removing": self._forget_remove,
            "copies": self._forget_in_copies,
            "scrubbing": self._forget_scrub,
            "rewriting": self._forget_in_files,
            "folding": self._forget_folded,
            "following": self._forget_followed,
        }
        self._steps[OperationKind.ROLLBACK] = self._rollback_step

    async def _step(self, job: Job) -> float | None:
        delay_s = await super()._step(job)
        if job.done:
            _wipe(job)
        return delay_s

    async def _forget_step(self, job: Job) -> float | None:
        return await self._forget_steps[job.stage](job)

    async def _rollback_step(self, job: Job) -> float | None:
        if job.stage == "":
            await self._go_back(job)
        if not await self.scrub(job.memory):
            job.go_to("scrubbing")
            return None
        job.finish(**job.work["receipt"])
        return None

    async def _forget_select(self, job: Job) -> float | None:
        request, work, memory = job.request, job.work, await self.get_memory(job.memory)
        attempt = work.get("attempt", -1) + 1
        if request.get("expected") and not attempt and request["expected"] != str(memory.revision):
            raise RevisionMismatchError(f"the log is at {memory.revision}", facts={"revision": str(memory.revision)})
        until = work.get("until") or min(memory.head, request.get("until") or memory.head)
        found = await self.find_turns(job.memory, request["selector"], until=until) if until else {}
        gone = {sequence: turn_id for sequence, turn_id in _chosen(work).items() if sequence not in found}
        chosen = {**gone, **found}
        # What held the turns must not be copied any more. What does not may be: barred, it could never be copied.
        before = [*work.get("before", ()), *([memory.incarnation] if found else [])]
        work |= {"attempt": attempt, "until": until, "before": before, "copies": []}
        work |= {"sequences": pack(sorted(chosen)), "ids": [chosen[sequence] for sequence in sorted(chosen)]}
        work["receipt"] = {"revision": str(memory.revision)}
        if found:
            job.go_to("removing", total=len(chosen))
        elif chosen:
            # An earlier attempt took them out and could not note it; or somebody else did.
            work["receipt"] |= _removed(job, str(memory.folded_revision), [])
            job.go_to("copies", total=len(chosen))
        elif request.get("include_forks"):
            job.go_to("copies")
        else:
            _finish_forget(job)
        return None

    async def _forget_remove(self, job: Job) -> float | None:
        """From here on readers get what is clean, and nothing else."""
        work = job.work
        before, after = work["before"][-1], job.incarnation(work["attempt"])
        try:
            gone = await self.forget(
                job.memory, unpack(work["sequences"]), expected_incarnation=before, incarnation=after
            )
        except RevisionMismatchError:
            # Something else was removed meanwhile. Numbers are never given twice: what was meant can be meant again.
            job.go_to("")
            return None
        restored = Revision(gone.revision.incarnation, gone.restored_to)
        work["receipt"] = {"revision": str(gone.revision), **_removed(job, str(restored), list(gone.dropped))}
        job.go_to("copies", total=len(gone.ids))
        return None

    async def _forget_in_copies(self, job: Job) -> float | None:
        """Tell the copies to forget too, or see which of them hold the turns. The selector is not needed any more then."""
        work, request, receipt = job.work, job.request, job.work["receipt"]
        copies = await self.copies_of(job.memory, bar=work["before"])
        if request.get("include_forks"):
            asked: list[list[str]] = []
            for copy in copies:
                args = {"selector": request["selector"], "include_forks": True, "until": min(copy.until, work["until"])}
                try:
                    operation = await self._ask_copy(copy.name, args, f"copy {job.id}")
                except BacklogFullError as error:
                    # Not to be given up: the turns are gone already, and their text is not.
                    return error.retry_after_ms / 1000
                if operation is not None:
                    asked.append([str(copy.name), operation.id])
            work["copies"] = asked
        elif receipt.get("turn_ids"):
            turns = dict(zip(receipt["sequences"], receipt["turn_ids"], strict=True))
            held = await self.held_copies(job.memory, turns)
            if held:
                receipt["forks"] = [{"memory": str(name), "held_turns": count} for name, count in held.items()]
        _wipe(job)
        job.go_to("scrubbing" if receipt.get("turn_ids") else "following")
        return None

    async def _ask_copy(self, name: MemoryName, args: dict[str, Any], request_id: str) -> Operation | None:
        """Have a copy forget, and go on with it for a moment; None where it is gone."""
        try:
            operation = await self.request_operation(name, OperationKind.FORGET, args, request_id=request_id)
            return await self.advance(name, operation.id, until=asyncio.get_running_loop().time() + _COPY_S)
        except (MemoryNotFoundError, OperationNotFoundError):
            return None

    async def _forget_scrub(self, job: Job) -> float | None:
        """What was taken out of the log still lies in its pages, until they are written anew."""
        if not await self.scrub(job.memory):
            return None
        job.work["receipt"]["log_rewritten"] = True
        job.work["ticket"] = await self.want_rewrite(memory_keys(job.memory, "").meta)
        job.go_to("rewriting")
        return None

    async def _forget_in_files(self, job: Job) -> float | None:
        ticket, receipt = job.work["ticket"], job.work["receipt"]
        if not await self.rewritten(memory_keys(job.memory, "").meta, ticket):
            return _FILES_LOOK_S
        receipt |= {"files_rewritten": not ticket["notes"], "files_note": "; ".join(ticket["notes"])}
        job.go_to("folding")
        return None

    async def _forget_folded(self, job: Job) -> float | None:
        """Both models' states have come back to where the log stood; or a turn that cannot be folded keeps them from it."""
        memory = await self.get_memory(job.memory)
        behind = min(Revision.parse(job.work["receipt"]["revision"]).sequence, memory.head)
        reached = min(memory.applied, memory.building_applied) if memory.building else memory.applied
        if reached < behind and not memory.quarantined:
            job.go_to("folding", completed=reached, total=behind)
            return _FOLD_LOOK_S
        job.go_to("following")
        return await self._forget_followed(job)

    async def _forget_followed(self, job: Job) -> float | None:
        """Each copy that was told to forget has done so."""
        forks: list[dict[str, Any]] = []
        for name, operation_id in job.work["copies"]:
            copy = MemoryName.parse(name)
            try:
                operation = await self.advance(copy, operation_id, until=0)
            except OperationNotFoundError:
                continue  # the copy has been deleted
            if not operation.done:
                job.go_to("following", completed=len(forks), total=len(job.work["copies"]))
                return _COPIES_LOOK_S
            forgotten = len(operation.result.get("turn_ids", ()))
            if forgotten or operation.error:
                forks.append({"memory": name, "forgotten_turns": forgotten})
            forks += [fork for fork in operation.result.get("forks", ()) if fork not in forks]
        if forks:
            job.work["receipt"]["forks"] = forks
        _finish_forget(job)
        return None

    async def _go_back(self, job: Job) -> None:
        request = job.request
        to = Revision.parse(request["revision"])
        expected = Revision.parse(request["expected"], "expected") if request.get("expected") else None
        back = await self.rollback(job.memory, to, expected=expected, incarnation=job.incarnation())
        await self.copies_of(job.memory, bar=[to.incarnation])
        job.work["receipt"] = {
            "revision": str(back.revision),
            "restored_revision": str(Revision(back.revision.incarnation, back.restored_to)),
            "removed_turns": len(back.ids),
        }


def _chosen(work: Mapping[str, Any]) -> dict[int, str]:
    """The turns that are meant, sequence -> id, as far as that has been noted."""
    return dict(zip(unpack(work.get("sequences", "")), work.get("ids", ()), strict=True))


def _removed(job: Job, restored: str, dropped: list[int]) -> dict[str, Any]:
    """What the receipt says of the turns that are gone."""
    chosen = _chosen(job.work)
    return {
        "restored_revision": restored,
        "sequences": list(chosen),
        "turn_ids": list(chosen.values()),
        "dropped_revisions": dropped,
    }


def _finish_forget(job: Job) -> None:
    job.finish(**job.work["receipt"])


def _wipe(job: Job) -> None:
    """A predicate quotes what was said about the turns: gone with them."""
    if "selector" in job.request and "ids" not in job.request["selector"] and "first" not in job.request["selector"]:
        del job.request["selector"]
        job.request["wiped"] = ["selector"]
