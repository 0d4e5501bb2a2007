"""Copies of a memory: put together aside, and turned into a memory at once.

Source and copy lie in different slots, so no script sees both. What keeps a copy from showing what its source has
forgotten meanwhile: it is entered at the source before anything is read there, and whoever forgets bars all copies that are
entered and not yet made; each page that a copy gets, and its becoming a memory, asks for that bar.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

from memfold.api.errors import (
    InvalidFieldError,
    MemfoldError,
    MemoryExistsError,
    NotDurableError,
    OperationConflictError,
    RevisionAheadError,
    RevisionForeignError,
    StoreUnavailableError,
)
from memfold.api.values import MemoryName, OperationKind, Policy, Revision
from memfold.store import keys
from memfold.store.checkpoints import copy_checkpoints
from memfold.store.copying import (
    NOTHING_COPIED,
    Page,
    arguments,
    counted,
    pairs,
    read_page,
    sequence_of,
    skips_at,
    stand_at,
)
from memfold.store.jobs import Job
from memfold.store.keys import memory_keys, stage_keys
from memfold.store.operations import Operations
from memfold.store.part import Lines
from memfold.store.server import Argument, Server

PAGE_ENTRIES, PAGE_BYTES = 1000, 1_000_000
"""So much is copied at once; a log that is no longer is copied in one go."""

_STAGED_S = 600
REMEMBERED_S = 24 * 3600
_GOOD_MS = 30 * 60 * 1000
"""What was read is good for so long: far less than it is remembered that it must not be used."""

_OFTEN, _CHANGING_S = 10, 1.0
"""A source that changes so often while it is copied is given some time."""


class Forking(Operations):
    """The operation that copies a memory. Takes ``target``, a name, and ``revision``, a token or empty for the log's end."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self._steps[OperationKind.FORK] = self._fork

    async def _fork(self, job: Job) -> float | None:
        target = MemoryName.parse(job.request["target"])
        if target == job.memory:
            raise InvalidFieldError("target", "a memory cannot be copied onto itself")
        if "copy" not in job.work:
            _begin(job, job.request.get("revision", ""))
        try:
            return await self._copy(job, target)
        except (StoreUnavailableError, NotDurableError):
            raise
        except MemfoldError:
            await self._close(job, target)
            raise

    async def _close(self, job: Job, target: MemoryName) -> None:
        """It has failed: nothing of the copy stays, and whoever is still at it comes too late."""
        closing = [*stage_keys(target), memory_keys(target, "").meta]
        if await self._server.write("fork_close", closing, job.id, REMEMBERED_S):
            await self._server.run("disown_copy", [keys.forks(job.memory)], keys.member(target), job.id)
            await self._unindex(target, job.work["copy"])

    async def _copy(self, job: Job, target: MemoryName) -> float | None:
        work = job.work
        page = await self._read_indexed(job, target)
        if page is None:
            return _anew(job)
        work |= {"source": page.source.incarnation, "revision": page.source.sequence}
        entries = arguments(page.entries)
        counts = counted(work["counts"], page.entries)
        if page.meta is None:
            staged = await self._stage(job, target, page, entries)
            if not staged:
                return _anew(job)
            work |= {"counts": counts, "cursor": counts["last"]}
            job.go_to("copying", completed=counts["entries"])
            return None
        made = await self._flip(job, target, page, entries, counts)
        if made is None:
            return _anew(job)
        job.finish(memory=str(target), **made)
        return None

    async def _read_indexed(self, job: Job, target: MemoryName) -> Page | None:
        """The next page; before the first, the copy is entered in the index of its tenant."""
        if job.work["cursor"]:
            return await self._read_source(job, target)
        page, _ = await asyncio.gather(self._read_source(job, target), self._index(target, job.work["copy"]))
        return page

    async def _read_source(self, job: Job, target: MemoryName) -> Page | None:
        """The next page, from the incarnation that the first came from; None where that is gone."""
        work = job.work
        reply = await self._on_memory(
            "fork_read",
            job.memory,
            work["source"],
            "" if work["revision"] is None else work["revision"],
            keys.member(target),
            job.id,
            work["cursor"],
            PAGE_ENTRIES,
            PAGE_BYTES,
            durable=True,
        )
        here = Revision(reply[1].decode(), int(reply[2]))
        match reply[0]:
            case b"CHANGED":
                if not work["anew"] and not work["cursor"]:
                    raise RevisionForeignError(
                        f"revision {job.request['revision']} is of another incarnation of {job.memory}",
                        facts={"revision": str(here)},
                    )
                return None
            case b"AHEAD":
                raise RevisionAheadError(
                    f"revision {work['revision']} lies beyond the log, which ends at {here}",
                    facts={"revision": str(here)},
                )
        return read_page(self._guess(job.memory), reply)

    async def _stage(self, job: Job, target: MemoryName, page: Page, entries: Sequence[Argument]) -> bool:
        last = sequence_of(page.entries[-1])
        [status] = await self._server.write(
            "fork_page",
            stage_keys(target),
            job.id,
            page.source.incarnation,
            page.read_ms + _GOOD_MS,
            job.work["cursor"],
            last,
            _STAGED_S,
            REMEMBERED_S,
            *entries,
        )
        return _accepted(target, status)

    async def _flip(
        self, job: Job, target: MemoryName, page: Page, entries: Sequence[Argument], counts: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """Turn the copy into a memory. Returns the receipt's numbers, or None where it has to be copied anew."""
        assert page.meta is not None
        assert page.snapshot is not None
        copy, source = job.work["copy"], page.source
        skips, below = skips_at(page.meta.get(b"skips", b""), source.sequence)
        checkpoints = copy_checkpoints(page.snapshot, below=below, incarnation=copy)
        if counts["last"] <= int(checkpoints.line["applied"]):
            stand_at(checkpoints, source.sequence)
        policy = Policy.from_json(page.meta.get(b"policy", b""))
        fingerprint = page.snapshot.fingerprint
        meta = {
            "incarnation": copy,
            "request_id": "",
            "fingerprint": fingerprint,
            "display_name": page.meta[b"display_name"],
            "labels": page.meta[b"labels"],
            "policy": policy.to_json(),
            "head": source.sequence,
            "last": source.sequence,
            "entries": counts["entries"],
            "count": counts["count"],
            "bytes": counts["bytes"],
            "forked_from": str(job.memory),
            "forked_at": source.sequence,
            "forked_by": job.id,
            **({"skips": skips} if skips else {}),
        }
        receipt = {
            "revision": str(Revision(copy, source.sequence)),
            "source_revision": str(source),
            "turn_count": counts["count"],
        }
        here = memory_keys(target, fingerprint)
        made = here.meta, here.log, here.ids, here.line, here.state, here.history, here.revisions
        status, *remembered = await self._server.write(
            "fork_flip",
            [*stage_keys(target), *made, here.dirty, here.behind, here.expires],
            job.id,
            source.incarnation,
            page.read_ms + _GOOD_MS,
            job.work["counts"]["entries"],
            REMEMBERED_S,
            json.dumps(receipt),
            keys.member(target),
            0 if policy.look_s else "",
            checkpoints.state,
            len(entries),
            *entries,
            *pairs(meta),
            *pairs(checkpoints.line),
            *pairs(checkpoints.history),
            *pairs(checkpoints.revisions),
        )
        if not _accepted(target, status):
            return None
        self._learn(target, Lines(fingerprint))
        await self._tell_partition(target.partition, fingerprint)
        said: dict[str, Any] = json.loads(remembered[0])
        return said


def _begin(job: Job, token: str) -> None:
    """What the first step notes: ``source`` and ``revision`` are open where the request leaves them so."""
    asked = Revision.parse(token) if token else None
    job.work |= {"copy": job.incarnation(), "source": asked.incarnation if asked else "", "anew": 0}
    job.work |= {"revision": asked.sequence if asked else None} | _NOTHING


_NOTHING: dict[str, Any] = {"cursor": 0, "counts": NOTHING_COPIED}


def _anew(job: Job) -> float | None:
    """Begin again: the source has changed, or what had been copied is gone."""
    times = job.work["anew"] + 1
    token = job.request.get("revision", "")
    revision = Revision.parse(token).sequence if token else None
    job.work |= {"source": "", "revision": revision, "anew": times} | _NOTHING
    job.go_to("copying", completed=0)
    return None if times < _OFTEN else _CHANGING_S


def _accepted(target: MemoryName, status: bytes) -> bool:
    """Whether a script took it; not where the source has changed or what was staged is gone."""
    match status:
        case b"EXISTS":
            raise MemoryExistsError(f"{target} exists", facts={"memory": str(target)})
        case b"TAKEN":
            raise MemoryExistsError(f"{target} is just being made by another copy", facts={"memory": str(target)})
        case b"CLOSED":
            raise OperationConflictError(f"copying to {target} has been given up", facts={"memory": str(target)})
    return status == b"OK"
