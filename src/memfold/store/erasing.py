"""What operations that take turns out of a memory share: before, for many turns, and after, when they are still in Redis's files."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from memfold.store.copies import Copies
from memfold.store.jobs import Job
from memfold.store.keys import memory_keys
from memfold.store.persistence import Persistence
from memfold.store.ranges import width
from memfold.store.removals import Aside, Removal

FILES_LOOK_S = 0.2
_WRITE_S = 0.25
"""So long pages are written in one step."""


class Erasing(Copies, Persistence):
    """Steps that forgetting and going back have in common."""

    async def _write(self, job: Job, removal: Removal, *, then: str) -> None:
        """Write the log anew without what goes, for a moment; ``then`` is the stage once that is done.

        Raises:
            RevisionMismatchError: the log is another one by now.
        """
        clock = asyncio.get_running_loop().time
        until = clock() + _WRITE_S
        while not (ended := await self.write_aside(removal)) and clock() < until:
            pass
        self._note_aside(job, removal)
        if ended:
            job.go_to(then)

    def _note_aside(self, job: Job, removal: Removal) -> None:
        aside = removal.aside or Aside()
        job.work["aside"] = aside.to_work()
        job.go_to("writing", completed=aside.count, **({} if removal.open else {"total": width(removal.runs)}))

    async def _scrub_log(self, job: Job) -> bool:
        """What was taken out of the log still lies in its pages, until they are written anew. True: it is done."""
        if not await self.scrub(job.memory):
            return False
        job.work["receipt"]["log_rewritten"] = True
        job.work["ticket"] = await self.want_rewrite(memory_keys(job.memory, "").meta)
        return True

    async def _rewrite_files(self, job: Job) -> bool:
        """What was deleted in memory still stands in Redis's files. True: they are written anew, or cannot be."""
        ticket = job.work["ticket"]
        if not await self.rewritten(memory_keys(job.memory, "").meta, ticket):
            return False
        job.work["receipt"] |= {"files_rewritten": not ticket["notes"], "files_note": "; ".join(ticket["notes"])}
        return True


def erased(receipts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What receipts, by whose they are, say together of how thoroughly turns were erased. Our own is nobody's: ''."""
    ours = receipts.get("", {}).get("files_note", "")
    theirs = [(whose, one.get("files_note", "")) for whose, one in receipts.items() if whose]
    notes = [ours, *(f"{whose}: {note}" for whose, note in theirs if note not in ("", ours))]
    return {
        "log_rewritten": all(one.get("log_rewritten", False) for one in receipts.values()),
        "files_rewritten": all(one.get("files_rewritten", False) for one in receipts.values()),
        "files_note": "; ".join(filter(None, notes)),
    }
