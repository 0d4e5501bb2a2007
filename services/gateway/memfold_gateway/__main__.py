"""``memfold-gateway``: reads its settings from the environment, serves until SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import sys

from pydantic import ValidationError

from memfold import telemetry
from memfold.api.errors import MemfoldError
from memfold_gateway.gateway import gateway
from memfold_gateway.settings import Settings


def main() -> int:
    """Serve. Returns 0 after a stop by signal, 1 when the gateway cannot start, 2 for wrong settings."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = Settings()  # type: ignore[call-arg]
    except ValidationError as error:
        for problem in error.errors():
            print(f"MEMFOLD_{'_'.join(map(str, problem['loc'])).upper()}: {problem['msg']}", file=sys.stderr)
        return 2
    # Before any channel, server or Redis client: instrumentation takes hold of what is made after it.
    measuring = telemetry.setup("memfold-gateway", settings.metrics_port)
    try:
        asyncio.run(_serve(settings))
    except (MemfoldError, OSError, ValueError) as error:
        print(f"the gateway cannot start: {error}", file=sys.stderr)
        return 1
    finally:
        measuring.shutdown()
    return 0


async def _serve(settings: Settings) -> None:
    async with gateway(settings) as server:
        await server.run()


if __name__ == "__main__":
    sys.exit(main())
