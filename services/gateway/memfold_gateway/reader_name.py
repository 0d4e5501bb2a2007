"""Where readers are: a name, and the addresses that it stands for now."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from typing import Self

_SCHEME = "dns:///"


@dataclass(frozen=True, slots=True)
class ReaderName:
    """A host, which may stand for many readers, and their port."""

    host: str
    port: int

    @classmethod
    def parse_list(cls, text: str) -> tuple[Self, ...]:
        """Read ``host:port``, ``dns:///host:port``, or several of them with commas between.

        Raises:
            ValueError: one is neither.
        """
        return tuple(cls._parse(one.strip()) for one in text.split(","))

    @classmethod
    def _parse(cls, text: str) -> Self:
        host, _, port = text.removeprefix(_SCHEME).rpartition(":")
        if not host or "/" in host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 2**16:
            raise ValueError(f"{text!r} is not of the form HOST:PORT or {_SCHEME}HOST:PORT")
        return cls(host.strip("[]"), int(port))

    async def addresses(self) -> set[str]:
        """Ask the system's resolver; an answer ``ip:port`` or ``[ip]:port`` for each reader.

        Raises:
            OSError: the name is not known, or nobody can be asked.
        """
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        hosts = {str(address[0]) for *_, address in found}
        return {f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}" for host in hosts}

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"
