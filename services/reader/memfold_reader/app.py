"""The reader as a process: serve at once, load the model meanwhile, answer when it is warm, drain when told to stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Callable
from typing import NoReturn, TypeVar

import torch

from memfold import telemetry
from memfold.api.v1.generation_service_pb2_grpc import add_GenerationServiceServicer_to_server
from memfold.reader.v1.load_service_pb2_grpc import add_LoadServiceServicer_to_server
from memfold.rpc.server import Server
from memfold.store import Store, when_there
from memfold_osam.serving import load_served_model
from memfold_reader.engine import Engine
from memfold_reader.load_service import LoadService
from memfold_reader.reader import Reader
from memfold_reader.runner import Runner
from memfold_reader.service import GenerationService
from memfold_reader.settings import Settings

_logger = logging.getLogger(__name__)

_MEASURE_S = 1.0

Result = TypeVar("Result")


async def serve(settings: Settings) -> int:
    """Run until SIGTERM or SIGINT, or until the device fails; the process's exit status."""
    pipeline = telemetry.setup("memfold-reader", settings.metrics_port)
    pipeline.instruments.open_streams.add(0)  # from the start, so that no streams looks different from no reader
    server = Server(
        settings.listen, grace_s=settings.grace_s, reflection=settings.reflection, ready_file=settings.ready_file
    )
    process = _Process(settings, server)
    server.add(add_GenerationServiceServicer_to_server, process.service)
    server.add(add_LoadServiceServicer_to_server, process.load_service)
    await server.start()
    warming = asyncio.create_task(process.warm_up())
    try:
        await server.run()
    finally:
        warming.cancel()
        await process.close()
        pipeline.shutdown()
    return 1 if process.failed else 0


class _Process:
    """What lives as long as the process: store, engine, model."""

    def __init__(self, settings: Settings, server: Server) -> None:
        self.failed = False
        self.service = GenerationService(server.stopping.is_set)
        self.load_service = LoadService(server.stopping)
        self._settings = settings
        self._server = server
        self._store: Store | None = None
        self._engine: Engine | None = None

    async def warm_up(self) -> None:
        """Load the model, open the store, then serve, measuring."""
        try:
            runner = await _in_daemon_thread(lambda: _load(self._settings))
            self._store = await when_there(lambda: Store.open(self._settings.redis_url))
            self._engine = Engine(runner, places=self._settings.max_active, on_broken=self._on_broken())
            self._engine.start()
            self.service.reader = Reader(
                runner.served, self._store, self._engine, inline_tokens=self._settings.inline_tokens
            )
            self.load_service.serve(self._engine, runner.served.fingerprint)
            await self._server.set_serving(True)
            await _measure(self._engine)
        except Exception:
            # Whatever it is, nothing can be served; the process ends and says why.
            _logger.exception("the reader could not start")
            self._fail()

    async def close(self) -> None:
        """End what still runs."""
        if self.service.reader is not None:
            self.service.reader.close()
        if self._engine is not None:
            self._engine.stop()
        if self._store is not None:
            await self._store.close()

    def _on_broken(self) -> Callable[[], None]:
        loop = asyncio.get_running_loop()

        def on_broken() -> None:
            loop.call_soon_threadsafe(self._fail)

        return on_broken

    def _fail(self) -> None:
        self.failed = True
        self._server.stopping.set()


def _load(settings: Settings) -> Runner:
    if settings.threads:
        torch.set_num_threads(settings.threads)
    started = time.monotonic()
    served = load_served_model(settings.backbone, settings.adapter, device=settings.device, dtype=settings.dtype)
    runner = Runner(served, prefix_bytes=settings.prefix_cache_mb << 20)
    runner.warm_up()
    _logger.info(
        "%s with %s is warm on %s after %.1f s, fingerprint %s",
        served.backbone,
        served.adapter,
        served.device,
        time.monotonic() - started,
        served.fingerprint[:16],
    )
    # The libraries' hundreds of thousands of objects live as long as the process: to look through them again and again for
    # garbage would hold every stream up for a second.
    gc.collect()
    gc.freeze()
    return runner


async def _measure(engine: Engine) -> NoReturn:
    """Tell the metrics how busy the engine is, until cancelled."""
    while True:
        load, instruments = engine.load(), telemetry.instruments()
        instruments.engine_active.set(load.active)
        instruments.engine_waiting.set(load.waiting)
        instruments.engine_slots.set(load.slots)
        instruments.engine_kv_tokens.set(load.kv_tokens)
        await asyncio.sleep(_MEASURE_S)


async def _in_daemon_thread(function: Callable[[], Result]) -> Result:
    """As ``asyncio.to_thread``, but a process that is told to stop does not wait for it."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def settle(result: Result | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, failure = None, None
        try:
            result = function()
        except Exception as error:  # noqa: BLE001  handed on to whoever waits
            failure = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name="load", daemon=True).start()
    return await future
