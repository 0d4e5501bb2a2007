"""What operations did, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from memfold.api.errors import MemfoldError
from memfold.api.values import Revision
from memfold.cli.output import counted, iso_time

if TYPE_CHECKING:  # brings gRPC, see options
    from memfold.client import ForgetReceipt, RollbackReceipt, VerifyReceipt
    from memfold.client.operations import Receipt

_MANY = 20  # ranges of numbers that a line tells


def as_dict(value: Any) -> Any:
    """A value of the client for programs: revisions as tokens, digests in hex, times as ``…_time``."""
    match value:
        case Revision():
            return str(value)
        case bytes():
            return value.hex()
        case MemfoldError():
            return {"reason": value.reason, "message": value.message}
        case tuple() | list():
            return [as_dict(one) for one in value]
    if not is_dataclass(value):
        return value
    said = {field.name: getattr(value, field.name) for field in fields(value)}
    return {
        f"{key.removesuffix('_ms')}_time" if key.endswith("_ms") else key: iso_time(one)
        if key.endswith("_ms")
        else as_dict(one)
        for key, one in said.items()
    }


def sentences(receipt: Receipt | None) -> Iterator[str]:
    """A receipt as lines for people."""
    from memfold.client import (  # noqa: PLC0415 - see above
        ForgetReceipt,
        ForkReceipt,
        RebuildReceipt,
        RollbackReceipt,
        VerifyReceipt,
    )

    match receipt:
        case ForkReceipt():
            yield f"{receipt.memory} holds {counted(receipt.turn_count, 'turn')}, as it was at {receipt.source_revision}"
        case RollbackReceipt():
            yield f"back at {receipt.revision}: {counted(receipt.removed_turns, 'turn')} {'is' if receipt.removed_turns == 1 else 'are'} gone"
            yield from _folding(receipt.revision, receipt.restored_revision)
            if receipt.removed_turns:
                yield from _erased(receipt)
        case ForgetReceipt():
            yield from _forgotten(receipt)
        case RebuildReceipt():
            before = receipt.replaced_fingerprint
            since = f"since {receipt.revision}, before by {before[:16]}" if before else "already"
            yield f"folded by {receipt.fingerprint[:16]} {since}"
        case VerifyReceipt():
            yield from _verified(receipt)


def _forgotten(receipt: ForgetReceipt) -> Iterator[str]:
    if receipt.restored_revision is None:
        yield "no turn of it was meant" if receipt.forks else "no turn was meant; nothing has changed"
        yield from _forks(receipt)
        return
    yield f"forgot {counted(receipt.removed_turns, 'turn')}: {_numbers(receipt)}"
    yield f"the log is at {receipt.revision}; dropped with them: {counted(len(receipt.dropped_revisions), 'kept state')}"
    yield from _folding(receipt.revision, receipt.restored_revision)
    yield from _forks(receipt)
    yield from _erased(receipt)


def _numbers(receipt: ForgetReceipt) -> str:
    told = [str(first) if first == last else f"{first} to {last}" for first, last in receipt.ranges[:_MANY]]
    return ", ".join([*told, "..."] if len(receipt.ranges) > _MANY else told) or "another request did"


def _erased(receipt: ForgetReceipt | RollbackReceipt) -> Iterator[str]:
    yield "the log was written anew" if receipt.log_rewritten else "the log is still to be written anew"
    yield (
        "the store's files were written anew" if receipt.files_rewritten else f"the store's files: {receipt.files_note}"
    )


def _forks(receipt: ForgetReceipt) -> Iterator[str]:
    for fork in receipt.forks:
        held = " (--include-forks forgets them there too)" if fork.held_turns else ""
        yield f"{fork.memory}: {fork.forgotten_turns} forgotten, {fork.held_turns} still held{held}"


def _verified(receipt: VerifyReceipt) -> Iterator[str]:
    yield f"{'sound' if receipt.ok else 'NOT SOUND'} at {receipt.revision}, {counted(receipt.turn_count, 'turn')}"
    yield f"the log's digests {'match' if receipt.log_matches else 'DO NOT MATCH'}"
    yield f"the state's digest {'matches' if receipt.state_matches else 'DOES NOT MATCH'}"
    yield f"folded again, the state differs by {receipt.relative_error:.1e} of its norm"


def _folding(log: Revision, state: Revision) -> Iterator[str]:
    if state != log:
        yield f"the state was set back to {state}; what follows is being folded again"
