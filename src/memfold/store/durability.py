"""What an acknowledgement promises, and whether this Redis can keep the promise."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from memfold.api.errors import NotDurableError

CONFIRM_MS = 3000
"""How long a write waits for its confirmation; below the socket's timeout of 5 s."""


class Durability(StrEnum):
    """When a write counts as done.

    FSYNC: it is on the disk of the server. REPLICA: so many replicas hold it in memory. NONE: the server holds it in memory.
    """

    FSYNC = "fsync"
    REPLICA = "replica"
    NONE = "none"


class DurabilityRefusedError(NotDurableError):
    """The server cannot hold the durability that was asked for; the text says what to change."""


def confirmation(
    durability: Durability, replicas: int, info: Mapping[str, str], config: Mapping[str, str]
) -> tuple[str | int, ...]:
    """The command that confirms a write, to be sent on the connection that wrote; empty where none is needed.

    Args:
        durability: the level asked for.
        replicas: how many replicas must hold a write at the level REPLICA.
        info: the server's INFO.
        config: what it tells of its configuration; empty where it does not let us ask.

    Raises:
        DurabilityRefusedError: the server cannot hold this level.
    """
    if durability is Durability.NONE:
        return ()
    _refuse_eviction(config)
    if durability is Durability.REPLICA:
        return _replica(replicas, info)
    return _fsync(info, config)


def _refuse_eviction(config: Mapping[str, str]) -> None:
    policy = config.get("maxmemory-policy", "noeviction")
    if policy.startswith("allkeys-") and config.get("maxmemory", "0") != "0":
        raise DurabilityRefusedError(
            f"the server may evict any key when its memory is full (maxmemory-policy {policy}); set it to noeviction"
        )


def _replica(replicas: int, info: Mapping[str, str]) -> tuple[str | int, ...]:
    if replicas < 1:
        raise DurabilityRefusedError(f"durability replica needs at least 1 replica, not {replicas}")
    connected = int(info.get("connected_slaves", "0"))
    if connected < replicas:
        raise DurabilityRefusedError(
            f"durability replica needs {replicas} connected replicas, the server has {connected}"
        )
    return ("WAIT", replicas, CONFIRM_MS)


def _fsync(info: Mapping[str, str], config: Mapping[str, str]) -> tuple[str | int, ...]:
    if config.get("appendonly", "yes") != "yes" or info.get("aof_enabled", "0") != "1":
        raise DurabilityRefusedError(
            "durability fsync needs an append-only file, and the server writes none: "
            "set appendonly yes, or choose durability replica or none"
        )
    always = config.get("appendfsync") == "always"
    if always and config.get("no-appendfsync-on-rewrite", "no") == "no":
        return ()
    if _version(info) >= (7, 2):
        return ("WAITAOF", 1, 0, CONFIRM_MS)
    raise DurabilityRefusedError(
        "durability fsync needs appendfsync always and no-appendfsync-on-rewrite no (or Redis 7.2, which can be asked); "
        f"this is Redis {info.get('redis_version', 'unknown')} with appendfsync {config.get('appendfsync', 'unknown')} "
        f"and no-appendfsync-on-rewrite {config.get('no-appendfsync-on-rewrite', 'unknown')}"
    )


def _version(info: Mapping[str, str]) -> tuple[int, int]:
    major, minor, *_ = [*info.get("redis_version", "0.0").split("."), "0"]
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)
