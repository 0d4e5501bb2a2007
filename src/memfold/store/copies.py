"""Which copies of a memory there are: so that forgetting can say who else holds a turn, and reach them.

A memory notes its copies before they are made, and those of a copy that is deleted. What it notes may be outdated; whether
a memory of that name is the copy is told by the operation that made it, which both of them name.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from memfold.api.values import MemoryName
from memfold.store import keys
from memfold.store.forking import REMEMBERED_S, Forking
from memfold.store.keys import memory_keys, stage_keys
from memfold.store.ranges import Runs

_RUNS, _ENTRIES = 250, 1000


class Copy(NamedTuple):
    """A memory that holds the turns of another up to the sequence ``until``, as far as it has not forgotten them."""

    name: MemoryName
    until: int


_Noted = tuple[bytes, int, str]
"""A copy's member, the sequence that it was copied at, and the operation that did."""


class Parent(NamedTuple):
    """Where a copy came from, and by which operation."""

    name: MemoryName
    operation_id: str


class Copies(Forking):
    """The copies of a memory."""

    async def copies_of(self, name: MemoryName, *, bar: Collection[str] = ()) -> list[Copy]:
        """The copies that have been made of a memory.

        ``bar``: those that are being made of these incarnations of it are begun anew.
        """
        return await self._made(await self._noted(name), bar)

    async def _made(self, noted: Sequence[_Noted], bar: Collection[str]) -> list[Copy]:
        fields = "forked_by", "forked_at"
        metas = [memory_keys(keys.name_of(member), "").meta for member, _, _ in noted]
        found = await self._server.commands([("HMGET", meta, *fields) for meta in metas])
        copies: list[Copy] = []
        for (member, until, operation_id), (forked_by, forked_at) in zip(noted, found, strict=True):
            copy = keys.name_of(member)
            made = forked_at if (forked_by or b"").decode() == operation_id else None
            for incarnation in bar if made is None else ():
                made = await self._bar(copy, operation_id, incarnation)
            if made is not None:
                copies.append(Copy(copy, min(until, int(made))))
        return copies

    async def _bar(self, copy: MemoryName, operation_id: str, incarnation: str) -> bytes | None:
        """Unless the copy has been made after all: what is copied from this incarnation never becomes a memory."""
        made: bytes | None = await self._server.write(
            "fork_bar", [*stage_keys(copy), memory_keys(copy, "").meta], operation_id, incarnation, REMEMBERED_S
        )
        return made

    async def held_copies(self, name: MemoryName, runs: Runs) -> dict[MemoryName, int]:
        """How many turns of some numbers the copies of a memory hold, and the copies of those.

        Numbers are enough: up to where it was copied, a copy holds the turns of its source under theirs, and no others.
        """
        held: dict[MemoryName, int] = {}
        waiting = [Copy(name, max((last for _, last in runs), default=0))]
        while waiting:
            holder = waiting.pop()
            for copy in await self.copies_of(holder.name):
                if copy.name in held:
                    continue
                until = min(copy.until, holder.until)
                held[copy.name] = await self._count(copy.name, runs, until)
                waiting.append(Copy(copy.name, until))
        return {copy: count for copy, count in held.items() if count}

    async def _count(self, name: MemoryName, runs: Runs, until: int) -> int:
        left = [(first, min(last, until)) for first, last in runs if first <= until]
        count = 0
        while left:
            some = [number for run in left[:_RUNS] for number in run]
            found, through, cursor = await self._server.run("count_turns", [memory_keys(name, "").log], _ENTRIES, *some)
            count += int(found)
            left = left[int(through) :]
            if left and int(cursor):
                left[0] = int(cursor) + 1, left[0][1]
        return count

    async def _noted(self, name: MemoryName) -> list[_Noted]:
        noted: dict[bytes, bytes] = await self._server.command("HGETALL", keys.forks(name))
        pairs = [(member, value.split()) for member, value in sorted(noted.items())]
        return [(member, int(until), operation_id.decode()) for member, (until, operation_id) in pairs]

    async def _adopt_copies(self, name: MemoryName) -> Parent | None:
        """Before a copy is deleted: its source takes over its copies. Returns the source; None where it is no copy."""
        fields = "forked_from", "forked_at", "forked_by"
        source, forked_at, forked_by = await self._server.command("HMGET", memory_keys(name, "").meta, *fields)
        if source is None:
            return None
        parent = Parent(MemoryName.parse(source.decode()), forked_by.decode())
        grandchildren: list[str | bytes] = []
        for member, until, operation_id in await self._noted(name):
            grandchildren += member, f"{min(until, int(forked_at))} {operation_id}"
        if grandchildren:
            shared = keys.forks(parent.name)
            await self._server.write("adopt_copies", [shared], keys.member(name), parent.operation_id, *grandchildren)
        return parent

    async def _disown(self, name: MemoryName, parent: Parent) -> None:
        await self._server.run("disown_copy", [keys.forks(parent.name)], keys.member(name), parent.operation_id)
