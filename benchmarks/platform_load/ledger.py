"""What the load has seen: latencies, errors, and what each memory is known to hold."""

from __future__ import annotations

import time
from array import array
from collections import Counter
from dataclasses import dataclass, field

from memfold.api.generation import Stale
from memfold.api.values import Revision
from memfold.client import Summary

LATENCIES = ("ack", "folded", "first token", "gap between tokens")


@dataclass
class Known:
    """A memory as its clients know it.

    Attributes:
        sent: turns that have been sent, acknowledged or not.
        acknowledged: where its log stands at least; None before the first acknowledgement.
        folded: the highest sequence that the stored state is known to have reached.
        busy: calls that are under way.
        retired: it gets no more calls, and goes when the last has ended.
    """

    name: str
    seed: int
    sent: int = 0
    acknowledged: Revision | None = None
    folded: int = 0
    busy: int = 0
    retired: bool = False

    def acknowledge(self, revision: Revision) -> None:
        """The log has come at least this far."""
        if self.acknowledged is None or revision.sequence > self.acknowledged.sequence:
            self.acknowledged = revision


@dataclass
class Series:
    """Values with the times at which they were seen, in seconds since the load began."""

    times: array[float] = field(default_factory=lambda: array("d"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def add(self, at: float, value: float) -> None:
        """Append one."""
        self.times.append(at)
        self.values.append(value)


class Ledger:
    """Everything that is noted while the load runs; times count from the call of ``begin``.

    Attributes:
        latencies: seconds, by what was waited for.
        done: calls that ended well, by kind.
        errors: calls that failed, by kind and code.
        expected: the same of calls that were meant to fail, for want of time, or were left by their client.
        wrong: answers that rested on another revision than they had to, in words.
        checked: answers whose revision was checked.
        turns: acknowledged.
        tokens: generated in whole replies.
    """

    def __init__(self) -> None:
        self.latencies = {kind: Series() for kind in LATENCIES}
        self.done: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.expected: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.checked = 0
        self.turns = 0
        self.tokens = 0
        self._began = time.perf_counter()

    def begin(self) -> None:
        """The load begins now; the turns of the time before do not count."""
        self._began, self.turns = time.perf_counter(), 0

    @property
    def now(self) -> float:
        """Seconds since the load began."""
        return time.perf_counter() - self._began

    def took(self, what: str, seconds: float) -> None:
        """Note a latency that ended now."""
        self.latencies[what].add(self.now, seconds)

    def waited(self, known: Known, answered: Revision, asked: Revision) -> None:
        """A wait for ``asked`` has ended."""
        self._checked("wait", known, _out_of_bounds(known, answered) or _behind(answered, asked))
        known.folded = max(known.folded, answered.sequence)

    def answered(self, known: Known, asked: Revision | None, stale: Stale, folded_before: int, found: Summary) -> None:
        """A reply is complete.

        Args:
            known: the memory.
            asked: the ``min_revision`` of the request.
            stale: what the request said about states behind it.
            folded_before: ``known.folded`` when the request was sent; nothing goes back behind that.
            found: the reply's summary.
        """
        read = found.revision
        if read is None:
            self._checked("generate", known, "names no revision")
            return
        problem = _out_of_bounds(known, read)
        if read.sequence < folded_before:
            problem = f"went back: {read} after {folded_before} had been read"
        if stale is not Stale.ALLOW:
            problem = problem or _behind(read, asked)
        if asked is not None and found.stale != (read.sequence < asked.sequence):
            problem = problem or f"{read} where {asked} was asked for, and stale is {found.stale}"
        self._checked("generate", known, problem)
        if not found.folded_inline_turns:  # what was folded for one reply alone, others may not have yet
            known.folded = max(known.folded, read.sequence)

    def _checked(self, what: str, known: Known, problem: str) -> None:
        self.checked += 1
        if problem:
            self.wrong.append(f"{what} of {known.name}: {problem}")


def _behind(answered: Revision, asked: Revision | None) -> str:
    if asked is None or answered.sequence >= asked.sequence:
        return ""
    return f"stale: {answered} where {asked} was asked for"


def _out_of_bounds(known: Known, answered: Revision) -> str:
    if known.acknowledged is not None and answered.incarnation != known.acknowledged.incarnation:
        return f"foreign incarnation {answered}"
    return f"from the future: {answered} of {known.sent} turns" if answered.sequence > known.sent else ""
