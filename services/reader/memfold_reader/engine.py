"""The loop: schedule, run, hand out."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import torch
from torch import Tensor

from memfold.api.errors import MemfoldError, ReaderUnavailableError, ShuttingDownError
from memfold_osam.device import device_failed
from memfold_reader.load import Load, Rate
from memfold_reader.runner import Runner
from memfold_reader.scheduler import Scheduler
from memfold_reader.sequence import Sequence

_logger = logging.getLogger(__name__)

_RETRY_MS = 1000
_LOOK_S = 0.25  # how often work that cannot move is looked at

Result = TypeVar("Result")


class Engine:
    """One thread, one device, many requests in the same batches.

    Everything but the loop may be called from any thread.

    Args:
        runner: what runs the model; the engine's alone once it has started.
        places: active requests at most.
        on_broken: called from the engine's thread when the device fails for good; everything has been failed then.
    """

    def __init__(self, runner: Runner, *, places: int, on_broken: Callable[[], None]) -> None:
        self._runner = runner
        self._on_broken = on_broken
        self._scheduler: Scheduler[Sequence] = Scheduler(places)
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._draining = False
        self._stopped = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._rate = Rate(time.monotonic())
        self._held = 0

    @property
    def open_count(self) -> int:
        """Requests that are active or wait."""
        with self._changed:
            return sum(1 for _ in self._scheduler)

    def load(self) -> Load:
        """How busy it is now."""
        with self._changed:
            active, waiting, places = len(self._scheduler.active), self._scheduler.waiting, self._scheduler.places
        return Load(active, waiting, places, self._held, self._rate.at(time.monotonic()))

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, sequence: Sequence) -> None:
        """Take a request in.

        Raises:
            ReaderUnavailableError: too many wait already.
            ShuttingDownError: the engine drains or has stopped.
        """
        with self._changed:
            if self._draining:
                raise ShuttingDownError("the reader is stopping")
            if not self._scheduler.has_room(sequence.tenant):
                raise ReaderUnavailableError("the reader is full", retry_after_ms=_RETRY_MS)
            self._scheduler.add(sequence)
            self._changed.notify()

    async def call(self, function: Callable[[], Result]) -> Result:
        """Run a function on the engine's thread between two steps, where nothing else uses the model.

        Raises:
            ShuttingDownError: the engine has stopped; and whatever the function raises.
        """
        future: Future[Result] = Future()
        with self._changed:
            if self._stopped:
                raise ShuttingDownError("the reader is stopping")
            self._calls.append((function, future))
            self._changed.notify()
        return await asyncio.wrap_future(future)

    def wake(self) -> None:
        """Look again: somebody cancelled, or a client took something."""
        with self._changed:
            self._changed.notify()

    def drain(self) -> None:
        """Take in nothing more, and hand back with ``ShuttingDownError`` what has no place yet: others can begin it."""
        with self._changed:
            self._draining = True
            for sequence in list(self._scheduler.unstarted()):
                sequence.fail(ShuttingDownError("the reader is stopping"))
                self._scheduler.remove(sequence)

    def stop(self) -> None:
        """End everything that is still open with ``ShuttingDownError`` and join the thread."""
        with self._changed:
            self._draining = self._stopped = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        broken = False
        try:
            while self._wait():
                self._step()
        except _BrokenError:
            broken = True
        except Exception:
            # A fault of the engine's own: what it holds is not to be trusted, and nobody must wait for it.
            _logger.critical("the engine failed", exc_info=True)
            broken = True
        self._fail_all(ShuttingDownError("the reader is stopping"))
        if broken:
            self._on_broken()

    def _wait(self) -> bool:
        """Sleep until something can move; False once the engine is to stop."""
        with self._changed:
            while not self._stopped and not self._can_move():
                self._changed.wait(_LOOK_S if self._scheduler.active else None)
            return not self._stopped

    def _can_move(self) -> bool:
        if self._calls or self._scheduler.can_move():
            return True
        now = time.monotonic()
        return any(sequence.cancelled or sequence.overdue(now) for sequence in self._scheduler)

    def _step(self) -> None:
        """Schedule, run, hand out."""
        if self._calls:
            _answer(*self._calls.popleft())
        self._drop(time.monotonic())
        with self._changed:
            plan = self._scheduler.plan()
        began = time.monotonic()
        if plan.decode:
            self._decode(plan.decode)
        between = time.monotonic()
        ran = sum(self._prefill(sequence, count) for sequence, count in plan.prefill)
        ended = time.monotonic()
        self._scheduler.took(
            step_s=between - began if plan.decode else 0.0, prefill_s=ended - between, prefill_tokens=ran
        )
        self._rate.add(len(plan.decode), ended)
        self._held = self._runner.held

    def _drop(self, now: float) -> None:
        """Let go of whom nobody waits for any more; who is late is told so."""
        with self._changed:
            sequences = list(self._scheduler)
        for sequence in sequences:
            late = None if sequence.cancelled else sequence.overdue(now)
            if late is not None:
                sequence.fail(late)
            if sequence.cancelled or late is not None:
                self._leave(sequence)

    def _decode(self, sequences: list[Sequence]) -> None:
        try:
            groups = self._runner.groups(sequences)
        except Exception as error:  # noqa: BLE001  see _fault
            self._decode_apart(sequences, error)
            return
        for group in groups:
            try:
                logits, best = self._runner.decode(group)
            except Exception as error:  # noqa: BLE001  see _fault
                self._decode_apart(group, error)
                continue
            self._charge(group, 1)
            for row, sequence in enumerate(group):
                self._take(sequence, logits[row : row + 1], best[row : row + 1])

    def _decode_apart(self, sequences: list[Sequence], error: Exception) -> None:
        """A batch has failed: try each of it by itself, so that only those fail of which the fault is."""
        if len(sequences) == 1 or device_failed(error):
            self._fault(sequences, error)
            return
        _logger.warning("a batch of %d failed: %s", len(sequences), type(error).__qualname__)
        for sequence in sequences:
            self._prefill(sequence, 1)

    def _prefill(self, sequence: Sequence, count: int) -> int:
        """Run a piece of a sequence; how many tokens it was."""
        try:
            self._runner.begin(sequence)
            begin = sequence.computed
            logits, best = self._runner.prefill(sequence, count)
        except Exception as error:  # noqa: BLE001  see _fault
            self._fault([sequence], error)
            return 0
        ran = sequence.computed - begin
        self._charge([sequence], ran)
        self._take(sequence, logits, best)
        return ran

    def _charge(self, sequences: list[Sequence], tokens: int) -> None:
        with self._changed:
            self._scheduler.ran(sequences, tokens)

    def _take(self, sequence: Sequence, logits: Tensor, best: list[int]) -> None:
        """Hand a step's result to its request."""
        try:
            done = sequence.take(logits, best)
        except Exception as error:  # noqa: BLE001  see _fault
            self._fault([sequence], error)
            return
        sequence.moved()
        if done:
            self._leave(sequence)

    def _fault(self, sequences: list[Sequence], error: Exception) -> None:
        """The worker's outer loop: a fault ends the requests that it is of, and no others."""
        if device_failed(error):
            _logger.critical("the device failed", exc_info=error)
            told = MemfoldError("the device failed")
        elif isinstance(error, torch.OutOfMemoryError):
            _logger.error("a request ran out of device memory: %s", error)
            told = ReaderUnavailableError("the reader is out of memory", retry_after_ms=_RETRY_MS)
        else:
            # Its text may hold contents.
            frames = "".join(traceback.format_tb(error.__traceback__))
            _logger.error("a request failed: %s\n%s", type(error).__qualname__, frames)
            told = MemfoldError("the reader could not finish this request")
        for sequence in sequences:
            sequence.fail(told)
        if device_failed(error):
            raise _BrokenError
        for sequence in sequences:
            self._leave(sequence)

    def _leave(self, sequence: Sequence) -> None:
        with self._changed:
            self._scheduler.remove(sequence)
        self._runner.release(sequence)

    def _fail_all(self, error: MemfoldError) -> None:
        with self._changed:
            self._draining = self._stopped = True
            for sequence in list(self._scheduler):
                sequence.fail(error)
                self._scheduler.remove(sequence)
            while self._calls:
                _, future = self._calls.popleft()
                if future.set_running_or_notify_cancel():
                    future.set_exception(error)


class _BrokenError(Exception):
    """Nothing on this device can be trusted any more."""


def _answer(function: Callable[[], Result], future: Future[Result]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except Exception as error:  # noqa: BLE001  handed on to whoever waits
        future.set_exception(error)
