"""The platform that is put under load: everything that ``memfold up`` starts, each process with a port for its metrics."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from memfold.local.child import Child
from memfold.local.platform import Platform
from memfold.local.redis_member import RedisMember
from memfold.local.settings import ANY_PORT, PlatformSettings
from platform_load.sampling import Watched

# What caches may hold, so that they are full, and memory flat, before the halves are compared.
CACHES = {"MEMFOLD_KV_CACHE_MB": "48", "MEMFOLD_PREFIX_CACHE_MB": "4"}


class MeasuredPlatform(Platform):
    """``memfold up`` with metrics."""

    def __init__(self, settings: PlatformSettings) -> None:
        super().__init__(settings)
        self._ports: dict[str, int] = {}

    @property
    def watched(self) -> list[Watched]:
        """Its processes."""
        return [Watched(member.name, member.pid, self._ports.get(member.name, 0)) for member in self.members]

    @property
    def redis_url(self) -> str:
        """Its store."""
        return next(member.url for member in self.members if isinstance(member, RedisMember))

    def _start_child(self, name: str, environment: dict[str, str]) -> Child:
        self._ports[name] = _free_port()
        return super()._start_child(name, environment | {"MEMFOLD_METRICS_PORT": str(self._ports[name])})


def start(folder: Path, *, readers: int, writers: int) -> MeasuredPlatform:
    """Start it, on the processor, a thread for each that computes."""
    os.environ.update(CACHES)
    settings = PlatformSettings(
        folder, listen=ANY_PORT, device="cpu", threads=1, readers=readers, writers=writers, tenant="load"
    )
    return MeasuredPlatform.start(settings)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
