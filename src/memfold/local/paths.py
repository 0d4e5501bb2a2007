"""Where a platform on this machine keeps its things."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs


def default_data_dir() -> Path:
    """Where the platform of this user lives, as the system's conventions have it."""
    return Path(platformdirs.user_data_dir("memfold"))


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read; readers see the old text or the new one, never half."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    temporary.replace(path)


@dataclass(frozen=True, slots=True)
class DataDir:
    """The data directory of one platform."""

    root: Path

    @property
    def lock(self) -> Path:
        """Held by the platform that runs here."""
        return self.root / "lock"

    @property
    def connection(self) -> Path:
        """How to reach the platform that runs here."""
        return self.root / "connection.json"

    @property
    def api_key(self) -> Path:
        """The local API key; it outlives restarts."""
        return self.root / "api_key"

    @property
    def api_keys(self) -> Path:
        """The hashed keys that the gateway knows."""
        return self.root / "api_keys.json"

    @property
    def redis(self) -> Path:
        """The logs and states themselves."""
        return self.root / "redis"

    def log(self, name: str) -> Path:
        """What a process of the platform says."""
        return self.root / "logs" / f"{name}.log"

    def ready_file(self, name: str) -> Path:
        """Where a process of the platform announces its address."""
        return self.root / "run" / f"{name}.json"

    def create(self) -> None:
        """Make the directories, readable by their owner alone."""
        for path in (self.root, self.redis, self.root / "logs", self.root / "run"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
