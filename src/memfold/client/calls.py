"""Every call as a value: which method, which request, how to read the answer. The two clients only run them."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from memfold.api.convert import memory_from_message, policy_to_message, turn_from_message, turn_to_message
from memfold.api.errors import InvalidFieldError
from memfold.api.v1 import errors_pb2
from memfold.api.v1 import memory_service_pb2 as memory_pb
from memfold.api.values import FoundTurn, Memory, Policy, Revision, Turn
from memfold.client.call import Call, Page
from memfold.client.generation_calls import GenerationCalls
from memfold.client.history_calls import HistoryCalls, token
from memfold.client.values import Ack, Appended, State
from memfold.rpc.status import make_error


class Calls(HistoryCalls, GenerationCalls):
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

    def search(self, memory: str, query: str, limit: int) -> Call[list[FoundTurn]]:
        """Find turns by their words."""
        request = memory_pb.SearchTurnsRequest(memory=self.name(memory), query=query, limit=limit)
        return Call("memory", "SearchTurns", request, _found)

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


def ack_of(response: memory_pb.StreamTurnsResponse) -> Ack:
    """Read one acknowledgement of a stream."""
    if response.WhichOneof("outcome") == "rejection":
        rejection = response.rejection
        reason = errors_pb2.ErrorReason.Name(rejection.reason).removeprefix("ERROR_REASON_")
        error = make_error(reason, rejection.message, {}, rejection.retry_after_ms)
        return Ack(response.memory, rejection.id, error=error)
    return _ack(response.memory, response.appended, Revision.parse(response.revision))


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


def _found(response: memory_pb.SearchTurnsResponse) -> list[FoundTurn]:
    return [FoundTurn(turn_from_message(found.turn), found.score) for found in response.turns]


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
