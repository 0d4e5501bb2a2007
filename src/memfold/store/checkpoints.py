"""Kept states on their way into a copy: checked, and written anew as the copy's own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from memfold.api.errors import StateDamagedError
from memfold.store.blob import StateBlob
from memfold.store.digests import EMPTY_LOG
from memfold.store.history import read_history
from memfold.store.states import note_damage, open_anchor, open_state
from memfold.store.values import START, Kept


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the source keeps of a line, as the store holds it: hashes, and the newest state."""

    fingerprint: str
    line: Mapping[bytes, bytes]
    state: bytes
    revisions: Mapping[bytes, bytes]
    history: Mapping[bytes, bytes]


@dataclass(slots=True)
class Checkpoints:
    """What a copy gets: fields of its hashes, and its newest state."""

    line: dict[str, str | int] = field(default_factory=dict)
    state: bytes = b""
    revisions: dict[str, str] = field(default_factory=dict)
    history: dict[str, bytes] = field(default_factory=dict)


def copy_checkpoints(snapshot: Snapshot, *, below: int, incarnation: str) -> Checkpoints:
    """All kept revisions under the number ``below``, as a copy of this incarnation holds them; damaged ones stay behind."""
    copied = Checkpoints(line=_line(None))
    newest: tuple[Kept, StateBlob] | None = None
    for kept in read_history(snapshot.revisions):
        if kept.sequence >= below:
            continue
        try:
            state, anchor = _sound(snapshot, kept)
        except StateDamagedError as error:
            note_damage(f"revision {kept.sequence}, which is not copied,", error)
            continue
        if newest is not None:
            copied.history[str(newest[0].sequence)] = _mine(newest[1], incarnation)
        newest = kept, state
        if anchor is not None:
            copied.history[f"@{kept.anchor}"] = _mine(anchor, incarnation)
        told = json.loads(snapshot.revisions[str(kept.sequence).encode()])
        copied.revisions[str(kept.sequence)] = json.dumps({**told, "made": incarnation}, sort_keys=True)
    if newest is not None:
        kept, state = newest
        copied.state = _mine(state, incarnation)
        copied.line = _line(dataclasses.replace(kept, made=incarnation), len(state.data))
    return copied


def _sound(snapshot: Snapshot, kept: Kept) -> tuple[StateBlob, StateBlob | None]:
    """A kept state with its anchor, if what is stored is what is known of them."""
    is_newest = int(snapshot.line.get(b"applied", 0)) == kept.sequence
    state = snapshot.state if is_newest else snapshot.history.get(str(kept.sequence).encode())
    anchor = snapshot.history.get(f"@{kept.anchor}".encode())
    return (
        open_state(state, snapshot.fingerprint, kept),
        open_anchor(anchor, snapshot.fingerprint, kept.anchor, kept.anchor_digest),
    )


def _mine(blob: StateBlob, incarnation: str) -> bytes:
    return dataclasses.replace(blob, incarnation=incarnation).encode()


def _line(kept: Kept | None, state_bytes: int = 0) -> dict[str, str | int]:
    """The fields of a line that stands at a kept revision, or at the very start."""
    return {
        "applied": kept.sequence if kept else 0,
        "at": kept.at if kept else 0,
        "made": kept.made if kept else "",
        "log_digest": (kept.log_digest if kept else EMPTY_LOG).hex(),
        "state_digest": kept.state_digest.hex() if kept else "",
        "anchor": str(kept.anchor if kept else START),
        "anchor_digest": kept.anchor_digest.hex() if kept else "",
        "fence": 0,
        "attempts": 0,
        "lease": 0,
        "claim": "",
        "owner": "",
        "state_bytes": state_bytes,
    }
