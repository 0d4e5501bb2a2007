"""One Redis or Redis Cluster: its connections, its scripts, and its promise that a write is durable."""

from __future__ import annotations

import hashlib
import importlib.resources
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple, Self

from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError

from memfold.api.errors import NotDurableError, StoreUnavailableError
from memfold.store.durability import Durability, confirmation

_LOG = logging.getLogger(__name__)

_SOCKET_OPTIONS: dict[str, Any] = {
    # Without these a connection that went half-open is waited on for minutes.
    "socket_timeout": 5,
    "socket_connect_timeout": 2,
    "socket_keepalive": True,
    "health_check_interval": 5,
}
_CONNECTIONS = 64
_POOL_TIMEOUT_S = 10
_RETRIES = 3
_PIPELINE = 512
_CONFIG = ("appendonly", "appendfsync", "no-appendfsync-on-rewrite", "maxmemory", "maxmemory-policy")

_NEEDS = "-- needs "

Argument = str | bytes | int | float

Node = Any
"""One of the servers of a cluster."""


class Call(NamedTuple):
    """One run of a script; all keys lie in one slot."""

    keys: Sequence[str]
    args: Sequence[Argument]


@contextmanager
def store_border() -> Iterator[None]:
    """Turn what Redis and the network raise into the one error that callers know."""
    try:
        yield
    except (RedisError, OSError) as error:
        _LOG.warning("redis: %s: %s", type(error).__name__, error)
        raise StoreUnavailableError(
            f"the store does not answer ({type(error).__name__})", retry_after_ms=1000
        ) from error


