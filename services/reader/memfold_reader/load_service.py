"""LoadService: gateways hear how this reader is, from before it is warm until it stops."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from memfold.reader.v1 import load_service_pb2 as pb
from memfold.reader.v1.load_service_pb2_grpc import LoadServiceServicer
from memfold_reader.engine import Engine

BEAT_S = 0.5  # gateways take a reader that is silent for some of these for one that hangs
_LOOK_S = 0.1


class LoadService(LoadServiceServicer):
    """Says that the reader is loading, until ``serve``; then how busy its engine is, until ``stopping`` is set."""

    def __init__(self, stopping: asyncio.Event) -> None:
        self._stopping = stopping
        self._engine: Engine | None = None
        self._fingerprint = ""

    def serve(self, engine: Engine, fingerprint: str) -> None:
        """From now on requests may come, for this engine and its model."""
        self._engine, self._fingerprint = engine, fingerprint

    async def WatchLoad(  # noqa: N802
        self,
        request: pb.WatchLoadRequest,  # noqa: ARG002
        context: Any,  # noqa: ARG002
    ) -> AsyncIterator[pb.WatchLoadResponse]:
        """Tell at once, after every change, and at every beat; end with the reader."""
        loop = asyncio.get_running_loop()
        told, told_at = None, 0.0
        while True:
            load = self._load()
            if load != told or loop.time() - told_at >= BEAT_S:
                yield load
                told, told_at = load, loop.time()
            if load.readiness == pb.READINESS_DRAINING:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), _LOOK_S)

    def _load(self) -> pb.WatchLoadResponse:
        if self._stopping.is_set():
            return pb.WatchLoadResponse(readiness=pb.READINESS_DRAINING, fingerprint=self._fingerprint)
        if self._engine is None:
            return pb.WatchLoadResponse(readiness=pb.READINESS_LOADING)
        load = self._engine.load()
        return pb.WatchLoadResponse(
            readiness=pb.READINESS_SERVING,
            fingerprint=self._fingerprint,
            active=load.active,
            waiting=load.waiting,
            slots=load.slots,
        )
