"""The way from the engine's thread to one request's coroutine."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Generic, TypeVar

from memfold.api.errors import MemfoldError

Item = TypeVar("Item")


class Outbox(Generic[Item]):
    """A short queue that one thread fills and one coroutine empties.

    The engine asks ``has_room`` before a step and never waits; the coroutine's ``on_room`` wakes it when there is room
    again. ``close`` ends the iteration, with an error where there is one.

    Attributes:
        taken_at: when the coroutine last took something, a time of ``time.monotonic``.
    """

    def __init__(self, capacity: int, on_room: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._capacity = capacity
        self._half = (capacity + 1) // 2
        self._full = False
        self.taken_at = time.monotonic()
        self._on_room = on_room
        self._items: deque[Item] = deque()
        self._arrived = asyncio.Event()
        self._closed = False
        self._error: MemfoldError | None = None

    def has_room(self) -> bool:
        """Whether the next item would be within the capacity; once full, not before half has been taken.

        A slow client's sequence then runs a while and rests a while, instead of joining the batch for every single token.
        """
        self._full = len(self._items) >= (self._half if self._full else self._capacity)
        return not self._full

    def put(self, item: Item) -> None:
        """Hand one item over; from any thread."""
        self._items.append(item)
        self._notify()

    def close(self, error: MemfoldError | None = None) -> None:
        """Say that nothing more comes; from any thread."""
        self._error = error
        self._closed = True
        self._notify()

    async def __aiter__(self) -> AsyncIterator[Item]:
        while True:
            while self._items:
                item = self._items.popleft()
                self.taken_at = time.monotonic()
                if len(self._items) == self._half - 1:
                    self._on_room()
                yield item
            if self._closed and not self._items:
                break
            self._arrived.clear()
            if not self._items and not self._closed:
                await self._arrived.wait()
        if self._error is not None:
            raise self._error

    def _notify(self) -> None:
        # A loop that is closed has nobody left who waits.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._arrived.set)
