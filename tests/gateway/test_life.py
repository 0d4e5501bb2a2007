"""The gateway's life: start, health, an outage of the store, new keys, a stop."""

import asyncio
import hashlib
import json

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from memfold.api.v1 import memory_service_pb2 as pb
from memfold_gateway.__main__ import main
from memfold_gateway.gateway import gateway

ALICE = "tenants/acme/memories/alice"
MEMORY, GENERATION = "memfold.api.v1.MemoryService", "memfold.api.v1.GenerationService"


async def serving(channel, service=""):
    answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
    return answer.status == health_pb2.HealthCheckResponse.SERVING


async def until(condition, within_s=20):
    async with asyncio.timeout(within_s):
        while not await condition():  # noqa: ASYNC110  what is waited for happens in another process
            await asyncio.sleep(0.05)


@pytest.fixture
async def own(gateway_redis, store, kit, tmp_path):
    """A gateway for one test, and stubs on it."""
    with kit.run_gateway(tmp_path, gateway_redis.url) as gateway:
        async with grpc.aio.insecure_channel(gateway.address) as channel:
            yield gateway, kit.stubs(channel)


async def test_health_tells_the_services_apart(api):
    await until(lambda: serving(api.channel))
    assert await serving(api.channel, MEMORY)
    assert not await serving(api.channel, GENERATION), "there is no reader"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await serving(api.channel, "no.such.Service")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_generation_is_healthy_with_a_reader(reader, gateway_redis, store, kit, tmp_path):
    settings = kit.settings(tmp_path, gateway_redis.url, reader[1])
    async with gateway(settings) as server, grpc.aio.insecure_channel(server.address) as channel:
        await until(lambda: serving(channel, GENERATION))


