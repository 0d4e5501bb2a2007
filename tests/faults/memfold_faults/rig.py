"""The platform as processes that can be killed: Redis, a broker, a gateway, writers; with a proxy on each link."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from memfold_faults.proxy import Proxy

from memfold.local.keys import write_keys_file
from memfold.local.redis_server import RedisServer

API_KEY, TENANT = "mfk_acme_test-secret", "acme"
PATIENCE_S = 60.0
HERE = Path(__file__).resolve().parent.parent


class Nursery:
    """Forks services; see ``memfold_faults.nursery``. They end with it."""

    def __init__(self) -> None:
        path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH", "")]))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MEMFOLD_", "OTEL_"))}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "memfold_faults.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
            text=True,
        )
        assert self._process.stdout.readline() == "ready\n"

    def fork(self, **order: Any) -> int:
        """Start a service; returns its process id."""
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """End it and everything it has forked."""
        self._process.stdin.close()
        self._process.wait(PATIENCE_S)
        self._process.stdout.close()


class NursedRedis(RedisServer):
    """A Redis that the nursery forks: this process, in which gRPC is at work, must not."""

    nursery: ClassVar[Nursery]

    def _launch(self) -> None:
        config = self.data_dir / "redis.conf"
        config.write_text(self._configuration())
        log = str(self.data_dir / "nursery.log")
        self._process = _Foreign(self.nursery.fork(kind="redis", log=log, environment={}, config=str(config)))
        self._await_answer()


class _Foreign:
    """A process that is nobody's child here, with as much of Popen's face as is looked at."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._handle = os.pidfd_open(pid)

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._handle], [], [], 0)[0]:
            self.returncode = -1
            os.close(self._handle)
        return self.returncode

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        if self.poll() is None and not select.select([self._handle], [], [], timeout_s)[0]:
            raise subprocess.TimeoutExpired("redis", timeout_s)
        return self.poll()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)


@dataclass
class Process:
    """One service."""

    pid: int
    log: Path
    ready_file: Path

    def __post_init__(self) -> None:
        self._handle = os.pidfd_open(self.pid)
        self.dead_at = 0.0
        self._died = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._handle, self._bury)

    def _bury(self) -> None:
        asyncio.get_running_loop().remove_reader(self._handle)
        os.close(self._handle)
        self.dead_at = time.monotonic()
        self._died.set()

    @property
    def alive(self) -> bool:
        """It has not ended."""
        return not self._died.is_set()

    async def dead(self, timeout_s: float = PATIENCE_S) -> None:
        """Wait for its end."""
        async with asyncio.timeout(timeout_s):
            await self._died.wait()

    async def ready(self) -> None:
        """Wait until it serves."""
        async with asyncio.timeout(PATIENCE_S):
            while not self.ready_file.exists():
                assert self.alive, self.log.read_text()
                await asyncio.sleep(0.01)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    async def kill(self) -> None:
        """End it at once."""
        self.signal(signal.SIGKILL)
        await self.dead()


class Rig:
    """All processes of one platform.

    Args:
        folder: for files and logs.
        nursery: where services come from.
        hints: what the gateway does to its hints; see ``stub.install_hints``.
    """

    def __init__(
        self, folder: Path, nursery: Nursery, *, lease_s: float, reconcile_s: float, hints: dict[str, Any] | None = None
    ) -> None:
        self.folder, self._nursery, self._hints = folder, nursery, hints
        self.lease_s, self.reconcile_s = lease_s, reconcile_s
        folder.mkdir(parents=True, exist_ok=True)
        NursedRedis.nursery = nursery
        self.redis = NursedRedis.start(folder / "redis")
        self.broker = NursedRedis.start(folder / "broker", appendfsync="no", settings={"appendonly": "no"})
        self.port = _free_port()
        self.links = {
            "gateway to redis": Proxy(self.redis.address),
            "gateway to broker": Proxy(self.broker.address),
            "writer to redis": Proxy(self.redis.address),
            "writer to broker": Proxy(self.broker.address),
            "client to gateway": Proxy(f"127.0.0.1:{self.port}"),
        }
        self.gateway: Process | None = None
        self.writers: list[Process] = []
        self._started = 0

    async def start(self) -> None:
        """Let the links work and the gateway serve."""
        for link in self.links.values():
            await link.start()
        write_keys_file(self.folder / "keys.json", {API_KEY: TENANT})

    async def close(self) -> None:
        """End everything."""
        for process in filter(None, [self.gateway, *self.writers]):
            if process.alive:
                await process.kill()
        for link in self.links.values():
            await link.stop()
        self.redis.stop()
        self.broker.stop()

    @property
    def target(self) -> str:
        """The gateway's address for clients."""
        return self.links["client to gateway"].address

    async def start_gateway(self) -> Process:
        """A gateway, at the same port every time."""
        self.gateway = self._fork(
            "gateway",
            {
                "LISTEN": f"127.0.0.1:{self.port}",
                "READER_TARGET": "127.0.0.1:1",
                "API_KEYS_FILE": str(self.folder / "keys.json"),
            },
            hints=self._hints,
        )
        await self.gateway.ready()
        return self.gateway

    async def start_writer(
        self,
        model: str = "chain-a",
        *,
        kill: tuple[str, int] | None = None,
        real: bool = False,
        fold_limit_s: float = 120,
        pause_s: float = 0,
        hurry: bool = False,
        ready: bool = True,
    ) -> Process:
        """A writer that folds with a chain of this name, or with the embedded model; ``kill`` as ``stub.install`` takes it."""
        writer = self._fork(
            "writer",
            {
                "LISTEN": "127.0.0.1:0",
                "BACKBONE": "" if real else model,
                "DEVICE": "cpu",
                "THREADS": "1",
                "LEASE_S": str(self.lease_s),
                "RECONCILE_S": str(self.reconcile_s),
                "GRACE_S": "5",
            },
            stub={"real": real, "kill": kill, "fold_limit_s": fold_limit_s, "pause_s": pause_s, "hurry": hurry},
        )
        self.writers = [one for one in self.writers if one.alive] + [writer]
        if ready:
            await writer.ready()
        return writer

    def oracle(self, messages: list[dict[str, str]]) -> Path:
        """Where the state of the embedded model after these messages will be."""
        out = self.folder / f"oracle-{self._started}"
        self._fork("oracle", {}, messages=messages, out=str(out))
        return out

    def _fork(self, kind: str, settings: dict[str, str], **order: Any) -> Process:
        self._started += 1
        log, ready = (self.folder / f"{kind}-{self._started}.{end}" for end in ("log", "ready"))
        environment = {
            "MEMFOLD_REDIS_URL": _through(self.redis, self.links.get(f"{kind} to redis")),
            "MEMFOLD_BROKER_URL": _through(self.broker, self.links.get(f"{kind} to broker")),
            "MEMFOLD_READY_FILE": str(ready),
            **{f"MEMFOLD_{name}": value for name, value in settings.items()},
        }
        pid = self._nursery.fork(kind=kind, log=str(log), environment=environment, **order)
        return Process(pid, log, ready)


async def until(what: Callable[[], Any], *, timeout_s: float = PATIENCE_S, why: str = "it never came true") -> None:
    """Wait for something, asked now and then; ``what`` may be a coroutine function."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = what()
        if asyncio.iscoroutine(answer):
            answer = await answer
        if answer:
            return
        assert time.monotonic() < deadline, why
        await asyncio.sleep(0.02)


def _through(server: RedisServer, link: Proxy | None) -> str:
    return server.url if link is None else server.url.replace(server.address, link.address)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
