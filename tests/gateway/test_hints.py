"""Hints: sent without delay, with the trace, and never missed by anybody when the broker is gone."""

import asyncio
import json
import socket
import time
import urllib.request

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from redis import Redis

from memfold import telemetry
from memfold.api.v1 import memory_service_pb2 as pb
from memfold.api.values import MemoryName
from memfold.hints import TASK, Hinter, queue_name
from memfold_gateway.gateway import gateway

NAME = MemoryName("acme", "alice")


def hints(redis, fingerprint):
    """The hints that wait in a queue: their arguments and their headers."""
    found = []
    for raw in redis.lrange(queue_name(fingerprint), 0, -1):
        message = json.loads(raw)
        assert message["content-type"] == "application/json"
        found.append((message["headers"]["task"], message["headers"]["argsrepr"], message["headers"]))
    return found


async def some(redis, fingerprint, count=1):
    async with asyncio.timeout(10):
        while len(found := hints(redis, fingerprint)) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return found


async def test_an_append_to_a_memory_that_was_up_to_date_sends_one_hint(here, store, gateway_redis, kit):
    fingerprint = kit.CARD.fingerprint
    with Redis.from_url(gateway_redis.url) as redis:
        async with grpc.aio.insecure_channel(here[0]) as channel:
            api = kit.stubs(channel)
            for at in range(5):
                await api.memory.AppendTurns(kit.append("alice", kit.turn(f"{at}"), allow_missing=True))
        ((task, arguments, _),) = await some(redis, fingerprint)
        assert task == TASK
        assert arguments == repr([fingerprint, NAME.partition])


async def test_equal_hints_that_wait_are_one_and_others_are_not_lost(gateway_redis):
    with Redis.from_url(gateway_redis.url) as redis, Hinter(gateway_redis.url) as hinter:
        for at in range(300):
            hinter.hint("cd" * 32, at % 3)
        hinter.close()
        found = {arguments for _, arguments, _ in hints(redis, "cd" * 32)}
        assert found == {repr(["cd" * 32, partition]) for partition in range(3)}
        assert len(hints(redis, "cd" * 32)) < 300


def test_a_broker_that_is_gone_costs_the_caller_nothing():
    hinter = Hinter("redis://127.0.0.1:1/0")
    started = time.monotonic()
    for at in range(10_000):
        hinter.hint("ab" * 32, at % 1024)
    assert time.monotonic() - started < 2
    hinter.close(1)


async def test_hints_flow_again_when_the_broker_is_back(gateway_redis, store):
    with Redis.from_url(gateway_redis.url) as redis, Hinter(gateway_redis.url) as hinter:
        hinter.hint("ef" * 32, 1)
        await some(redis, "ef" * 32)
        gateway_redis.kill()
        hinter.hint("ef" * 32, 2)
        await asyncio.sleep(0.3)
        gateway_redis.restart()
        async with asyncio.timeout(30):
            while not any("3" in arguments for _, arguments, _ in hints(redis, "ef" * 32)):
                hinter.hint("ef" * 32, 3)
                await asyncio.sleep(0.1)


async def test_one_trace_runs_from_the_call_to_the_hint(gateway_redis, store, kit, tmp_path):
    exporter, untraced = InMemorySpanExporter(), grpc.aio.insecure_channel
    measuring = telemetry.setup("test", span_exporter=exporter)
    try:
        settings = kit.settings(tmp_path, gateway_redis.url)
        async with gateway(settings) as server, untraced(server.address) as channel:
            await kit.stubs(channel).memory.AppendTurns(kit.append("alice", kit.turn("secret"), allow_missing=True))
            with Redis.from_url(gateway_redis.url) as redis:
                ((_, _, headers),) = await some(redis, kit.CARD.fingerprint)
        measuring.flush()
    finally:
        measuring.shutdown()
    spans = exporter.get_finished_spans()
    (call,) = [s for s in spans if "AppendTurns" in s.name and s.kind is trace.SpanKind.SERVER]
    (published,) = [s for s in spans if s.kind is trace.SpanKind.PRODUCER]
    assert published.context.trace_id == call.context.trace_id
    assert headers["traceparent"].split("-")[1] == format(call.context.trace_id, "032x")
    assert any(s.context.trace_id == call.context.trace_id and "EVAL" in s.name for s in spans), "Redis is in it"
    assert not any("secret" in str(s.to_json()) for s in spans)


@pytest.mark.parametrize("streams", [False, True])
async def test_the_time_to_the_acknowledgement_is_measured(gateway_redis, store, kit, tmp_path, streams):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    measuring = telemetry.setup("test", port)
    try:
        settings = kit.settings(tmp_path, gateway_redis.url)
        async with gateway(settings) as server, grpc.aio.insecure_channel(server.address) as channel:
            api = kit.stubs(channel)
            if streams:
                request = pb.StreamTurnsRequest(memory=str(NAME), turn=kit.turn("x"), allow_missing=True)
                assert [ack async for ack in api.memory.StreamTurns(iter([request, request]))]
            else:
                await api.memory.AppendTurns(kit.append("alice", kit.turn("x"), kit.turn("y"), allow_missing=True))
            page = await asyncio.to_thread(lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read())
    finally:
        measuring.shutdown()
    (count,) = [line for line in page.decode().splitlines() if line.startswith("memfold_append_ack_seconds_count")]
    assert float(count.split()[-1]) == (2 if streams else 1)
