"""What a request reads of a memory: one committed state, and the newest turns of its log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from memfold.api.errors import DeadlineError, MemoryNotFoundError, ModelMismatchError
from memfold.api.values import Memory, MemoryName, Revision, Turn
from memfold.store import State, Store

WAIT_S = 60.0  # for a revision, where the client set no deadline
_AGAIN_S = 0.05
_PAGE_TURNS = 32

Encode = Callable[[Sequence[Turn]], Awaitable[list[list[int]]]]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A memory and the state that was committed for it, read together. No state before the first fold."""

    memory: Memory
    state: State | None

    @property
    def revision(self) -> Revision:
        """What the state stands for."""
        return self.state.revision if self.state is not None else self.memory.folded_revision


class Memories:
    """Reads memories of one model."""

    def __init__(self, store: Store, fingerprint: str) -> None:
        self._store = store
        self._fingerprint = fingerprint

    async def read(self, name: MemoryName, minimum: Revision | None, deadline: float) -> Snapshot:
        """The committed state, at ``minimum`` or later.

        Args:
            name: whose.
            minimum: a revision to wait for.
            deadline: a time of ``time.monotonic``, or infinity.

        Raises:
            MemoryNotFoundError, ModelMismatchError, RevisionForeignError, RevisionAheadError, DeadlineError,
            StateDamagedError, StoreUnavailableError.
        """
        deadline = min(deadline, time.monotonic() + WAIT_S)
        while True:
            if minimum is not None:
                await self._store.wait_for(name, minimum, max(0.0, deadline - time.monotonic()))
            snapshot = Snapshot(*await self._store.read_state(name))
            self._check_model(snapshot.memory)
            if minimum is None or _reaches(snapshot.revision, minimum):
                return snapshot
            # Deleted and made anew, or a store that lost its last writes, since the wait was over.
            if time.monotonic() >= deadline:
                raise DeadlineError(f"{name} did not reach revision {minimum} in time")
            await asyncio.sleep(_AGAIN_S)

    async def newest_turns(self, snapshot: Snapshot, budget: int, encode: Encode) -> list[list[int]]:
        """The tokens of the newest turns of the log that fit into ``budget`` tokens, oldest first, without a gap.

        Raises:
            MemoryNotFoundError: the memory was deleted meanwhile.
        """
        chosen: list[list[int]] = []
        until = snapshot.memory.head
        while budget > 0 and until > 0:
            turns = await self._store.read_tail(snapshot.memory.name, until=until, limit=_PAGE_TURNS)
            if not turns:
                break
            for tokens in reversed(await encode(turns)):
                budget -= len(tokens)
                if budget < 0:
                    break
                chosen.append(tokens)
            until = turns[0].sequence - 1
        if chosen:
            await self._check_still_there(snapshot.memory)
        return chosen[::-1]

    async def _check_still_there(self, memory: Memory) -> None:
        # Turns are read by name: they may be those of a memory that has taken this one's place.
        if (await self._store.get_memory(memory.name)).incarnation != memory.incarnation:
            raise MemoryNotFoundError(f"{memory.name} was deleted during the request")

    def _check_model(self, memory: Memory) -> None:
        if memory.fingerprint != self._fingerprint:
            raise ModelMismatchError(
                f"{memory.name} is folded with model {memory.fingerprint[:16]}, this reader serves "
                f"{self._fingerprint[:16]}",
                facts={"memory_fingerprint": memory.fingerprint, "reader_fingerprint": self._fingerprint},
            )


def _reaches(revision: Revision, minimum: Revision) -> bool:
    return revision.incarnation == minimum.incarnation and revision.sequence >= minimum.sequence
