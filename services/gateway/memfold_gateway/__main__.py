"""``memfold-gateway``: reads its settings from the environment, serves until SIGTERM."""

from __future__ import annotations

import asyncio
import sys

from memfold import telemetry
from memfold.service import run_service
from memfold_gateway.gateway import gateway
from memfold_gateway.settings import Settings


def main() -> int:
    """Serve. Returns 0 after a stop by signal, 1 when the gateway cannot start, 2 for wrong settings."""
    return run_service("gateway", Settings, _run)  # type: ignore[arg-type]  # the environment gives the required ones


def _run(settings: Settings) -> int:
    # Before any channel, server or Redis client: instrumentation takes hold of what is made after it.
    measuring = telemetry.setup("memfold-gateway", settings.metrics_port)
    try:
        asyncio.run(_serve(settings))
    finally:
        measuring.shutdown()
    return 0


async def _serve(settings: Settings) -> None:
    async with gateway(settings) as server:
        await server.run()


if __name__ == "__main__":
    sys.exit(main())
