"""The reader as a process: it announces itself when it is warm, outlives its store, and drains when it is stopped."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from memfold.api.v1 import generation_service_pb2 as pb
from memfold.api.v1.generation_service_pb2_grpc import GenerationServiceStub
from memfold.local.redis_server import RedisServer
from memfold.reader.v1 import load_service_pb2 as load_pb
from memfold.reader.v1.load_service_pb2_grpc import LoadServiceStub
from memfold.rpc.status import error_from
from memfold_osam.testing import write_random_model

pytestmark = pytest.mark.timeout(600)  # each start imports torch, on machines that may be busy

# The random model goes on and on after this one.
HELLO = pb.GenerateRequest(messages=[pb.Message(role="user", content="a")], sampling=pb.Sampling(max_tokens=4))


@dataclass
class Started:
    """A reader process."""

    process: asyncio.subprocess.Process
    ready_file: Path
    log: Path

    async def address(self, within_s: float = 150) -> str:
        deadline = time.monotonic() + within_s
        while not self.ready_file.exists():
            assert self.process.returncode is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            await asyncio.sleep(0.05)
        return json.loads(self.ready_file.read_text())["address"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
async def start(tmp_path, model) -> AsyncIterator[Callable[..., Awaitable[Started]]]:
    started: list[Started] = []

    async def start(redis_url: str, **environment: str) -> Started:
        ready_file, log = tmp_path / f"ready-{len(started)}", tmp_path / f"log-{len(started)}"
        settings = {
            "MEMFOLD_REDIS_URL": redis_url,
            "MEMFOLD_LISTEN": "127.0.0.1:0",
            "MEMFOLD_BACKBONE": str(model),
            "MEMFOLD_THREADS": "1",
            "MEMFOLD_GRACE_S": "20",
            "MEMFOLD_READY_FILE": str(ready_file),
            **environment,
        }
        with log.open("wb") as errors:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "memfold_reader", env={**os.environ, **settings}, stderr=errors
            )
        started.append(Started(process, ready_file, log))
        return started[-1]

    yield start
    for one in started:
        if one.process.returncode is None:
            one.process.kill()
        await one.process.wait()


async def say(address: str, request: pb.GenerateRequest = HELLO) -> list[pb.GenerateResponse]:
    async with grpc.aio.insecure_channel(address) as channel:
        return [response async for response in GenerationServiceStub(channel).Generate(request, timeout=30)]


async def test_it_answers_once_it_is_ready_and_finishes_what_runs_when_it_is_told_to_stop(start, redis_url):
    reader = await start(redis_url)
    address = await reader.address()
    assert json.loads(reader.ready_file.read_text())["pid"] == reader.process.pid
    long = pb.GenerateRequest(messages=HELLO.messages, sampling=pb.Sampling(max_tokens=300))
    async with grpc.aio.insecure_channel(address) as channel:
        health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        words = aiter(LoadServiceStub(channel).WatchLoad(load_pb.WatchLoadRequest(), timeout=60))
        word = await anext(words)
        assert (word.readiness, word.active, word.waiting) == (load_pb.READINESS_SERVING, 0, 0)
        assert word.slots > 0
        responses = aiter(GenerationServiceStub(channel).Generate(long, timeout=60))
        await anext(responses)
        while word.active == 0:
            word = await anext(words)
        reader.process.send_signal(signal.SIGTERM)
        last = [word async for word in words][-1]
        assert last.readiness == load_pb.READINESS_DRAINING
        rest = [response async for response in responses]
        assert rest[-1].summary.generated_tokens == 300
    assert await asyncio.wait_for(reader.process.wait(), 60) == 0
    assert "Traceback" not in reader.log.read_text()


async def test_it_waits_for_its_store_and_outlives_it(start, tmp_path, eventually):
    redis = await asyncio.to_thread(RedisServer.start, tmp_path / "redis")
    try:
        reader = await start(redis.url)
        address = await reader.address()
    finally:
        await asyncio.to_thread(redis.stop)
    remembering = pb.GenerateRequest(messages=HELLO.messages, memory="tenants/t/memories/m")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await say(address, remembering)
    assert error_from(caught.value).reason == "STORE_UNAVAILABLE"
    assert (await say(address))[-1].HasField("summary")
    late = await start(redis.url)
    await eventually(lambda: "waiting for the store" in late.log.read_text(), 60)
    assert not late.ready_file.exists()
    async with grpc.aio.insecure_channel(re.findall(r"listening on (\S+)", late.log.read_text())[0]) as channel:
        word = await LoadServiceStub(channel).WatchLoad(load_pb.WatchLoadRequest(), timeout=30).read()
        assert word.readiness == load_pb.READINESS_LOADING
    late.process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(late.process.wait(), 60) == 0


async def test_a_model_that_cannot_be_loaded_ends_the_process_with_its_name(start, redis_url, tmp_path):
    reader = await start(redis_url, MEMFOLD_BACKBONE=str(tmp_path / "nowhere"), MEMFOLD_ADAPTER=str(tmp_path))
    assert await asyncio.wait_for(reader.process.wait(), 150) == 1
    assert "nowhere" in reader.log.read_text()
    assert not reader.ready_file.exists()
