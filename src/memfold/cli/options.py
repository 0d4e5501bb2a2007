"""The global options, and the client that they open."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from memfold.api.errors import ApiKeyError
from memfold.local.connection import Connection
from memfold.local.paths import DataDir, default_data_dir

if TYPE_CHECKING:  # brings gRPC, for which no help text should wait
    from memfold.client import Memfold


@dataclass(frozen=True, slots=True)
class Options:
    """What stands before every command."""

    target: str = ""
    api_key: str = ""
    data_dir: Path | None = None

    @property
    def data(self) -> DataDir:
        """The data directory of the local platform."""
        return DataDir(self.data_dir or default_data_dir())

    def connection(self) -> Connection:
        """Where to, and with which key: as told, else what the local platform has left.

        The local key is never sent to another address than the local one.

        Raises:
            ApiKeyError: an address without a key.
            NotRunningError: no address, and no platform runs here.
        """
        if self.target and self.api_key:
            return Connection(self.target, self.api_key)
        if self.target:
            raise ApiKeyError("--target needs an API key")
        local = Connection.read(self.data)
        return Connection(local.target, self.api_key or local.api_key)


def options(context: typer.Context) -> Options:
    """The global options of this run."""
    found = context.obj
    assert isinstance(found, Options)
    return found


def connect(context: typer.Context) -> Memfold:
    """A client for this run; close it by leaving its ``with`` block."""
    connection = options(context).connection()
    from memfold.client import Memfold  # noqa: PLC0415 - see above

    return Memfold(connection.target, connection.api_key)
