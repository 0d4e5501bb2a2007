"""Values that every part of memfold speaks in. Immutable, checked when made, free of any transport."""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from memfold.api.errors import InvalidFieldError

PARTITIONS = 1024
_NAME = re.compile(
    r"tenants/(?P<tenant>[a-z0-9][a-z0-9-]{0,62})/memories/(?P<memory>[A-Za-z0-9][A-Za-z0-9._~-]{0,127})"
)
_REVISION = re.compile(r"(?P<incarnation>[0-9a-f]{12})\.(?P<sequence>0|[1-9][0-9]{0,17})")


# Made once: ``json.dumps`` with options makes one for each call.
_CANONICAL = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))


class Role(StrEnum):
    """Who speaks."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a role under any of its common names.

        Raises:
            InvalidFieldError: no such role.
        """
        try:
            return cls(_ROLE_NAMES.get(text, text))
        except ValueError:
            known = ", ".join([*cls, *_ROLE_NAMES])
            raise InvalidFieldError("role", f"unknown role {text!r}; known are {known}") from None


_ROLE_NAMES = {"developer": "system", "human": "user", "ai": "assistant", "model": "assistant", "function": "tool"}


@dataclass(frozen=True, slots=True, order=True)
class MemoryName:
    """``tenants/{tenant}/memories/{memory}``."""

    tenant: str
    memory: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a resource name.

        Raises:
            InvalidFieldError: it is none.
        """
        match = _NAME.fullmatch(text)
        if match is None:
            raise InvalidFieldError("name", f"{text!r} is not of the form tenants/TENANT/memories/MEMORY")
        return cls(match["tenant"], match["memory"])

    @staticmethod
    def is_one(text: str) -> bool:
        """Whether ``parse`` would take it."""
        return _NAME.fullmatch(text) is not None

    def __str__(self) -> str:
        return f"tenants/{self.tenant}/memories/{self.memory}"

    @property
    def partition(self) -> int:
        """The virtual partition that holds every key of this memory."""
        return binascii.crc32(str(self).encode()) % PARTITIONS


@dataclass(frozen=True, slots=True)
class Revision:
    """How far a log or a state has come, within one incarnation of a memory."""

    incarnation: str
    sequence: int

    @classmethod
    def parse(cls, token: str, name: str = "revision") -> Self:
        """Read a revision token.

        Raises:
            InvalidFieldError: it is none.
        """
        match = _REVISION.fullmatch(token)
        if match is None:
            raise InvalidFieldError(name, f"{token!r} is not a revision token")
        return cls(match["incarnation"], int(match["sequence"]))

    def __str__(self) -> str:
        return f"{self.incarnation}.{self.sequence}"


@dataclass(frozen=True, slots=True)
class Turn:
    """One entry of a log: a message of a conversation, or a note that an earlier one is not to be folded.

    Attributes:
        sequence: its place in the log; set, like all that follows, once it is there.
        append_ms: when it came in.
        nonce: random, known to the log alone: without it nobody can guess a short turn from its digest.
        skips: the turn that this entry says to pass over; such an entry has neither id nor content. 0: it is a turn.
        skipped: a later entry says to pass over this turn.
    """

    id: str
    role: Role
    content: str
    speaker: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    sequence: int = 0
    append_ms: int = 0
    nonce: bytes = b""
    skips: int = 0
    skipped: bool = False

    @property
    def folds(self) -> bool:
        """The state takes this entry up."""
        return not self.skips and not self.skipped

    def to_bytes(self) -> bytes:
        """What the client said, as canonical JSON: two turns are the same if these bytes are."""
        said = {
            "id": self.id,
            "role": str(self.role),
            "content": self.content,
            "speaker": self.speaker,
            "metadata": dict(self.metadata),
        }
        return _CANONICAL.encode(said).encode()

    @classmethod
    def from_bytes(
        cls, data: bytes, *, sequence: int = 0, append_ms: int = 0, nonce: bytes = b"", skipped: bool = False
    ) -> Self:
        """Read back what ``to_bytes`` wrote."""
        said: dict[str, Any] = json.loads(data)
        said["role"] = Role(said["role"])
        return cls(**said, sequence=sequence, append_ms=append_ms, nonce=nonce, skipped=skipped)


@dataclass(frozen=True, slots=True)
class FoundTurn:
    """A turn of the log that fits a query. ``score`` is BM25: more is better; scores of two logs do not compare."""

    turn: Turn
    score: float


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a prompt."""

    role: Role
    content: str
    speaker: str = ""


