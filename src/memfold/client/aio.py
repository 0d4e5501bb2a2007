"""The client for asyncio: the same methods, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from memfold.api.generation import Stale, UpdateMode
from memfold.api.values import FoundTurn, Memory, Policy, Revision, Turn
from memfold.client.aio_history import AsyncHistory
from memfold.client.call import Call, Page, tenant_of
from memfold.client.calls import Calls, ack_of
from memfold.client.connection import OPTIONS, authorization, passes, stubs
from memfold.client.generation_calls import Messages, Reading, Sampling, summary_of, tokens_of
from memfold.client.outbox import PATIENCE_S, AsyncOutbox
from memfold.client.values import Ack, Appended, Model, Score, State, Summary, TokenLogProbability
from memfold.rpc.status import error_from

T = TypeVar("T")


class AsyncMemfold(AsyncHistory):
    """A connection to memfold, for one event loop. Arguments and methods are those of ``Memfold``.

    Example::

        async with AsyncMemfold("localhost:50051", api_key) as memfold:
            await memfold.append("alice", [Turn("", Role.USER, "I moved to Lisbon.")], create=True)
            await memfold.wait("alice")
            async for text in memfold.generate("Where do I live?", memory="alice"):
                print(text, end="")
    """

    def __init__(
        self,
        target: str,
        api_key: str,
        *,
        tenant: str = "",
        timeout_s: float = 30,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self._calls = Calls(tenant or tenant_of(api_key))
        self._timeout_s = timeout_s
        self._metadata = authorization(api_key)
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(target, options=OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(target, credentials, options=OPTIONS)
        self._stubs = stubs(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def create_memory(
        self,
        memory: str,
        *,
        display_name: str = "",
        labels: Mapping[str, str] | None = None,
        policy: Policy | None = None,
    ) -> Memory:
        """Create an empty memory; without a policy it is kept for ever."""
        return await self._run(self._calls.create_memory(memory, display_name, labels or {}, policy))

    async def get_memory(self, memory: str) -> Memory:
        """Look a memory up."""
        return await self._run(self._calls.get_memory(memory))

    def list_memories(self) -> AsyncIterator[Memory]:
        """All memories of the tenant, by name."""
        return self._pages(self._calls.list_memories)

    async def update_memory(
        self,
        memory: str,
        *,
        display_name: str | None = None,
        labels: Mapping[str, str] | None = None,
        policy: Policy | None = None,
        expected_revision: Revision | None = None,
    ) -> Memory:
        """Change what is given; labels and policy are replaced as a whole."""
        return await self._run(self._calls.update_memory(memory, display_name, labels, policy, expected_revision))

    async def delete_memory(
        self, memory: str, *, expected_revision: Revision | None = None, allow_missing: bool = False
    ) -> None:
        """Delete a memory with its log and its state."""
        await self._run(self._calls.delete_memory(memory, expected_revision, allow_missing))

    async def append(
        self, memory: str, turns: Iterable[Turn], *, expected_revision: Revision | None = None, create: bool = False
    ) -> Appended:
        """Append turns, all or none; durable when this returns.

        Args:
            memory: the memory.
            turns: in order; those with an empty id get one.
            expected_revision: fail unless the log stands here.
            create: create the memory where there is none.
        """
        return await self._run(self._calls.append(memory, turns, expected_revision, create))

    async def stream(
        self, turns: Iterable[tuple[str, Turn]] | AsyncIterable[tuple[str, Turn]], *, create: bool = False
    ) -> AsyncIterator[Ack]:
        """Append turns of any memories as they come, and yield an acknowledgement for each, in order.

        See ``Memfold.stream``; ``turns`` may be an ordinary or an asynchronous iterable.
        """
        outbox = AsyncOutbox(self._stream_requests(turns, create))
        tries = iter(PATIENCE_S)
        try:
            while True:
                call = self._stubs["memory"].StreamTurns(outbox.requests(), metadata=self._metadata)
                try:
                    async for response in call:
                        await outbox.acknowledge()
                        tries = iter(PATIENCE_S)
                        yield ack_of(response)
                    break
                except grpc.RpcError as rpc_error:
                    error = error_from(rpc_error)
                    pause = next(tries, None) if passes(error) else None
                    if pause is None:
                        raise outbox.fault or error from None
                    await asyncio.sleep(pause)
                finally:
                    call.cancel()
        finally:
            outbox.close()
        if outbox.fault is not None:
            raise outbox.fault

    async def _stream_requests(
        self, turns: Iterable[tuple[str, Turn]] | AsyncIterable[tuple[str, Turn]], create: bool
    ) -> AsyncIterator[Any]:
        if isinstance(turns, AsyncIterable):
            async for memory, turn in turns:
                yield self._calls.stream_request(memory, turn, create)
        else:
            for memory, turn in turns:
                yield self._calls.stream_request(memory, turn, create)

    def turns(self, memory: str) -> AsyncIterator[Turn]:
        """The turns of a memory in log order."""
        return self._pages(lambda token: self._calls.turns(memory, token))

    async def search(self, memory: str, query: str, *, limit: int = 0) -> list[FoundTurn]:
        """The turns of a memory that hold any of the query's words, the best first; ``limit`` 0: ten."""
        return await self._run(self._calls.search(memory, query, limit))

    async def wait(self, memory: str, revision: Revision | None = None, *, timeout_s: float = 60) -> Revision:
        """Wait until the state has reached a revision, that of the log by default; returns the one it has reached.

        Raises:
            DeadlineError: it has not within ``timeout_s``.
        """
        return await self._run(self._calls.wait(memory, revision), timeout_s)

    async def state(
        self,
        memory: str,
        *,
        min_revision: Revision | None = None,
        revision: Revision | None = None,
        timeout_s: float = 60,
    ) -> State:
        """Read the newest state, once it has reached ``min_revision``; or exactly that of a ``revision`` that is kept.

        Raises:
            RevisionNotKeptError: no state is kept at ``revision``.
        """
        return await self._run(self._calls.state(memory, min_revision, revision), timeout_s)

    def generate(
        self,
        messages: Messages,
        *,
        memory: str = "",
        gain: float | None = None,
        window_tokens: int = 0,
        recall_tokens: int = 0,
        recall_query: str = "",
        min_revision: Revision | None = None,
        stale: Stale = Stale.WAIT,
        update: UpdateMode = UpdateMode.READ_ONLY,
        report_influence: bool = False,
        temperature: float = 0.0,
        top_p: float | None = None,
        top_k: int = 0,
        max_tokens: int = 0,
        stop: Sequence[str] = (),
        stop_tokens: Sequence[int] = (),
        seed: int | None = None,
        top_logprobs: int | None = None,
        timeout_s: float = 600,
    ) -> AsyncReply:
        """Generate a reply; see ``Memfold.generate``."""
        request = self._calls.generate_request(
            messages,
            Reading(
                memory,
                gain,
                window_tokens,
                min_revision,
                stale,
                update,
                report_influence,
                recall_tokens,
                recall_query,
            ),
            Sampling(temperature, top_p, max_tokens, stop, seed, top_k, stop_tokens, top_logprobs),
        )
        return AsyncReply(self._stubs["generation"].Generate(request, timeout=timeout_s, metadata=self._metadata))

    async def score(
        self,
        continuations: Sequence[str],
        *,
        messages: Messages | None = None,
        text: str | None = None,
        memory: str = "",
        gain: float | None = None,
        window_tokens: int = 0,
        recall_tokens: int = 0,
        recall_query: str = "",
        min_revision: Revision | None = None,
        stale: Stale = Stale.WAIT,
        timeout_s: float = 60,
    ) -> list[Score]:
        """Say how likely each continuation is, after messages (as replies) or after a raw text."""
        reading = Reading(
            memory, gain, window_tokens, min_revision, stale, recall_tokens=recall_tokens, recall_query=recall_query
        )
        return await self._run(self._calls.score(messages, text, continuations, reading), timeout_s)

    async def model(self) -> Model:
        """The model that serves."""
        return await self._run(self._calls.model())

    async def _run(self, call: Call[T], timeout_s: float | None = None) -> T:
        method = getattr(self._stubs[call.service], call.method)
        try:
            response = await method(call.request, timeout=timeout_s or self._timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise error_from(error) from None
        return call.read(response)

    async def _pages(self, page: Callable[[str], Call[Page[T]]]) -> AsyncIterator[T]:
        token = ""
        while True:
            found: Page[T] = await self._run(page(token))
            for item in found.items:
                yield item
            token = found.next_token
            if not token:
                return


class AsyncReply:
    """The text of a reply, piece by piece; then ``summary`` says what it rests on. See ``Reply``."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._responses = call.__aiter__()
        self.summary: Summary | None = None
        self.tokens: list[TokenLogProbability] = []

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        """The next piece."""
        try:
            async for response in self._responses:
                if response.WhichOneof("event") == "summary":
                    self.summary = summary_of(response.summary)
                    continue
                self.tokens += tokens_of(response.delta)
                if response.delta.text:
                    return str(response.delta.text)
        except grpc.RpcError as error:
            raise error_from(error) from None
        raise StopAsyncIteration

    async def text(self) -> str:
        """All of the rest."""
        return "".join([piece async for piece in self])

    def close(self) -> None:
        """End the reply here."""
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
