"""What both clients are connected with."""

from __future__ import annotations

from memfold.api.errors import MemfoldError
from memfold.client.calls import SERVICES
from memfold.rpc.channel import channel_options

# The client makes every id itself, so that calls may be repeated. Two may not: a stream is resumed instead, and a deletion
# could hit a memory that somebody has made anew under the same name.
OPTIONS = channel_options(
    retry=list(SERVICES.values()), once=[(SERVICES["memory"], "StreamTurns"), (SERVICES["memory"], "DeleteMemory")]
)

_PASSING = {"UNREACHABLE", "STORE_UNAVAILABLE", "NOT_DURABLE", "MODEL_LOADING", "SHUTTING_DOWN"}


def authorization(api_key: str) -> tuple[tuple[str, str], ...]:
    """The metadata that carry an API key."""
    return (("authorization", f"Bearer {api_key}"),)


def passes(error: MemfoldError) -> bool:
    """Whether an error is likely to be gone in a moment."""
    return error.reason in _PASSING
