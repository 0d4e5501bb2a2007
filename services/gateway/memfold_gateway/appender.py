"""The one way into the log: append, then tell the writer."""

from __future__ import annotations

from memfold.api.errors import BacklogFullError
from memfold.api.values import MemoryName, Revision
from memfold.hints import Hinter
from memfold.store import AppendResult, NewTurns, Store
from memfold_gateway.backlog import Backlog


class Appender:
    """Appends turns and hints the writer of a memory that has fallen behind by it.

    Args:
        store: where the logs are.
        hinter: tells the writer.
        backlog: refuses turns when too many memories wait.
        most_turns: so many turns of one memory may wait to be folded; 0 for any number.
    """

    def __init__(self, store: Store, hinter: Hinter, backlog: Backlog, most_turns: int) -> None:
        self._store = store
        self._hinter = hinter
        self._backlog = backlog
        self._most_turns = most_turns

    async def append(
        self, name: MemoryName, turns: NewTurns, *, expected: Revision | None = None, create: bool = False
    ) -> AppendResult:
        """Append turns, all or none; durable when this returns. Raises what ``Store.append`` raises.

        Raises:
            BacklogFullError: too much waits to be folded; ``limit`` in its facts is memory, tenant or system.
        """
        self._backlog.check(name.tenant)
        try:
            result = await self._store.append(name, turns, expected=expected, create=create, backlog=self._most_turns)
        except BacklogFullError as error:
            error.facts["limit"] = "memory"
            raise
        if result.behind:
            self._hinter.hint(result.fingerprint, name.partition)
        return result
