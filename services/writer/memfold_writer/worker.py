"""The Celery side: one process, one task at a time, nothing forked, nothing but JSON."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from celery import Celery
from celery.worker import WorkController, state
from celery.worker.request import Request

from memfold.api.values import PARTITIONS
from memfold.hints import TASK, queue_name
from memfold_writer.claims import describe
from memfold_writer.device import DeviceFailedError

_log = logging.getLogger(__name__)


class HintRequest(Request):  # type: ignore[misc]
    """Lets a failed acknowledgement reach the consumer, which then connects anew.

    Celery only logs it. With one message in advance and this one for ever unacknowledged, the consumer would never ask
    for another: a Redis that restarts during a task would silence its writer for good.
    """

    def acknowledge(self) -> None:
        """Celery's hook."""
        self._connection_errors = ()  # those that are logged and swallowed
        super().acknowledge()


class HintWorker(WorkController):  # type: ignore[misc]
    """Turns hints into calls of ``drain``, in the main thread.

    The solo pool, because a process that has used torch or gRPC must never fork. Celery's own signal handlers and
    logging stay out (they belong to its command line): the service has its own.

    Args:
        app: as ``memfold.hints`` builds it.
        drain: takes a partition; returns when it has nothing due.
        on_device_failed: called when this process can fold no more.
        on_ready: called when hints are being consumed, again after each reconnection.
    """

    def __init__(
        self,
        app: Celery,
        *,
        fingerprint: str,
        owner: str,
        drain: Callable[[int], None],
        on_device_failed: Callable[[], None],
        on_ready: Callable[[], None],
    ) -> None:
        self._on_ready = on_ready
        _register(app, fingerprint, drain, on_device_failed)
        super().__init__(
            app=app,
            hostname=f"writer@{owner}",
            pool_cls="solo",
            concurrency=1,
            queues=[queue_name(fingerprint)],
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
        )

    def on_consumer_ready(self, consumer: Any) -> None:  # noqa: ARG002
        """Celery's hook."""
        self._on_ready()


def stop(exit_code: int) -> None:
    """Make the running worker end after its task; may be called from a signal handler. A failure outranks success."""
    state.should_stop = exit_code or state.should_stop or 0


def _register(
    app: Celery, fingerprint: str, drain: Callable[[int], None], on_device_failed: Callable[[], None]
) -> None:
    @app.task(name=TASK, acks_late=True, ignore_result=True, Request=HintRequest)  # type: ignore[untyped-decorator]
    def _(*arguments: object) -> None:
        """Whatever goes wrong, the hint is done with: the store knows what is still due."""
        match arguments:
            case [hinted, int(partition)] if hinted == fingerprint and 0 <= partition < PARTITIONS:
                pass
            case _:
                _log.warning("a hint that is not for this writer was dropped")
                return
        try:
            drain(partition)
        except DeviceFailedError as error:
            _log.critical("this process ends, its device is of no more use: %s", describe(error))
            on_device_failed()
        except Exception as error:  # noqa: BLE001 - the worker's outer loop
            _log.error("draining partition %d failed: %s", partition, describe(error))
