"""A link that can be made to fail: a TCP proxy in this event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

MODES = ("half-open", "reset", "slow", "refused")
SLOW_S = 0.15  # for each piece of data, one way


class Proxy:
    """Passes bytes between whoever connects and one address, until a fault is set.

    half-open: connections stay, and nothing comes through any more. reset: all are cut by RST, and so is each new one.
    slow: everything takes its time. refused: nobody listens, and what was open is closed.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._mode = ""
        self._open: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    @property
    def address(self) -> str:
        """Where to connect instead."""
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen, at the same port as before."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close everything."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self._cut()

    async def fail(self, mode: str, seconds: float) -> None:
        """Let the link fail for some time."""
        self._mode = mode
        if mode == "refused":
            await self.stop()
        elif mode == "reset":
            self._cut()
        await asyncio.sleep(seconds)
        self._mode = ""
        if mode == "refused":
            await self.start()

    def _cut(self) -> None:
        for writer in [*self._open]:
            _reset(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._mode == "reset":
            _reset(writer)
            return
        try:
            there_reader, there = await asyncio.open_connection(*self._target)
        except OSError:
            _reset(writer)
            return
        self._open |= {writer, there}
        try:
            deaf = asyncio.Event()
            await asyncio.gather(self._pass(reader, there, deaf), self._pass(there_reader, writer, deaf))
        except (OSError, asyncio.CancelledError):
            pass  # asyncio's own callback cannot bear a cancelled connection at the end of the loop
        finally:
            self._open -= {writer, there}
            for one in (writer, there):
                with contextlib.suppress(OSError):
                    one.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, deaf: asyncio.Event) -> None:
        while data := await reader.read(1 << 16):
            if self._mode == "half-open":
                deaf.set()  # for good: nothing makes up for what was swallowed
            if deaf.is_set():
                continue
            if self._mode == "slow":
                await asyncio.sleep(SLOW_S)
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