@dataclass(frozen=True, slots=True)
class Policy:
    """How long things are kept.

    Attributes:
        ttl_s: the memory is deleted so long after its last turn came in; 0: never.
        retention_s: turns are forgotten so long after they came in; 0: never.
        keep_last: so many of the newest states are kept, besides ever fewer older ones.
    """

    ttl_s: int = 0
    retention_s: int = 0
    keep_last: int = 4

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name in ("ttl_s", "retention_s"):
            if getattr(self, name) < 0:
                raise InvalidFieldError(f"policy.{name}", f"at least 0 seconds, not {getattr(self, name)}")
        if self.keep_last < 1:
            raise InvalidFieldError("policy.keep_last", f"at least 1, not {self.keep_last}")

    @property
    def look_s(self) -> float:
        """So long after a look there is something to look for again, at the latest; 0: never.

        Old turns go in batches, since what follows them is folded anew: a look comes at every eighth of their time.
        """
        looks = [float(self.ttl_s), min(86_400.0, self.retention_s / 8)]
        return min((look for look in looks if look), default=0.0)

    def to_json(self) -> str:
        """For the store."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read back what ``to_json`` wrote; an empty text is the default."""
        return cls(**json.loads(text)) if text else cls()


class OperationKind(StrEnum):
    """What an operation does."""

    FORK = "fork"
    ROLLBACK = "rollback"
    FORGET = "forget"
    REBUILD = "rebuild"
    VERIFY = "verify"


@dataclass(frozen=True, slots=True)
class Operation:
    """A piece of work on a memory: accepted, under way or done. Holds ids and numbers, never a text.

    Attributes:
        id: unique within the memory.
        memory: that it works on; deleting it ends its operations.
        done: it has ended, with an error or with a result.
        request: what was asked for.
        progress: ``stage`` and, where they are known, ``completed`` and ``total``.
        result: what it did; filled in once it is done without an error.
        error: the reason why it failed, as ``MemfoldError.reason``; empty where it did not.
        message: the error in words.
    """

    id: str
    memory: MemoryName
    kind: OperationKind
    done: bool = False
    create_ms: int = 0
    update_ms: int = 0
    request: Mapping[str, Any] = field(default_factory=dict)
    progress: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Memory:
    """A memory as a client sees it; times are milliseconds since the epoch.

    Attributes:
        head: where the log stands. ``last`` is the highest number ever given to a turn; none is given twice.
        applied: where the state stands.
        building: fingerprint of a second model that folds the log too, as far as ``building_applied``; empty: none.
        quarantined: a turn that cannot be folded and holds up all later ones; 0: none. ``building_quarantined``: one that
            the second model cannot fold.
        forked_from: the memory and revision that this one is a copy of; empty: it is none.
    """

    name: MemoryName
    incarnation: str
    display_name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    create_ms: int = 0
    update_ms: int = 0
    head: int = 0
    applied: int = 0
    turn_count: int = 0
    log_bytes: int = 0
    state_bytes: int = 0
    fingerprint: str = ""
    last: int = 0
    building: str = ""
    building_applied: int = 0
    building_quarantined: int = 0
    quarantined: int = 0
    forked_from: str = ""
    policy: Policy = field(default_factory=Policy)

    @property
    def revision(self) -> Revision:
        """Where the log stands."""
        return Revision(self.incarnation, self.head)

    @property
    def folded_revision(self) -> Revision:
        """Where the state stands."""
        return Revision(self.incarnation, self.applied)


@dataclass(frozen=True, slots=True)
class KeptRevision:
    """A revision at which a state is kept. Digests are SHA-256: of the log up to it, and of the state's fp32 data."""

    revision: Revision
    fingerprint: str
    log_digest: bytes
    state_digest: bytes
    commit_ms: int


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What the services that hold no model need to know of the one that folds."""

    fingerprint: str
    backbone: str
    adapter: str
    state_shape: tuple[int, int, int, int]
    block_tokens: int
    context_tokens: int
    description: str = ""
    examples: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: Any) -> Self:
        """The card of a loaded model: anything that has this card's fields as attributes."""
        return cls(**{name: getattr(model, name) for name in cls.__slots__})

    @property
    def state_bytes(self) -> int:
        """Bytes of one memory's state in fp32."""
        layers, heads, rows, columns = self.state_shape
        return 4 * layers * heads * rows * columns

    def to_json(self) -> str:
        """For the store."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read back what ``to_json`` wrote."""
        raw: dict[str, Any] = json.loads(text)
        layers, heads, rows, columns = raw.pop("state_shape")
        return cls(**{**raw, "examples": tuple(raw["examples"])}, state_shape=(layers, heads, rows, columns))
