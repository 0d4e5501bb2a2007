"""One reader as the gateway sees it: a channel, what the reader last said of itself, and the calls that run on it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import grpc
from opentelemetry import propagate
from opentelemetry.instrumentation.utils import suppress_instrumentation

from memfold.api.errors import MemfoldError, ReaderUnavailableError
from memfold.api.v1.generation_service_pb2_grpc import GenerationServiceStub
from memfold.reader.v1 import load_service_pb2 as pb
from memfold.reader.v1.load_service_pb2_grpc import LoadServiceStub
from memfold.rpc.channel import channel_options
from memfold.rpc.deadline import NEVER

BEAT_S = 0.5
RETRY_MS = 1000
# In beats of the gateway's own, not by the clock: a gateway that was held up itself must not think so of its readers.
LATE = 6  # without a word: no new requests, and those that have not started go elsewhere
LOST = 20  # without a word: its calls end
_WARY = 2  # after a refusal: others are asked first
_AGAIN_S = 0.25

_LOG = logging.getLogger(__name__)


class ReaderCall:
    """A call that runs on a reader.

    Attributes:
        call: gRPC's own.
        started: a part of the answer is there.
        cut: why it was ended from this side; None where it was not.
    """

    def __init__(self, call: Any, on_heard: Callable[[], None]) -> None:
        self.call = call
        self.started = False
        self.cut: MemfoldError | None = None
        self._on_heard = on_heard

    def heard(self) -> None:
        """A part of the answer has come: from now on only this reader can finish it."""
        self.started = True
        self._on_heard()

    def end(self, error: MemfoldError) -> None:
        """Break it off: whoever waits for it gets a ``CancelledError``, and finds the reason in ``cut``."""
        if self.cut is None:
            self.cut = error
            self.call.cancel()


class ReaderLink:
    """A reader at one address; it may be gone, and come back.

    Attributes:
        address: ``ip:port``.
        named: the address is still among those that a name stands for.
        known: it was heard, or could not be reached, at least once.
        visit: which time this is that it serves; new with each return.
        chosen: when it was chosen last, as the chooser counts.
        calls: those that run.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.named = True
        self.known = asyncio.Event()
        self.visit = 0
        self.chosen = 0
        self.calls: set[ReaderCall] = set()
        self._channel = grpc.aio.insecure_channel(address, options=channel_options())
        self._generation: Any = GenerationServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._load: Any = LoadServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._last = pb.WatchLoadResponse()
        self._others = 0
        self._listening = False
        self._quiet = 0
        self._wary = 0
        self._watching = asyncio.create_task(self._watch())

    @property
    def serves(self) -> bool:
        """It takes requests, and was heard a moment ago."""
        return self._last.readiness == pb.READINESS_SERVING and self._quiet < LATE

    @property
    def leaves(self) -> bool:
        """It still runs, but is better left: it stops, or hangs."""
        return self._last.readiness == pb.READINESS_DRAINING or self._quiet >= LATE

    @property
    def loads(self) -> bool:
        """It will take requests once it has its model."""
        return self._last.readiness == pb.READINESS_LOADING

    @property
    def fingerprint(self) -> str:
        """Of the model that it serves; empty where that is not known."""
        return str(self._last.fingerprint)

    @property
    def burden(self) -> tuple[bool, float, int]:
        """To choose the least of: whether it refused something just now, how full it would be, when it was chosen last.

        How full: requests for each of its slots; those of other gateways as it reported them, the own as they are.
        """
        return self._wary > 0, (self._others + len(self.calls) + 1) / max(1, self._last.slots), self.chosen

    def start(self, method: str, request: Any, seconds: float, metadata: dict[str, str]) -> ReaderCall:
        """Start a call, within the trace of the one that is being answered.

        Args:
            method: of GenerationService.
            request: its message.
            seconds: until the deadline.
            metadata: what goes along.
        """
        propagate.inject(metadata)
        # OpenTelemetry's own client for grpc.aio does not pass a cancellation on: the reader would work on for nobody.
        with suppress_instrumentation():
            call = ReaderCall(
                getattr(self._generation, method)(
                    request, timeout=None if seconds == NEVER else seconds, metadata=tuple(metadata.items())
                ),
                self._hear_of_it,
            )
        self.calls.add(call)
        return call

    def finish(self, call: ReaderCall) -> None:
        """Let go of a call, however it ended; one that still runs is cancelled."""
        self.calls.discard(call)
        call.call.cancel()

    def be_wary(self) -> None:
        """It refused a request: for a moment choose others first, or one that fails quickly would draw everything."""
        self._wary = _WARY

    def beat(self) -> None:
        """To be called every ``BEAT_S``: count how long it has been silent, and end its calls when that is too long."""
        self._wary = max(0, self._wary - 1)
        if not self._listening:  # out of reach: then gRPC knows how its calls are
            return
        self._quiet += 1
        if self._quiet == LATE and self._last.readiness == pb.READINESS_SERVING:
            _LOG.warning("reader %s has fallen silent", self.address)
        if self._quiet >= LOST:
            for call in list(self.calls):
                call.end(ReaderUnavailableError("the reader has fallen silent", retry_after_ms=RETRY_MS))

    async def close(self) -> None:
        """End everything."""
        self._watching.cancel()
        await asyncio.gather(self._watching, return_exceptions=True)
        await self._channel.close()

    async def _watch(self) -> None:
        """Hear the reader, again and again."""
        while True:
            try:
                with suppress_instrumentation():
                    words = self._load.WatchLoad(pb.WatchLoadRequest())
                async for word in words:
                    self._hear(word)
            except grpc.aio.AioRpcError as error:
                _LOG.debug("reader %s: %s", self.address, error.code())
            self._hear(None)
            await asyncio.sleep(_AGAIN_S)

    def _hear_of_it(self) -> None:
        self._quiet = 0  # whoever sends an answer lives

    def _hear(self, word: pb.WatchLoadResponse | None) -> None:
        """Note what it says; None where it is out of reach."""
        served, self._listening, self._quiet = self.serves, word is not None, 0
        if word is not None:
            self._last = word
            self._others = max(0, word.active + word.waiting - len(self.calls))
        elif self._last.readiness != pb.READINESS_DRAINING:  # which says no more, while it finishes its calls
            self._last = pb.WatchLoadResponse()
        if self.serves and not served:
            self.visit += 1
            _LOG.info("reader %s serves", self.address)
        elif served and not self.serves:
            _LOG.warning("reader %s is %s", self.address, "draining" if self.leaves else "out of reach")
        self.known.set()
