"""A gateway as a real process on a real Redis, a reader in this process, and clients."""

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from redis import Redis

from memfold.api.v1 import generation_service_pb2 as generation_pb
from memfold.api.v1 import generation_service_pb2_grpc as generation_grpc
from memfold.api.v1 import history_service_pb2_grpc as history_grpc
from memfold.api.v1 import memory_service_pb2 as pb
from memfold.api.v1 import memory_service_pb2_grpc as pb_grpc
from memfold.api.v1 import operation_service_pb2_grpc as operation_grpc
from memfold.api.values import MemoryName, ModelCard
from memfold.local.redis_server import RedisServer
from memfold.reader.v1 import load_service_pb2 as load_pb
from memfold.reader.v1 import load_service_pb2_grpc as load_grpc
from memfold.rpc.server import Server
from memfold.store import Durability, Store
from memfold.store.digests import chain
from memfold_gateway.gateway import gateway
from memfold_gateway.settings import Settings

KEY = "mfk_acme_test-secret"
OTHER_KEY = "mfk_other_test-secret"
BACKLOG = 20
CARD = ModelCard(
    fingerprint="ab" * 32,
    backbone="tiny",
    adapter="none",
    state_shape=(2, 1, 4, 4),
    block_tokens=256,
    context_tokens=512,
)


def authorization(key: str = KEY) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


@dataclass
class Failure:
    """How a call failed, as its client sees it."""

    code: str
    reason: str
    facts: dict[str, str]
    message: str
    retry_ms: int


async def failure(call: Any) -> Failure:
    """Await a call that must fail with exactly one ErrorInfo."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return failure_of(caught.value)


def failure_of(error: grpc.aio.AioRpcError) -> Failure:
    infos, retry = [], error_details_pb2.RetryInfo()
    for key, value in error.trailing_metadata():
        if key == "grpc-status-details-bin":
            for packed in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if packed.Unpack(info):
                    infos.append(info)
                packed.Unpack(retry)
    assert len(infos) == 1, f"{len(infos)} ErrorInfos in {error!r}"
    assert infos[0].domain == "memfold.api.v1"
    assert "Traceback" not in error.details()
    retry_ms = retry.retry_delay.ToMilliseconds()
    return Failure(error.code().name, infos[0].reason, dict(infos[0].metadata), error.details(), retry_ms)


class StubReader(generation_grpc.GenerationServiceServicer):
    """Answers like a reader, without a model."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any, float | None]] = []
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.metadata: dict[str, str] = {}
        self.fault: Exception | None = None
        self.deltas: list[generation_pb.TextDelta] = []
        self.summary: generation_pb.GenerationSummary | None = None

    def _note(self, method: str, request: Any, context: Any) -> None:
        self.seen.append((method, request, context.time_remaining()))
        self.metadata = dict(context.invocation_metadata())
        if self.fault is not None:
            raise self.fault

    async def _take_forever(self) -> None:
        try:
            self.started.set()
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def Generate(self, request, context) -> AsyncIterator[generation_pb.GenerateResponse]:  # noqa: N802
        self._note("Generate", request, context)
        if self.summary is not None:
            for delta in self.deltas:
                yield generation_pb.GenerateResponse(delta=delta)
            yield generation_pb.GenerateResponse(summary=self.summary)
            return
        yield generation_pb.GenerateResponse(delta=generation_pb.TextDelta(text="Lis"))
        if request.messages[-1].content == "forever":
            await self._take_forever()
        yield generation_pb.GenerateResponse(delta=generation_pb.TextDelta(text="bon"))
        summary = generation_pb.GenerationSummary(
            finish_reason=generation_pb.FINISH_REASON_END_OF_TURN, generated_tokens=2
        )
        summary.time_to_first_token.FromMilliseconds(5)
        yield generation_pb.GenerateResponse(summary=summary)

    async def Score(self, request, context):  # noqa: N802
        self._note("Score", request, context)
        if request.text == "forever":
            await self._take_forever()
        return generation_pb.ScoreResponse(
            scores=[
                generation_pb.ContinuationScore(log_probability=-1.5, token_count=1, is_greedy=True)
                for _ in request.continuations
            ]
        )

    async def GetModel(self, request, context):  # noqa: N802
        self._note("GetModel", request, context)
        return generation_pb.GetModelResponse(
            model=generation_pb.Model(
                fingerprint=CARD.fingerprint, backbone="tiny", state_shape=CARD.state_shape, examples=["Hello"]
            )
        )


