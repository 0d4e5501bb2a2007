"""How a gateway tells a reader whose request it passes on: a reader knows no keys, and not every request names a memory."""

from __future__ import annotations

from typing import Any

TENANT = "memfold-tenant"
"""The name of the metadata."""


def told_tenant(context: Any) -> str:
    """The tenant of the call that is being answered; empty where nobody said."""
    return next((str(value) for key, value in context.invocation_metadata() or () if key == TENANT), "")
