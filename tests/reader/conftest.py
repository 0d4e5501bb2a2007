"""A random model, an engine that runs it, memories with random states, and a reader that serves both."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
import torch

from memfold.api.errors import MemfoldError
from memfold.api.v1 import generation_service_pb2 as pb
from memfold.api.v1.generation_service_pb2_grpc import (
    GenerationServiceStub,
    add_GenerationServiceServicer_to_server,
)
from memfold.api.values import MemoryName, ModelCard, Revision, Role, Turn
from memfold.rpc.channel import channel_options
from memfold.rpc.server import Server
from memfold.rpc.status import error_from
from memfold.store import Store
from memfold.store.digests import chain
from memfold_osam.serving import ServedModel
from memfold_osam.state import OsamState, state_to_bytes
from memfold_osam.testing import tiny_random_model
from memfold_osam.turns import Message
from memfold_reader.detokenize import Detokenizer, StopScanner
from memfold_reader.engine import Engine
from memfold_reader.reader import Reader
from memfold_reader.reply import Finished, Piece, Reply
from memfold_reader.runner import Runner
from memfold_reader.sampling import Sampler, SamplingOptions
from memfold_reader.sequence import Steering
from memfold_reader.service import GenerationService

PLACES = 20


@pytest.fixture(scope="session")
def served(tmp_path_factory) -> ServedModel:
    torch.set_num_threads(1)
    return tiny_random_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def engine(served) -> Iterator[Engine]:
    engine = Engine(Runner(served), places=PLACES, on_broken=lambda: None)
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture
async def store(redis_url, served) -> AsyncIterator[Store]:
    store = await Store.open(redis_url)
    await store.register_model(
        ModelCard(served.fingerprint, "random", "random", served.state_shape, served.block_tokens, 2048)
    )
    yield store
    await store.close()


class Kept:
    """An outbox that keeps everything for the test to look at, and pauses its sequence when it is told to."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.error: MemfoldError | None = None
        self.is_closed = False
        self.is_full = False
        self.taken_at = 0.0

    def has_room(self) -> bool:
        return not self.is_full

    def put(self, item: Any) -> None:
        self.items.append(item)

    def close(self, error: MemfoldError | None = None) -> None:
        self.error, self.is_closed = error, True


class ByHand:
    """An engine without its thread: the test takes each step, so that what happens is the same every time."""

    def __init__(self, served: ServedModel, *, places: int = PLACES, prefix_bytes: int = 0) -> None:
        self.served = served
        self.engine = Engine(Runner(served, prefix_bytes=prefix_bytes), places=places, on_broken=lambda: None)

    def submit(
        self,
        prompt: Sequence[int],
        *,
        state: torch.Tensor | None = None,
        gain: float = 1.0,
        tenant: str = "",
        **options,
    ) -> Reply:
        """A reply that says ``max_tokens`` tokens, whatever they are; ``state`` (layers, heads, r, r)."""
        steering = {
            name: options.pop(name) for name in ("unread", "digest", "write_from", "segments") if name in options
        }
        influence, sampling = options.pop("influence", False), SamplingOptions(**{"max_tokens": 24} | options)
        reply = Reply(
            prompt,
            max_tokens=sampling.max_tokens,
            end_ids=frozenset(),
            stop_ids=frozenset(sampling.stop_tokens),
            steering=None if state is None else Steering(OsamState(state.unsqueeze(1)), gain, **steering),
            sampler=Sampler(sampling),
            detokenizer=Detokenizer(self.served.tokenizer),
            stops=StopScanner(sampling.stop),
            outbox=Kept(),
            deadline=math.inf,
            tenant=tenant,
            top_logprobs=sampling.top_logprobs,
            influence=influence,
        )
        self.engine.submit(reply)
        return reply

    def step(self) -> None:
        self.engine._step()

    def finish(self, *replies: Reply) -> list[list[int]]:
        """Step until nothing is open; the tokens of each reply."""
        while self.engine.open_count:
            self.step()
        assert all(reply._outbox.error is None for reply in replies)
        return [reply.generated for reply in replies]


@pytest.fixture(scope="session")
def by_hand() -> Callable[..., ByHand]:
    return ByHand


@pytest.fixture
def name() -> MemoryName:
    return MemoryName("reader", f"m-{secrets.token_hex(8)}")


@pytest.fixture
def random_state(served) -> Callable[[int], torch.Tensor]:
    """A state ``(layers, heads, r, r)`` strong enough to change what the random model says."""

    def draw(seed: int) -> torch.Tensor:
        return torch.randn(served.state_shape, generator=torch.Generator().manual_seed(seed)).to(served.device)

    return draw


@pytest.fixture
def append(store) -> Callable[..., Awaitable[Revision]]:
    """Appends what a user says; creates the memory where there is none."""

    async def append(name: MemoryName, *texts: str) -> Revision:
        turns = [Turn(secrets.token_hex(8), Role.USER, text) for text in texts]
        return (await store.append(name, turns, create=True)).revision

    return append


