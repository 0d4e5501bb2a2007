"""The loop that moves every request forward, one step each in turn."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable

import torch

from memfold.api.errors import MemfoldError, ReaderUnavailableError, ShuttingDownError
from memfold_osam.device import device_failed
from memfold_reader.runner import Runner
from memfold_reader.work import Work

_logger = logging.getLogger(__name__)

WAITING_PER_PLACE = 8
_RETRY_MS = 1000
_LOOK_S = 0.25  # how often work that cannot move is looked at


class Engine:
    """One thread, one device, many requests: schedule, step, hand out.

    Up to ``places`` requests are active, each with a KV cache of its own, and take turns; a few more wait in order
    of arrival. ``submit``, ``wake`` and ``stop`` may be called from any thread.

    Args:
        runner: what runs the model; the engine's alone once it has started.
        places: active requests at most.
        on_broken: called from the engine's thread when the device fails for good; everything has been failed then.
    """

    def __init__(self, runner: Runner, *, places: int, on_broken: Callable[[], None]) -> None:
        assert places > 0
        self._runner = runner
        self._places = places
        self._on_broken = on_broken
        self._active: list[Work] = []
        self._waiting: deque[Work] = deque()
        self._stopped = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def open_count(self) -> int:
        """Requests that are active or wait."""
        return len(self._active) + len(self._waiting)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, work: Work) -> None:
        """Take a request in.

        Raises:
            ReaderUnavailableError: too many wait already.
            ShuttingDownError: the engine has stopped.
        """
        with self._changed:
            if self._stopped:
                raise ShuttingDownError("the reader is stopping")
            if len(self._waiting) >= self._places * WAITING_PER_PLACE:
                raise ReaderUnavailableError("the reader is full", retry_after_ms=_RETRY_MS)
            self._waiting.append(work)
            self._changed.notify()

    def wake(self) -> None:
        """Look again: somebody cancelled, or a client took something."""
        with self._changed:
            self._changed.notify()

    def stop(self) -> None:
        """End everything that is still open with ``ShuttingDownError`` and join the thread."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        broken = False
        while not broken and self._wait():
            for work in self._schedule():
                if not self._advance(work):
                    broken = True
                    break
        self._fail_all(ShuttingDownError("the reader is stopping"))
        if broken:
            self._on_broken()

    def _wait(self) -> bool:
        """Sleep until something can move; False once the engine is to stop."""
        with self._changed:
            while not self._stopped and not self._can_schedule():
                self._changed.wait(_LOOK_S if self._active else None)
            return not self._stopped

    def _can_schedule(self) -> bool:
        now = time.monotonic()
        if self._waiting and len(self._active) < self._places:
            return True
        if any(work.can_step() for work in self._active):
            return True
        return any(work.cancelled or work.overdue(now) for work in self._everything())

    def _schedule(self) -> list[Work]:
        """Drop what has ended from outside, fill the free places, and say whose turn it is."""
        with self._changed:
            now = time.monotonic()
            self._active = [work for work in self._active if _is_alive(work, now)]
            self._waiting = deque(work for work in self._waiting if _is_alive(work, now))
            while self._waiting and len(self._active) < self._places:
                self._active.append(self._waiting.popleft())
            return [work for work in self._active if work.can_step()]

    def _advance(self, work: Work) -> bool:
        """One step of one request; False when the device is broken."""
        if not _is_alive(work, time.monotonic()):
            self._leave(work)
            return True
        try:
            if work.advance(self._runner):
                self._leave(work)
        except torch.OutOfMemoryError as error:
            _logger.error("a request ran out of device memory: %s", error)  # noqa: TRY400  the trace says nothing more
            work.fail(ReaderUnavailableError("the reader is out of memory", retry_after_ms=_RETRY_MS))
            self._leave(work)
        except Exception as error:
            if device_failed(error):
                _logger.critical("the device failed", exc_info=True)
                work.fail(MemfoldError("the device failed"))
                self._leave(work)
                return False
            # The worker's outer loop: one request's fault must not end the others. Its text may hold contents.
            frames = "".join(traceback.format_tb(error.__traceback__))
            _logger.error("a request failed: %s\n%s", type(error).__qualname__, frames)  # noqa: TRY400
            work.fail(MemfoldError("the reader could not finish this request"))
            self._leave(work)
        return True

    def _leave(self, work: Work) -> None:
        with self._changed:
            self._active = [other for other in self._active if other is not work]

    def _everything(self) -> list[Work]:
        return [*self._active, *self._waiting]

    def _fail_all(self, error: MemfoldError) -> None:
        with self._changed:
            self._stopped = True
            for work in self._everything():
                work.fail(error)
            self._active, self._waiting = [], deque()


def _is_alive(work: Work, now: float) -> bool:
    """False once nobody waits for it any more; who is late is told so."""
    if work.cancelled:
        return False
    late = work.overdue(now)
    if late is not None:
        work.fail(late)
    return late is None
