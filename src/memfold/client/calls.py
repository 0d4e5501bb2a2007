"""Every call as a value: which method, which request, how to read the answer. The two clients only run them."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memfold.api.convert import memory_from_message, policy_to_message, turn_from_message, turn_to_message
from memfold.api.errors import InvalidFieldError
from memfold.api.v1 import errors_pb2
from memfold.api.v1 import generation_service_pb2 as generation_pb
from memfold.api.v1 import memory_service_pb2 as memory_pb
from memfold.api.values import Memory, Message, Policy, Revision, Role, Turn
from memfold.client.call import Call, Page
from memfold.client.history_calls import HistoryCalls, token
from memfold.client.values import Ack, Appended, FinishReason, Model, Score, State, Summary
from memfold.rpc.status import make_error

Messages = str | Sequence[Message]


@dataclass(frozen=True, slots=True)
class Reading:
    """How a memory takes part in an answer."""

    memory: str = ""
    gain: float | None = None
    window_tokens: int = 0
    min_revision: Revision | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn."""

    temperature: float = 0.0
    top_p: float | None = None
    max_tokens: int = 0
    stop: Sequence[str] = ()
    seed: int | None = None


class Calls(HistoryCalls):
    """Makes the calls of one tenant. A memory is named by its id, or by its whole resource name."""

    def create_memory(
        self, memory: str, display_name: str, labels: Mapping[str, str], policy: Policy | None
    ) -> Call[Memory]:
        """Create an empty memory; repeated, it is the same creation."""
        parent, _, memory_id = self.name(memory).rpartition("/memories/")
        request = memory_pb.CreateMemoryRequest(
            parent=parent,
            memory_id=memory_id,
            memory=memory_pb.Memory(
                display_name=display_name,
                labels=dict(labels),
                policy=policy_to_message(policy) if policy is not None else None,
            ),
            request_id=uuid.uuid4().hex,
        )
        return Call("memory", "CreateMemory", request, _memory)

    def get_memory(self, memory: str) -> Call[Memory]:
        """Look a memory up."""
        return Call("memory", "GetMemory", memory_pb.GetMemoryRequest(name=self.name(memory)), _memory)

    def list_memories(self, page_token: str) -> Call[Page[Memory]]:
        """One page of the tenant's memories."""
        request = memory_pb.ListMemoriesRequest(parent=self.parent(), page_size=1000, page_token=page_token)
        return Call("memory", "ListMemories", request, _memories)

    def update_memory(
        self,
        memory: str,
        display_name: str | None,
        labels: Mapping[str, str] | None,
        policy: Policy | None,
        expected: Revision | None,
    ) -> Call[Memory]:
        """Change what is not None."""
        values = memory_pb.Memory(
            name=self.name(memory),
            display_name=display_name or "",
            labels=dict(labels or {}),
            policy=policy_to_message(policy) if policy is not None else None,
        )
        given = {"display_name": display_name, "labels": labels, "policy": policy}
        request = memory_pb.UpdateMemoryRequest(memory=values, expected_revision=token(expected))
        request.update_mask.paths.extend(path for path, value in given.items() if value is not None)
        if not request.update_mask.paths:
            raise InvalidFieldError("update_mask", "nothing to update")
        return Call("memory", "UpdateMemory", request, _memory)

    def delete_memory(self, memory: str, expected: Revision | None, allow_missing: bool) -> Call[None]:
        """Delete a memory."""
        request = memory_pb.DeleteMemoryRequest(
            name=self.name(memory), expected_revision=token(expected), allow_missing=allow_missing
        )
        return Call("memory", "DeleteMemory", request, lambda _: None)

    def append(self, memory: str, turns: Iterable[Turn], expected: Revision | None, create: bool) -> Call[Appended]:
        """Append turns, all or none."""
        name = self.name(memory)
        request = memory_pb.AppendTurnsRequest(
            memory=name,
            turns=[turn_to_message(turn) for turn in turns],
            expected_revision=token(expected),
            request_id=uuid.uuid4().hex,  # from which turns without ids get theirs, so that a repeated call is safe
            allow_missing=create,
        )
        return Call("memory", "AppendTurns", request, lambda response: _appended(name, response))

    def stream_request(self, memory: str, turn: Turn, create: bool) -> memory_pb.StreamTurnsRequest:
        """One request of a stream; its turn has an id, so that it can be sent again."""
        message = turn_to_message(turn)
        message.id = message.id or uuid.uuid4().hex
        return memory_pb.StreamTurnsRequest(memory=self.name(memory), turn=message, allow_missing=create)

    def turns(self, memory: str, page_token: str) -> Call[Page[Turn]]:
        """One page of a log."""
        request = memory_pb.ListTurnsRequest(memory=self.name(memory), page_size=1000, page_token=page_token)
        return Call("memory", "ListTurns", request, _turns)

    def wait(self, memory: str, revision: Revision | None) -> Call[Revision]:
        """Wait for a revision; None for the log's."""
        request = memory_pb.WaitForRevisionRequest(memory=self.name(memory), revision=token(revision))
        return Call("memory", "WaitForRevision", request, lambda r: Revision.parse(r.folded_revision))

    def state(self, memory: str, min_revision: Revision | None, revision: Revision | None) -> Call[State]:
        """Read the newest state, or exactly one that is kept."""
        request = memory_pb.GetStateRequest(
            memory=self.name(memory), min_revision=token(min_revision), revision=token(revision)
        )
        return Call("memory", "GetState", request, _state)

    def generate_request(
        self, messages: Messages, reading: Reading, sampling: Sampling
    ) -> generation_pb.GenerateRequest:
        """The request of a generation."""
        drawing = generation_pb.Sampling(
            temperature=sampling.temperature, max_tokens=sampling.max_tokens, stop=sampling.stop
        )
        if sampling.top_p is not None:
            drawing.top_p = sampling.top_p
        if sampling.seed is not None:
            drawing.seed = sampling.seed
        return generation_pb.GenerateRequest(
            memory=self._memory(reading),
            messages=_messages(messages),
            memory_options=_memory_options(reading),
            sampling=drawing,
        )

    def score(
        self, messages: Messages | None, text: str | None, continuations: Sequence[str], reading: Reading
    ) -> Call[list[Score]]:
        """Score continuations after messages, or after a text."""
        request = generation_pb.ScoreRequest(
            memory=self._memory(reading), continuations=continuations, memory_options=_memory_options(reading)
        )
        if messages is not None:
            request.messages.messages.extend(_messages(messages))
        else:
            request.text = text or ""
        return Call("generation", "Score", request, _scores)

    def model(self) -> Call[Model]:
        """The model that serves."""
        return Call("generation", "GetModel", generation_pb.GetModelRequest(), _model)

    def _memory(self, reading: Reading) -> str:
        return self.name(reading.memory) if reading.memory else ""


