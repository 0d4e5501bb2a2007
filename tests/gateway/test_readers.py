"""Two readers with a model, as processes behind a gateway: one is killed, stopped, hung, and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from memfold.api.v1 import generation_service_pb2 as pb
from memfold.reader.v1 import load_service_pb2 as load_pb
from memfold.reader.v1.load_service_pb2_grpc import LoadServiceStub

pytestmark = [pytest.mark.platform, pytest.mark.timeout(600)]

PATIENCE_S = 120
SLOTS = 4
TOKENS = 400  # of a stream that is to last

# Imports torch once, makes a model, and forks readers: a start takes a moment then. It has no thread and no loop: it may fork.
NURSERY = """
import json, os, signal, sys
from pathlib import Path
from memfold.local.parent import when_parent_dies
from memfold_osam.testing import write_random_model
import memfold_reader.app
from memfold_reader.__main__ import main

if os.fork() == 0:
    write_random_model(Path(sys.argv[1]))
    os._exit(0)
os.wait()
print("ready", flush=True)
for line in sys.stdin:
    order, tie = json.loads(line), when_parent_dies(signal.SIGKILL)
    if "wait" in order:
        print(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), flush=True)
        continue
    pid = os.fork()
    if pid == 0:
        tie()
        log, nothing = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), os.open(os.devnull, os.O_RDONLY)
        for own, others in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(own, others)
        os.environ.update(order["environment"])
        os._exit(main())
    print(pid, flush=True)
os._exit(0)
"""


class Nursery:
    """Forks readers of one model; they end with it."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        model = folder / "model"
        self._settings = {
            "MEMFOLD_REDIS_URL": redis_url,
            "MEMFOLD_BACKBONE": str(model),
            "MEMFOLD_ADAPTER": str(model / "adapter"),
            "MEMFOLD_THREADS": "1",
            "MEMFOLD_MAX_ACTIVE": str(SLOTS),
            "MEMFOLD_GRACE_S": "60",
        }
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MEMFOLD_", "OTEL_"))}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", NURSERY, str(model)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**kept, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
            text=True,
        )
        assert self._process.stdout.readline() == "ready\n"

    def order(self, **order: Any) -> int:
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def start(self, listen: str) -> Reader:
        log, ready = self.folder / "reader.log", self.folder / f"ready-{time.monotonic_ns()}"
        own = {"MEMFOLD_LISTEN": listen, "MEMFOLD_READY_FILE": str(ready)}
        return Reader(self, listen, self.order(log=str(log), environment=self._settings | own), ready)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(PATIENCE_S)
        self._process.stdout.close()


@dataclass
class Reader:
    """A reader process."""

    nursery: Nursery
    address: str
    pid: int
    ready: Path

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def ended(self) -> int:
        """Wait for its end; its exit status."""
        return self.nursery.order(wait=self.pid)

    async def load(self) -> load_pb.WatchLoadResponse:
        """What it says of itself."""
        async with grpc.aio.insecure_channel(self.address) as channel:
            call = LoadServiceStub(channel).WatchLoad(load_pb.WatchLoadRequest(), timeout=30)
            return await call.read()


@dataclass
class Told:
    """What became of requests."""

    complete: int = 0
    failures: list[str] = field(default_factory=list)


async def until(condition: Any, within_s: float = PATIENCE_S) -> None:
    async with asyncio.timeout(within_s):
        while not await condition():  # noqa: ASYNC110  what is polled is another process
            await asyncio.sleep(0.02)


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture(scope="module")
def nursery(tmp_path_factory, gateway_redis) -> Iterator[Nursery]:
    nursery = Nursery(tmp_path_factory.mktemp("readers"), gateway_redis.url)
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def readers(nursery) -> list[Reader]:
    """Two readers; a test that ends one puts another in its place."""
    return [nursery.start(free_address()) for _ in range(2)]


@pytest.fixture(scope="module")
def gateway_address(readers, gateway_redis, kit, tmp_path_factory) -> Iterator[str]:
    target = ",".join(reader.address for reader in readers)
    with kit.run_gateway(tmp_path_factory.mktemp("gateway"), gateway_redis.url, target) as running:
        yield running.address
        assert running.alive()
        assert "Traceback" not in running.log.read_text()


@pytest.fixture
async def api(gateway_address, readers, kit) -> AsyncIterator[Any]:
    """Stubs on the gateway, once both readers get requests and neither has any."""
    async with grpc.aio.insecure_channel(gateway_address) as channel:
        api = kit.stubs(channel)
        await until(lambda: both_are_asked(api, readers))
        yield api


async def both_are_asked(api: Any, readers: list[Reader]) -> bool:
    """Whether two requests at once go to two readers."""
    if not all(reader.ready.exists() for reader in readers):
        return False
    async with streams(api, 2):
        loads = [await reader.load() for reader in readers]
    return [load.active for load in loads] == [1, 1]


