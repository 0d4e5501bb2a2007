"""The reconciler and the upkeep as a process of their own, without a model: ``memfold-writer --reconcile-only``."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack

from kombu.exceptions import OperationalError

from memfold import telemetry
from memfold.api.errors import StoreUnavailableError
from memfold.hints import Hinter, celery_app, queue_name
from memfold.rpc.server import Server
from memfold.store import Store, when_there
from memfold_writer.loop_thread import end
from memfold_writer.metrics import Metrics
from memfold_writer.reconciler import Reconciler
from memfold_writer.settings import Settings
from memfold_writer.upkeep import Upkeep

_log = logging.getLogger(__name__)

MODELS_S = 5.0  # from one look at which models there are to the next
MAX_WAITING = 64  # hints in a queue: a model that no writer serves must not fill the broker
_HEALTH_GRACE_S = 0.2


def run(settings: Settings) -> int:
    """Look after the queues of all registered models until SIGTERM or SIGINT; returns the exit code."""
    observed = telemetry.setup("memfold-reconciler", settings.metrics_port)
    try:
        asyncio.run(_serve(settings))
    finally:
        observed.shutdown()
    _log.info("stopped")
    return 0


async def _serve(settings: Settings) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as opened:
        health = Server(settings.listen, grace_s=_HEALTH_GRACE_S, ready_file=str(settings.ready_file or ""))
        await health.start()
        opened.push_async_callback(health.stop)
        store = await when_there(lambda: _open_store(settings, stop))
        if store is None:
            return
        opened.push_async_callback(store.close)
        hinter = opened.enter_context(Hinter(settings.broker))
        metrics = Metrics()
        tasks = [
            asyncio.create_task(Upkeep(store, metrics, refold=None).run()),
            asyncio.create_task(Reconcilers(store, metrics, hinter, settings).run()),
        ]
        await health.set_serving(True)
        await stop.wait()
        await end(tasks)


async def _open_store(settings: Settings, stop: asyncio.Event) -> Store | None:
    """The store; None once nobody wants it any more."""
    if stop.is_set():
        return None
    return await Store.open(settings.redis_url, durability=settings.durability, replicas=settings.durability_replicas)


class Reconcilers:
    """One reconciler for each registered model; models that are registered later get theirs too."""

    def __init__(self, store: Store, metrics: Metrics, hinter: Hinter, settings: Settings) -> None:
        self._store = store
        self._metrics = metrics
        self._hinter = hinter
        self._settings = settings
        self._running: dict[str, asyncio.Task[None]] = {}
        self._full: dict[str, bool] = {}
        self._broker = celery_app(settings.broker)

    async def run(self) -> None:
        """Look for ever; to be run as a task."""
        try:
            while True:
                await self._look()
                await asyncio.sleep(MODELS_S)
        finally:
            await end(self._running.values())
            self._broker.close()

    async def _look(self) -> None:
        try:
            fingerprints = await self._store.fingerprints()
        except StoreUnavailableError:
            return
        for fingerprint in fingerprints:
            self._full[fingerprint] = await asyncio.to_thread(self._waiting, fingerprint) >= MAX_WAITING
            if fingerprint not in self._running:
                _log.info("looking after the queues of model %s", fingerprint[:16])
                self._running[fingerprint] = asyncio.create_task(self._reconciler(fingerprint).run())

    def _reconciler(self, fingerprint: str) -> Reconciler:
        return Reconciler(
            self._store,
            self._metrics,
            fingerprint=fingerprint,
            hint=self._hint_of(fingerprint),
            interval_s=self._settings.reconcile_s,
        )

    def _hint_of(self, fingerprint: str) -> Callable[[int], None]:
        def hint(partition: int) -> None:
            if not self._full.get(fingerprint):
                self._hinter.hint(fingerprint, partition)

        return hint

    def _waiting(self, fingerprint: str) -> int:
        """Hints that nobody has taken yet; none where the broker does not say."""
        with self._broker.connection_for_read() as connection:
            try:
                declared = connection.default_channel.queue_declare(queue_name(fingerprint), passive=True)
            except (OperationalError, *connection.channel_errors, *connection.connection_errors):
                return 0
            return int(declared.message_count)
