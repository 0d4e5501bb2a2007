"""Turns as JSONL: one object a line.

``{"memory": "alice", "role": "user", "content": "Hi", "id": "…", "speaker": "…", "metadata": {"…": "…"}}``; ``memory``, ``id``,
``speaker`` and ``metadata`` may be missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from memfold.api.errors import InvalidFieldError
from memfold.api.values import Role, Turn

_STRINGS = ("memory", "role", "content", "id", "speaker")
_FIELDS = (*_STRINGS, "metadata")
_LONGEST_LINE = 2 * 2**20  # beyond any turn that the platform takes, and below what the transport takes


@dataclass(frozen=True, slots=True)
class TurnLine:
    """A line that holds a turn."""

    number: int
    size: int
    memory: str
    turn: Turn


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that does not, and why."""

    number: int
    size: int
    reason: str


def read_lines(lines: Iterable[bytes], *, source: str, memory: str = "") -> Iterator[TurnLine | BadLine]:
    """Read turns line by line; empty lines are passed over.

    Args:
        lines: the file.
        source: its name; goes into the ids of turns that have none, so that reading the file again
            appends nothing twice.
        memory: for lines that name none.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield _read_line(number, line, source, memory)
        except (InvalidFieldError, ValueError) as error:
            yield BadLine(number, len(line), str(error))


def _read_line(number: int, line: bytes, source: str, default_memory: str) -> TurnLine:
    if len(line) > _LONGEST_LINE:
        raise ValueError(f"longer than {_LONGEST_LINE:,} bytes")
    fields = _parse(line)
    memory = fields.get("memory") or default_memory
    if not memory:
        raise InvalidFieldError("memory", "neither the line nor --memory names one")
    if not fields.get("content"):
        raise InvalidFieldError("content", "missing or empty")
    if "role" not in fields:
        raise InvalidFieldError("role", "missing")
    turn = Turn(
        id=fields.get("id") or derived_id(source, number, line),
        role=Role.parse(fields["role"]),
        content=fields["content"],
        speaker=fields.get("speaker", ""),
        metadata=fields.get("metadata", {}),
    )
    return TurnLine(number, len(line), memory, turn)


def derived_id(source: str, number: int, line: bytes) -> str:
    """The id of a turn that has none: the same for the same line at the same place of the same source."""
    digest = hashlib.sha256(f"{source}\x1f{number}\x1f".encode() + line.strip())
    return f"line-{number}-{digest.hexdigest()[:24]}"


def _parse(line: bytes) -> dict[str, Any]:
    """Decode one line and check the types of its fields."""
    try:
        fields = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start + 1}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("not JSON that nests so deep") from None
    if not isinstance(fields, dict):
        raise ValueError(f"not a JSON object but a {type(fields).__name__}")  # noqa: TRY004 -- the value of a file, not of a caller
    for name, value in fields.items():
        _check_field(name, value)
    return fields


def _check_field(name: str, value: object) -> None:
    if name not in _FIELDS:
        raise InvalidFieldError(name, f"unknown field; known are {', '.join(_FIELDS)}")
    if name in _STRINGS and not isinstance(value, str):
        raise InvalidFieldError(name, f"must be a string, is {json.dumps(value)[:40]}")
    if _has_surrogates(value):
        raise InvalidFieldError(name, "has a lone surrogate, which is no character")
    if name == "metadata" and not _is_string_map(value):
        raise InvalidFieldError(name, "must be an object of strings")


def _has_surrogates(value: object) -> bool:
    return any(0xD800 <= ord(character) <= 0xDFFF for character in json.dumps(value, ensure_ascii=False))


def _is_string_map(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())
