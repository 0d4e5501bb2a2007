"""An operation as those who carry it out see it: what it is, how far it has come, and by what right they go on."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from memfold.api.errors import MemfoldError
from memfold.api.values import MemoryName, Operation, OperationKind

_WHERE = ("stage", "progress")
_RECORD = ("kind", "seed", "request", "work", "result", "error", "message")


@dataclass(slots=True)
class Job:
    """One operation, under a lease.

    Attributes:
        seed: random; what a step makes up, and must make up again when it is taken again, comes from it.
        stage: the step that comes next; empty at the start. A step may be taken again after a crash: each must bear that.
        work: what the steps note for later ones; not shown to anybody.
        fence: number of the lease; whoever holds an older one can save nothing any more.
        stored: the record as the store has it, as far as is known.
    """

    id: str
    memory: MemoryName
    kind: OperationKind
    request: dict[str, Any]
    seed: str
    stage: str = ""
    work: dict[str, Any] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    message: str = ""
    fence: int = 0
    done: bool = False
    create_ms: int = 0
    update_ms: int = 0
    stored: str = ""

    @classmethod
    def new(cls, operation_id: str, memory: MemoryName, kind: OperationKind, request: Mapping[str, Any]) -> Self:
        """An operation that has been asked for."""
        said: dict[str, Any] = json.loads(json.dumps(dict(request)))
        return cls(operation_id, memory, kind, said, secrets.token_hex(8))

    @classmethod
    def read(cls, operation_id: str, memory: MemoryName, stored: bytes, record: bytes) -> Self:
        """Read what the store holds: fence, time of the end, lease, holder, time of birth, of the last change, where; record."""
        fence, done_ms, _, _, create_ms, update_ms, where = stored.split(b" ", 6)
        said: dict[str, Any] = json.loads(where) | json.loads(record)
        said["kind"] = OperationKind(said["kind"])
        return cls(
            id=operation_id,
            memory=memory,
            fence=int(fence),
            done=int(done_ms) > 0,
            create_ms=int(create_ms),
            update_ms=int(update_ms),
            stored=record.decode(),
            **said,
        )

    def incarnation(self, attempt: int = 0) -> str:
        """A new incarnation, random, and the same whenever a step is taken again."""
        return hashlib.sha256(f"{self.seed}{attempt}".encode()).hexdigest()[:12]

    def where(self) -> str:
        """How far it has come, for the store: little, since it is written at every look."""
        return self._json(_WHERE)

    def record(self) -> str:
        """All else, for the store."""
        return self._json(_RECORD)

    def _json(self, names: tuple[str, ...]) -> str:
        return json.dumps({name: getattr(self, name) for name in names}, sort_keys=True, separators=(",", ":"))

    def go_to(self, stage: str, **progress: Any) -> None:
        """The next step is ``stage``."""
        self.stage, self.progress = stage, progress

    def finish(self, **result: Any) -> None:
        """It is done; the receipt holds ids and numbers only."""
        self.go_to("done")
        self.done, self.result, self.work = True, result, {}

    def fail(self, error: MemfoldError) -> None:
        """It cannot be done."""
        self.done, self.error, self.message, self.work = True, error.reason, error.message, {}

    def operation(self) -> Operation:
        """As clients see it."""
        return Operation(
            id=self.id,
            memory=self.memory,
            kind=self.kind,
            done=self.done,
            create_ms=self.create_ms,
            update_ms=self.update_ms,
            request=self.request,
            progress={"stage": self.stage, **self.progress},
            result=self.result,
            error=self.error,
            message=self.message,
        )
