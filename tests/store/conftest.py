"""Stores over a real Redis and over a real Redis Cluster of two nodes; a model; names and turns."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis import Redis

from memfold.api.values import MemoryName, ModelCard, Role, Turn
from memfold.local.redis_server import RedisServer
from memfold.store import Claim, Durability, Store

SHAPE = (1, 1, 2, 4)


@pytest.fixture
def card() -> ModelCard:
    return ModelCard(hashlib.sha256(b"a model").hexdigest(), "backbone", "adapter", SHAPE, 64, 256)


@pytest.fixture
def name() -> MemoryName:
    return MemoryName("acme", "bob")


class Folder:
    """Stands in for the model: the state is a hash chain over the turns, so that any loss or repeat shows."""

    shape = SHAPE

    @staticmethod
    def turn(number: int, content: str | None = None) -> Turn:
        return Turn(f"id-{number}", Role.USER, content or f"message {number} über Grüße")

    @staticmethod
    def fold(turns: list[Turn], start: bytes = bytes(32)) -> bytes:
        for turn in turns:
            start = hashlib.sha256(start + turn.to_bytes()).digest()
        return start

    @classmethod
    async def drain(cls, store: Store, card: ModelCard, owner: str = "writer") -> int:
        """Fold all that is due; returns how many commits won."""
        won = 0
        for partition in await store.due_partitions(card.fingerprint):
            for claim in await store.claim(card.fingerprint, partition, owner=owner, lease_s=30, limit=100):
                won += await cls.finish(store, claim)
        return won

    @classmethod
    async def finish(cls, store: Store, claim: Claim) -> bool:
        """Fold and commit one claim, from the log's start."""
        turns = await store.read_turns(claim.name, limit=claim.head)
        return await store.commit(claim, applied=claim.head, state=cls.fold(turns), shape=cls.shape, anchor=None)


@pytest.fixture
def folder() -> type[Folder]:
    return Folder


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RedisServer]]:
    """Two nodes with half of the slots each."""
    nodes = [_cluster_node(tmp_path_factory.mktemp(f"node-{at}")) for at in range(2)]
    clients = [Redis.from_url(node.url) for node in nodes]
    clients[0].execute_command("CLUSTER ADDSLOTS", *range(8192))
    clients[1].execute_command("CLUSTER ADDSLOTS", *range(8192, 16384))
    clients[0].execute_command("CLUSTER MEET", "127.0.0.1", nodes[1].port)
    deadline = time.monotonic() + 30
    while any(_cluster_state(client) != "ok" for client in clients):
        assert time.monotonic() < deadline, "the cluster did not form"
        time.sleep(0.05)
    yield nodes
    for client, node in zip(clients, nodes, strict=True):
        client.close()
        node.stop()


def _cluster_node(data_dir: Path) -> RedisServer:
    settings: dict[str, str | int] = {"cluster-enabled": "yes", "cluster-node-timeout": 5000}
    return RedisServer.start(data_dir, port=_low_port(), password="shared", settings=settings)


def _low_port() -> int:
    """A free port whose neighbour 10,000 higher, the cluster's own bus, is one too."""
    for port in range(21000, 31000):
        with socket.socket() as node, socket.socket() as bus:
            try:
                node.bind(("127.0.0.1", port))
                bus.bind(("127.0.0.1", port + 10000))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")


def _cluster_state(client: Redis) -> str:
    state: str = client.execute_command("CLUSTER INFO")["cluster_state"]
    return state


@pytest.fixture(params=["server", "cluster"])
def any_redis_url(request: pytest.FixtureRequest) -> str:
    """A Redis, then a Redis Cluster: what holds on the one holds on the other."""
    if request.param == "server":
        url: str = request.getfixturevalue("redis_url")
        return url
    nodes: list[RedisServer] = request.getfixturevalue("redis_cluster")
    for node in nodes:
        with Redis.from_url(node.url) as client:
            client.flushall()
    return nodes[0].url


@pytest.fixture
async def store(any_redis_url: str, card: ModelCard) -> AsyncIterator[Store]:
    store = await Store.open(any_redis_url, durability=Durability.FSYNC)
    await store.register_model(card)
    yield store
    await store.close()


@pytest.fixture
async def plain_store(redis_url: str, card: ModelCard) -> AsyncIterator[Store]:
    """On the single server only, for tests that look behind the store's back."""
    store = await Store.open(redis_url)
    await store.register_model(card)
    yield store
    await store.close()


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def until():
    """Wait for a condition, with a deadline."""

    async def wait(condition, seconds: float = 10) -> None:
        deadline = time.monotonic() + seconds
        while not await condition():
            assert time.monotonic() < deadline, "it never came true"
            await asyncio.sleep(0.02)

    return wait
