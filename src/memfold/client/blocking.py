"""The client for ordinary code."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from memfold.api.values import Memory, Policy, Revision, Turn
from memfold.client.blocking_history import History
from memfold.client.call import Call, Page, tenant_of
from memfold.client.calls import Calls, Messages, Reading, Sampling, ack_of, summary_of
from memfold.client.connection import OPTIONS, authorization, passes, stubs
from memfold.client.outbox import PATIENCE_S, Outbox
from memfold.client.values import Ack, Appended, Model, Score, State, Summary
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
        min_revision: Revision | None = None,
        temperature: float = 0.0,
        top_p: float | None = None,
        max_tokens: int = 0,
        stop: Sequence[str] = (),
        seed: int | None = None,
        timeout_s: float = 600,
    ) -> Reply:
        """Generate a reply.

        Args:
            messages: what is new, as messages or as the text of a user's one.
            memory: to answer from; none where it is empty.
            gain: of the state; 1 as trained, 0 for the frozen model.
            window_tokens: budget for the newest turns of the log, put in front word for word.
            min_revision: wait until the state has reached it.
            temperature: 0 takes the most likely token.
            top_p: draw from the smallest set of tokens with this much probability.
            max_tokens: of the reply; 0 for the server's default.
            stop: texts before any of which the reply ends.
            seed: makes drawn tokens repeatable.
            timeout_s: for the whole reply.
        """
        request = self._calls.generate_request(
            messages,
            Reading(memory, gain, window_tokens, min_revision),
            Sampling(temperature, top_p, max_tokens, stop, seed),
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
        min_revision: Revision | None = None,
        timeout_s: float = 60,
    ) -> list[Score]:
        """Say how likely each continuation is, after messages (as replies) or after a raw text."""
        reading = Reading(memory, gain, window_tokens, min_revision)
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

    Leaving a ``with`` block, or ``close``, ends a reply that is not wanted any more.
    """

    def __init__(self, call: Any) -> None:
        self._call = call
        self.summary: Summary | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        """The next piece."""
        try:
            for response in self._call:
                if response.WhichOneof("event") == "delta":
                    return str(response.delta.text)
                self.summary = summary_of(response.summary)
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
