"""Waiting for a store that is not there yet: services may start before it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from memfold.api.errors import StoreUnavailableError

_LOG = logging.getLogger(__name__)

T = TypeVar("T")
_AGAIN_S = 0.5


async def when_there(attempt: Callable[[], Awaitable[T]]) -> T:
    """Make an attempt again and again, until the store answers it; what else it raises comes through."""
    while True:
        try:
            return await attempt()
        except StoreUnavailableError as error:
            _LOG.warning("waiting for the store: %s", error)
            await asyncio.sleep(_AGAIN_S)
