"""Which turns are meant: by their ids, by where they stand, or by what was said about them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memfold.api.errors import InvalidFieldError
from memfold.api.values import MemoryName, Turn
from memfold.store.keys import memory_keys
from memfold.store.waiting import Waiting

_PAGE = 1000
_PAGE_BYTES = 4_000_000

Selector = Mapping[str, Any]
"""``ids``; or ``first`` and ``last``, both included; or ``metadata``, ``role``, ``speaker``, of which all that is given
must match. JSON."""


class Selecting(Waiting):
    """Finding turns in a log."""

    async def select_turns(self, name: MemoryName, selector: Selector, *, until: int = 0) -> list[int]:
        """The sequences of the turns that are meant, ascending; ``until`` (0: any) is the last that may be.

        Raises:
            MemoryNotFoundError: there is no such memory.
            InvalidFieldError: it selects in no known way, or does not say what.
        """
        return sorted(await self.find_turns(name, selector, until=until))

    async def find_turns(self, name: MemoryName, selector: Selector, *, until: int = 0) -> dict[int, str]:
        """As ``select_turns``, with the ids of the turns: sequence -> id."""
        if "ids" in selector:
            return await self._by_ids(name, selector["ids"], until)
        if "first" in selector and "last" in selector:
            first, last = int(selector["first"]), int(selector["last"])
            return await self._by_content(name, {}, first, min(last, until or last))
        if not any(selector.get(field) for field in _MATCHED):
            raise InvalidFieldError("selector", f"give ids, first and last, or something of {', '.join(_MATCHED)}")
        return await self._by_content(name, selector, 1, until)

    async def _by_ids(self, name: MemoryName, ids: list[str], until: int) -> dict[int, str]:
        await self.get_memory(name)
        if not ids:
            return {}
        found = await self._server.command("HMGET", memory_keys(name, "").ids, *ids)
        placed = {int(sequence): turn_id for turn_id, sequence in zip(ids, found, strict=True) if sequence is not None}
        return {sequence: turn_id for sequence, turn_id in placed.items() if not until or sequence <= until}

    async def _by_content(self, name: MemoryName, selector: Selector, first: int, last: int) -> dict[int, str]:
        found: dict[int, str] = {}
        cursor = max(first, 1) - 1
        while page := await self.read_turns(name, after=cursor, limit=_PAGE, max_bytes=_PAGE_BYTES):
            cursor = page[-1].sequence
            here = [turn for turn in page if not last or turn.sequence <= last]
            found |= {turn.sequence: turn.id for turn in here if not turn.skips and _matches(turn, selector)}
            if len(here) < len(page):
                break
        return found


_MATCHED = ("metadata", "role", "speaker")


def _matches(turn: Turn, selector: Selector) -> bool:
    metadata = selector.get("metadata") or {}
    return (
        all(turn.metadata.get(key) == value for key, value in metadata.items())
        and selector.get("role", "") in ("", turn.role)
        and selector.get("speaker", "") in ("", turn.speaker)
    )
