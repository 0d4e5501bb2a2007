"""What a request asks for, as values; what it must not ask for, as errors that name the field."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from memfold.api.convert import stale_from_message, update_mode_from_message
from memfold.api.errors import InvalidFieldError
from memfold.api.generation import UpdateMode
from memfold.api.v1 import generation_service_pb2 as pb
from memfold.api.values import MemoryName, Revision, Role
from memfold.rpc.tenant import told_tenant
from memfold_osam.turns import Message
from memfold_reader.reader import MemoryUse
from memfold_reader.sampling import SamplingOptions

MOST_LOGPROBS = 20


def messages_of(messages: Iterable[pb.Message]) -> list[Message]:
    """The messages of a prompt.

    Raises:
        InvalidFieldError: there are none, or one has an unknown role.
    """
    found = [Message(str(Role.parse(m.role)), m.content, m.speaker) for m in messages]
    if not found:
        raise InvalidFieldError("messages", "at least one is needed")
    return found


def memory_use_of(name: str, options: pb.MemoryOptions) -> MemoryUse:
    """How a generation takes a memory.

    Raises:
        InvalidFieldError: a field is out of its range, or needs a memory where there is none.
    """
    gain = options.gain if options.HasField("gain") else 1.0
    _check("memory_options.gain", math.isfinite(gain) and gain >= 0, "must be 0 or more")
    _check("memory_options.window_tokens", options.window_tokens >= 0, "must be 0 or more")
    _check("memory_options.recall_tokens", options.recall_tokens >= 0, "must be 0 or more")
    stale, update = stale_from_message(options.stale), update_mode_from_message(options.update)
    minimum = options.min_revision
    if not name:
        _check("memory_options.min_revision", not minimum, "needs a memory")
        _check("memory_options.update", update is UpdateMode.READ_ONLY, "needs a memory")
        _check("memory_options.report_influence", not options.report_influence, "needs a memory")
    return MemoryUse(
        name=MemoryName.parse(name) if name else None,
        gain=gain,
        window_tokens=options.window_tokens,
        recall_tokens=options.recall_tokens,
        recall_query=options.recall_query,
        minimum=Revision.parse(minimum, "memory_options.min_revision") if minimum else None,
        stale=stale,
        update=update,
        influence=options.report_influence,
    )


def reading_of(name: str, options: pb.MemoryOptions) -> MemoryUse:
    """How a score takes a memory.

    Raises:
        InvalidFieldError: as for ``memory_use_of``, or a field is for generations only.
    """
    use = memory_use_of(name, options)
    _check("memory_options.update", use.update is UpdateMode.READ_ONLY, "a score only reads")
    _check("memory_options.report_influence", not use.influence, "only for generations")
    return use


def sampling_of(options: pb.Sampling) -> SamplingOptions:
    """How tokens are drawn.

    Raises:
        InvalidFieldError: a field is out of its range.
    """
    top_p = options.top_p if options.HasField("top_p") else 1.0
    top_logprobs = options.top_logprobs if options.HasField("top_logprobs") else None
    _check("sampling.temperature", math.isfinite(options.temperature) and options.temperature >= 0, "must be 0 or more")
    _check("sampling.top_p", 0 <= top_p <= 1, "must be from 0 to 1")
    _check("sampling.top_k", options.top_k >= 0, "must be 0 or more")
    _check("sampling.max_tokens", options.max_tokens >= 0, "must be 0 or more")
    _check("sampling.stop", all(options.stop), "a stop text must not be empty")
    _check("sampling.top_logprobs", 0 <= (top_logprobs or 0) <= MOST_LOGPROBS, f"must be from 0 to {MOST_LOGPROBS}")
    return SamplingOptions(
        temperature=options.temperature,
        top_p=top_p,
        top_k=options.top_k,
        max_tokens=options.max_tokens or None,
        stop=tuple(options.stop),
        stop_tokens=tuple(options.stop_tokens),
        seed=options.seed if options.HasField("seed") else None,
        top_logprobs=top_logprobs,
    )


def tenant_of(name: str, context: Any) -> str:
    """Whose request it is: as the gateway says, or else the memory's."""
    return told_tenant(context) or (MemoryName.parse(name).tenant if name else "")


def _check(field: str, holds: bool, otherwise: str) -> None:
    if not holds:
        raise InvalidFieldError(field, otherwise)
