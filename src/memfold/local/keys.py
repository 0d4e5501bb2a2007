"""API keys: how they are made, and what is stored of them."""

from __future__ import annotations

import hashlib
import json
import secrets
from pathlib import Path

from memfold.local.paths import write_private


def make_api_key(tenant: str) -> str:
    """A new key of a tenant: ``mfk_TENANT_SECRET``, with 256 bits of entropy in the secret."""
    return f"mfk_{tenant}_{secrets.token_urlsafe(32)}"


def hash_api_key(api_key: str) -> str:
    """What the gateway stores instead of the key. Plain SHA-256 will do: the secret cannot be guessed."""
    return hashlib.sha256(api_key.encode()).hexdigest()


def load_or_make_api_key(path: Path, tenant: str) -> str:
    """The key kept in this file; made on the first call, readable by its owner alone."""
    if path.exists():
        return path.read_text().strip()
    api_key = make_api_key(tenant)
    write_private(path, api_key + "\n")
    return api_key


def write_keys_file(path: Path, api_keys: dict[str, str]) -> None:
    """Write the gateway's file of hashed keys.

    Args:
        path: where.
        api_keys: the tenant of each key.
    """
    write_private(path, json.dumps({hash_api_key(key): tenant for key, tenant in api_keys.items()}, indent=1) + "\n")
