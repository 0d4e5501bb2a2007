import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Stale(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STALE_UNSPECIFIED: _ClassVar[Stale]
    STALE_WAIT: _ClassVar[Stale]
    STALE_FOLD_INLINE: _ClassVar[Stale]
    STALE_ALLOW: _ClassVar[Stale]

class UpdateMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    UPDATE_MODE_UNSPECIFIED: _ClassVar[UpdateMode]
    UPDATE_MODE_READ_ONLY: _ClassVar[UpdateMode]
    UPDATE_MODE_ONLINE: _ClassVar[UpdateMode]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_END_OF_TURN: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_MAX_TOKENS: _ClassVar[FinishReason]
STALE_UNSPECIFIED: Stale
STALE_WAIT: Stale
STALE_FOLD_INLINE: Stale
STALE_ALLOW: Stale
UPDATE_MODE_UNSPECIFIED: UpdateMode
UPDATE_MODE_READ_ONLY: UpdateMode
UPDATE_MODE_ONLINE: UpdateMode
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_END_OF_TURN: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_MAX_TOKENS: FinishReason

class Message(_message.Message):
    __slots__ = ("role", "content", "speaker")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    SPEAKER_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    speaker: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ..., speaker: _Optional[str] = ...) -> None: ...

class MemoryOptions(_message.Message):
    __slots__ = ("gain", "window_tokens", "min_revision", "stale", "update", "report_influence", "recall_tokens", "recall_query")
    GAIN_FIELD_NUMBER: _ClassVar[int]
    WINDOW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MIN_REVISION_FIELD_NUMBER: _ClassVar[int]
    STALE_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    REPORT_INFLUENCE_FIELD_NUMBER: _ClassVar[int]
    RECALL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RECALL_QUERY_FIELD_NUMBER: _ClassVar[int]
    gain: float
    window_tokens: int
    min_revision: str
    stale: Stale
    update: UpdateMode
    report_influence: bool
    recall_tokens: int
    recall_query: str
    def __init__(self, gain: _Optional[float] = ..., window_tokens: _Optional[int] = ..., min_revision: _Optional[str] = ..., stale: _Optional[_Union[Stale, str]] = ..., update: _Optional[_Union[UpdateMode, str]] = ..., report_influence: _Optional[bool] = ..., recall_tokens: _Optional[int] = ..., recall_query: _Optional[str] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "top_p", "max_tokens", "stop", "seed", "top_k", "stop_tokens", "top_logprobs")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_p: float
    max_tokens: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    seed: int
    top_k: int
    stop_tokens: _containers.RepeatedScalarFieldContainer[int]
    top_logprobs: int
    def __init__(self, temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., max_tokens: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., seed: _Optional[int] = ..., top_k: _Optional[int] = ..., stop_tokens: _Optional[_Iterable[int]] = ..., top_logprobs: _Optional[int] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("memory", "messages", "memory_options", "sampling")
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_OPTIONS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    memory: str
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    memory_options: MemoryOptions
    sampling: Sampling
    def __init__(self, memory: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ..., memory_options: _Optional[_Union[MemoryOptions, _Mapping]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("delta", "summary")
    DELTA_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    delta: TextDelta
    summary: GenerationSummary
    def __init__(self, delta: _Optional[_Union[TextDelta, _Mapping]] = ..., summary: _Optional[_Union[GenerationSummary, _Mapping]] = ...) -> None: ...

class TextDelta(_message.Message):
    __slots__ = ("text", "tokens")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    text: str
    tokens: _containers.RepeatedCompositeFieldContainer[TokenLogProbability]
    def __init__(self, text: _Optional[str] = ..., tokens: _Optional[_Iterable[_Union[TokenLogProbability, _Mapping]]] = ...) -> None: ...

class TokenLogProbability(_message.Message):
    __slots__ = ("token", "text", "log_probability", "top")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOG_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    token: int
    text: str
    log_probability: float
    top: _containers.RepeatedCompositeFieldContainer[TokenAlternative]
    def __init__(self, token: _Optional[int] = ..., text: _Optional[str] = ..., log_probability: _Optional[float] = ..., top: _Optional[_Iterable[_Union[TokenAlternative, _Mapping]]] = ...) -> None: ...

class TokenAlternative(_message.Message):
    __slots__ = ("token", "text", "log_probability")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOG_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    token: int
    text: str
    log_probability: float
    def __init__(self, token: _Optional[int] = ..., text: _Optional[str] = ..., log_probability: _Optional[float] = ...) -> None: ...

class GenerationSummary(_message.Message):
    __slots__ = ("revision", "finish_reason", "prompt_tokens", "generated_tokens", "window_turns", "time_to_first_token", "total_time", "stale", "folded_inline_turns", "memory_influence", "reused_prompt_tokens", "update", "recalled")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_TURNS_FIELD_NUMBER: _ClassVar[int]
    TIME_TO_FIRST_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOTAL_TIME_FIELD_NUMBER: _ClassVar[int]
    STALE_FIELD_NUMBER: _ClassVar[int]
    FOLDED_INLINE_TURNS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_INFLUENCE_FIELD_NUMBER: _ClassVar[int]
    REUSED_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    RECALLED_FIELD_NUMBER: _ClassVar[int]
    revision: str
    finish_reason: FinishReason
    prompt_tokens: int
    generated_tokens: int
    window_turns: int
    time_to_first_token: _duration_pb2.Duration
    total_time: _duration_pb2.Duration
    stale: bool
    folded_inline_turns: int
    memory_influence: float
    reused_prompt_tokens: int
    update: UpdateMode
    recalled: _containers.RepeatedCompositeFieldContainer[RecalledTurn]
    def __init__(self, revision: _Optional[str] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., prompt_tokens: _Optional[int] = ..., generated_tokens: _Optional[int] = ..., window_turns: _Optional[int] = ..., time_to_first_token: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., total_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., stale: _Optional[bool] = ..., folded_inline_turns: _Optional[int] = ..., memory_influence: _Optional[float] = ..., reused_prompt_tokens: _Optional[int] = ..., update: _Optional[_Union[UpdateMode, str]] = ..., recalled: _Optional[_Iterable[_Union[RecalledTurn, _Mapping]]] = ...) -> None: ...

class RecalledTurn(_message.Message):
    __slots__ = ("id", "sequence", "score")
    ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    id: str
    sequence: int
    score: float
    def __init__(self, id: _Optional[str] = ..., sequence: _Optional[int] = ..., score: _Optional[float] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("memory", "messages", "text", "continuations", "memory_options")
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CONTINUATIONS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_OPTIONS_FIELD_NUMBER: _ClassVar[int]
    memory: str
    messages: MessageList
    text: str
    continuations: _containers.RepeatedScalarFieldContainer[str]
    memory_options: MemoryOptions
    def __init__(self, memory: _Optional[str] = ..., messages: _Optional[_Union[MessageList, _Mapping]] = ..., text: _Optional[str] = ..., continuations: _Optional[_Iterable[str]] = ..., memory_options: _Optional[_Union[MemoryOptions, _Mapping]] = ...) -> None: ...

class MessageList(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    def __init__(self, messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("scores", "revision")
    SCORES_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    scores: _containers.RepeatedCompositeFieldContainer[ContinuationScore]
    revision: str
    def __init__(self, scores: _Optional[_Iterable[_Union[ContinuationScore, _Mapping]]] = ..., revision: _Optional[str] = ...) -> None: ...

class ContinuationScore(_message.Message):
    __slots__ = ("log_probability", "token_log_probabilities", "token_count", "is_greedy")
    LOG_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    TOKEN_LOG_PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    IS_GREEDY_FIELD_NUMBER: _ClassVar[int]
    log_probability: float
    token_log_probabilities: _containers.RepeatedScalarFieldContainer[float]
    token_count: int
    is_greedy: bool
    def __init__(self, log_probability: _Optional[float] = ..., token_log_probabilities: _Optional[_Iterable[float]] = ..., token_count: _Optional[int] = ..., is_greedy: _Optional[bool] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("fingerprint", "backbone", "adapter", "state_shape", "state_bytes", "context_tokens", "description", "examples")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    BACKBONE_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    STATE_SHAPE_FIELD_NUMBER: _ClassVar[int]
    STATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    backbone: str
    adapter: str
    state_shape: _containers.RepeatedScalarFieldContainer[int]
    state_bytes: int
    context_tokens: int
    description: str
    examples: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, fingerprint: _Optional[str] = ..., backbone: _Optional[str] = ..., adapter: _Optional[str] = ..., state_shape: _Optional[_Iterable[int]] = ..., state_bytes: _Optional[int] = ..., context_tokens: _Optional[int] = ..., description: _Optional[str] = ..., examples: _Optional[_Iterable[str]] = ...) -> None: ...
