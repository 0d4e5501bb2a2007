"""The whole platform on one machine: Redis, writers, readers and gateway as processes of their own."""

from __future__ import annotations

import errno
import fcntl
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from memfold.local.child import Child, last_lines
from memfold.local.connection import Connection
from memfold.local.errors import (
    AddressInUseError,
    AlreadyRunningError,
    ChildDiedError,
    LocalPlatformError,
    NotInstalledError,
    NotReadyError,
)
from memfold.local.keys import load_or_make_api_key, write_keys_file
from memfold.local.paths import DataDir
from memfold.local.settings import ANY_PORT, PlatformSettings, inherited_environment

# A backbone from a hub may have to be downloaded first.
READY_TIMEOUT_S = 1800.0
_STARTING_POLL_S = 0.05
# Beyond its grace a process needs a moment to end: an interpreter that has loaded torch, a second of computing.
_TEARDOWN_S = 5.0
_RUNNING_POLL_S = 0.2


class Member(Protocol):
    """A process of the platform, as the platform sees it."""

    @property
    def name(self) -> str:
        """What people call it."""

    @property
    def pid(self) -> int:
        """The process's id."""

    @property
    def log(self) -> Path:
        """What it says."""

    def address(self) -> str | None:
        """Where it serves; None while it does not yet."""

    def returncode(self) -> int | None:
        """How it ended; None while it runs."""

    def stop(self, grace_s: float) -> None:
        """End it."""


class Platform:
    """Started by ``Platform.start``, stopped by ``stop`` or by leaving the ``with`` block.

    Start it before the process opens a gRPC channel: a process with channels must not fork.

    Attributes:
        settings: what it was told.
        api_key: opens the gateway.
        members: its processes in the order of their start.
    """

    def __init__(self, settings: PlatformSettings) -> None:
        self.settings = settings
        self.api_key = ""
        self.members: list[Member] = []
        self._computing: list[Child] = []
        self._data_dir = DataDir(settings.data_dir)
        self._held = ExitStack()
        self._findable = False

    @classmethod
    def start(cls, settings: PlatformSettings, *, on_ready: Callable[[Member], None] = lambda _: None) -> Self:
        """Start every process and wait until all of them serve.

        Args:
            settings: what to start.
            on_ready: told of each process as it begins to serve.

        Raises:
            AlreadyRunningError: another platform runs on the data directory.
            AddressInUseError: the gateway's address is taken.
            ChildDiedError, NotReadyError: a process did not make it.
        """
        platform = cls(settings)
        try:
            platform._start(on_ready)
        except BaseException:
            platform.stop()
            raise
        return platform

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def target(self) -> str:
        """The gateway's address."""
        address = self.members[-1].address()
        assert address, "the gateway serves once start has returned"
        return address

    @property
    def connection(self) -> Connection:
        """What a client needs."""
        return Connection(self.target, self.api_key)

    def check(self) -> None:
        """Look whether every process runs.

        Raises:
            ChildDiedError: one does not.
        """
        for member in self.members:
            returncode = member.returncode()
            if returncode is not None:
                raise ChildDiedError(member.name, returncode, last_lines(member.log), member.log)

    def wait(self) -> None:
        """Stay as long as every process runs.

        Raises:
            ChildDiedError: one has died.
        """
        while True:
            self.check()
            time.sleep(_RUNNING_POLL_S)

    def stop(self) -> None:
        """Stop every process: first who takes requests, then all who compute, last who holds the data."""
        if self._findable:
            self._data_dir.connection.unlink(missing_ok=True)
        self._stop_last()
        for child in self._computing:
            child.ask_to_stop()
        while self.members:
            self._stop_last()
        self._held.close()

    def _stop_last(self) -> None:
        if self.members:
            self.members[-1].stop(self.settings.grace_s + _TEARDOWN_S)
            self.members.pop()

    def _start(self, on_ready: Callable[[Member], None]) -> None:
        self._data_dir.create()
        self._held.enter_context(_exclusive(self._data_dir))
        _require_free(self.settings.listen)
        self.api_key = load_or_make_api_key(self._data_dir.api_key, self.settings.tenant)
        write_keys_file(self._data_dir.api_keys, {self.api_key: self.settings.tenant})
        environment = inherited_environment() | self._store_environment(on_ready)
        environment["MEMFOLD_GRACE_S"] = f"{self.settings.grace_s:g}"
        model = environment | self.settings.model_environment() | {"MEMFOLD_LISTEN": ANY_PORT}
        writers = [self._start_child(name, model) for name in _names("writer", self.settings.writers)]
        readers = [self._start_child(name, model) for name in _names("reader", self.settings.readers)]
        self._computing = [*writers, *readers]
        reader_addresses = [self._await(reader, on_ready) for reader in readers]
        gateway = self._start_child(
            "gateway",
            environment
            | {
                "MEMFOLD_LISTEN": self.settings.listen,
                "MEMFOLD_READER_TARGET": ",".join(reader_addresses),
                "MEMFOLD_API_KEYS_FILE": str(self._data_dir.api_keys),
            },
        )
        for writer in writers:
            self._await(writer, on_ready)
        self._await(gateway, on_ready)
        self.connection.write(self._data_dir)
        self._findable = True

    def _store_environment(self, on_ready: Callable[[Member], None]) -> dict[str, str]:
        """Start a private Redis unless there is another; say where it is."""
        if self.settings.redis_url:
            return {"MEMFOLD_REDIS_URL": self.settings.redis_url}
        try:
            from memfold.local.redis_member import RedisMember  # noqa: PLC0415 -- a client's machine has no redis package
        except ImportError:
            raise NotInstalledError("redis") from None
        redis = RedisMember.start(self._data_dir)
        self.members.append(redis)
        on_ready(redis)
        return {"MEMFOLD_REDIS_URL": redis.url, "MEMFOLD_BROKER_URL": redis.url, "MEMFOLD_DURABILITY": "fsync"}

    def _start_child(self, name: str, environment: dict[str, str]) -> Child:
        child = Child.start(name, environment, log=self._data_dir.log(name), ready_file=self._data_dir.ready_file(name))
        self.members.append(child)
        return child

    def _await(self, child: Child, on_ready: Callable[[Member], None]) -> str:
        """Wait until a child serves, watching all of them; answer with its address."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while (address := child.address()) is None:
            self.check()
            if time.monotonic() > deadline:
                raise NotReadyError(child.name, READY_TIMEOUT_S, last_lines(child.log), child.log)
            time.sleep(_STARTING_POLL_S)
        on_ready(child)
        return address


def _names(service: str, count: int) -> list[str]:
    return [service] if count == 1 else [f"{service}-{number}" for number in range(1, count + 1)]


@contextmanager
def _exclusive(data_dir: DataDir) -> Iterator[None]:
    """Hold the directory's lock; the kernel lets go of it when this process ends, however it ends."""
    with data_dir.lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunningError(data_dir.root) from None
        yield


def _require_free(address: str) -> None:
    """Look before anything is started: the gateway, which comes last, would be the one to find out."""
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), int(port)))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise AddressInUseError(address) from None
            raise LocalPlatformError(f"cannot listen at {address}: {error.strerror or error}") from None
