"""Turns on their way through a stream that may break: taken from their source once, kept until acknowledged."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

MOST_UNACKNOWLEDGED = 512
PATIENCE_S = (0.2, 0.4, 0.8, 1.6, 3.2, 5.0)
"""Pauses before a broken stream is opened again, as long as nothing gets through."""


class Outbox(Generic[T]):
    """Feeds one stream after the other with what has not been acknowledged, then with what comes.

    gRPC takes requests from a thread of its own, and may still wait for the source in the one of a broken stream when
    the next is open. What that one gets goes to the outbox, and so to the next.
    """

    def __init__(self, source: Iterator[T]) -> None:
        self._source = source
        self._unacknowledged: deque[T] = deque()
        self._acknowledged = 0
        self._stream = 0
        self._lock = threading.Lock()
        self._pulling = threading.Lock()
        self.fault: BaseException | None = None

    def requests(self) -> Iterator[T]:
        """The requests of a new stream; those of earlier streams end."""
        with self._lock:
            self._stream += 1
            stream, at = self._stream, self._acknowledged
        while True:
            found, item = self._find(at)
            if not found:
                with self._pulling:
                    found, item = self._find(at)
                    if not found and not self._pull():
                        return
                    found, item = self._find(at)
            if stream != self._stream or not found:
                return
            at += 1
            yield item  # type: ignore[misc]

    def acknowledge(self) -> None:
        """The oldest one has arrived."""
        with self._lock:
            self._unacknowledged.popleft()
            self._acknowledged += 1

    def _find(self, at: int) -> tuple[bool, T | None]:
        with self._lock:
            place = at - self._acknowledged
            if 0 <= place < len(self._unacknowledged):  # below 0: a broken stream's, sent and acknowledged since
                return True, self._unacknowledged[place]
            return False, None

    def _pull(self) -> bool:
        """Take one from the source; what the source raises is kept for the caller's thread."""
        if self.fault is not None:
            return False
        try:
            item = next(self._source)
        except StopIteration:
            return False
        except BaseException as error:  # noqa: BLE001  belongs to the thread that reads acknowledgements
            self.fault = error
            return False
        with self._lock:
            self._unacknowledged.append(item)
        return True


class AsyncOutbox(Generic[T]):
    """The same for an event loop.

    A task of its own takes from the source: gRPC cancels whatever a broken stream waits for, and the source must not
    be hit by that.
    """

    def __init__(self, source: AsyncIterator[T]) -> None:
        self._source = source
        self._unacknowledged: deque[T] = deque()
        self._acknowledged = 0
        self._exhausted = False
        self._changed = asyncio.Condition()
        self._pump = asyncio.create_task(self._take())
        self.fault: BaseException | None = None

    async def requests(self) -> AsyncIterator[T]:
        """The requests of a new stream."""
        at = self._acknowledged
        while True:
            async with self._changed:
                while at >= self._taken and not self._exhausted:
                    await self._changed.wait()
                if at >= self._taken:
                    return
                item = self._unacknowledged[at - self._acknowledged]
            at += 1
            yield item

    async def acknowledge(self) -> None:
        """The oldest one has arrived."""
        async with self._changed:
            self._unacknowledged.popleft()
            self._acknowledged += 1
            self._changed.notify_all()

    def close(self) -> None:
        """Take no more from the source."""
        self._pump.cancel()

    @property
    def _taken(self) -> int:
        return self._acknowledged + len(self._unacknowledged)

    async def _take(self) -> None:
        try:
            async for item in self._source:
                async with self._changed:
                    while len(self._unacknowledged) >= MOST_UNACKNOWLEDGED:
                        await self._changed.wait()
                    self._unacknowledged.append(item)
                    self._changed.notify_all()
        except Exception as error:  # noqa: BLE001  belongs to the task that reads acknowledgements
            self.fault = error
        async with self._changed:
            self._exhausted = True
            self._changed.notify_all()
