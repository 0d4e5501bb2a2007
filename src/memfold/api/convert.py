"""Values to messages and back. Besides this, only the client and the servicers touch generated code."""

from __future__ import annotations

import array
import math
import sys
from collections.abc import Mapping
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import ParseDict
from google.protobuf.timestamp_pb2 import Timestamp

from memfold.api.errors import InvalidFieldError
from memfold.api.generation import Stale, UpdateMode
from memfold.api.v1 import generation_service_pb2 as generation_pb
from memfold.api.v1 import history_service_pb2 as history_pb
from memfold.api.v1 import memory_service_pb2 as memory_pb
from memfold.api.v1 import operation_service_pb2 as operation_pb
from memfold.api.values import KeptRevision, Memory, MemoryName, ModelCard, Operation, Policy, Revision, Role, Turn


def memory_to_message(memory: Memory) -> memory_pb.Memory:
    """A memory as clients see it."""
    return memory_pb.Memory(
        name=str(memory.name),
        display_name=memory.display_name,
        labels=dict(memory.labels),
        create_time=_time(memory.create_ms),
        update_time=_time(memory.update_ms),
        revision=str(memory.revision),
        folded_revision=str(memory.folded_revision),
        turn_count=memory.turn_count,
        lag_turns=memory.head - memory.applied,
        log_bytes=memory.log_bytes,
        state_bytes=memory.state_bytes,
        fingerprint=memory.fingerprint,
        building_fingerprint=memory.building,
        building_lag_turns=memory.head - memory.building_applied if memory.building else 0,
        quarantined_sequence=memory.quarantined,
        forked_from=memory.forked_from,
        policy=policy_to_message(memory.policy),
    )


def memory_from_message(message: memory_pb.Memory) -> Memory:
    """A memory from a server's answer."""
    revision = Revision.parse(message.revision)
    return Memory(
        name=MemoryName.parse(message.name),
        incarnation=revision.incarnation,
        display_name=message.display_name,
        labels=dict(message.labels),
        create_ms=message.create_time.ToMilliseconds(),
        update_ms=message.update_time.ToMilliseconds(),
        head=revision.sequence,
        applied=Revision.parse(message.folded_revision, "folded_revision").sequence,
        turn_count=message.turn_count,
        log_bytes=message.log_bytes,
        state_bytes=message.state_bytes,
        fingerprint=message.fingerprint,
        building=message.building_fingerprint,
        building_applied=revision.sequence - message.building_lag_turns if message.building_fingerprint else 0,
        quarantined=message.quarantined_sequence,
        forked_from=message.forked_from,
        policy=policy_from_message(message.policy),
    )


def policy_to_message(policy: Policy) -> memory_pb.Policy:
    """A policy; what never ends is not set."""
    return memory_pb.Policy(
        ttl=Duration(seconds=policy.ttl_s) if policy.ttl_s else None,
        retention=Duration(seconds=policy.retention_s) if policy.retention_s else None,
        keep_last=policy.keep_last,
    )


def policy_from_message(message: memory_pb.Policy) -> Policy:
    """A policy; what is not set has its default.

    Raises:
        InvalidFieldError: a duration is not of whole seconds.
    """
    for name in ("ttl", "retention"):
        if getattr(message, name).nanos:
            raise InvalidFieldError(f"memory.policy.{name}", "whole seconds are needed")
    return Policy(
        ttl_s=message.ttl.seconds,
        retention_s=message.retention.seconds,
        keep_last=message.keep_last or Policy().keep_last,
    )


def turn_to_message(turn: Turn) -> memory_pb.Turn:
    """A turn, with its place and time where it has them."""
    return memory_pb.Turn(
        id=turn.id,
        role=str(turn.role),
        content=turn.content,
        speaker=turn.speaker,
        metadata=dict(turn.metadata),
        sequence=turn.sequence,
        append_time=_time(turn.append_ms) if turn.append_ms else None,
        skips=turn.skips,
        skipped=turn.skipped,
    )


def turn_from_message(message: memory_pb.Turn) -> Turn:
    """A turn from the log.

    Raises:
        InvalidFieldError: no such role.
    """
    return Turn(
        id=message.id,
        role=Role.parse(message.role),
        content=message.content,
        speaker=message.speaker,
        metadata=dict(message.metadata),
        sequence=message.sequence,
        append_ms=message.append_time.ToMilliseconds(),
        skips=message.skips,
        skipped=message.skipped,
    )


def new_turn_from_message(message: memory_pb.Turn, turn_id: str) -> Turn:
    """A turn that a client wants appended, under this id; what is output only is left out.

    Raises:
        InvalidFieldError: no such role.
    """
    return Turn(
        id=turn_id,
        role=Role.parse(message.role),
        content=message.content,
        speaker=message.speaker,
        metadata=dict(message.metadata),
    )


