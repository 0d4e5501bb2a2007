"""A gRPC server as memfold's services are: one error edge, health, a drained stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from memfold.rpc.edge import Edge
from memfold.rpc.status import make_error

_LOG = logging.getLogger(__name__)

# What health checks ask for to learn whether the process works, whatever its store or its model do meanwhile.
LIVE = "live"

_OPTIONS = (
    # Beyond this the transport refuses with a bare RESOURCE_EXHAUSTED; the edge's own, smaller limit says why.
    ("grpc.max_receive_message_length", 64 * 2**20),
    ("grpc.max_send_message_length", 64 * 2**20),
    ("grpc.so_reuseport", 0),
    # Connections are renewed now and then, so that clients ask for the name again and find servers that are new. Calls
    # and streams on an old one run to their end: no grace time is set.
    ("grpc.max_connection_age_ms", 300_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
)


class Server:
    """Serves gRPC services until it is told to stop.

    Example::

        server = Server("0.0.0.0:50051", grace_s=20)
        server.add(add_MemoryServiceServicer_to_server, servicer)
        await server.start()
        await server.set_serving(True)
        await server.run()  # until SIGTERM or SIGINT

    Args:
        listen: ``host:port``; port 0 takes a free one.
        grace_s: seconds that running calls get to end by themselves when the server stops.
        reflection: whether to describe the services to tools such as grpcurl.
        ready_file: where to write ``{"address": …, "pid": …}`` once the server serves; nowhere if empty.
    """

    def __init__(self, listen: str, *, grace_s: float = 20, reflection: bool = False, ready_file: str = "") -> None:
        self.stopping = asyncio.Event()
        self.address = ""
        self._listen = listen
        self._grace_s = grace_s
        self._reflection = reflection
        self._ready_file = ready_file
        self._edge = Edge()
        self._router = _Router(self._edge)
        self._health = health.aio.HealthServicer()
        self._server: Any = None

    def add(self, adder: Callable[[Any, Any], None], servicer: Any) -> None:
        """Add a service by its generated ``add_…_to_server``."""
        adder(servicer, self._router)

    async def start(self) -> str:
        """Bind and serve; health says NOT_SERVING until ``set_serving``. Returns the address to reach it at.

        Raises:
            OSError: the address cannot be bound.
        """
        await self.set_serving(False)
        await self._health.set(LIVE, health_pb2.HealthCheckResponse.SERVING)
        self.add(health_pb2_grpc.add_HealthServicer_to_server, self._health)
        if self._reflection:
            names = [*self._router.services, reflection.SERVICE_NAME]
            self.add(
                reflection_pb2_grpc.add_ServerReflectionServicer_to_server, reflection.aio.ReflectionServicer(names)
            )
        # Looked up at the call: instrumentation replaces this function.
        self._server = grpc.aio.server(options=_OPTIONS)
        self._server.add_generic_rpc_handlers((self._router,))
        try:
            port = self._server.add_insecure_port(self._listen)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self._listen}: {error}") from None
        await self._server.start()
        self.address = _reachable(self._listen, port)
        _LOG.info("listening on %s", self.address)
        return self.address

    async def set_serving(self, serving: bool, service: str | None = None) -> None:
        """Say to health checks whether a service works: one by its name, the server as a whole by "", or all of them.

        The first time that the server as a whole works, the ready file is written.
        """
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ["", *self._router.services] if service is None else [service]:
            await self._health.set(name, status)
        if serving and not service and self._ready_file:
            announce(self._ready_file, {"address": self.address, "pid": os.getpid()})
            self._ready_file = ""

    async def run(self) -> None:
        """Serve until SIGTERM, SIGINT or ``stopping`` is set, then stop gracefully."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stopping.set)
        try:
            await self.stopping.wait()
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
        await self.stop()

    async def stop(self) -> None:
        """Refuse new calls, let running ones end within the grace period, then end them with SHUTTING_DOWN."""
        self.stopping.set()
        _LOG.info("stopping, %d calls are running", self._edge.calls)
        await self._health.enter_graceful_shutdown()
        stopped = asyncio.create_task(self._server.stop(self._grace_s + 1))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._grace_s):
                await asyncio.shield(stopped)
        self._edge.interrupt()
        await stopped


class _Router:
    """Finds the handler of a method. Stands in for a server where generated code adds a service to one."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._handlers: dict[str, Any] = {}
        self._unknown = edge.refusal(make_error("UNKNOWN_METHOD", "no such method", {}, 0))
        self.services: list[str] = []

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Generated code adds each service in two ways; the other one carries names."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Called by generated code."""
        self.services.append(service)
        for name, handler in handlers.items():
            method = f"/{service}/{name}"
            self._handlers[method] = self._edge.wrap(method, handler)

    def service(self, call: Any) -> Any:
        """Called by gRPC for each call."""
        return self._handlers.get(call.method, self._unknown)


def announce(path: str | Path, facts: Mapping[str, object]) -> None:
    """Write facts as one JSON line, so that a reader sees all of it or no file."""
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(facts) + "\n", encoding="utf-8")
    draft.replace(path)


def _reachable(listen: str, port: int) -> str:
    host = listen.rpartition(":")[0]
    return f"{'127.0.0.1' if host in ('', '0.0.0.0', '[::]', '*') else host}:{port}"  # noqa: S104
