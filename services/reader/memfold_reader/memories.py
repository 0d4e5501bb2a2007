"""What a request reads of a memory: one state, and the newest turns of its log."""

from __future__ import annotations

import time
from dataclasses import dataclass

from memfold.api.errors import DeadlineError, ModelMismatchError, RevisionForeignError
from memfold.api.generation import Stale
from memfold.api.values import Memory, MemoryName, Revision
from memfold.store import State, Store
from memfold.store.states import check_revision
from memfold_reader.inline import InlineFolder

WAIT_S = 60.0  # for a revision, where the client set no deadline


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A memory and the state to answer from.

    Attributes:
        memory: as it was when the state was read.
        state: that was committed for it, or folded for this answer alone; None before the first fold.
        stale: it is behind what was asked for.
        folded_turns: for this answer alone.
    """

    memory: Memory
    state: State | None
    stale: bool = False
    folded_turns: int = 0

    @property
    def revision(self) -> Revision:
        """What the state stands for."""
        return self.state.revision if self.state is not None else self.memory.folded_revision


class Memories:
    """Reads memories of one model.

    Args:
        store: where they are.
        fingerprint: of the model.
        inline: folds what is missing.
    """

    def __init__(self, store: Store, fingerprint: str, inline: InlineFolder) -> None:
        self._store = store
        self._fingerprint = fingerprint
        self._inline = inline

    async def read(self, name: MemoryName, minimum: Revision | None, stale: Stale, deadline: float) -> Snapshot:
        """A state at ``minimum``, or without one at the log's end; ``stale`` says what to do where none is committed.

        Args:
            name: whose.
            minimum: a revision to reach.
            stale: ``WAIT`` for the minimum; without one, take what there is.
            deadline: a time of ``time.monotonic``, or infinity.

        Raises:
            MemoryNotFoundError, ModelMismatchError, RevisionForeignError, RevisionAheadError, DeadlineError,
            StateDamagedError, StoreUnavailableError.
        """
        deadline = min(deadline, time.monotonic() + WAIT_S)
        while True:
            memory, state = await self._store.read_state(name)
            self._check_model(memory)
            target = minimum or memory.revision
            check_revision(memory, target)
            if memory.applied >= target.sequence:
                return Snapshot(memory, state)
            if stale is Stale.ALLOW or (stale is Stale.WAIT and minimum is None):
                return Snapshot(memory, state, stale=True)
            if stale is Stale.FOLD_INLINE:
                folded = await self._inline.fold(memory, target)
                if folded is not None:
                    return Snapshot(memory, folded[0], folded_turns=folded[1])
            await self._wait(name, target, deadline, own=minimum is None)

    async def _wait(self, name: MemoryName, target: Revision, deadline: float, *, own: bool) -> None:
        """Wait for a writer. ``own``: nobody asked for just this revision, so it may vanish."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlineError(f"{name} did not reach revision {target} in time")
        try:
            await self._store.wait_for(name, target, left)
        except RevisionForeignError:
            if not own:
                raise

    def _check_model(self, memory: Memory) -> None:
        if memory.fingerprint != self._fingerprint:
            raise ModelMismatchError(
                f"{memory.name} is folded with model {memory.fingerprint[:16]}, this reader serves "
                f"{self._fingerprint[:16]}",
                facts={"memory_fingerprint": memory.fingerprint, "reader_fingerprint": self._fingerprint},
            )
