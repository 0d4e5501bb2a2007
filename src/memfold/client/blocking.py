"""The client for ordinary code."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from memfold.api.generation import Stale, UpdateMode
from memfold.api.values import FoundTurn, Memory, Policy, Revision, Turn
from memfold.client.blocking_history import History
from memfold.client.call import Call, Page, tenant_of
from memfold.client.calls import Calls, ack_of
from memfold.client.connection import OPTIONS, authorization, passes, stubs
from memfold.client.generation_calls import Messages, Reading, Sampling, summary_of, tokens_of
from memfold.client.outbox import PATIENCE_S, Outbox
from memfold.client.values import Ack, Appended, Model, Score, State, Summary, TokenLogProbability
from memfold.rpc.status import error_from

T = TypeVar("T")


class Memfold(History):
    """A connection to memfold.

    Example::

        with Memfold("localhost:50051", api_key) as memfold:
            memfold.create_memory("alice")
            memfold.append("alice", [Turn("", Role.USER, "I moved to Lisbon.")])
            memfold.wait("alice")
            for text in memfold.generate("Where do I live?", memory="alice"):
                print(text, end="")

    A memory is named by its id, or by its whole resource name. Calls that fail because nothing answers are repeated
    for some seconds, always with the same ids, so that nothing happens twice. Every method raises a ``MemfoldError``.

    Args:
        target: ``host:port``.
        api_key: of the form ``mfk_TENANT_SECRET``.
        tenant: whose memories are meant; read from the key where it is empty.
        timeout_s: for calls without a timeout of their own.
        credentials: for TLS; in the clear where it is None.
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
            self._channel = grpc.insecure_channel(target, options=OPTIONS)
        else:
            self._channel = grpc.secure_channel(target, credentials, options=OPTIONS)
        self._stubs = stubs(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def create_memory(
        self,
        memory: str,
        *,
        display_name: str = "",
        labels: Mapping[str, str] | None = None,
        policy: Policy | None = None,
    ) -> Memory:
        """Create an empty memory; without a policy it is kept for ever."""
        return self._run(self._calls.create_memory(memory, display_name, labels or {}, policy))

    def get_memory(self, memory: str) -> Memory:
        """Look a memory up."""
        return self._run(self._calls.get_memory(memory))

    def list_memories(self) -> Iterator[Memory]:
        """All memories of the tenant, by name."""
        return self._pages(self._calls.list_memories)

    def update_memory(
        self,
        memory: str,
        *,
        display_name: str | None = None,
        labels: Mapping[str, str] | None = None,
        policy: Policy | None = None,
        expected_revision: Revision | None = None,
    ) -> Memory:
        """Change what is given; labels and policy are replaced as a whole."""
        return self._run(self._calls.update_memory(memory, display_name, labels, policy, expected_revision))

    def delete_memory(
        self, memory: str, *, expected_revision: Revision | None = None, allow_missing: bool = False
    ) -> None:
        """Delete a memory with its log and its state."""
        self._run(self._calls.delete_memory(memory, expected_revision, allow_missing))

    def append(
        self, memory: str, turns: Iterable[Turn], *, expected_revision: Revision | None = None, create: bool = False
    ) -> Appended:
        """Append turns, all or none; durable when this returns.

        Args:
            memory: the memory.
            turns: in order; those with an empty id get one.
            expected_revision: fail unless the log stands here.
            create: create the memory where there is none.
        """
        return self._run(self._calls.append(memory, turns, expected_revision, create))

    def stream(self, turns: Iterable[tuple[str, Turn]], *, create: bool = False) -> Iterator[Ack]:
        """Append turns of any memories as they come, and yield an acknowledgement for each, in order.

        ``turns`` are pairs of memory and turn, taken from a thread of gRPC's, no faster than they are taken up. A turn
        that is refused is an ``Ack`` with an ``error``; the stream goes on. Where the error has a ``retry_after_ms``, the
        later turns of its memory are refused too, until that turn comes again: give it, and then those, once more. A stream
        that breaks is opened again and what was not acknowledged is sent again.
        """
        outbox = Outbox(self._calls.stream_request(memory, turn, create) for memory, turn in turns)
        tries = iter(PATIENCE_S)
        while True:
            call = self._stubs["memory"].StreamTurns(outbox.requests(), metadata=self._metadata)
            try:
                for response in call:
                    outbox.acknowledge()
                    tries = iter(PATIENCE_S)
                    yield ack_of(response)
                break
            except grpc.RpcError as rpc_error:
                error = error_from(rpc_error)
                pause = next(tries, None) if passes(error) and outbox.fault is None else None
                if pause is None:
                    raise outbox.fault or error from None
                time.sleep(pause)
            finally:
                call.cancel()
        if outbox.fault is not None:
            raise outbox.fault

    def turns(self, memory: str) -> Iterator[Turn]:
        """The turns of a memory in log order."""
        return self._pages(lambda token: self._calls.turns(memory, token))

    def search(self, memory: str, query: str, *, limit: int = 0) -> list[FoundTurn]:
        """The turns of a memory that hold any of the query's words, the best first; ``limit`` 0: ten."""
        return self._run(self._calls.search(memory, query, limit))

    def wait(self, memory: str, revision: Revision | None = None, *, timeout_s: float = 60) -> Revision:
        """Wait until the state has reached a revision, that of the log by default; returns the one it has reached.

        Raises:
            DeadlineError: it has not within ``timeout_s``.
        """
        return self._run(self._calls.wait(memory, revision), timeout_s)

    def state(
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
        return self._run(self._calls.state(memory, min_revision, revision), timeout_s)

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
    ) -> Reply:
        """Generate a reply.

        Args:
            messages: what is new, as messages or as the text of a user's one.
            memory: to answer from; none where it is empty.
            gain: of the state; 1 as trained, 0 for the frozen model.
            window_tokens: budget for the newest turns of the log, put in front word for word.
            recall_tokens: budget for other turns of the log that are found by their words, put in front too.
            recall_query: what to look for; the last message where it is empty.
            min_revision: that the state must have reached.
            stale: what to do where it has not: wait for it, fold the missing turns on a private copy, or answer all the same.
            update: ``ONLINE`` writes these messages and the reply into a private copy of the state as they are read.
            report_influence: say in the summary how far the memory moved the first token; costs a second look at the prompt.
            temperature: 0 takes the most likely token.
            top_p: draw from the smallest set of tokens with this much probability.
            top_k: draw from so many of the most likely tokens; 0: from all.
            max_tokens: of the reply; 0 for the server's default.
            stop: texts before any of which the reply ends.
            stop_tokens: ids of tokens at any of which it ends.
            seed: makes drawn tokens repeatable.
            top_logprobs: say in the reply's ``tokens`` how likely each was, and so many of the likeliest in its place.
            timeout_s: for the whole reply.
        """
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
        return Reply(self._stubs["generation"].Generate(request, timeout=timeout_s, metadata=self._metadata))

    def score(
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
        return self._run(self._calls.score(messages, text, continuations, reading), timeout_s)

    def model(self) -> Model:
        """The model that serves."""
        return self._run(self._calls.model())

    def _run(self, call: Call[T], timeout_s: float | None = None) -> T:
        method = getattr(self._stubs[call.service], call.method)
        try:
            response = method(call.request, timeout=timeout_s or self._timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise error_from(error) from None
        return call.read(response)

    def _pages(self, page: Callable[[str], Call[Page[T]]]) -> Iterator[T]:
        token = ""
        while True:
            items, token = self._run(page(token))
            yield from items
            if not token:
                return


class Reply:
    """The text of a reply, piece by piece; then ``summary`` says what it rests on.

    Where ``top_logprobs`` asked for it, ``tokens`` says of each token so far how likely it was.

    Leaving a ``with`` block, or ``close``, ends a reply that is not wanted any more.
    """

    def __init__(self, call: Any) -> None:
        self._call = call
        self.summary: Summary | None = None
        self.tokens: list[TokenLogProbability] = []

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        """The next piece."""
        try:
            for response in self._call:
                if response.WhichOneof("event") == "summary":
                    self.summary = summary_of(response.summary)
                    continue
                self.tokens += tokens_of(response.delta)
                if response.delta.text:
                    return str(response.delta.text)
        except grpc.RpcError as error:
            raise error_from(error) from None
        raise StopIteration

    def text(self) -> str:
        """All of the rest."""
        return "".join(self)

    def close(self) -> None:
        """End the reply here."""
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
