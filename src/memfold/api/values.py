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
    """One message of a conversation. ``sequence`` and ``append_ms`` are set once it is in the log."""

    id: str
    role: Role
    content: str
    speaker: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    sequence: int = 0
    append_ms: int = 0

    def to_bytes(self) -> bytes:
        """What the client said, as canonical JSON: two turns are the same if these bytes are."""
        said = {
            "id": self.id,
            "role": str(self.role),
            "content": self.content,
            "speaker": self.speaker,
            "metadata": dict(self.metadata),
        }
        return json.dumps(said, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes, *, sequence: int = 0, append_ms: int = 0) -> Self:
        """Read back what ``to_bytes`` wrote."""
        said: dict[str, Any] = json.loads(data)
        return cls(**{**said, "role": Role(said["role"])}, sequence=sequence, append_ms=append_ms)


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a prompt."""

    role: Role
    content: str
    speaker: str = ""


@dataclass(frozen=True, slots=True)
class Memory:
    """A memory as a client sees it; times are milliseconds since the epoch."""

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

    @property
    def revision(self) -> Revision:
        """Where the log stands."""
        return Revision(self.incarnation, self.head)

    @property
    def folded_revision(self) -> Revision:
        """Where the state stands."""
        return Revision(self.incarnation, self.applied)


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