@pytest.fixture
def commit(store, served, random_state) -> Callable[[MemoryName, int], Awaitable[None]]:
    """Commits a random state as a writer would a folded one."""

    async def commit(name: MemoryName, seed: int) -> None:
        claims = await store.claim(served.fingerprint, name.partition, owner="test", lease_s=0.01, limit=1000)
        claim = next(claim for claim in claims if claim.name == name)
        state = state_to_bytes(random_state(seed))
        assert await store.commit(
            claim,
            applied=claim.head,
            at=claim.head,
            state=state,
            shape=served.state_shape,
            anchor=None,
            log_digest=chain(claim.log_digest, await store.read_turns(name, after=claim.applied)),
        )

    return commit


@pytest.fixture
def remember(append, commit) -> Callable[..., Awaitable[MemoryName]]:
    """Makes a memory of these texts with a random state."""

    async def remember(seed: int, *texts: str) -> MemoryName:
        name = MemoryName("reader", f"m-{secrets.token_hex(8)}")
        await append(name, *(texts or ("I live in Lisbon.",)))
        await commit(name, seed)
        return name

    return remember


@pytest.fixture
async def reader(served, store, engine) -> AsyncIterator[Reader]:
    reader = Reader(served, store, engine, inline_tokens=4096)
    yield reader
    reader.close()


@dataclass
class Running:
    """A reader in this process, with its client."""

    service: GenerationService
    stub: GenerationServiceStub
    server: Server
    address: str


@pytest.fixture
async def running(reader) -> AsyncIterator[Running]:
    server = Server("127.0.0.1:0", grace_s=2)
    service = GenerationService(server.stopping.is_set)
    service.reader = reader
    server.add(add_GenerationServiceServicer_to_server, service)
    address = await server.start()
    async with grpc.aio.insecure_channel(address, options=channel_options()) as channel:
        yield Running(service, GenerationServiceStub(channel), server, address)
        await server.stop()


@dataclass
class Said:
    """A whole reply."""

    text: str
    pieces: list[str]
    summary: pb.GenerationSummary
    tokens: list[pb.TokenLogProbability]


@pytest.fixture
def ask(running) -> Callable[..., Awaitable[Said]]:
    """Asks one question over gRPC; raises what the status says."""

    async def ask(text: str = "Where do I live?", *, timeout: float = 60, **fields) -> Said:  # noqa: ASYNC109
        request = pb.GenerateRequest(messages=[pb.Message(role="user", content=text)], **fields)
        pieces: list[str] = []
        tokens: list[pb.TokenLogProbability] = []
        try:
            async for response in running.stub.Generate(request, timeout=timeout):
                if response.WhichOneof("event") == "summary":
                    return Said("".join(pieces), pieces, response.summary, tokens)
                pieces.append(response.delta.text)
                tokens += response.delta.tokens
        except grpc.aio.AioRpcError as error:
            raise error_from(error) from None
        raise AssertionError("a stream without a summary")

    return ask


@pytest.fixture
def collect() -> Callable[..., Awaitable[tuple[str, Finished]]]:
    """The text of an answer, and how it ended."""

    async def collect(answer) -> tuple[str, Finished]:
        *pieces, finished = [item async for item in answer]
        assert isinstance(finished, Finished)
        assert all(isinstance(piece, Piece) for piece in pieces)
        return "".join(piece.text for piece in pieces), finished

    return collect


@pytest.fixture
def plain_greedy(served) -> Callable[..., list[int]]:
    """The oracle: no cache, no engine, one pass over everything for each token."""

    @torch.inference_mode()
    def plain_greedy(
        prompt: Sequence[int], max_tokens: int, state: torch.Tensor | None = None, gain: float = 1.0
    ) -> list[int]:
        tokens = list(prompt)
        for _ in range(max_tokens):
            with served.memory.bind(
                served.memory.init_state(1) if state is None else OsamState(state.unsqueeze(1)), write=False, gain=gain
            ):
                logits = served.model(input_ids=torch.tensor([tokens], device=served.device)).logits[0, -1]
            tokens.append(int(logits.argmax()))
            if tokens[-1] in served.turns.end_ids:
                break
        return tokens[len(prompt) :]

    return plain_greedy


@pytest.fixture
def prompt_of(served) -> Callable[..., list[int]]:
    """Tokens of user turns with the header of the reply."""

    def prompt_of(*texts: str) -> list[int]:
        turns = [token for text in texts for token in served.turns.encode(Message("user", text))]
        return [*served.turns.bos, *turns, *served.turns.generation_prompt]

    return prompt_of


@pytest.fixture
def text_of(served) -> Callable[[list[int]], str]:
    """What tokens look like to a client: no special tokens, and at the end no character that was never finished."""

    def text_of(tokens: list[int]) -> str:
        text = str(served.tokenizer.decode(tokens, skip_special_tokens=True))
        return text[: max(len(text.rstrip("\ufffd")), len(text) - 3)]

    return text_of


@pytest.fixture
def plain_text(plain_greedy, prompt_of, text_of) -> Callable[..., str]:
    """What the oracle says to user turns, as a client would see it."""

    def plain_text(*texts: str, max_tokens: int = 16, state: torch.Tensor | None = None) -> str:
        return text_of(plain_greedy(prompt_of(*texts), max_tokens, state))

    return plain_text


@pytest.fixture
def eventually() -> Callable[..., Awaitable[None]]:
    """Polls until something holds."""

    async def eventually(holds: Callable[[], bool], within_s: float = 20) -> None:
        async with asyncio.timeout(within_s):
            while not holds():  # noqa: ASYNC110  what is polled has no event
                await asyncio.sleep(0.005)

    return eventually
