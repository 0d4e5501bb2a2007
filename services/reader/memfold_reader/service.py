"""GenerationService: requests in, values on; values in, responses out."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from google.protobuf.duration_pb2 import Duration

from memfold import telemetry
from memfold.api.convert import model_to_message
from memfold.api.errors import InvalidFieldError, ModelLoadingError, ShuttingDownError
from memfold.api.v1 import generation_service_pb2 as pb
from memfold.api.v1.generation_service_pb2_grpc import GenerationServiceServicer
from memfold.api.values import MemoryName, ModelCard, Revision, Role
from memfold.rpc.deadline import answer_in
from memfold_osam.turns import Message
from memfold_reader.reader import Answer, MemoryUse, Reader
from memfold_reader.reply import Finished, FinishReason
from memfold_reader.sampling import SamplingOptions
from memfold_reader.scoring import Score

_LOADING_RETRY_MS = 1000
_REASONS = {
    FinishReason.END_OF_TURN: pb.FINISH_REASON_END_OF_TURN,
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.MAX_TOKENS: pb.FINISH_REASON_MAX_TOKENS,
}


class GenerationService(GenerationServiceServicer):
    """Serves once it has been given a warm reader; before that every call fails with ``ModelLoadingError``.

    Args:
        is_stopping: whether new requests are to go elsewhere.
    """

    def __init__(self, is_stopping: Callable[[], bool] = lambda: False) -> None:
        self.reader: Reader | None = None
        self._is_stopping = is_stopping

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:  # noqa: N802
        """Stream a reply, then its summary."""
        received = time.monotonic()
        reader = self._ready()
        streams = telemetry.instruments().open_streams
        streams.add(1)
        answer: Answer | None = None
        try:
            answer = await reader.generate(
                _messages(request.messages),
                _memory_use(request.memory, request.memory_options),
                _sampling(request.sampling),
                received + answer_in(context),
            )
            # Where the client goes away between two tokens, nobody resumes this generator: gRPC tells us here.
            context.add_done_callback(lambda _: answer.cancel())
            async for item in answer:
                yield _response(item, answer, received)
        finally:
            streams.add(-1)
            if answer is not None:
                answer.cancel()
                _measure(answer, received)

    async def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:  # noqa: N802
        """Score all continuations."""
        deadline = time.monotonic() + answer_in(context)
        reader = self._ready()
        use = _memory_use(request.memory, request.memory_options)
        continuations = list(request.continuations)
        if not all(continuations) or not continuations:
            raise InvalidFieldError("continuations", "there must be one, and none may be empty")
        match request.WhichOneof("prompt"):
            case "messages":
                messages = _messages(request.messages.messages)
                scores, revision = await reader.score_replies(messages, continuations, use, deadline)
            case "text":
                if use.window_tokens:
                    raise InvalidFieldError("memory_options.window_tokens", "a text as it is has no place for turns")
                scores, revision = await reader.score_text(request.text, continuations, use, deadline)
            case _:
                raise InvalidFieldError("prompt", "messages or a text is needed")
        return pb.ScoreResponse(scores=map(_score, scores), revision=revision)

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:  # noqa: ARG002, N802
        """Describe what serves."""
        return pb.GetModelResponse(model=model_to_message(ModelCard.of(self._ready().served)))

    def _ready(self) -> Reader:
        if self._is_stopping():
            raise ShuttingDownError("the reader is stopping")
        if self.reader is None:
            raise ModelLoadingError("the reader is loading its model", retry_after_ms=_LOADING_RETRY_MS)
        return self.reader


def _messages(messages: Iterable[pb.Message]) -> list[Message]:
    found = [Message(str(Role.parse(m.role)), m.content, m.speaker) for m in messages]
    if not found:
        raise InvalidFieldError("messages", "at least one is needed")
    return found


def _memory_use(name: str, options: pb.MemoryOptions) -> MemoryUse:
    gain = options.gain if options.HasField("gain") else 1.0
    _check("memory_options.gain", math.isfinite(gain) and gain >= 0, "must be 0 or more")
    _check("memory_options.window_tokens", options.window_tokens >= 0, "must be 0 or more")
    if not name:
        _check("memory_options.min_revision", not options.min_revision, "needs a memory")
        return MemoryUse(gain=gain, window_tokens=options.window_tokens)
    minimum = options.min_revision
    return MemoryUse(
        MemoryName.parse(name),
        gain,
        options.window_tokens,
        Revision.parse(minimum, "memory_options.min_revision") if minimum else None,
    )


def _sampling(options: pb.Sampling) -> SamplingOptions:
    top_p = options.top_p if options.HasField("top_p") else 1.0
    _check("sampling.temperature", math.isfinite(options.temperature) and options.temperature >= 0, "must be 0 or more")
    _check("sampling.top_p", 0 <= top_p <= 1, "must be from 0 to 1")
    _check("sampling.max_tokens", options.max_tokens >= 0, "must be 0 or more")
    _check("sampling.stop", all(options.stop), "a stop text must not be empty")
    return SamplingOptions(
        options.temperature,
        top_p,
        options.max_tokens or None,
        tuple(options.stop),
        options.seed if options.HasField("seed") else None,
    )


def _check(field: str, holds: bool, otherwise: str) -> None:
    if not holds:
        raise InvalidFieldError(field, otherwise)


def _response(item: str | Finished, answer: Answer, received: float) -> pb.GenerateResponse:
    if isinstance(item, str):
        return pb.GenerateResponse(delta=pb.TextDelta(text=item))
    return pb.GenerateResponse(
        summary=pb.GenerationSummary(
            revision=answer.basis.revision,
            finish_reason=_REASONS[item.reason],
            prompt_tokens=answer.basis.prompt_tokens,
            generated_tokens=item.generated_tokens,
            window_turns=answer.basis.window_turns,
            time_to_first_token=_duration(item.first_token_at - received),
            total_time=_duration(item.last_token_at - received),
        )
    )


def _measure(answer: Answer, received: float) -> None:
    instruments = telemetry.instruments()
    instruments.generated_tokens.add(answer.generated_tokens)
    if answer.first_token_at:
        instruments.first_token_seconds.record(answer.first_token_at - received)


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration


def _score(score: Score) -> pb.ContinuationScore:
    return pb.ContinuationScore(
        log_probability=score.total,
        token_log_probabilities=score.log_probabilities,
        token_count=len(score.log_probabilities),
        is_greedy=score.is_greedy,
    )
