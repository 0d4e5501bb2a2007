"""Waiting until a state has come so far: woken by commits and deletions, and looking now and then in any case."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from memfold.api.errors import DeadlineError, RevisionAheadError, RevisionForeignError
from memfold.api.values import Memory, MemoryName, Revision
from memfold.store import keys
from memfold.store.removing import Removing
from memfold.store.server import Server

_LOG = logging.getLogger(__name__)

_LOOK_S = 0.5
"""Wake-ups may be lost; a waiter looks by itself this often. A deleted memory is noticed within a second."""

_MEND_S = 0.5
"""How soon a broken subscription is made anew."""

_CANCEL_AGAIN_S = 0.2


class Waiting(Removing):
    """Waiting for revisions."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self._ear = _Ear(server)

    async def wait_for(self, name: MemoryName, revision: Revision, timeout_s: float) -> Revision:
        """Wait until the state has reached a revision; returns the one that it has reached.

        Raises:
            MemoryNotFoundError: there is no such memory, or it has been deleted meanwhile.
            RevisionForeignError: the revision is of another incarnation.
            RevisionAheadError: the revision lies beyond the end of the log.
            DeadlineError: ``timeout_s`` has passed.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout_s
        memory = await self.get_memory(name)
        if _reached(memory, revision):
            return memory.folded_revision
        async with self._ear.listen(keys.moved_channel(name.partition), keys.member(name)) as moved:
            while True:
                moved.clear()
                memory = await self.get_memory(name)
                if _reached(memory, revision):
                    return memory.folded_revision
                left = deadline - clock()
                if left <= 0:
                    raise DeadlineError(
                        f"{name} has been folded up to {memory.folded_revision}, not yet to {revision}",
                        facts={"folded_revision": str(memory.folded_revision)},
                    )
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(moved.wait(), min(left, _LOOK_S))


def _reached(memory: Memory, revision: Revision) -> bool:
    if revision.incarnation != memory.incarnation:
        raise RevisionForeignError(
            f"revision {revision} is of another incarnation of {memory.name}", facts={"revision": str(memory.revision)}
        )
    if revision.sequence > memory.head:
        raise RevisionAheadError(
            f"revision {revision} lies beyond the log, which ends at {memory.revision}",
            facts={"revision": str(memory.revision)},
        )
    return memory.applied >= revision.sequence


class _Ear:
    """One connection that hears for all waiters of this process."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._events: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._subscribers: defaultdict[str, int] = defaultdict(int)
        self._client: Redis | None = None
        self._pubsub: Any = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    @contextlib.asynccontextmanager
    async def listen(self, channel: str, message: str) -> AsyncIterator[asyncio.Event]:
        """An event that is set whenever a message is told on a channel; no two channels have one in common."""
        event = asyncio.Event()
        self._events[message].add(event)
        self._subscribers[channel] += 1
        try:
            await self._subscribe(channel)
            yield event
        finally:
            self._events[message].discard(event)
            if not self._events[message]:
                del self._events[message]
            self._subscribers[channel] -= 1
            if not self._subscribers[channel]:
                del self._subscribers[channel]
                await self._unsubscribe(channel)

    async def close(self) -> None:
        """Stop hearing."""
        self._closed = True
        # A cancellation that meets the end of a timeout inside the client library is lost there.
        while self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task], timeout=_CANCEL_AGAIN_S)
        if self._client is not None:
            await self._pubsub.aclose()
            await self._client.aclose()

    async def _subscribe(self, channel: str) -> None:
        if self._client is None:
            self._client = self._server.channel_client()
            self._pubsub = self._client.pubsub(ignore_subscribe_messages=True)
        # Without the subscription waiters still look by themselves, and the next round tries again.
        with contextlib.suppress(RedisError, OSError):
            await self._pubsub.subscribe(channel)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._hear())

    async def _unsubscribe(self, channel: str) -> None:
        if self._closed:
            return
        with contextlib.suppress(RedisError, OSError):
            await self._pubsub.unsubscribe(channel)

    async def _hear(self) -> None:
        while self._subscribers and not self._closed:
            try:
                await self._mend()
                message = await self._pubsub.get_message(timeout=_MEND_S)
            except (RedisError, OSError) as error:
                _LOG.info("redis: not hearing: %s", type(error).__name__)
                await asyncio.sleep(_MEND_S)
                continue
            if message is not None:
                for event in self._events.get(message["data"].decode(), ()):
                    event.set()

    async def _mend(self) -> None:
        """Subscribe to what could not be subscribed to before."""
        unheard = {channel for channel in self._subscribers if channel.encode() not in self._pubsub.channels}
        if unheard:
            await self._pubsub.subscribe(*unheard)
