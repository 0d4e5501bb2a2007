"""One event loop on one thread: everything in the writer that waits for the network lives there."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar, cast

_AGAIN_S = 0.1

Result = TypeVar("Result")


class LoopThread:
    """Runs coroutines for threads that have no loop.

    Celery's solo pool owns the main thread and starts a task as a plain call; the store's connections need a loop
    that outlives the task. Leases, the reconciler and the health port go on while a task runs.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="loop", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Result], *, timeout_s: float | None = None) -> Result:
        """Run it there and wait for its result, with the caller's context (its trace, too).

        Raises:
            TimeoutError: it took longer; it is cancelled.
        """
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(timeout_s)
        except TimeoutError:
            future.cancel()
            raise

    def stop(self) -> None:
        """End the loop and its thread; what still runs on it is cancelled."""
        self.run(_cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)
        if not self._thread.is_alive():
            self._loop.close()


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until they have ended.

    More than once, if need be: until Python 3.12 ``asyncio.wait_for``, through which every command to Redis goes, loses a
    cancellation that comes just as it is done.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_AGAIN_S)


async def _cancel_all() -> None:
    await end(asyncio.all_tasks() - {cast("asyncio.Task[Any]", asyncio.current_task())})