class StubLoad(load_grpc.LoadServiceServicer):
    """Says of a stub what a test wants; silent while ``quiet``."""

    def __init__(self) -> None:
        self.quiet = False
        self.word = load_pb.WatchLoadResponse(
            readiness=load_pb.READINESS_SERVING, fingerprint=CARD.fingerprint, slots=4
        )

    async def WatchLoad(self, request, context) -> AsyncIterator[load_pb.WatchLoadResponse]:  # noqa: N802
        while True:
            if not self.quiet:
                yield self.word
            await asyncio.sleep(0.05)


def reader_server(servicer: StubReader, load: StubLoad | None = None, listen: str = "127.0.0.1:0") -> Server:
    """A server that looks like a reader's."""
    server = Server(listen, grace_s=0.1)
    server.add(generation_grpc.add_GenerationServiceServicer_to_server, servicer)
    server.add(load_grpc.add_LoadServiceServicer_to_server, load or StubLoad())
    return server


@dataclass
class Gateway:
    """A gateway that runs."""

    address: str
    process: subprocess.Popen[bytes]
    log: Path
    keys_file: Path

    def alive(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> int:
        """Ask it to stop, as Kubernetes would; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def write_keys(path: Path, keys: dict[str, str]) -> None:
    path.write_text(json.dumps({hashlib.sha256(key.encode()).hexdigest(): tenant for key, tenant in keys.items()}))


def settings(folder: Path, redis_url: str, reader: str = "127.0.0.1:1", **fields: Any) -> Settings:
    """Settings of a gateway in this process."""
    write_keys(folder / "keys.json", {KEY: "acme", OTHER_KEY: "other"})
    given = {
        "api_keys_file": folder / "keys.json",
        "redis_url": redis_url,
        "listen": "127.0.0.1:0",
        "reader_target": reader,
        "backlog_turns": BACKLOG,
        "grace_s": 0.2,
    }
    return Settings(**(given | fields))


@contextlib.contextmanager
def run_gateway(
    folder: Path,
    redis_url: str,
    reader: str = "127.0.0.1:1",
    command: Sequence[str] = ("-P", "-m", "memfold_gateway"),
    **environ: str,
) -> Iterator[Gateway]:
    folder.mkdir(parents=True, exist_ok=True)
    keys, ready, log = folder / "keys.json", folder / "ready.json", folder / "gateway.log"
    write_keys(keys, {KEY: "acme", OTHER_KEY: "other"})
    settings = {
        "MEMFOLD_REDIS_URL": redis_url,
        "MEMFOLD_LISTEN": "127.0.0.1:0",
        "MEMFOLD_READER_TARGET": reader,
        "MEMFOLD_API_KEYS_FILE": str(keys),
        "MEMFOLD_READY_FILE": str(ready),
        "MEMFOLD_BACKLOG_TURNS": str(BACKLOG),
        "MEMFOLD_GRACE_S": "2",
        **environ,
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MEMFOLD_", "OTEL_"))}
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, *command], env={**inherited, **settings}, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + 60
        while not ready.exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        yield Gateway(json.loads(ready.read_text())["address"], process, log, keys)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.fixture(scope="session")
def gateway_redis(tmp_path_factory) -> Iterator[RedisServer]:
    """A Redis for gateways, of which some tests take hold."""
    server = RedisServer.start(tmp_path_factory.mktemp("gateway-redis"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def gateway_process(tmp_path_factory, gateway_redis) -> Iterator[Gateway]:
    """One gateway for all tests that do not need their own; there is no reader."""
    with run_gateway(tmp_path_factory.mktemp("gateway"), gateway_redis.url, MEMFOLD_REFLECTION="true") as gateway:
        yield gateway
        assert gateway.alive(), gateway.log.read_text()


@pytest.fixture
async def store(gateway_redis) -> AsyncIterator[Store]:
    """The gateway's store, emptied, with a model registered."""
    with Redis.from_url(gateway_redis.url) as client:
        client.flushall()
    store = await Store.open(gateway_redis.url, durability=Durability.FSYNC)
    await store.register_model(CARD)
    yield store
    await store.close()


@dataclass
class Stubs:
    """Raw stubs that send the key of a tenant along."""

    channel: grpc.aio.Channel
    memory: Any
    history: Any
    operation: Any
    generation: Any


class _WithKey:
    """A stub whose every call carries a key."""

    def __init__(self, stub: Any, key: str) -> None:
        self._stub, self._metadata = stub, authorization(key)

    def __getattr__(self, method: str) -> Any:
        call = getattr(self._stub, method)
        return lambda *args, **kwargs: call(*args, **{"metadata": self._metadata, "timeout": 20, **kwargs})


def stubs(channel: grpc.aio.Channel, key: str = KEY) -> Stubs:
    return Stubs(
        channel,
        _WithKey(pb_grpc.MemoryServiceStub(channel), key),
        _WithKey(history_grpc.HistoryServiceStub(channel), key),
        _WithKey(operation_grpc.OperationServiceStub(channel), key),
        _WithKey(generation_grpc.GenerationServiceStub(channel), key),
    )


@pytest.fixture
async def api(gateway_process, store) -> AsyncIterator[Stubs]:
    """Stubs on the shared gateway; the store is empty but for the model."""
    async with grpc.aio.insecure_channel(gateway_process.address) as channel:
        api = stubs(channel)
        yield api
        await api.memory.ListMemories(pb.ListMemoriesRequest(parent="tenants/acme"))  # it lives, whatever was tried


@pytest.fixture
async def here(reader, gateway_redis, store, tmp_path) -> AsyncIterator[tuple[str, StubReader]]:
    """A gateway in this process with a reader behind it: its address, and the reader."""
    async with gateway(settings(tmp_path, gateway_redis.url, reader[1])) as server:
        yield server.address, reader[0]


@pytest.fixture
async def reader() -> AsyncIterator[tuple[StubReader, str]]:
    """A reader that serves, and its address."""
    servicer = StubReader()
    server = reader_server(servicer)
    address = await server.start()
    await server.set_serving(True)
    yield servicer, address
    await server.stop()


async def fold(
    store: Store, name: str, *, up_to: int = 0, state: bytes = b"", fingerprint: str = CARD.fingerprint
) -> None:
    """Do a writer's work on a memory: claim, and commit a state, of the log's end or up to a turn."""
    memory = MemoryName.parse(name)
    claims = await store.claim(fingerprint, memory.partition, owner="test", lease_s=30, limit=1000)
    (claim,) = (claim for claim in claims if claim.name == memory)
    turns = await store.read_turns(memory, after=claim.applied)
    applied = up_to or claim.head
    assert await store.commit(
        claim,
        applied=applied,
        at=applied,
        state=state or bytes(CARD.state_bytes),
        shape=CARD.state_shape,
        anchor=None,
        log_digest=chain(claim.log_digest, [turn for turn in turns if turn.sequence <= applied]),
    )


def turn(content: str, turn_id: str = "", role: str = "user", **fields: Any) -> pb.Turn:
    return pb.Turn(id=turn_id, role=role, content=content, **fields)


def append(memory: str, *turns: pb.Turn, **fields: Any) -> pb.AppendTurnsRequest:
    return pb.AppendTurnsRequest(memory=f"tenants/acme/memories/{memory}", turns=turns, **fields)


@pytest.fixture(scope="session")
def kit() -> Any:
    """The helpers of this file, for tests, which cannot import it."""
    return sys.modules[__name__]
