"""An acknowledgement promises no more than the server can keep."""

import os
import signal

import pytest
from redis import Redis

from memfold.api.errors import NotDurableError, StoreUnavailableError
from memfold.local.redis_server import RedisServer
from memfold.store import Durability, DurabilityRefusedError, Store
from memfold.store.durability import confirmation

ALWAYS = {"appendonly": "yes", "appendfsync": "always", "no-appendfsync-on-rewrite": "no"}
EVERYSEC = {**ALWAYS, "appendfsync": "everysec"}
OLD = {"redis_version": "7.0.15", "aof_enabled": "1", "connected_slaves": "1"}
NEW = {**OLD, "redis_version": "7.2.4"}


@pytest.fixture
def redis_with(tmp_path):
    servers = []

    def start(**settings) -> RedisServer:
        lines = {name.replace("_", "-"): value for name, value in settings.items()}
        servers.append(RedisServer.start(tmp_path / str(len(servers)), password="shared", settings=lines))
        return servers[-1]

    yield start
    for server in reversed(servers):
        server.stop()


async def refused(url: str, durability: Durability, replicas: int = 1) -> str:
    with pytest.raises(DurabilityRefusedError) as caught:
        await Store.open(url, durability=durability, replicas=replicas)
    return str(caught.value)


async def test_a_server_that_syncs_always_holds_fsync(redis_url):
    store = await Store.open(redis_url, durability=Durability.FSYNC)
    await store.ping()
    await store.close()


async def test_a_server_without_a_file_cannot_hold_fsync(redis_with):
    server = redis_with(appendonly="no")
    assert "set appendonly yes" in await refused(server.url, Durability.FSYNC)
    await (await Store.open(server.url, durability=Durability.NONE)).close()


async def test_a_server_that_syncs_now_and_then_cannot_hold_fsync(redis_with):
    server = redis_with(appendfsync="everysec")
    with Redis.from_url(server.url) as client:
        version = [int(part) for part in client.info("server")["redis_version"].split(".")[:2]]
    if version >= [7, 2]:
        pytest.skip("this Redis can be asked after each write")
    said = await refused(server.url, Durability.FSYNC)
    assert "appendfsync always" in said
    assert "appendfsync everysec" in said


async def test_a_server_without_replicas_cannot_hold_replica(redis_url):
    assert "has 0" in await refused(redis_url, Durability.REPLICA)


async def test_a_server_that_may_evict_logs_holds_nothing(redis_with):
    server = redis_with(maxmemory="100mb", maxmemory_policy="allkeys-lru")
    assert "noeviction" in await refused(server.url, Durability.FSYNC)


async def test_a_write_that_no_replica_confirmed_is_not_acknowledged_but_can_be_repeated(
    redis_with, card, name, folder
):
    primary = redis_with()
    replica = redis_with(replicaof=f"127.0.0.1 {primary.port}", masterauth="shared")
    with Redis.from_url(primary.url) as client:
        while client.info("replication")["connected_slaves"] == 0 or not client.wait(1, 1000):
            pass
    store = await Store.open(primary.url, durability=Durability.REPLICA)
    await store.register_model(card)
    await store.append(name, [folder.turn(1)], create=True)
    with Redis.from_url(replica.url) as client:
        assert client.xlen(next(client.scan_iter("*:log"))) == 1

    os.kill(replica.pid, signal.SIGSTOP)
    try:
        with pytest.raises(NotDurableError) as caught:
            await store.append(name, [folder.turn(2)])
        assert caught.value.facts == {"confirmed": "0", "needed": "1"}
        # Elsewhere nothing has been written that a confirmation could wait for: it must not be taken for granted.
        elsewhere = await Store.open(primary.url, durability=Durability.REPLICA)
        with pytest.raises(NotDurableError):
            await elsewhere.append(name, [folder.turn(2)])
        await elsewhere.close()
    finally:
        os.kill(replica.pid, signal.SIGCONT)
    again = await store.append(name, [folder.turn(2)])
    assert (again.turns[0].sequence, again.turns[0].duplicate) == (2, True)
    await store.close()


async def test_a_server_that_is_not_there_is_named_as_such(tmp_path):
    server = RedisServer.start(tmp_path)
    server.stop()
    with pytest.raises(StoreUnavailableError):
        await Store.open(server.url)


async def test_a_wrong_password_is_no_silent_success(redis_server):
    with pytest.raises(StoreUnavailableError):
        await Store.open(f"redis://:wrong@{redis_server.address}/0")


@pytest.mark.parametrize(
    ("durability", "info", "config", "command"),
    [
        (Durability.NONE, {}, {}, ()),
        (Durability.FSYNC, OLD, ALWAYS, ()),
        (Durability.FSYNC, NEW, ALWAYS, ()),
        (Durability.FSYNC, NEW, EVERYSEC, ("WAITAOF", 1, 0, 3000)),
        (Durability.FSYNC, NEW, {**ALWAYS, "no-appendfsync-on-rewrite": "yes"}, ("WAITAOF", 1, 0, 3000)),
        (Durability.FSYNC, NEW, {}, ("WAITAOF", 1, 0, 3000)),
        (Durability.REPLICA, OLD, EVERYSEC, ("WAIT", 1, 3000)),
    ],
)
def test_each_level_has_its_confirmation(durability, info, config, command):
    assert confirmation(durability, 1, info, config) == command


@pytest.mark.parametrize(
    ("info", "config"),
    [
        (OLD, EVERYSEC),
        (OLD, {}),
        (OLD, {**ALWAYS, "no-appendfsync-on-rewrite": "yes"}),
        (NEW, {**ALWAYS, "appendonly": "no"}),
        ({**NEW, "aof_enabled": "0"}, {}),
        ({**OLD, "redis_version": "unstable"}, {}),
    ],
)
def test_what_cannot_be_held_is_refused(info, config):
    with pytest.raises(DurabilityRefusedError):
        confirmation(Durability.FSYNC, 1, info, config)
