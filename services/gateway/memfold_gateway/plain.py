"""Turns that are plainly within the rules of their proto, read without asking the rules.

What passes here protovalidate would pass too. What does not may still be right: protovalidate has to say, and what is wrong.
Column by column, since most of an append's time went into looking at its turns one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter

from memfold.api.v1 import memory_service_pb2 as pb
from memfold.api.values import MemoryName, Role
from memfold.store import NewTurns

_FIELDS = attrgetter("id", "role", "content", "speaker", "metadata")
_ROLES = {
    name: str(Role.parse(name))
    for name in ("system", "developer", "user", "human", "assistant", "ai", "model", "tool", "function")
}
_MOST_TURNS = 1000
_LONGEST_ID, _LONGEST_REQUEST_ID, _LONGEST_REVISION = 128, 96, 64
# Characters, of which each takes four bytes at most; 262,144 bytes are allowed.
_LONGEST_CONTENT = 65_536
_LONGEST_SPEAKER = 64
_MOST_METADATA, _LONGEST_KEY, _LONGEST_VALUE = 32, 63, 1024


def plain_turns(request: pb.AppendTurnsRequest, base: str) -> NewTurns | None:
    """The turns of a request, under ids made from ``base`` where they have none; None where protovalidate has to say."""
    if (
        not MemoryName.is_one(request.memory)
        or len(request.expected_revision) > _LONGEST_REVISION
        or len(request.request_id) > _LONGEST_REQUEST_ID
        or not _is_visible(request.request_id)
        or not 0 < len(request.turns) <= _MOST_TURNS
    ):
        return None
    return _plain(request.turns, lambda at: f"{base}/{at}")


def plain_turn(request: pb.StreamTurnsRequest, turn_id: str) -> NewTurns | None:
    """The one turn of a request, under this id where it has none; None where protovalidate has to say."""
    if not MemoryName.is_one(request.memory) or not request.HasField("turn"):
        return None
    return _plain([request.turn], lambda _: turn_id)


def _plain(messages: Iterable[pb.Turn], new_id: Callable[[int], str]) -> NewTurns | None:
    """The messages, at least one, with new ids where they have none; None where one of them is not plainly right."""
    given, named, contents, speakers, metadata = zip(*map(_FIELDS, messages), strict=True)
    ids = given if all(given) else [turn_id or new_id(at) for at, turn_id in enumerate(given)]
    roles = [_ROLES.get(name, "") for name in named]
    sizes = [*map(len, contents)]
    if (
        "" in roles
        or max(map(len, ids)) > _LONGEST_ID
        or not _is_visible("".join(ids))
        or not 0 < min(sizes) <= max(sizes) <= _LONGEST_CONTENT
        or max(map(len, speakers)) > _LONGEST_SPEAKER
        or not all(map(_is_metadata, filter(None, metadata)))
    ):
        return None
    return NewTurns.said_in(ids, roles, contents, speakers, metadata)


def _is_visible(text: str) -> bool:
    """Nothing but visible ASCII."""
    return text.isascii() and text.isprintable() and " " not in text


def _is_metadata(metadata: Mapping[str, str]) -> bool:
    return len(metadata) <= _MOST_METADATA and all(
        0 < len(key) <= _LONGEST_KEY and len(value) <= _LONGEST_VALUE for key, value in metadata.items()
    )
