"""Which turns are meant: by their ids, by where they stand, or by what was said about them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from memfold.api.errors import InvalidFieldError
from memfold.api.values import MemoryName
from memfold.store.keys import memory_keys
from memfold.store.part import missing
from memfold.store.ranges import Run, Runs, joined, runs_of
from memfold.store.waiting import Waiting

_PAGE = 500

Selector = Mapping[str, Any]
"""``ids``; or ``first`` and ``last``, both included; or ``metadata``, ``role``, ``speaker``, of which all that is given
must match. JSON."""


class Selecting(Waiting):
    """Finding turns in a log."""

    async def select_runs(self, name: MemoryName, selector: Selector, *, until: int) -> Runs:
        """The numbers of the turns that are meant, none behind ``until``. Of a range also those that nothing bears.

        Raises:
            MemoryNotFoundError: there is no such memory.
            InvalidFieldError: it selects in no known way, or does not say what.
        """
        if "ids" in selector:
            return runs_of(sorted(at for at in await self._by_ids(name, selector["ids"]) if at <= until))
        if "first" in selector and "last" in selector:
            first, last = max(1, int(selector["first"])), min(until, int(selector["last"]))
            return ((first, last),) if first <= last else ()
        if not any(selector.get(field) for field in _MATCHED):
            raise InvalidFieldError("selector", f"give ids, first and last, or something of {', '.join(_MATCHED)}")
        return await self._by_content(name, selector, until)

    async def _by_ids(self, name: MemoryName, ids: list[str]) -> list[int]:
        await self.get_memory(name)
        if not ids:
            return []
        found = await self._server.command("HMGET", memory_keys(name, "").ids, *ids)
        return [int(sequence) for sequence in found if sequence is not None]

    async def _by_content(self, name: MemoryName, selector: Selector, until: int) -> Runs:
        given = {field: selector[field] for field in _MATCHED if selector.get(field)}
        wanted = json.dumps({"metadata": {}, "role": "", "speaker": "", **given})
        found: list[Run] = []
        cursor, ended = 0, until < 1
        while not ended:
            reply = await self._server.run("select_turns", memory_keys(name, "")[:2], cursor, until, _PAGE, wanted)
            if reply[0] == b"MISSING":
                raise missing(name)
            cursor, ended = int(reply[1]), bool(reply[2])
            found += zip(reply[3::2], reply[4::2], strict=True)
        return joined(found)


_MATCHED = ("metadata", "role", "speaker")
