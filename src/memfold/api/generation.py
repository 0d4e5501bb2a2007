"""What a client can ask of a generation, beyond numbers: closed sets, under the names that the wire has for them."""

from __future__ import annotations

from enum import StrEnum


class Stale(StrEnum):
    """What to do where a state is behind what is asked for: a minimum, or, to fold inline without one, the log's end.

    ``WAIT`` for the minimum; ``FOLD_INLINE``: fold what is missing on a private copy, or wait where that is too much;
    ``ALLOW``: answer from what there is.
    """

    WAIT = "wait"
    FOLD_INLINE = "fold_inline"
    ALLOW = "allow"


class UpdateMode(StrEnum):
    """Whether a state moves while it is read. ``ONLINE``: own messages and the reply go into a private copy."""

    READ_ONLY = "read_only"
    ONLINE = "online"
