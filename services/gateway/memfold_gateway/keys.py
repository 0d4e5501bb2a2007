"""API keys: which tenant a call speaks for."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from memfold.api.errors import ApiKeyError

_LOG = logging.getLogger(__name__)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_TENANT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_SCHEME = "bearer "


class ApiKeys:
    """The known keys, as hashes.

    A key holds 256 random bits, so a plain SHA-256 neither leaks it nor can be searched; and a lookup by hash takes
    the same time for every wrong key.
    """

    def __init__(self, path: Path) -> None:
        """Read a file of keys.

        Raises:
            OSError: it cannot be read.
            ValueError: it is not what it should be; says what is wrong.
        """
        self._path = path
        self._version = _version(path)
        self._tenants = _parse(path.read_text(encoding="utf-8"))

    def refresh(self) -> None:
        """Read the file again if it has changed. A file that is broken now changes nothing."""
        try:
            version = _version(self._path)
            if version == self._version:
                return
            self._version = version
            self._tenants = _parse(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            _LOG.warning("the old API keys stay: %s", error)
            return
        _LOG.info("read %d API keys", len(self._tenants))

    def tenant(self, metadata: Iterable[tuple[str, Any]]) -> str:
        """The tenant whose key the call's metadata carry as ``authorization: Bearer KEY``.

        Raises:
            ApiKeyError: no key, or an unknown one.
        """
        for name, value in metadata:
            if name == "authorization":
                return self._tenant(value)
        raise ApiKeyError("no API key: send it as metadata, authorization: Bearer KEY")

    def _tenant(self, value: str) -> str:
        if value[: len(_SCHEME)].lower() != _SCHEME:
            raise ApiKeyError("the authorization is not of the form: Bearer KEY")
        key = value[len(_SCHEME) :].strip()
        tenant = self._tenants.get(hashlib.sha256(key.encode()).hexdigest())
        if tenant is None:
            raise ApiKeyError("this API key is not known")
        return tenant


def _version(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _parse(text: str) -> dict[str, str]:
    raw = json.loads(text)
    if not isinstance(raw, dict):
        raise ValueError("API keys: not a JSON object of key hash → tenant")  # noqa: TRY004
    for at, (digest, tenant) in enumerate(raw.items(), 1):
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"API keys: entry {at} is not named by the SHA-256 of a key in lower-case hex")
        if not isinstance(tenant, str) or not _TENANT.fullmatch(tenant):
            raise ValueError(f"API keys: entry {at} has no valid tenant")
    return raw
