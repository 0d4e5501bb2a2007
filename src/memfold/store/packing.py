"""Lists of strings as one argument of a script, in MessagePack, which Redis's Lua unpacks by itself.

One long argument instead of many short ones: client, server and Lua take as long for a short one.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain


def packed(strings: Sequence[bytes]) -> bytes:
    """An array of byte strings."""
    heads = map(_head, map(len, strings))
    return _array(len(strings)) + b"".join(chain.from_iterable(zip(heads, strings, strict=True)))


def packed_random(count: int, size: int) -> bytes:
    """An array of so many random strings of ``size`` bytes, fewer than 32."""
    data = bytearray(secrets.token_bytes(count * (size + 1)))
    data[:: size + 1] = bytes([0xA0 | size]) * count
    return _array(count) + data


def _array(count: int) -> bytes:
    return b"\xdd" + count.to_bytes(4, "big")


@lru_cache(4096)
def _head(size: int) -> bytes:
    return b"\xdb" + size.to_bytes(4, "big")
