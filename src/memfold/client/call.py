"""A call as a value, and how memories are named in it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from memfold.api.errors import InvalidFieldError

T = TypeVar("T")
Service = Literal["memory", "history", "operation", "generation"]
SERVICES: dict[Service, str] = {
    "memory": "memfold.api.v1.MemoryService",
    "history": "memfold.api.v1.HistoryService",
    "operation": "memfold.api.v1.OperationService",
    "generation": "memfold.api.v1.GenerationService",
}
_KEY = re.compile(r"mfk_(?P<tenant>[a-z0-9][a-z0-9-]{0,62})_.+")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One unary call."""

    service: Service
    method: str
    request: Any
    read: Callable[[Any], T]


class Page(NamedTuple, Generic[T]):
    """One page of a listing; ``next_token`` is empty on the last."""

    items: list[T]
    next_token: str


def tenant_of(api_key: str) -> str:
    """The tenant that an API key names; empty where it names none."""
    match = _KEY.fullmatch(api_key)
    return match["tenant"] if match else ""


class Naming:
    """Names the memories of one tenant. A memory is named by its id, or by its whole resource name."""

    def __init__(self, tenant: str) -> None:
        self._tenant = tenant

    def name(self, memory: str) -> str:
        """The resource name of a memory."""
        return memory if "/" in memory else f"{self.parent()}/memories/{memory}"

    def parent(self) -> str:
        """The resource name of the tenant.

        Raises:
            InvalidFieldError: the API key names none, and none was given.
        """
        if not self._tenant:
            raise InvalidFieldError(
                "name",
                "this key is not of the form mfk_TENANT_SECRET, so it names no tenant: give whole names, or the client a tenant",
            )
        return f"tenants/{self._tenant}"
