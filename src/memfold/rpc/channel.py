"""What every channel of memfold is opened with."""

from __future__ import annotations

import json
from collections.abc import Sequence

LARGEST_MESSAGE = 64 * 2**20


def channel_options(*, retry: Sequence[str] = (), once: Sequence[tuple[str, str]] = ()) -> list[tuple[str, int | str]]:
    """Options of a channel that notices a dead peer and comes back quickly.

    Args:
        retry: full names of services whose calls are repeated on UNAVAILABLE, five times at most within about ten
            seconds; only for services whose calls may be repeated safely.
        once: (service, method) of those among them that are not repeated.
    """
    config: dict[str, object] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if retry:
        policy = {
            "maxAttempts": 5,
            "initialBackoff": "0.4s",
            "maxBackoff": "5s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
        config["methodConfig"] = [
            {"name": [{"service": name} for name in retry], "retryPolicy": policy},
            {"name": [{"service": service, "method": method} for service, method in once]},
        ]
    return [
        ("grpc.service_config", json.dumps(config)),
        ("grpc.max_receive_message_length", LARGEST_MESSAGE),
        ("grpc.max_send_message_length", LARGEST_MESSAGE),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # Else gRPC's own pings, of which only one flies at a time, hold keepalive's up for a minute.
        ("grpc.http2.ping_timeout_ms", 10_000),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 3_000),
    ]
