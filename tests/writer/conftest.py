"""Real Redis servers, real writer processes, a small random model, and the oracle: the same turns folded right here."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from memfold.api.values import MemoryName, ModelCard, Revision, Role, Turn
from memfold.hints import Hinter
from memfold.local.redis_server import RedisServer
from memfold.store import Durability, Store
from memfold.store.keys import memory_keys
from memfold_osam.fold import Folder, FoldJob
from memfold_osam.serving import ServedModel, load_served_model
from memfold_osam.state import state_from_bytes
from memfold_osam.testing import write_random_model
from memfold_osam.turns import Message
from memfold_writer.claims import Claims
from memfold_writer.device import Device
from memfold_writer.drainer import Drainer
from memfold_writer.gatherer import Gatherer
from memfold_writer.metrics import Metrics
from memfold_writer.open_blocks import OpenBlocks
from memfold_writer.stopping import Stopping

BLOCK_TOKENS = 64  # so that a few turns fill several blocks
PATIENCE_S = 120  # what is promised comes in a moment; a busy machine takes longer


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("model"), block_tokens=BLOCK_TOKENS)


@pytest.fixture(scope="session")
def served(model_dir: Path) -> ServedModel:
    torch.set_num_threads(1)
    return load_served_model(str(model_dir), device="cpu")


@dataclass
class WriterProcess:
    """A writer as its console script starts it."""

    command: list[str]
    environment: dict[str, str]
    directory: Path
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True)
        with (self.directory / "log").open("wb") as log:
            environment = {**os.environ, **self.environment, "MEMFOLD_READY_FILE": str(self.ready_file)}
            self.process = subprocess.Popen(self.command, env=environment, cwd=self.directory, stderr=log)

    @property
    def ready_file(self) -> Path:
        return self.directory / "ready.json"

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    def wait_ready(self) -> dict[str, object]:
        deadline = time.monotonic() + PATIENCE_S
        while not self.ready_file.exists():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)
        facts: dict[str, object] = json.loads(self.ready_file.read_text())
        return facts

    def metric(self, name: str) -> float:
        """The sum over all series of a metric."""
        url = f"http://127.0.0.1:{self.environment['MEMFOLD_METRICS_PORT']}/metrics"
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == name)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self, timeout_s: float = PATIENCE_S) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


StartWriter = Callable[..., WriterProcess]


def writer_command() -> list[str]:
    script = Path(sys.executable).with_name("memfold-writer")
    return [str(script)] if script.exists() else [sys.executable, "-P", "-m", "memfold_writer"]


def _starter(redis: RedisServer, model_dir: Path, directory: Path, started: list[WriterProcess]) -> StartWriter:
    def start(*, ready: bool = True, command: list[str] | None = None, **settings: str | float) -> WriterProcess:
        environment = {
            "MEMFOLD_REDIS_URL": redis.url,
            "MEMFOLD_LISTEN": "127.0.0.1:0",
            "MEMFOLD_BACKBONE": str(model_dir),
            "MEMFOLD_DEVICE": "cpu",
            "MEMFOLD_THREADS": "1",
            "MEMFOLD_METRICS_PORT": str(_free_port()),
            "OMP_NUM_THREADS": "1",
            **{f"MEMFOLD_{name.upper()}": str(value) for name, value in settings.items()},
        }
        writer = WriterProcess(command or writer_command(), environment, directory / f"writer{len(started)}")
        started.append(writer)
        if ready:
            writer.wait_ready()
        return writer

    return start


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer.start(tmp_path / "redis")
    yield server
    server.stop()


@pytest.fixture
def start_writer(redis: RedisServer, model_dir: Path, tmp_path: Path) -> Iterator[StartWriter]:
    started: list[WriterProcess] = []
    yield _starter(redis, model_dir, tmp_path, started)
    for writer in started:
        writer.kill()


@pytest.fixture(scope="session")
def lasting_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer.start(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def lasting_writer(
    lasting_redis: RedisServer, model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WriterProcess]:
    """One for all tests that do it no harm: a start takes seconds."""
    started: list[WriterProcess] = []
    start = _starter(lasting_redis, model_dir, tmp_path_factory.mktemp("writer"), started)
    writer = start()
    yield writer
    assert writer.stop() == 0
    assert "ERROR" not in writer.log


@pytest.fixture
async def store(redis: RedisServer) -> AsyncIterator[Store]:
    opened = await Store.open(redis.url, durability=Durability.FSYNC)
    yield opened
    await opened.close()


@pytest.fixture
def hinter(redis: RedisServer) -> Iterator[Hinter]:
    with Hinter(redis.url) as opened:
        yield opened


@pytest.fixture
def name(request: pytest.FixtureRequest) -> MemoryName:
    """A memory of the test's own."""
    return MemoryName("acme", request.node.name[-100:])


