"""Values to messages and back. Besides this, only the client and the servicers touch generated code."""

from __future__ import annotations

import array
import math
import sys

from google.protobuf.timestamp_pb2 import Timestamp

from memfold.api.v1 import generation_service_pb2 as generation_pb
from memfold.api.v1 import memory_service_pb2 as memory_pb
from memfold.api.values import Memory, MemoryName, ModelCard, Revision, Role, Turn


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


def _time(ms: int) -> Timestamp:
    time = Timestamp()
    time.FromMilliseconds(ms)
    return time