def question(tokens: int) -> pb.GenerateRequest:
    # The random model goes on and on after this one.
    return pb.GenerateRequest(messages=[pb.Message(role="user", content="a")], sampling=pb.Sampling(max_tokens=tokens))


@contextlib.asynccontextmanager
async def streams(api: Any, count: int) -> AsyncIterator[list[Any]]:
    """So many generations that have begun."""
    calls = [api.generation.Generate(question(TOKENS), timeout=PATIENCE_S) for _ in range(count)]
    try:
        for call in calls:
            await call.read()
        yield calls
    finally:
        for call in calls:
            call.cancel()
        await asyncio.gather(*(call.code() for call in calls))


async def ask(api: Any, told: Told, kit: Any, tokens: int = 4) -> None:
    """One request, and what became of it."""
    try:
        answers = [one async for one in api.generation.Generate(question(tokens), timeout=PATIENCE_S)]
    except grpc.aio.AioRpcError as error:
        told.failures.append(kit.failure_of(error).reason)
    else:
        assert answers[-1].summary.generated_tokens == tokens
        told.complete += 1


async def test_when_a_reader_is_killed_its_streams_fail_at_once_and_everything_else_goes_on(api, readers, nursery, kit):
    told = Told()
    async with streams(api, 2 * SLOTS) as calls:
        loads = [await reader.load() for reader in readers]
        assert [load.active for load in loads] == [SLOTS, SLOTS]
        assert loads[0].fingerprint == loads[1].fingerprint != ""
        waiting = [asyncio.create_task(ask(api, told, kit)) for _ in range(4)]
        ends = [asyncio.create_task(end(call)) for call in calls]
        readers[0].signal(signal.SIGKILL)
        killed = time.monotonic()
        broken = [found for found in await asyncio.gather(*ends) if isinstance(found.last, grpc.aio.AioRpcError)]
        assert len(broken) == SLOTS
        assert max(found.at for found in broken) - killed < 5
        told_of = [kit.failure_of(found.last) for found in broken]
        assert {(one.code, one.reason) for one in told_of} == {("UNAVAILABLE", "READER_UNAVAILABLE")}
        assert {found.result().last for found in ends if found.result() not in broken} == {TOKENS}
        await asyncio.gather(*waiting)
    for _ in range(10):
        await ask(api, told, kit)
    assert (told.complete, told.failures) == (14, [])
    assert readers[0].ended() == -signal.SIGKILL
    readers[0] = nursery.start(readers[0].address)
    await until(lambda: both_are_asked(api, readers))


async def test_a_reader_that_is_asked_to_stop_under_load_costs_no_request(api, readers, nursery, kit):
    told = Told()
    stopped = asyncio.Event()

    async def client() -> None:
        while not stopped.is_set():
            await ask(api, told, kit)

    # More than both together have slots for: some always wait.
    async with streams(api, 2) as long, asyncio.TaskGroup() as clients:
        for _ in range(4 * SLOTS):
            clients.create_task(client())
        await until(lambda: answered(told, 30))
        readers[1].signal(signal.SIGTERM)
        for call in long:
            assert (await end(call)).last == TOKENS
        assert await asyncio.to_thread(readers[1].ended) == 0
        before = told.complete
        await until(lambda: answered(told, before + 20))
        readers[1] = nursery.start(readers[1].address)
        await until(lambda: taken_up(readers[1]))
        stopped.set()
    assert told.failures == []


async def test_a_reader_that_hangs_is_left_and_comes_back(api, readers, kit):
    told = Told()
    async with streams(api, 2) as calls:
        ends = [asyncio.create_task(end(call)) for call in calls]
        readers[0].signal(signal.SIGSTOP)
        try:
            await asyncio.gather(*(ask(api, told, kit) for _ in range(8)))
            assert (told.complete, told.failures) == (8, [])
            found = [(await one).last for one in ends]
        finally:
            readers[0].signal(signal.SIGCONT)
        (broken,) = [last for last in found if isinstance(last, grpc.aio.AioRpcError)]
        assert kit.failure_of(broken).reason == "READER_UNAVAILABLE"
        assert TOKENS in found
    await until(lambda: both_are_asked(api, readers))


async def answered(told: Told, count: int) -> bool:
    return told.complete >= count


async def taken_up(reader: Reader) -> bool:
    """Whether a reader has got requests."""
    return reader.ready.exists() and (await reader.load()).active > 0


@dataclass
class End:
    """How a stream ended, and when: the tokens that it had, or the error."""

    last: int | grpc.aio.AioRpcError
    at: float


async def end(call: Any) -> End:
    """Read a stream to its end."""
    last: Any = None
    try:
        while (answer := await call.read()) is not grpc.aio.EOF:
            last = answer
    except grpc.aio.AioRpcError as error:
        return End(error, time.monotonic())
    return End(last.summary.generated_tokens, time.monotonic())
