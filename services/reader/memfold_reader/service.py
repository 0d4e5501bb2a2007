"""GenerationService: requests in, values on; values in, responses out."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from google.protobuf.duration_pb2 import Duration

from memfold import telemetry
from memfold.api.convert import model_to_message, update_mode_to_message
from memfold.api.errors import InvalidFieldError, ModelLoadingError, ShuttingDownError
from memfold.api.v1 import generation_service_pb2 as pb
from memfold.api.v1.generation_service_pb2_grpc import GenerationServiceServicer
from memfold.api.values import ModelCard
from memfold.rpc.deadline import answer_in
from memfold_reader.asked import memory_use_of, messages_of, reading_of, sampling_of, tenant_of
from memfold_reader.reader import Answer, Reader
from memfold_reader.reply import Finished, FinishReason, Piece, TokenLogprob
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
                messages_of(request.messages),
                memory_use_of(request.memory, request.memory_options),
                sampling_of(request.sampling),
                received + answer_in(context),
                tenant_of(request.memory, context),
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
        use = reading_of(request.memory, request.memory_options)
        tenant = tenant_of(request.memory, context)
        continuations = list(request.continuations)
        if not all(continuations) or not continuations:
            raise InvalidFieldError("continuations", "there must be one, and none may be empty")
        match request.WhichOneof("prompt"):
            case "messages":
                messages = messages_of(request.messages.messages)
                scores, revision = await reader.score_replies(messages, continuations, use, deadline, tenant)
            case "text":
                for field in ("window_tokens", "recall_tokens"):
                    if getattr(use, field):
                        raise InvalidFieldError(f"memory_options.{field}", "a text as it is has no place for turns")
                scores, revision = await reader.score_text(request.text, continuations, use, deadline, tenant)
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


def _response(item: Piece | Finished, answer: Answer, received: float) -> pb.GenerateResponse:
    if isinstance(item, Piece):
        return pb.GenerateResponse(delta=pb.TextDelta(text=item.text, tokens=map(_token, item.tokens)))
    basis = answer.basis
    return pb.GenerateResponse(
        summary=pb.GenerationSummary(
            revision=basis.revision,
            finish_reason=_REASONS[item.reason],
            prompt_tokens=basis.prompt_tokens,
            generated_tokens=item.generated_tokens,
            window_turns=basis.quotes.window_turns,
            time_to_first_token=_duration(item.first_token_at - received),
            total_time=_duration(item.last_token_at - received),
            stale=basis.stale,
            folded_inline_turns=basis.folded_turns,
            # Where nothing steers, it was not measured, but is known.
            memory_influence=(item.influence or 0.0) if basis.use.influence else None,
            reused_prompt_tokens=item.reused_tokens,
            update=update_mode_to_message(basis.use.update),
            recalled=(pb.RecalledTurn(id=p.id, sequence=p.sequence, score=p.score) for p in basis.quotes.passages),
        )
    )


def _token(said: TokenLogprob) -> pb.TokenLogProbability:
    return pb.TokenLogProbability(
        token=said.token,
        text=said.text,
        log_probability=said.log_probability,
        top=[pb.TokenAlternative(token=token, text=text, log_probability=value) for token, text, value in said.top],
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
