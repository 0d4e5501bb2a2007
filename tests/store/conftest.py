"""Stores over a real Redis and over a real Redis Cluster of two nodes; a model; names and turns."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import hashlib
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis import Redis

from memfold.api.errors import MemoryNotFoundError
from memfold.api.values import MemoryName, ModelCard, Operation, Role, Turn
from memfold.local.redis_server import RedisServer
from memfold.store import Anchor, Claim, Durability, Store
from memfold.store.digests import chain

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
    block_turns = 3

    @staticmethod
    def turn(number: int, content: str | None = None) -> Turn:
        return Turn(f"id-{number}", Role.USER, content or f"message {number} über Grüße")

    @staticmethod
    def fold(entries: list[Turn], start: bytes = bytes(32)) -> bytes:
        for entry in entries:
            if entry.folds:
                start = hashlib.sha256(start + entry.to_bytes()).digest()
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
    async def finish(cls, store: Store, claim: Claim, applied: int = 0, anchor: Anchor | None = None) -> bool:
        """Fold and commit one claim as far as ``applied``, its head by default, from the log's start."""
        applied = applied or claim.head
        return await cls.commit(store, claim, cls.fold(await cls._entries(store, claim, 0, applied)), applied, anchor)

    @classmethod
    async def commit(
        cls, store: Store, claim: Claim, state: bytes, applied: int = 0, anchor: Anchor | None = None
    ) -> bool:
        """Commit any state; all else that a commit says is told truly."""
        applied = applied or claim.head
        entries = await cls._entries(store, claim, claim.applied, applied)
        return await store.commit(
            claim,
            applied=applied,
            at=max([entry.sequence for entry in entries if entry.folds], default=claim.at),
            state=state,
            shape=cls.shape,
            anchor=anchor,
            log_digest=chain(claim.log_digest, entries),
        )

    @classmethod
    async def advance(cls, store: Store, claim: Claim, entries: int = 1000) -> bool:
        """Fold as a writer does, from the open block's anchor, at most so many entries beyond the committed state."""
        anchor = await store.read_anchor(claim)
        log = [one for one in await store.read_turns(claim.name, after=anchor.sequence) if one.sequence <= claim.head]
        known = sum(one.sequence <= claim.applied for one in log)
        complete, log = known + entries >= len(log), log[: known + entries]
        state, moved = anchor.data or bytes(32), None
        for at, turn in enumerate(one for one in log if one.folds):
            if at and at % cls.block_turns == 0:
                moved = Anchor(turn.sequence - 1, 0, state)
            state = cls.fold([turn], state)
        return await cls.commit(store, claim, state, 0 if complete else log[-1].sequence, moved)

    @classmethod
    async def catch_up(cls, store: Store, name: MemoryName, fingerprint: str, entries: int = 1000) -> int:
        """Advance a memory until nothing is left to fold; returns how many commits that took."""
        commits = 0
        while claims := await store.claim(fingerprint, name.partition, owner="w", lease_s=30, limit=1):
            assert await cls.advance(store, claims[0], entries)
            commits += 1
        return commits

    @staticmethod
    async def _entries(store: Store, claim: Claim, after: int, until: int) -> list[Turn]:
        with contextlib.suppress(MemoryNotFoundError):
            return [one for one in await store.read_turns(claim.name, after=after) if one.sequence <= until]
        return []


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


@pytest.fixture(scope="session")
def swift_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Writes nothing to disk: for tests that kill many."""
    server = RedisServer.start(tmp_path_factory.mktemp("swift"), settings={"appendonly": "no"})
    yield server
    server.stop()


@pytest.fixture
def swift_url(swift_server: RedisServer) -> str:
    with Redis.from_url(swift_server.url) as client:
        client.flushall()
    return swift_server.url


@pytest.fixture
async def swift_store(swift_url: str, card: ModelCard) -> AsyncIterator[Store]:
    store = await Store.open(swift_url)
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


class Carrier:
    """Carries operations out, as gateway and writers do between them."""

    def __init__(self, folder: type[Folder], *cards: ModelCard) -> None:
        self._folder = folder
        self._cards = cards

    async def ask(self, store: Store, name: MemoryName, kind: str, request_id: str = "", **args: object) -> Operation:
        """Ask for an operation and carry it out."""
        operation = await store.request_operation(name, kind, args, request_id=request_id)
        return await self.finish(store, name, operation.id)

    async def finish(self, store: Store, name: MemoryName, operation_id: str) -> Operation:
        """Go on with an operation to its end; folds what it waits for."""
        deadline = time.monotonic() + 20
        while True:
            operation = await store.advance(name, operation_id, until=0)
            if operation.done:
                return operation
            assert time.monotonic() < deadline, operation
            if operation.progress["stage"] in ("folding", "following"):
                for card in self._cards:
                    await self._folder.drain(store, card)
            elif operation.progress["stage"] == "refold":
                return await store.finish_verify(name, operation_id, ok=True, relative_error=0.0)
            await asyncio.sleep(0.01)


@pytest.fixture
def carrier(folder: type[Folder], card: ModelCard) -> Carrier:
    return Carrier(folder, card)


class Killed(BaseException):
    """The process is gone; nothing in it goes on."""


_within = contextvars.ContextVar("within", default=False)


class Kills:
    """Ends a store's process at its n-th call to Redis: before the call, or after it, when the answer is lost."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._left: int | None = None
        self._after = False
        for method in ("run", "write", "command", "commands", "run_each", "ask"):
            setattr(store._server, method, self._wrapped(getattr(store._server, method)))

    def at(self, calls: int, *, after: bool) -> None:
        self._left, self._after = calls, after

    def off(self) -> bool:
        """Stop killing; whether it came to that."""
        killed, self._left = self._left == -1, None
        return killed

    def _wrapped(self, call):
        async def calling(*args):
            if self._left is None or _within.get():
                return await call(*args)
            if self._left == -1:
                raise Killed
            self._left -= 1
            dying = self._left == -1
            if not dying or self._after:
                token = _within.set(True)
                try:
                    result = await call(*args)
                finally:
                    _within.reset(token)
            if dying:
                raise Killed
            return result

        return calling


@pytest.fixture
def kills() -> type[Kills]:
    return Kills


@pytest.fixture
def killed() -> type[Killed]:
    return Killed