async def test_reflection_is_there_only_when_asked_for(api, gateway_redis, kit, tmp_path):

    request = reflection_pb2.ServerReflectionRequest(list_services="")
    call = reflection_pb2_grpc.ServerReflectionStub(api.channel).ServerReflectionInfo(iter([request]))
    services = (await call.read()).list_services_response.service
    assert MEMORY in [service.name for service in services]
    settings = kit.settings(tmp_path, gateway_redis.url)
    async with gateway(settings) as server, grpc.aio.insecure_channel(server.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo().read()
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_while_redis_is_gone_calls_say_so_and_nothing_acknowledged_is_lost(own, kit, gateway_redis):
    process, stubs = own
    await stubs.memory.AppendTurns(kit.append("alice", kit.turn("before", "t0"), allow_missing=True))
    stream = stubs.memory.StreamTurns(timeout=60)
    await stream.write(pb.StreamTurnsRequest(memory=ALICE, turn=kit.turn("streamed", "s0")))
    assert (await stream.read()).appended.sequence == 2
    gateway_redis.kill()
    try:
        await until(lambda: _not(serving(stubs.channel)))
        assert not await serving(stubs.channel, MEMORY)
        for call in (
            stubs.memory.AppendTurns(kit.append("alice", kit.turn("during", "t1"))),
            stubs.memory.GetMemory(pb.GetMemoryRequest(name=ALICE)),
            stubs.memory.ListTurns(pb.ListTurnsRequest(memory=ALICE)),
            stubs.memory.WaitForRevision(pb.WaitForRevisionRequest(memory=ALICE)),
            stubs.memory.DeleteMemory(pb.DeleteMemoryRequest(name=ALICE)),
        ):
            found = await kit.failure(call)
            assert (found.code, found.reason) == ("UNAVAILABLE", "STORE_UNAVAILABLE")
        await stream.write(pb.StreamTurnsRequest(memory=ALICE, turn=kit.turn("streamed", "s1")))
        assert (await kit.failure(stream.read())).reason == "STORE_UNAVAILABLE"
    finally:
        gateway_redis.restart()
    await until(lambda: serving(stubs.channel))
    await stubs.memory.AppendTurns(kit.append("alice", kit.turn("during", "t1")))
    listed = await stubs.memory.ListTurns(pb.ListTurnsRequest(memory=ALICE))
    assert [turn.id for turn in listed.turns][:2] == ["t0", "s0"]
    assert "t1" in [turn.id for turn in listed.turns]
    assert [turn.sequence for turn in listed.turns] == list(range(1, len(listed.turns) + 1))
    assert process.alive()
    assert "Traceback" not in process.log.read_text()


async def test_a_new_key_counts_without_a_restart_and_an_old_one_no_more(own, kit):
    process, stubs = own
    newcomer = kit.stubs(stubs.channel, "mfk_fresh_new")
    request = pb.ListMemoriesRequest(parent="tenants/fresh")
    assert (await kit.failure(newcomer.memory.ListMemories(request))).reason == "API_KEY_INVALID"
    process.keys_file.write_text("{broken")
    await asyncio.sleep(0.8)
    await stubs.memory.ListMemories(pb.ListMemoriesRequest(parent="tenants/acme"))
    kit.write_keys(process.keys_file, {"mfk_fresh_new": "fresh"})

    async def known():
        try:
            await newcomer.memory.ListMemories(request)
        except grpc.aio.AioRpcError:
            return False
        return True

    await until(known)
    found = await kit.failure(stubs.memory.ListMemories(pb.ListMemoriesRequest(parent="tenants/acme")))
    assert found.reason == "API_KEY_INVALID"


async def test_a_stop_ends_streams_with_a_reason_after_their_turns_are_acknowledged(own, kit):
    process, stubs = own
    stream = stubs.memory.StreamTurns()
    await stream.write(pb.StreamTurnsRequest(memory=ALICE, turn=kit.turn("one"), allow_missing=True))
    assert (await stream.read()).appended.sequence == 1
    waiting = asyncio.ensure_future(stubs.memory.WaitForRevision(pb.WaitForRevisionRequest(memory=ALICE)))
    await asyncio.sleep(0.2)
    stopped = asyncio.create_task(asyncio.to_thread(process.stop))
    assert (await kit.failure(stream.read())).reason == "SHUTTING_DOWN"
    found = await kit.failure(waiting)
    assert (found.code, found.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
    assert await stopped == 0
    assert "Traceback" not in process.log.read_text()


async def _not(condition):
    return not await condition


@pytest.mark.parametrize(
    ("environ", "code", "names"),
    [
        ({}, 2, "MEMFOLD_API_KEYS_FILE"),
        ({"MEMFOLD_API_KEYS_FILE": "{keys}", "MEMFOLD_DURABILITY": "maybe"}, 2, "MEMFOLD_DURABILITY"),
        ({"MEMFOLD_API_KEYS_FILE": "{folder}/none.json"}, 1, "none.json"),
        ({"MEMFOLD_API_KEYS_FILE": "{broken}"}, 1, "API keys"),
        ({"MEMFOLD_API_KEYS_FILE": "{keys}", "MEMFOLD_LISTEN": "256.0.0.1:1"}, 1, "256.0.0.1"),
        ({"MEMFOLD_API_KEYS_FILE": "{keys}", "MEMFOLD_DURABILITY": "replica"}, 1, "replica"),
    ],
)
def test_what_keeps_it_from_starting_is_named(tmp_path, gateway_redis, monkeypatch, capfd, environ, code, names):
    (tmp_path / "keys.json").write_text(json.dumps({hashlib.sha256(b"k").hexdigest(): "acme"}))
    (tmp_path / "broken.json").write_text(json.dumps({"plain-key": "acme"}))
    places = {"keys": tmp_path / "keys.json", "broken": tmp_path / "broken.json", "folder": tmp_path}
    monkeypatch.setenv("MEMFOLD_REDIS_URL", gateway_redis.url)
    monkeypatch.setenv("MEMFOLD_LISTEN", "127.0.0.1:0")
    for name, value in environ.items():
        monkeypatch.setenv(name, value.format(**places))
    assert main() == code
    said = capfd.readouterr().err
    assert names in said
    assert "Traceback" not in said
    assert "plain-key" not in said


FORBID = """
import importlib.abc, sys

class Forbid(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "memfold_osam", "memfold_kernels", "memfold_writer"}:
            raise AssertionError(f"the gateway imports {name}")
        return None

sys.meta_path.insert(0, Forbid())
from memfold_gateway.__main__ import main
sys.exit(main())
"""


async def test_it_starts_and_serves_where_no_model_library_can_be_imported(gateway_redis, store, kit, tmp_path):
    script = tmp_path / "forbid.py"
    script.write_text(FORBID)
    with kit.run_gateway(tmp_path, gateway_redis.url, command=["-P", str(script)]) as process:
        async with grpc.aio.insecure_channel(process.address) as channel:
            stubs = kit.stubs(channel)
            await stubs.memory.AppendTurns(kit.append("alice", kit.turn("one"), allow_missing=True))
            await kit.failure(stubs.generation.GetModel(kit.generation_pb.GetModelRequest()))
        assert process.stop() == 0
        assert "AssertionError" not in process.log.read_text()
