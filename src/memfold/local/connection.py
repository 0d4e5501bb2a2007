"""How the clients of this machine find its platform."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Self

from memfold.local.errors import LocalPlatformError, NotRunningError
from memfold.local.paths import DataDir, write_private


@dataclass(frozen=True, slots=True)
class Connection:
    """An address and the key that opens it."""

    target: str
    api_key: str

    @classmethod
    def read(cls, data_dir: DataDir) -> Self:
        """What the platform that runs on this directory has left there.

        Raises:
            NotRunningError: nothing.
            LocalPlatformError: something else.
        """
        try:
            raw = json.loads(data_dir.connection.read_text())
            return cls(target=raw["target"], api_key=raw["api_key"])
        except FileNotFoundError:
            raise NotRunningError(data_dir.root) from None
        except (ValueError, KeyError, TypeError):
            raise LocalPlatformError(f"{data_dir.connection} is damaged; restart the platform: memfold up") from None

    def write(self, data_dir: DataDir) -> None:
        """Leave it for the clients, readable by the owner alone."""
        write_private(data_dir.connection, json.dumps(asdict(self)) + "\n")