def state_to_message(
    revision: Revision, fingerprint: str, shape: tuple[int, int, int, int], data: bytes
) -> memory_pb.State:
    """A state with its layers' norms; ``data`` is fp32, little-endian, row-major, of ``shape``."""
    return memory_pb.State(
        revision=str(revision),
        fingerprint=fingerprint,
        shape=shape,
        data=data,
        layer_norms=layer_norms(shape, data),
    )


def layer_norms(shape: tuple[int, int, int, int], data: bytes) -> list[float]:
    """The Frobenius norm of each layer's part of a state: (layers, heads, r, r) fp32 little-endian → (layers,)."""
    numbers = array.array("f", data)
    if sys.byteorder == "big":
        numbers.byteswap()
    assert len(numbers) == math.prod(shape), f"{len(numbers)} numbers are not of shape {shape}"
    size = math.prod(shape[1:])
    return [math.hypot(*numbers[start : start + size]) for start in range(0, len(numbers), size)]


def kept_revision_to_message(kept: KeptRevision) -> history_pb.KeptRevision:
    """A revision at which a state is kept."""
    return history_pb.KeptRevision(
        revision=str(kept.revision),
        fingerprint=kept.fingerprint,
        log_digest=kept.log_digest,
        state_digest=kept.state_digest,
        commit_time=_time(kept.commit_ms),
    )


def kept_revision_from_message(message: history_pb.KeptRevision) -> KeptRevision:
    """A kept revision from a server's answer."""
    return KeptRevision(
        revision=Revision.parse(message.revision),
        fingerprint=message.fingerprint,
        log_digest=message.log_digest,
        state_digest=message.state_digest,
        commit_ms=message.commit_time.ToMilliseconds(),
    )


def operation_to_message(operation: Operation) -> operation_pb.Operation:
    """An operation as clients see it. Progress and result are the JSON form of their messages."""
    message = operation_pb.Operation(
        name=f"{operation.memory}/operations/{operation.id}",
        kind=f"OPERATION_KIND_{operation.kind.upper()}",
        done=operation.done,
        create_time=_time(operation.create_ms),
        update_time=_time(operation.update_ms),
        progress=operation_pb.OperationProgress(**operation.progress),
    )
    if operation.error:
        message.error.CopyFrom(
            operation_pb.OperationError(reason=f"ERROR_REASON_{operation.error}", message=operation.message)
        )
    elif operation.done:
        receipt = getattr(message, operation.kind)
        receipt.SetInParent()
        ParseDict(_json_of(operation.result), receipt)
    return message


def _json_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result in the JSON form of its message, which spells out what is no number."""
    return {
        key: str(value).replace("nan", "NaN").replace("inf", "Infinity")
        if isinstance(value, float) and not math.isfinite(value)
        else value
        for key, value in result.items()
    }


def model_to_message(card: ModelCard) -> generation_pb.Model:
    """A model as clients see it."""
    return generation_pb.Model(
        fingerprint=card.fingerprint,
        backbone=card.backbone,
        adapter=card.adapter,
        state_shape=card.state_shape,
        state_bytes=card.state_bytes,
        context_tokens=card.context_tokens,
        description=card.description,
        examples=card.examples,
    )


def stale_to_message(stale: Stale) -> str:
    """A way with stale states, as messages take it."""
    return f"STALE_{stale.name}"


def stale_from_message(value: int) -> Stale:
    """A way with stale states; what is not specified is ``WAIT``.

    Raises:
        InvalidFieldError: no such value.
    """
    if value == generation_pb.STALE_UNSPECIFIED:
        return Stale.WAIT
    try:
        return Stale[generation_pb.Stale.Name(value).removeprefix("STALE_")]
    except ValueError:
        raise InvalidFieldError("memory_options.stale", f"unknown value {value}") from None


def update_mode_to_message(mode: UpdateMode) -> str:
    """An update mode, as messages take it."""
    return f"UPDATE_MODE_{mode.name}"


def update_mode_from_message(value: int) -> UpdateMode:
    """An update mode; what is not specified is ``READ_ONLY``.

    Raises:
        InvalidFieldError: no such value.
    """
    if value == generation_pb.UPDATE_MODE_UNSPECIFIED:
        return UpdateMode.READ_ONLY
    try:
        return UpdateMode[generation_pb.UpdateMode.Name(value).removeprefix("UPDATE_MODE_")]
    except ValueError:
        raise InvalidFieldError("memory_options.update", f"unknown value {value}") from None


def _time(ms: int) -> Timestamp:
    time = Timestamp()
    time.FromMilliseconds(ms)
    return time
