"""The calls that answer: generations, scores, and the model that makes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memfold.api.convert import stale_to_message, update_mode_from_message, update_mode_to_message
from memfold.api.generation import Stale, UpdateMode
from memfold.api.v1 import generation_service_pb2 as pb
from memfold.api.values import Message, Revision, Role
from memfold.client.call import Call, Naming
from memfold.client.history_calls import token
from memfold.client.values import (
    FinishReason,
    Model,
    RecalledTurn,
    Score,
    Summary,
    TokenAlternative,
    TokenLogProbability,
)

Messages = str | Sequence[Message]


@dataclass(frozen=True, slots=True)
class Reading:
    """How a memory takes part in an answer."""

    memory: str = ""
    gain: float | None = None
    window_tokens: int = 0
    min_revision: Revision | None = None
    stale: Stale = Stale.WAIT
    update: UpdateMode = UpdateMode.READ_ONLY
    report_influence: bool = False
    recall_tokens: int = 0
    recall_query: str = ""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn."""

    temperature: float = 0.0
    top_p: float | None = None
    max_tokens: int = 0
    stop: Sequence[str] = ()
    seed: int | None = None
    top_k: int = 0
    stop_tokens: Sequence[int] = ()
    top_logprobs: int | None = None


class GenerationCalls(Naming):
    """Makes the calls of GenerationService."""

    def generate_request(self, messages: Messages, reading: Reading, sampling: Sampling) -> pb.GenerateRequest:
        """The request of a generation."""
        return pb.GenerateRequest(
            memory=self._memory(reading),
            messages=_messages(messages),
            memory_options=_memory_options(reading),
            sampling=_sampling(sampling),
        )

    def score(
        self, messages: Messages | None, text: str | None, continuations: Sequence[str], reading: Reading
    ) -> Call[list[Score]]:
        """Score continuations after messages, or after a text."""
        request = pb.ScoreRequest(
            memory=self._memory(reading), continuations=continuations, memory_options=_memory_options(reading)
        )
        if messages is not None:
            request.messages.messages.extend(_messages(messages))
        else:
            request.text = text or ""
        return Call("generation", "Score", request, _scores)

    def model(self) -> Call[Model]:
        """The model that serves."""
        return Call("generation", "GetModel", pb.GetModelRequest(), _model)

    def _memory(self, reading: Reading) -> str:
        return self.name(reading.memory) if reading.memory else ""


def summary_of(message: pb.GenerationSummary) -> Summary:
    """Read the end of a generation."""
    reason = pb.FinishReason.Name(message.finish_reason).removeprefix("FINISH_REASON_").lower()
    return Summary(
        revision=Revision.parse(message.revision) if message.revision else None,
        finish_reason=FinishReason(reason),
        prompt_tokens=message.prompt_tokens,
        generated_tokens=message.generated_tokens,
        window_turns=message.window_turns,
        time_to_first_token_s=message.time_to_first_token.ToNanoseconds() / 1e9,
        total_time_s=message.total_time.ToNanoseconds() / 1e9,
        stale=message.stale,
        folded_inline_turns=message.folded_inline_turns,
        memory_influence=message.memory_influence if message.HasField("memory_influence") else None,
        reused_prompt_tokens=message.reused_prompt_tokens,
        update=update_mode_from_message(message.update),
        recalled=tuple(RecalledTurn(turn.id, turn.sequence, turn.score) for turn in message.recalled),
    )


def tokens_of(delta: pb.TextDelta) -> list[TokenLogProbability]:
    """Read how likely the tokens of a piece were."""
    return [
        TokenLogProbability(
            said.token,
            said.text,
            said.log_probability,
            tuple(TokenAlternative(other.token, other.text, other.log_probability) for other in said.top),
        )
        for said in delta.tokens
    ]


def _scores(response: pb.ScoreResponse) -> list[Score]:
    return [
        Score(s.log_probability, tuple(s.token_log_probabilities), s.token_count, s.is_greedy) for s in response.scores
    ]


def _model(response: pb.GetModelResponse) -> Model:
    model = response.model
    layers, heads, rows, columns = model.state_shape
    return Model(
        fingerprint=model.fingerprint,
        backbone=model.backbone,
        adapter=model.adapter,
        state_shape=(layers, heads, rows, columns),
        state_bytes=model.state_bytes,
        context_tokens=model.context_tokens,
        description=model.description,
        examples=tuple(model.examples),
    )


def _messages(messages: Messages) -> list[pb.Message]:
    if isinstance(messages, str):
        messages = [Message(Role.USER, messages)]
    return [pb.Message(role=str(m.role), content=m.content, speaker=m.speaker) for m in messages]


def _memory_options(reading: Reading) -> pb.MemoryOptions:
    return pb.MemoryOptions(
        gain=reading.gain,
        window_tokens=reading.window_tokens,
        min_revision=token(reading.min_revision),
        stale=stale_to_message(reading.stale),
        update=update_mode_to_message(reading.update),
        report_influence=reading.report_influence,
        recall_tokens=reading.recall_tokens,
        recall_query=reading.recall_query,
    )


def _sampling(sampling: Sampling) -> pb.Sampling:
    return pb.Sampling(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens,
        stop=sampling.stop,
        seed=sampling.seed,
        top_k=sampling.top_k,
        stop_tokens=sampling.stop_tokens,
        top_logprobs=sampling.top_logprobs,
    )