def ack_of(response: memory_pb.StreamTurnsResponse) -> Ack:
    """Read one acknowledgement of a stream."""
    if response.WhichOneof("outcome") == "rejection":
        rejection = response.rejection
        reason = errors_pb2.ErrorReason.Name(rejection.reason).removeprefix("ERROR_REASON_")
        error = make_error(reason, rejection.message, {}, rejection.retry_after_ms)
        return Ack(response.memory, rejection.id, error=error)
    return _ack(response.memory, response.appended, Revision.parse(response.revision))


def summary_of(message: generation_pb.GenerationSummary) -> Summary:
    """Read the end of a generation."""
    reason = generation_pb.FinishReason.Name(message.finish_reason).removeprefix("FINISH_REASON_").lower()
    return Summary(
        revision=Revision.parse(message.revision) if message.revision else None,
        finish_reason=FinishReason(reason),
        prompt_tokens=message.prompt_tokens,
        generated_tokens=message.generated_tokens,
        window_turns=message.window_turns,
        time_to_first_token_s=message.time_to_first_token.ToNanoseconds() / 1e9,
        total_time_s=message.total_time.ToNanoseconds() / 1e9,
    )


def _ack(memory: str, turn: memory_pb.AppendedTurn, revision: Revision) -> Ack:
    return Ack(memory, turn.id, turn.sequence, turn.duplicate, revision)


def _appended(memory: str, response: memory_pb.AppendTurnsResponse) -> Appended:
    revision = Revision.parse(response.revision)
    at = [Revision(revision.incarnation, turn.sequence) for turn in response.turns]
    return Appended(revision, tuple(_ack(memory, turn, r) for turn, r in zip(response.turns, at, strict=True)))


def _memory(response: Any) -> Memory:
    return memory_from_message(response.memory)


def _memories(response: memory_pb.ListMemoriesResponse) -> Page[Memory]:
    return Page([memory_from_message(memory) for memory in response.memories], response.next_page_token)


def _turns(response: memory_pb.ListTurnsResponse) -> Page[Turn]:
    return Page([turn_from_message(turn) for turn in response.turns], response.next_page_token)


def _state(response: memory_pb.GetStateResponse) -> State:
    state = response.state
    layers, heads, rows, columns = state.shape
    return State(
        revision=Revision.parse(state.revision),
        fingerprint=state.fingerprint,
        shape=(layers, heads, rows, columns),
        data=state.data,
        layer_norms=tuple(state.layer_norms),
    )


def _scores(response: generation_pb.ScoreResponse) -> list[Score]:
    return [
        Score(s.log_probability, tuple(s.token_log_probabilities), s.token_count, s.is_greedy) for s in response.scores
    ]


def _model(response: generation_pb.GetModelResponse) -> Model:
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


def _messages(messages: Messages) -> list[generation_pb.Message]:
    if isinstance(messages, str):
        messages = [Message(Role.USER, messages)]
    return [generation_pb.Message(role=str(m.role), content=m.content, speaker=m.speaker) for m in messages]


def _memory_options(reading: Reading) -> generation_pb.MemoryOptions:
    options = generation_pb.MemoryOptions(window_tokens=reading.window_tokens, min_revision=token(reading.min_revision))
    if reading.gain is not None:
        options.gain = reading.gain
    return options
