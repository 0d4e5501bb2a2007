"""What the client gives back, beyond the values of ``memfold.api.values``."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from memfold.api.errors import MemfoldError
from memfold.api.values import Revision


@dataclass(frozen=True, slots=True)
class Ack:
    """Where a turn went, or why it was not taken.

    Attributes:
        memory: the memory's resource name.
        id: the turn's id.
        sequence: its place in the log; 0 if it was rejected.
        duplicate: it was in the log already.
        revision: of the log after it; None if it was rejected.
        error: why it was rejected; None if it was not.
    """

    memory: str
    id: str
    sequence: int = 0
    duplicate: bool = False
    revision: Revision | None = None
    error: MemfoldError | None = None


@dataclass(frozen=True, slots=True)
class Appended:
    """What an append did: the log's revision after the last of these turns, and where each went."""

    revision: Revision
    turns: tuple[Ack, ...]


@dataclass(frozen=True, slots=True)
class State:
    """What a conversation has become.

    Attributes:
        revision: what it stands for.
        fingerprint: the model that it belongs to.
        shape: adapted layers, state heads, rank, rank.
        data: the numbers: fp32, little-endian, row-major.
        layer_norms: the Frobenius norm of each layer's part.
    """

    revision: Revision
    fingerprint: str
    shape: tuple[int, int, int, int]
    data: bytes = field(repr=False)
    layer_norms: tuple[float, ...]


class FinishReason(StrEnum):
    """Why a reply ended."""

    UNSPECIFIED = "unspecified"
    END_OF_TURN = "end_of_turn"
    STOP = "stop"
    MAX_TOKENS = "max_tokens"


@dataclass(frozen=True, slots=True)
class Summary:
    """What a reply rests on and what it cost; ``revision`` is None without a memory."""

    revision: Revision | None
    finish_reason: FinishReason
    prompt_tokens: int
    generated_tokens: int
    window_turns: int
    time_to_first_token_s: float
    total_time_s: float


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a continuation is; logarithms are natural."""

    log_probability: float
    token_log_probabilities: tuple[float, ...]
    token_count: int
    is_greedy: bool


@dataclass(frozen=True, slots=True)
class Model:
    """A backbone with its adapter, as it serves."""

    fingerprint: str
    backbone: str
    adapter: str
    state_shape: tuple[int, int, int, int]
    state_bytes: int
    context_tokens: int
    description: str
    examples: tuple[str, ...]
