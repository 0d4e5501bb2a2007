"""The one way into the log: append, then tell the writer."""

from __future__ import annotations

from collections.abc import Sequence

from memfold.api.values import MemoryName, Revision, Turn
from memfold.hints import Hinter
from memfold.store import AppendResult, Store


class Appender:
    """Appends turns and hints the writer of a memory that has fallen behind by it."""

    def __init__(self, store: Store, hinter: Hinter, backlog: int) -> None:
        self._store = store
        self._hinter = hinter
        self._backlog = backlog

    async def append(
        self, name: MemoryName, turns: Sequence[Turn], *, expected: Revision | None = None, create: bool = False
    ) -> AppendResult:
        """Append turns, all or none; durable when this returns. Raises what ``Store.append`` raises."""
        result = await self._store.append(name, turns, expected=expected, create=create, backlog=self._backlog)
        if result.behind:
            self._hinter.hint(result.fingerprint, name.partition)
        return result
