"""Page tokens: opaque to clients, and good only for the request that they were given out for."""

from __future__ import annotations

import base64
import binascii
import hashlib

from memfold.api.errors import InvalidPageTokenError

_DIGEST_BYTES = 12


def page_token(after: str, *request: str) -> str:
    """A token to go on behind ``after`` in the listing that ``request`` describes."""
    return base64.urlsafe_b64encode(_digest(after, request) + after.encode()).decode().rstrip("=")


def page_start(token: str, *request: str) -> str:
    """Where the page of a token starts; empty for the first page.

    Raises:
        InvalidPageTokenError: the token was not given out for this listing.
    """
    if not token:
        return ""
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        after = raw[_DIGEST_BYTES:].decode()
    except (binascii.Error, ValueError):
        after, raw = "", b""
    if not after or raw[:_DIGEST_BYTES] != _digest(after, request):
        raise InvalidPageTokenError("this page token was not given out for this request")
    return after


def page_size(asked: int, default: int, largest: int) -> int:
    """The size of a page: the default for 0, never more than the largest."""
    return min(asked or default, largest)


def _digest(after: str, request: tuple[str, ...]) -> bytes:
    return hashlib.sha256("\0".join((after, *request)).encode()).digest()[:_DIGEST_BYTES]
