"""What every part of the store shares: the server, and a guess at which models fold which memory."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from memfold.api.errors import MemoryNotFoundError, RevisionMismatchError, StoreUnavailableError
from memfold.api.values import MemoryName, Revision
from memfold.store import keys
from memfold.store.server import Argument, Call, Server

_GUESSES = 65536


class Lines(NamedTuple):
    """Which models fold a memory: the one that serves, and a second one that catches up, or none."""

    fingerprint: str
    building: str = ""


KeysOf = Callable[[MemoryName, str, str], tuple[str, ...]]


class StorePart:
    """Runs scripts on one memory.

    A script's keys must be named before it runs, and those of the folded side contain fingerprints that only the
    memory itself knows. So they are guessed, the script checks the guess, and answers with the right ones where it is
    wrong.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._guesses: OrderedDict[MemoryName, Lines] = OrderedDict()
        self._last = ""
        self._told: set[tuple[int, str]] = set()

    async def _on_memory(
        self,
        script: str,
        name: MemoryName,
        *args: Argument,
        durable: bool = False,
        guess: Lines | None = None,
        keys_of: KeysOf = keys.both_lines,
    ) -> list[Any]:
        """Run a script that starts with ``identify``: its first two arguments are the guess, then come ``args``.

        Raises:
            MemoryNotFoundError: there is no such memory.
            RevisionMismatchError: the log is not at the revision that the arguments expect.
        """
        call = self._server.write if durable else self._server.run
        lines = guess or self._guess(name)
        reply: list[Any] = await call(script, keys_of(name, *lines), *lines, *args)
        while reply[0] == b"FINGERPRINT":
            lines = _lines(reply)
            reply = await call(script, keys_of(name, *lines), *lines, *args)
        match reply[0]:
            case b"MISSING":
                raise missing(name)
            case b"MISMATCH":
                current = Revision(reply[1].decode(), int(reply[2]))
                raise RevisionMismatchError(f"the log is at {current}", facts={"revision": str(current)})
        self._learn(name, lines)
        return reply

    async def _on_each(self, script: str, names: Sequence[MemoryName]) -> list[Any]:
        """Run a script that starts with ``identify`` and takes nothing else on many memories; none of them need exist."""
        guesses = [self._guess(name) for name in names]
        calls = [Call(keys.both_lines(name, *lines), lines) for name, lines in zip(names, guesses, strict=True)]
        replies = await self._server.run_each(script, calls)
        wrong = [at for at, reply in enumerate(replies) if reply[0] == b"FINGERPRINT"]
        for at in wrong:
            self._learn(names[at], _lines(replies[at]))
        if wrong:
            again = await self._on_each(script, [names[at] for at in wrong])
            for at, reply in zip(wrong, again, strict=True):
                replies[at] = reply
        return replies

    async def _tell_partition(self, partition: int, fingerprint: str) -> None:
        """Let writers look into a partition at once. They look into all of them too, but more rarely."""
        if (partition, fingerprint) in self._told:
            return
        with contextlib.suppress(StoreUnavailableError):
            await self._server.command("SADD", keys.partitions(fingerprint), partition)
            self._told.add((partition, fingerprint))

    def _guess(self, name: MemoryName) -> Lines:
        return self._guesses.get(name) or Lines(self._last)

    def _learn(self, name: MemoryName, lines: Lines) -> None:
        self._last = lines.fingerprint
        self._guesses[name] = lines
        self._guesses.move_to_end(name)
        if len(self._guesses) > _GUESSES:
            self._guesses.popitem(last=False)


def missing(name: MemoryName) -> MemoryNotFoundError:
    """The error for a memory that is not there."""
    return MemoryNotFoundError(f"{name} does not exist", facts={"memory": str(name)})


def _lines(reply: Sequence[Any]) -> Lines:
    return Lines(reply[1].decode(), reply[2].decode())
