"""Digests that prove a log and a state: SHA-256, chained over the log's entries.

    leaf_n       = SHA-256(sequence as 8 bytes, big-endian || "turn" or "skip" || bytes || nonce)
    log_digest_n = SHA-256(log_digest_{n-1} || leaf_n), beginning with 32 zero bytes

``bytes`` is what the client said (``Turn.to_bytes``), or the number of the turn to pass over in decimal digits. The nonce
is deleted with its turn, so that a short turn cannot be guessed from a digest that has outlived it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from memfold.api.values import Turn

EMPTY_LOG = bytes(32)
NONCE_BYTES = 16


def chain(start: bytes, entries: Iterable[Turn]) -> bytes:
    """The log's digest behind ``entries``, which follow on ``start``; 32 bytes."""
    for entry in entries:
        start = hashlib.sha256(start + leaf(entry)).digest()
    return start


def leaf(entry: Turn) -> bytes:
    """The digest of one log entry, 32 bytes."""
    kind, said = (b"skip", str(entry.skips).encode()) if entry.skips else (b"turn", entry.to_bytes())
    return hashlib.sha256(entry.sequence.to_bytes(8, "big") + kind + said + entry.nonce).digest()


def state_digest(data: bytes) -> bytes:
    """The digest of a state's fp32 data, 32 bytes."""
    return hashlib.sha256(data).digest()
