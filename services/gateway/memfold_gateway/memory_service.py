"""MemoryService: memories, their logs and their states."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from memfold import telemetry
from memfold.api.convert import (
    memory_to_message,
    new_turn_from_message,
    policy_from_message,
    state_to_message,
    turn_to_message,
)
from memfold.api.errors import DeadlineError, InvalidFieldError, InvalidPageTokenError, MemoryNotFoundError
from memfold.api.v1 import memory_service_pb2 as pb
from memfold.api.v1 import memory_service_pb2_grpc as pb_grpc
from memfold.api.values import Memory, MemoryName, Policy, Revision
from memfold.rpc.deadline import answer_in
from memfold.search import Search
from memfold.store import NewTurns, Store
from memfold_gateway.appender import Appender
from memfold_gateway.guard import Guard, own_memory, own_tenant
from memfold_gateway.mask import POLICY_FIELDS, changed_fields
from memfold_gateway.pages import page_size, page_start, page_token
from memfold_gateway.plain import plain_turns
from memfold_gateway.turn_stream import TurnStream

_LONGEST_WAIT_S = 3600.0
# Below the 4 MiB that gRPC clients of other languages take by default.
_PAGE_BYTES = 3 * 2**20
_FOUND_TURNS = 10


class MemoryServicer(pb_grpc.MemoryServiceServicer):
    """Answers for the store. Every method checks key, message and tenant first."""

    def __init__(self, store: Store, guard: Guard, appender: Appender, stopping: asyncio.Event) -> None:
        self._store = store
        self._search = Search(store)
        self._guard = guard
        self._appender = appender
        self._stopping = stopping

    async def CreateMemory(self, request: pb.CreateMemoryRequest, context: Any) -> pb.CreateMemoryResponse:  # noqa: N802
        """Create an empty memory."""
        name = self._guard.memory(request, context, f"{request.parent}/memories/{request.memory_id}", "parent")
        policy = policy_from_message(request.memory.policy) if request.memory.HasField("policy") else None
        memory = await self._store.create_memory(
            name,
            display_name=request.memory.display_name,
            labels=dict(request.memory.labels),
            policy=policy,
            request_id=request.request_id,
        )
        return pb.CreateMemoryResponse(memory=memory_to_message(memory))

    async def GetMemory(self, request: pb.GetMemoryRequest, context: Any) -> pb.GetMemoryResponse:  # noqa: N802
        """Look a memory up."""
        name = self._guard.memory(request, context, request.name, "name")
        return pb.GetMemoryResponse(memory=memory_to_message(await self._store.get_memory(name)))

    async def ListMemories(self, request: pb.ListMemoriesRequest, context: Any) -> pb.ListMemoriesResponse:  # noqa: N802
        """List the tenant's memories by name."""
        tenant = self._guard.admit(request, context)
        own_tenant(request.parent.removeprefix("tenants/"), tenant)
        after = page_start(request.page_token, "memories", request.parent)
        size = page_size(request.page_size, 50, 1000)
        found = await self._store.list_memories(tenant, after=after, limit=size + 1)
        token = page_token(found[size - 1].name.memory, "memories", request.parent) if len(found) > size else ""
        memories = [memory_to_message(memory) for memory in found[:size]]
        return pb.ListMemoriesResponse(memories=memories, next_page_token=token)

    async def UpdateMemory(self, request: pb.UpdateMemoryRequest, context: Any) -> pb.UpdateMemoryResponse:  # noqa: N802
        """Change display name, labels or policy."""
        name = self._guard.memory(request, context, request.memory.name, "memory.name")
        fields = changed_fields(request)
        memory = await self._store.update_memory(
            name,
            display_name=request.memory.display_name if "display_name" in fields else None,
            labels=dict(request.memory.labels) if "labels" in fields else None,
            policy=await self._changed_policy(name, request, fields),
            expected=_revision(request.expected_revision, "expected_revision"),
        )
        return pb.UpdateMemoryResponse(memory=memory_to_message(memory))

    async def DeleteMemory(self, request: pb.DeleteMemoryRequest, context: Any) -> pb.DeleteMemoryResponse:  # noqa: N802
        """Delete a memory with everything that belongs to it."""
        name = self._guard.memory(request, context, request.name, "name")
        expected = _revision(request.expected_revision, "expected_revision")
        try:
            revision = await self._store.delete_memory(name, expected=expected)
        except MemoryNotFoundError:
            if request.allow_missing:
                return pb.DeleteMemoryResponse()
            raise
        return pb.DeleteMemoryResponse(revision=str(revision))

    async def AppendTurns(self, request: pb.AppendTurnsRequest, context: Any) -> pb.AppendTurnsResponse:  # noqa: N802
        """Append turns, all or none."""
        started = time.perf_counter()
        tenant = self._guard.tenant(context)
        base = request.request_id or secrets.token_hex(16)
        turns = plain_turns(request, base)
        if turns is None:
            self._guard.check(request)
            turns = NewTurns.of(
                new_turn_from_message(turn, turn.id or f"{base}/{at}") for at, turn in enumerate(request.turns)
            )
        name = own_memory(request.memory, tenant)
        expected = _revision(request.expected_revision, "expected_revision")
        result = await self._appender.append(name, turns, expected=expected, create=request.allow_missing)
        response = pb.AppendTurnsResponse(
            revision=str(result.revision),
            # Mappings, because messages take twice as long; without what has its default, for the same reason.
            turns=[
                {"id": turn_id, "sequence": sequence, "duplicate": True}
                if duplicate
                else {"id": turn_id, "sequence": sequence}
                for turn_id, sequence, duplicate in zip(result.ids, result.sequences, result.duplicates, strict=True)
            ],
        )
        telemetry.instruments().append_ack_seconds.record(time.perf_counter() - started)
        return response

    async def StreamTurns(  # noqa: N802
        self, requests: AsyncIterator[pb.StreamTurnsRequest], context: Any
    ) -> AsyncIterator[pb.StreamTurnsResponse]:
        """Append turns as they come, with an acknowledgement for each."""
        stream = TurnStream(self._appender, self._guard, self._guard.tenant(context), self._stopping)
        async for response in stream.run(requests):
            yield response

    async def ListTurns(self, request: pb.ListTurnsRequest, context: Any) -> pb.ListTurnsResponse:  # noqa: N802
        """List turns in log order."""
        name = self._guard.memory(request, context, request.memory)
        start = page_start(request.page_token, "turns", request.memory)
        created, _, after = start.rpartition(".")
        size = page_size(request.page_size, 100, 1000)
        before = await self._store.get_memory(name)
        while True:
            # Not the incarnation: what is forgotten between two pages leaves the others their numbers.
            if created and before.create_ms != int(created):
                raise InvalidPageTokenError("this page token belongs to an earlier memory of this name")
            turns = await self._store.read_turns(name, after=int(after or 0), limit=size, max_bytes=_PAGE_BYTES)
            memory = await self._store.get_memory(name)
            if memory.incarnation == before.incarnation:
                break
            before = memory  # the turns may be those of either: read again
        more = bool(turns) and turns[-1].sequence < memory.head
        token = page_token(f"{memory.create_ms}.{turns[-1].sequence}", "turns", request.memory) if more else ""
        return pb.ListTurnsResponse(
            turns=[turn_to_message(turn) for turn in turns], next_page_token=token, revision=str(memory.revision)
        )

    async def SearchTurns(self, request: pb.SearchTurnsRequest, context: Any) -> pb.SearchTurnsResponse:  # noqa: N802
        """Find turns by their words, the best first."""
        name = self._guard.memory(request, context, request.memory)
        memory, found = await self._search.find(name, request.query, request.limit or _FOUND_TURNS)
        turns: list[pb.FoundTurn] = []
        room = _PAGE_BYTES
        for one in found:
            message = pb.FoundTurn(turn=turn_to_message(one.turn), score=one.score)
            room -= message.ByteSize()
            if turns and room < 0:
                break
            turns.append(message)
        return pb.SearchTurnsResponse(turns=turns, revision=str(memory.revision))

    async def WaitForRevision(  # noqa: N802
        self, request: pb.WaitForRevisionRequest, context: Any
    ) -> pb.WaitForRevisionResponse:
        """Answer when the state has reached a revision."""
        name = self._guard.memory(request, context, request.memory)
        revision = _revision(request.revision, "revision")
        if revision is None:
            revision = (await self._store.get_memory(name)).revision
        return pb.WaitForRevisionResponse(folded_revision=str(await self._wait(name, revision, context)))

    async def GetState(self, request: pb.GetStateRequest, context: Any) -> pb.GetStateResponse:  # noqa: N802
        """Read the state, the newest or one that is kept; where no turn has been folded it is zero."""
        name = self._guard.memory(request, context, request.memory)
        minimum, exact = _revision(request.min_revision, "min_revision"), _revision(request.revision, "revision")
        if exact is not None:
            if minimum is not None:
                raise InvalidFieldError("revision", "not together with min_revision")
            memory, state = await self._store.read_state_at(name, exact)
        else:
            if minimum is not None:
                await self._wait(name, minimum, context)
            memory, state = await self._store.read_state(name)
        if state is None:
            return pb.GetStateResponse(state=await self._zero_state(memory, exact or memory.folded_revision))
        return pb.GetStateResponse(state=state_to_message(state.revision, state.fingerprint, state.shape, state.data))

    async def _changed_policy(
        self, name: MemoryName, request: pb.UpdateMemoryRequest, fields: set[str]
    ) -> Policy | None:
        """The policy as it is to be; None where the request leaves it as it is."""
        given = policy_from_message(request.memory.policy)
        changes = {own: getattr(given, own) for path, own in POLICY_FIELDS.items() if path in fields}
        if not changes or len(changes) == len(POLICY_FIELDS):
            return given if changes else None
        return replace((await self._store.get_memory(name)).policy, **changes)

    async def _zero_state(self, memory: Memory, revision: Revision) -> pb.State:
        card = await self._store.model(memory.fingerprint)
        return state_to_message(revision, memory.fingerprint, card.state_shape, bytes(card.state_bytes))

    async def _wait(self, name: MemoryName, revision: Revision, context: Any) -> Revision:
        # A little less than the edge allows, so that the store itself says what it was waiting for.
        timeout_s = min(answer_in(context) * 0.95, _LONGEST_WAIT_S)
        if timeout_s <= 0:
            raise DeadlineError("the deadline passed before the work was done")
        return await self._store.wait_for(name, revision, timeout_s)


def _revision(token: str, field: str) -> Revision | None:
    return Revision.parse(token, field) if token else None
