"""What gateway and writer say to each other: "this partition has work". Only a hint; the reconciler needs none.

A hint may be lost, doubled or late. So sending one never delays its caller, and a broker that is down costs nothing.
"""

from __future__ import annotations

import logging
import threading
from typing import Self

from celery import Celery
from kombu.exceptions import OperationalError
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from redis.exceptions import RedisError

TASK = "memfold.writer.drain"
_LOG = logging.getLogger(__name__)
_MOST_PENDING = 4096
_PAUSE_S = 1.0
# An unread hint says nothing after this time that the reconciler has not said again.
_EXPIRES_S = 60


def queue_name(fingerprint: str) -> str:
    """The queue of the writers that hold this model."""
    return f"memfold.fold.{fingerprint[:16]}"


def celery_app(broker_url: str) -> Celery:
    """Celery as memfold uses it: JSON only, no results, no talk between workers, sockets that notice a dead peer.

    A task's arguments are ``[fingerprint, partition]``.
    """
    app = Celery("memfold", broker=broker_url, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_acks_late=True,
        task_create_missing_queues=True,
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            "socket_timeout": 5,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 5,
            "retry_on_timeout": False,
            # Only how soon an unacknowledged hint comes round again; nothing relies on it.
            "visibility_timeout": 120,
        },
    )
    return app


class Hinter:
    """Sends hints from a thread of its own.

    Equal hints that wait are sent once. While the broker does not answer, hints are dropped.
    """

    def __init__(self, broker_url: str) -> None:
        self._app = celery_app(broker_url)
        self._pending: dict[tuple[str, int], Context] = {}
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="hinter", daemon=True)
        self._thread.start()

    def hint(self, fingerprint: str, partition: int) -> None:
        """Say that a partition has work; returns at once. The trace of the caller goes along."""
        key = (fingerprint, partition)
        with self._wake:
            if self._closed or key in self._pending or len(self._pending) >= _MOST_PENDING:
                return
            self._pending[key] = otel_context.get_current()
            self._wake.notify()

    def close(self, timeout_s: float = 5) -> None:
        """Send what waits, if the broker takes it within the timeout, and stop."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            self._app.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        reachable = True
        while True:
            with self._wake:
                if not reachable and not self._closed:
                    self._wake.wait_for(lambda: self._closed, _PAUSE_S)
                self._wake.wait_for(lambda: self._pending or self._closed)
                pending, self._pending = self._pending, {}
                if not pending:
                    return
            sent = self._send(pending)
            if sent != reachable:
                _LOG.warning("the broker %s", "is back" if sent else "does not answer; hints are dropped meanwhile")
            reachable = sent

    def _send(self, pending: dict[tuple[str, int], Context]) -> bool:
        try:
            for (fingerprint, partition), trace in pending.items():
                token = otel_context.attach(trace)
                try:
                    self._app.send_task(
                        TASK,
                        [fingerprint, partition],
                        queue=queue_name(fingerprint),
                        expires=_EXPIRES_S,
                        retry=False,
                    )
                finally:
                    otel_context.detach(token)
        except (OperationalError, RedisError, OSError):
            return False
        return True
