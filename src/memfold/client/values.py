"""What the client gives back, beyond the values of ``memfold.api.values``."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from memfold.api.errors import MemfoldError
from memfold.api.generation import UpdateMode
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
class TokenAlternative:
    """A token that could have been drawn; the logarithm is natural."""

    token: int
    text: str
    log_probability: float


@dataclass(frozen=True, slots=True)
class TokenLogProbability:
    """How likely a token was under the model's distribution at temperature 1, before top_p and top_k.

    Attributes:
        token: its id.
        text: as it looks by itself; bytes that are no whole character show as U+FFFD.
        log_probability: the natural logarithm.
        top: the most likely tokens in its place, the likeliest first.
    """

    token: int
    text: str
    log_probability: float
    top: tuple[TokenAlternative, ...]


@dataclass(frozen=True, slots=True)
class RecalledTurn:
    """Where a passage of a prompt is from: a turn's id and place in the log, and how well it fits (BM25)."""

    id: str
    sequence: int
    score: float


@dataclass(frozen=True, slots=True)
class Summary:
    """What a reply rests on and what it cost.

    Attributes:
        revision: of the state that was read; None without a memory.
        window_turns: turns of the log that stood in the prompt word for word.
        stale: the state is behind what was asked for: the minimum, or the log's end where there was none.
        folded_inline_turns: turns that were folded for this reply alone.
        memory_influence: the divergence, in nats, of the first token's distribution from that without the memory; None
            where it was not asked for.
        reused_prompt_tokens: tokens of the prompt that did not have to be read again.
        update: whether the reply moved its private copy of the state.
        recalled: turns that were found by words and stood in the prompt, the best first.
    """

    revision: Revision | None
    finish_reason: FinishReason
    prompt_tokens: int
    generated_tokens: int
    window_turns: int
    time_to_first_token_s: float
    total_time_s: float
    stale: bool
    folded_inline_turns: int
    memory_influence: float | None
    reused_prompt_tokens: int
    update: UpdateMode
    recalled: tuple[RecalledTurn, ...]


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
