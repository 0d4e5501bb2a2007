"""The writer as a process: model, store, worker, reconciler and health, started and stopped in the right order."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from types import FrameType
from typing import Any

import torch

from memfold import telemetry
from memfold.api.errors import StoreUnavailableError
from memfold.api.values import ModelCard
from memfold.hints import Hinter, celery_app
from memfold.rpc.server import LIVE, Server
from memfold.store import Store, when_there
from memfold_osam.serving import ServedModel, load_served_model
from memfold_writer import worker
from memfold_writer.claims import Claims
from memfold_writer.device import Device
from memfold_writer.drainer import Drainer
from memfold_writer.gatherer import Gatherer
from memfold_writer.loop_thread import LoopThread, end
from memfold_writer.metrics import Metrics
from memfold_writer.open_blocks import OpenBlocks
from memfold_writer.reconciler import Drains, Reconciler
from memfold_writer.settings import Settings
from memfold_writer.stopping import Stopping
from memfold_writer.upkeep import Upkeep
from memfold_writer.verifier import Verifier

_log = logging.getLogger(__name__)

HARD_STOP_SHARE = 0.9  # of the grace time: whatever still hangs then is left hanging
_HEALTH_GRACE_S = 0.2


class Writer:
    """One writer process: the main thread is Celery's, one thread has the event loop, one has the model."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._owner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._stopping = Stopping(settings.grace_s)
        self._consuming = False
        self._opened = AsyncExitStack()
        self._background: list[asyncio.Task[None]] = []

    def run(self) -> int:
        """Fold until SIGTERM or SIGINT; returns the exit code. To be called in the main thread.

        Raises:
            DurabilityRefusedError: the store cannot hold the durability that the settings ask for.
            FileNotFoundError: there is no such model.
            OSError: the health port is taken.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        observed = telemetry.setup("memfold-writer", self._settings.metrics_port)
        loop = LoopThread()
        try:
            code = self._serve(loop)
        finally:
            loop.run(self._opened.aclose())
            observed.shutdown()
            loop.stop()
        _log.info("stopped")
        return code

    def _serve(self, loop: LoopThread) -> int:
        """Load, open, consume. Returns the exit code; a fold that was abandoned may still run."""
        health = loop.run(self._open_health())
        served = self._load()
        device = Device(served, self._settings.batch_tokens, self._settings.kv_cache_bytes)
        loop.run(device.warm_up())
        store = loop.run(when_there(lambda: self._open_store(served)))
        return self._consume(loop, health, store, device, served)

    def _consume(self, loop: LoopThread, health: Server, store: Store, device: Device, served: ServedModel) -> int:
        """Put the parts together and consume hints until somebody says stop; gives back what is still claimed."""
        settings, fingerprint, metrics = self._settings, served.fingerprint, Metrics()
        hinter = Hinter(settings.broker)

        def hint(partition: int) -> None:
            hinter.hint(fingerprint, partition)

        claims = Claims(store, metrics, fingerprint=fingerprint, owner=self._owner, lease_s=settings.lease_s)
        open_blocks = OpenBlocks(settings.kv_cache_bytes)
        gatherer = Gatherer(store, claims, device, open_blocks, metrics, batch_tokens=settings.batch_tokens)
        drainer = Drainer(
            store,
            claims,
            gatherer,
            device,
            open_blocks,
            metrics,
            stopping=self._stopping,
            hint=hint,
            shape=served.state_shape,
        )
        verifier = Verifier(store, device, fingerprint=fingerprint, exact=served.exact, idle=lambda: drainer.idle_s > 0)
        upkeep = Upkeep(store, metrics, refold=verifier.offer)
        reconciler = Reconciler(
            store,
            metrics,
            fingerprint=fingerprint,
            hint=hint,
            interval_s=settings.reconcile_s,
            drains=Drains(
                note_due=gatherer.note_due,
                idle_s=lambda: drainer.idle_s,
                live=lambda lives: health.set_serving(lives, LIVE),
            ),
        )
        hint_worker = worker.HintWorker(
            celery_app(settings.broker),
            fingerprint=fingerprint,
            owner=self._owner,
            drain=lambda partition: loop.run(drainer.drain(partition)),
            on_device_failed=lambda: self._stop(1),
            on_ready=lambda: loop.run(health.set_serving(True)),
        )
        loop.run(self._begin(claims.keep(), reconciler.run(), upkeep.run()))
        self._consuming = True
        try:
            hint_worker.start()
        finally:
            loop.run(self._end(claims, verifier))
            hinter.close(timeout_s=1)
            device.close()
        return int(hint_worker.exitcode or 0)

    def _load(self) -> ServedModel:
        settings = self._settings
        if settings.threads:
            torch.set_num_threads(settings.threads)
        served = load_served_model(settings.backbone, settings.adapter, device=settings.device, dtype=settings.dtype)
        _log.info("model %s is loaded on %s", served.fingerprint[:16], served.device)
        return served

    async def _open_health(self) -> Server:
        """Probes are answered from the start; they hear that it serves once hints are consumed."""
        ready_file = str(self._settings.ready_file or "")
        health = Server(self._settings.listen, grace_s=_HEALTH_GRACE_S, ready_file=ready_file)
        await health.start()
        self._opened.push_async_callback(health.stop)
        return health

    async def _open_store(self, served: ServedModel) -> Store:
        """Open the store, and tell everybody which model folds here."""
        settings = self._settings
        store = await Store.open(
            settings.redis_url, durability=settings.durability, replicas=settings.durability_replicas
        )
        async with AsyncExitStack() as opened:
            opened.push_async_callback(store.close)
            await store.register_model(ModelCard.of(served))
            await self._opened.enter_async_context(opened.pop_all())
        return store

    async def _begin(self, *work: Coroutine[Any, Any, None]) -> None:
        self._background = [asyncio.create_task(each) for each in work]

    async def _end(self, claims: Claims, verifier: Verifier) -> None:
        await end(self._background)
        await verifier.close()
        try:
            await claims.give_back()
        except StoreUnavailableError as error:
            _log.warning("claims were not given back, their leases will end: %s", error)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if not self._consuming:  # nothing is claimed yet
            raise SystemExit(0)
        self._stop(0)

    def _stop(self, code: int) -> None:
        """End after the running task, if need be by force. To be called in the main thread."""
        if not self._stopping.requested:
            self._stopping.begin()
            # Celery waits for a broker that has gone silent as long as it takes; Kubernetes does not. Nothing is
            # claimed any more by then, or its lease ends by itself.
            signal.signal(signal.SIGALRM, lambda *_: os._exit(code))
            signal.setitimer(signal.ITIMER_REAL, HARD_STOP_SHARE * self._settings.grace_s)
        worker.stop(code)
