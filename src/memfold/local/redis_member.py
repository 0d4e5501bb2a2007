"""The private Redis as a process of the platform."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from memfold.local.errors import LocalPlatformError
from memfold.local.paths import DataDir
from memfold.local.redis_server import RedisServer, RedisServerError


@dataclass(slots=True)
class RedisMember:
    """Holds logs, states and the queue of hints; every write is on disk before it is answered."""

    _server: RedisServer
    name: str = "redis"

    @classmethod
    def start(cls, data_dir: DataDir) -> Self:
        """Start it on the platform's directory and wait until it serves.

        Raises:
            LocalPlatformError: it does not.
        """
        try:
            return cls(RedisServer.start(data_dir.redis))
        except RedisServerError as error:
            raise LocalPlatformError(str(error)) from None

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._server.pid

    @property
    def log(self) -> Path:
        """What it says."""
        return self._server.log_path

    @property
    def url(self) -> str:
        """Where and how to reach it; holds its password."""
        return self._server.url

    def address(self) -> str:
        """Where it serves."""
        return self._server.address

    def returncode(self) -> int | None:
        """How it ended; None while it runs."""
        return self._server.poll()

    def stop(self, grace_s: float) -> None:  # noqa: ARG002 -- it brings its own
        """End it; what it holds is on disk."""
        self._server.stop()