class Server:
    """Runs scripts on the right node, and confirms writes at the chosen level.

    Writes may be sent twice by the client library when a connection breaks: every script must bear that.
    """

    def __init__(self, url: str, client: Redis | RedisCluster, replicas: int) -> None:
        self._url = url
        self._client = client
        self._replicas = replicas
        self._confirmation: tuple[str | int, ...] = ()

    @classmethod
    async def connect(cls, url: str, durability: Durability, replicas: int) -> Self:
        """Connect, and make sure that the server can hold the durability.

        Raises:
            StoreUnavailableError: nobody answers there.
            DurabilityRefusedError: it cannot.
        """
        with store_border():
            client = await _client(url)
        server = cls(url, client, replicas)
        try:
            await server._settle(durability)
        except BaseException:
            await server.close()
            raise
        return server

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    def channel_client(self) -> Redis:
        """A client for channels, to be closed by the caller. In a cluster any node hears all of them."""
        return Redis.from_url(self._url, retry=_retry(), **_SOCKET_OPTIONS)

    async def command(self, *args: Argument) -> Any:
        """Run one command; its keys lie in one slot."""
        with store_border():
            return await self._client.execute_command(*args)

    def nodes(self) -> list[Node]:
        """The primaries, by name; None stands for the one server where there is no cluster."""
        if not isinstance(self._client, RedisCluster):
            return [None]
        return sorted(self._client.get_primaries(), key=lambda node: str(node.name))

    def node_of(self, key: str) -> Node:
        """The primary that holds a key."""
        return self._client.get_node_from_key(key) if isinstance(self._client, RedisCluster) else None

    async def ask(self, node: Node, *args: Argument) -> tuple[Any, str]:
        """Run a command that names no key on a node: its reply, and why the node refused it, if it did."""
        target = {} if node is None else {"target_nodes": node}
        with store_border():
            try:
                return await self._client.execute_command(*args, **target), ""
            except ResponseError as error:
                return None, str(error)

    async def commands(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """Run commands side by side, in few round trips; not atomic."""
        results: list[Any] = []
        with store_border():
            for start in range(0, len(commands), _PIPELINE):
                pipeline = self._client.pipeline(transaction=False)
                for command in commands[start : start + _PIPELINE]:
                    pipeline.execute_command(*command)
                results += await pipeline.execute()
        return results

    async def run(self, script: str, keys: Sequence[str], *args: Argument) -> Any:
        """Run a script."""
        text, digest = _script(script)
        with store_border():
            try:
                return await self._client.execute_command("EVALSHA", digest, len(keys), *keys, *args)
            except NoScriptError:
                return await self._client.execute_command("EVAL", text, len(keys), *keys, *args)

    async def run_each(self, script: str, calls: Sequence[Call]) -> list[Any]:
        """Run a script once for each call; each is atomic, all of them together are not."""
        results: list[Any] = []
        for start in range(0, len(calls), _PIPELINE):
            results += await self._run_some(script, calls[start : start + _PIPELINE])
        return results

    async def write(self, script: str, keys: Sequence[str], *args: Argument) -> Any:
        """Run a script that writes, and return only once the write is durable.

        Raises:
            NotDurableError: written, but not confirmed; run it again.
        """
        if not self._confirmation:
            return await self.run(script, keys, *args)
        text, digest = _script(script)
        with store_border():
            reply, confirmed = await self._write(("EVALSHA", digest), keys, args)
            if isinstance(reply, NoScriptError):
                reply, confirmed = await self._write(("EVAL", text), keys, args)
            for result in (reply, confirmed):
                if isinstance(result, Exception):
                    raise result
        self._check(confirmed)
        return reply

    async def now_ms(self) -> int:
        """The server's clock: the only one by which anything is due."""
        with store_border():
            seconds, microseconds = await self._client.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def _settle(self, durability: Durability) -> None:
        """Every primary must be able to hold the durability."""
        with store_border():
            targets: list[dict[str, Any]] = [{}]
            if isinstance(self._client, RedisCluster):
                targets = [{"target_nodes": node} for node in self._client.get_primaries()]
            described = [(await self._info(target), await self._config(target)) for target in targets]
        commands = {confirmation(durability, self._replicas, info, config) for info, config in described}
        self._confirmation = max(commands, key=len)

    async def _info(self, target: Mapping[str, Any]) -> dict[str, str]:
        info = await self._client.execute_command("INFO", **target)
        return {name: str(value) for name, value in info.items()}

    async def _config(self, target: Mapping[str, Any]) -> dict[str, str]:
        """What we care for in the configuration; nothing of it where the server does not let us ask."""
        found: dict[str, str] = {}
        for name in _CONFIG:
            try:
                reply = await self._client.execute_command("CONFIG GET", name, **target)
            except ResponseError:
                return {}
            found |= {_text(key): _text(value) for key, value in reply.items()}
        return found

    async def _run_some(self, script: str, calls: Sequence[Call]) -> list[Any]:
        text, digest = _script(script)
        with store_border():
            results = await self._pipe([("EVALSHA", digest, len(keys), *keys, *args) for keys, args in calls])
            unknown = [at for at, result in enumerate(results) if isinstance(result, NoScriptError)]
            if unknown:
                again = await self._pipe(
                    [("EVAL", text, len(calls[at].keys), *calls[at].keys, *calls[at].args) for at in unknown]
                )
                for at, result in zip(unknown, again, strict=True):
                    results[at] = result
            for result in results:
                if isinstance(result, Exception):
                    raise result
        return results

    async def _pipe(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        return await pipeline.execute(raise_on_error=False)

    async def _write(self, command: tuple[str, str], keys: Sequence[str], args: Sequence[Argument]) -> list[Any]:
        """The script and its confirmation, on one connection: it covers what that connection wrote, and no more."""
        run: Sequence[Argument] = (*command, len(keys), *keys, *args)
        if isinstance(self._client, RedisCluster):
            target = {"target_nodes": self._client.get_node_from_key(keys[0])}
            spread = self._client.pipeline()
            spread.execute_command(*run, **target)
            spread.execute_command(*self._confirmation, **target)
            # A redirected script would leave its confirmation behind, on a node that wrote nothing.
            return await spread.execute(raise_on_error=False, allow_redirections=False)
        pipeline = self._client.pipeline(transaction=False)
        pipeline.execute_command(*run)
        pipeline.execute_command(*self._confirmation)
        return await pipeline.execute(raise_on_error=False)

    def _check(self, confirmed: Any) -> None:
        held = confirmed[0] if isinstance(confirmed, list) else confirmed
        needed = self._confirmation[1]
        assert isinstance(needed, int)
        if int(held) < needed:
            raise NotDurableError(
                "written, but its durability was not confirmed in time; repeat it with the same ids",
                facts={"confirmed": str(held), "needed": str(needed)},
                retry_after_ms=500,
            )


async def _client(url: str) -> Redis | RedisCluster:
    options = {**_SOCKET_OPTIONS, "retry": _retry()}
    pool = BlockingConnectionPool.from_url(url, max_connections=_CONNECTIONS, timeout=_POOL_TIMEOUT_S, **options)
    client = Redis.from_pool(pool)
    try:
        info = await client.info("cluster")
    except BaseException:
        await client.aclose()
        raise
    if not info.get("cluster_enabled"):
        return client
    await client.aclose()
    return await RedisCluster.from_url(url, **options).initialize()


def _retry() -> Retry:
    """A connection that broke is made anew; a server that hangs has used up its time already."""
    return Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), _RETRIES, supported_errors=(RedisConnectionError,))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


@cache
def _script(name: str) -> tuple[str, str]:
    """A script's text, common functions first and then those that it says it needs, and its SHA-1."""
    own = _lua(name)
    needed = [_lua(line.removeprefix(_NEEDS)) for line in own.splitlines() if line.startswith(_NEEDS)]
    text = "".join([_lua("common"), *needed, own])
    return text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def _lua(name: str) -> str:
    return (importlib.resources.files("memfold.store") / "scripts" / f"{name}.lua").read_text("utf-8")
