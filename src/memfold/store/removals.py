"""A removal of turns on its way: what goes, under which incarnation, and how far the log has been written anew without it."""

from __future__ import annotations

import bisect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from memfold.api.values import MemoryName, Revision
from memfold.store.memories import token
from memfold.store.ranges import Runs, pack, unpack
from memfold.store.server import Argument
from memfold.store.values import Removed

LISTED = 1000
"""So many ids, and so many runs of numbers, are listed of the turns that are removed at once; all are counted."""

MANY = 500
"""More entries than these are not taken out at once; nor are scripts told more runs."""


@dataclass(slots=True)
class Aside:
    """How far the log has been written anew, aside, and what has been left out of it so far.

    Attributes:
        cursor: up to this number. ``ended``: the log ended there.
        count: turns left out; ``runs`` and ``ids`` list the first of them.
    """

    cursor: int = 0
    ended: bool = False
    count: int = 0
    runs: list[tuple[int, int]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)

    def add(self, receipt: Mapping[str, Any]) -> None:
        """What was left out of a page."""
        self.count += receipt["count"]
        self.ids += list(receipt["ids"])[: LISTED - len(self.ids)]
        for first, last in receipt["runs"]:
            if self.runs and self.runs[-1][1] + 1 == first:
                self.runs[-1] = self.runs[-1][0], last
            elif len(self.runs) < LISTED:
                self.runs.append((first, last))

    def receipt(self) -> str:
        """As scripts take it."""
        return json.dumps({"count": self.count, "runs": self.runs, "ids": self.ids})

    def to_work(self) -> dict[str, Any]:
        """As an operation notes it."""
        return {"cursor": self.cursor, "count": self.count, "runs": pack(self.runs), "ids": self.ids}

    @classmethod
    def from_work(cls, noted: Mapping[str, Any] | None) -> Aside | None:
        """Read back what ``to_work`` wrote."""
        if noted is None:
            return None
        return cls(noted["cursor"], False, noted["count"], list(unpack(noted["runs"])), list(noted["ids"]))


@dataclass(slots=True)
class Removal:
    """Turns that are to be taken out of a memory.

    Attributes:
        script: that takes them out.
        known: the revision by which the caller knows the log.
        incarnation: the new one; whoever repeats the removal gives it again.
        runs: the numbers of what goes. ``open``: and all behind the last run's first; whatever stands there goes, not turns only.
        args: what the script takes besides.
        aside: None where the turns are few enough to go at once.
    """

    name: MemoryName
    script: str
    known: Revision
    incarnation: str
    runs: Runs
    open: bool = False
    args: tuple[Argument, ...] = ()
    aside: Aside | None = None

    @classmethod
    def of_turns(cls, name: MemoryName, runs: Runs, known: Revision, incarnation: str) -> Removal:
        """Forgetting."""
        return cls(name, "forget", known, incarnation, runs)

    @classmethod
    def behind(cls, name: MemoryName, to: Revision, expected: Revision | None, incarnation: str) -> Removal:
        """Rolling back."""
        runs = ((to.sequence + 1, to.sequence + 1),)
        return cls(name, "rollback", to, incarnation, runs, open=True, args=(to.sequence, token(expected)))

    def told(self, cursor: int) -> tuple[Argument, list[Argument]]:
        """The next runs that matter behind a number, as scripts take them; and up to which number these are all."""
        if self.open:
            return "+", [self.runs[0][0], "+"]
        first = bisect.bisect_right(self.runs, cursor, key=lambda run: run[1])
        some = self.runs[first : first + MANY]
        until = some[-1][1] if first + len(some) < len(self.runs) else "+"
        return until, [number for run in some for number in run]


def removed(incarnation: str, receipt: Mapping[str, Any]) -> Removed:
    """Read a receipt as the scripts wrote it. An empty list is an empty table there, and no list."""
    return Removed(
        revision=Revision(incarnation, int(receipt["head"])),
        restored_to=receipt.get("restored_to", 0),
        count=receipt.get("count", 0),
        runs=tuple((first, last) for first, last in receipt.get("runs", ())),
        ids=tuple(receipt.get("ids", ())),
        dropped=tuple(sorted(receipt.get("dropped", ()))),
    )