@pytest.fixture
async def registered(store: Store, served: ServedModel) -> str:
    """The model's fingerprint; the model is known as if a writer had been here before."""
    await store.register_model(
        ModelCard(
            fingerprint=served.fingerprint,
            backbone=served.backbone,
            adapter=served.adapter,
            state_shape=served.state_shape,
            block_tokens=served.block_tokens,
            context_tokens=served.context_tokens,
        )
    )
    return served.fingerprint


def some_turns(count: int, *, start: int = 1, words: int = 6, salt: str = "") -> list[Turn]:
    roles = (Role.USER, Role.ASSISTANT, Role.SYSTEM, Role.TOOL)
    return [
        Turn(
            id=f"turn-{i}",
            role=roles[i % len(roles)],
            content=f"{salt}{i} " + " ".join(f"w{i * 7919 % (k + 11)}" for k in range(words)),
            speaker="Caroline" if i % 3 == 0 else "",
        )
        for i in range(start, start + count)
    ]


@pytest.fixture(name="some_turns")
def some_turns_fixture() -> Callable[..., list[Turn]]:
    return some_turns


@pytest.fixture
def fold_here(served: ServedModel) -> Callable[[Sequence[Turn]], Tensor]:
    """The oracle: all turns from the first on, one memory alone, in one call."""

    def fold(turns: Sequence[Turn]) -> Tensor:
        messages = [Message(role=str(turn.role), content=turn.content, speaker=turn.speaker) for turn in turns]
        return Folder(served, 16384).fold([FoldJob(anchor=None, offset=0, messages=messages)])[0].state

    return fold


Check = Callable[..., Awaitable[None]]


@pytest.fixture
def check_folded(store: Store, fold_here: Callable[[Sequence[Turn]], Tensor]) -> Check:
    """Wait until a memory's state holds exactly these turns, and compare it with the oracle's."""

    async def check(name: MemoryName, turns: Sequence[Turn], *, timeout_s: float = PATIENCE_S) -> None:
        memory = await store.get_memory(name)
        assert memory.head == len(turns)
        reached = await store.wait_for(name, memory.revision, timeout_s)
        assert reached == Revision(memory.incarnation, len(turns))
        _, state = await store.read_state(name)
        assert state is not None
        assert state.revision == reached
        expected = fold_here(turns)
        found = state_from_bytes(state.data, state.shape)
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()

    return check


@pytest.fixture
def line_of(store: Store, served: ServedModel) -> Callable[[MemoryName], Awaitable[dict[str, str]]]:
    """Where folding of a memory stands, as the store keeps it: applied, fence, lease, owner, attempts, claim."""

    async def line(name: MemoryName) -> dict[str, str]:
        flat = await store._server.command("HGETALL", memory_keys(name, served.fingerprint).line)
        pairs = flat.items() if isinstance(flat, dict) else zip(flat[::2], flat[1::2], strict=True)
        return {key.decode(): value.decode() for key, value in pairs}

    return line


@pytest.fixture
def until() -> Callable[..., Awaitable[None]]:
    """Wait for something to come true."""

    async def wait(what: Callable[[], Awaitable[bool]], *, timeout_s: float = PATIENCE_S) -> None:
        async with asyncio.timeout(timeout_s):
            while not await what():  # noqa: ASYNC110 - what another process does sets no event here
                await asyncio.sleep(0.01)

    return wait


class CountingDevice(Device):
    """Remembers which memories were folded together, and how many tokens ran."""

    def __init__(self, served) -> None:
        super().__init__(served, 16384, 1 << 30)
        self.batches: list[list[str]] = []
        self.ran = 0

    def fold(self, works):
        self.ran += sum(work.tokens for work in works)
        self.batches.append(sorted(work.claim.name.memory for work in works))
        return super().fold(works)


@pytest.fixture
def device(served):
    made = CountingDevice(served)
    yield made
    made.close()


@pytest.fixture
def open_blocks():
    return OpenBlocks(1 << 30)


@pytest.fixture
def stopping():
    return Stopping(grace_s=0)


@pytest.fixture
def gatherer(store, registered, device, claims, open_blocks):
    return Gatherer(store, claims, device, open_blocks, Metrics(), batch_tokens=16384)


@pytest.fixture
def claims(store, registered):
    return Claims(store, Metrics(), fingerprint=registered, owner="test", lease_s=30)


@pytest.fixture
def drainer(store, served, device, claims, gatherer, open_blocks, stopping):
    return Drainer(
        store,
        claims,
        gatherer,
        device,
        open_blocks,
        Metrics(),
        stopping=stopping,
        hint=lambda _: None,
        shape=served.state_shape,
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
