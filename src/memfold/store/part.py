"""What every part of the store shares: the server, and a guess at which model folds which memory."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from memfold.api.errors import MemoryNotFoundError, RevisionMismatchError, StoreUnavailableError
from memfold.api.values import MemoryName, Revision
from memfold.store import keys
from memfold.store.keys import MemoryKeys, memory_keys
from memfold.store.server import Argument, Server

_GUESSES = 65536

Arguments = Callable[[str], tuple[Argument, ...]]


class StorePart:
    """Runs scripts on one memory.

    A script's keys must be named before it runs, and those of the folded side contain the fingerprint that only the
    memory itself knows. So it is guessed, the script checks the guess, and answers with the right one where it is wrong.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._guesses: OrderedDict[MemoryName, str] = OrderedDict()
        self._last = ""
        self._told: set[tuple[int, str]] = set()

    async def _on_memory(
        self, script: str, name: MemoryName, args: Arguments, *, durable: bool = False, guess: str | None = None
    ) -> list[Any]:
        """Run a script that starts with ``identify``; ``args`` gives its arguments for a fingerprint.

        Raises:
            MemoryNotFoundError: there is no such memory.
            RevisionMismatchError: the log is not at the revision that the arguments expect.
        """
        call = self._server.write if durable else self._server.run
        fingerprint = self._guess(name) if guess is None else guess
        reply: list[Any] = await call(script, memory_keys(name, fingerprint), *args(fingerprint))
        while reply[0] == b"FINGERPRINT":
            fingerprint = reply[1].decode()
            reply = await call(script, memory_keys(name, fingerprint), *args(fingerprint))
        match reply[0]:
            case b"MISSING":
                raise missing(name)
            case b"MISMATCH":
                current = Revision(reply[1].decode(), int(reply[2]))
                raise RevisionMismatchError(f"the log is at {current}", facts={"revision": str(current)})
        self._learn(name, fingerprint)
        return reply

    async def _tell_partition(self, partition: int, fingerprint: str) -> None:
        """Let writers look into a partition at once. They look into all of them too, but more rarely."""
        if (partition, fingerprint) in self._told:
            return
        with contextlib.suppress(StoreUnavailableError):
            await self._server.command("SADD", keys.partitions(fingerprint), partition)
            self._told.add((partition, fingerprint))

    def _guess(self, name: MemoryName) -> str:
        return self._guesses.get(name, self._last)

    def _learn(self, name: MemoryName, fingerprint: str) -> None:
        self._last = fingerprint
        self._guesses[name] = fingerprint
        self._guesses.move_to_end(name)
        if len(self._guesses) > _GUESSES:
            self._guesses.popitem(last=False)

    def _keys(self, name: MemoryName) -> MemoryKeys:
        return memory_keys(name, self._guess(name))


def missing(name: MemoryName) -> MemoryNotFoundError:
    """The error for a memory that is not there."""
    return MemoryNotFoundError(f"{name} does not exist", facts={"memory": str(name)})
