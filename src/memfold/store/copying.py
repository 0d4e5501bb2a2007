"""What a copy of a memory is put together from: pages of its source's log, and with the last what is kept of the states."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memfold.api.values import Revision
from memfold.store.checkpoints import Checkpoints, Snapshot
from memfold.store.part import Lines
from memfold.store.server import Argument

NOTHING_COPIED = {"entries": 0, "count": 0, "bytes": 0, "last": 0}


@dataclass(frozen=True, slots=True)
class Page:
    """Entries of the source's log; with the last page its meta hash and a snapshot of its states."""

    source: Revision
    read_ms: int
    entries: list[Any]
    meta: Mapping[bytes, bytes] | None
    snapshot: Snapshot | None


def read_page(lines: Lines, reply: Sequence[Any]) -> Page:
    """Read what the script ``fork_read`` found in a memory that is folded by these models."""
    source = Revision(reply[1].decode(), int(reply[2]))
    if len(reply) == 5:
        return Page(source, int(reply[3]), reply[4], None, None)
    meta, line, state, revisions, history = reply[5:10]
    snapshot = Snapshot(lines.fingerprint, _mapping(line), state, _mapping(revisions), _mapping(history))
    return Page(source, int(reply[3]), reply[4], _mapping(meta), snapshot)


def _mapping(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def pairs(fields: Mapping[str, Argument]) -> list[Argument]:
    """A list as the script takes it: its length, then names and values."""
    return [2 * len(fields), *(part for pair in fields.items() for part in pair)]


def sequence_of(entry: Sequence[Any]) -> int:
    """The number of a log entry."""
    return int(entry[0].split(b"-")[0])


def arguments(entries: Sequence[Any]) -> list[Argument]:
    """For each entry: sequence, turn's id or empty, name of its field, bytes, ms, nonce."""
    given: list[Argument] = []
    for entry in entries:
        kind, said, _, ms, _, nonce = entry[1]
        turn_id = json.loads(said)["id"] if kind == b"turn" else ""
        given += sequence_of(entry), turn_id, kind, said, ms, nonce
    return given


def counted(before: Mapping[str, int], entries: Sequence[Any]) -> dict[str, int]:
    """Entries, turns, bytes of their content, and the last sequence, with one page more."""
    turns = [json.loads(fields[1])["content"] for _, fields in entries if fields[0] == b"turn"]
    return {
        "entries": before["entries"] + len(entries),
        "count": before["count"] + len(turns),
        "bytes": before["bytes"] + sum(len(content.encode()) for content in turns),
        "last": sequence_of(entries[-1]) if entries else before["last"],
    }


def skips_at(stored: bytes, revision: int) -> tuple[str, int]:
    """The skips that hold at a revision, as stored; and under which number states may be copied.

    A turn that is passed over only later was not folded by states committed since: they are not those of this revision.
    """
    noted = [pair.split(":") for pair in stored.decode().split(",") if pair]
    late = [int(turn) for turn, entry in noted if int(entry) > revision]
    return ",".join(f"{turn}:{entry}" for turn, entry in noted if int(entry) <= revision), min([*late, revision + 1])


def stand_at(checkpoints: Checkpoints, sequence: int) -> None:
    """Nothing is left to fold: the copy's state stands at its log's end."""
    applied = str(checkpoints.line["applied"])
    checkpoints.line["applied"] = sequence
    if applied in checkpoints.revisions:
        checkpoints.revisions[str(sequence)] = checkpoints.revisions.pop(applied)
