"""The bytes of a stored state: raw fp32 with a header that says what they are, and a digest over both.

Layout: magic (8) · version (u16) · header length (u16) · header (JSON) · data (fp32, little-endian) · SHA-256 (32).
Integers are little-endian. Nothing is unpickled, and nothing is believed before the digest has been checked.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from memfold.api.errors import StateDamagedError
from memfold.store.values import Shape

MAGIC = b"memfold\0"
VERSION = 1
_PREFIX = struct.Struct("<8sHH")
_DIGEST_BYTES = hashlib.sha256().digest_size


class BlobKind(StrEnum):
    """What a blob is for; one is never taken for the other."""

    STATE = "state"
    ANCHOR = "anchor"


@dataclass(frozen=True, slots=True)
class StateBlob:
    """A state at token ``offset`` behind the turn ``sequence``, of one incarnation of a memory under one model."""

    kind: BlobKind
    fingerprint: str
    incarnation: str
    sequence: int
    offset: int
    shape: Shape
    data: bytes

    def encode(self) -> bytes:
        """Write the blob."""
        if len(self.data) != 4 * math.prod(self.shape):
            raise ValueError(
                f"a state of shape {self.shape} has {4 * math.prod(self.shape)} bytes, not {len(self.data)}"
            )
        said = {
            "kind": str(self.kind),
            "fingerprint": self.fingerprint,
            "incarnation": self.incarnation,
            "sequence": self.sequence,
            "offset": self.offset,
            "shape": self.shape,
            "dtype": "fp32",
        }
        header = json.dumps(said, sort_keys=True, separators=(",", ":")).encode()
        body = _PREFIX.pack(MAGIC, VERSION, len(header)) + header + self.data
        return body + hashlib.sha256(body).digest()


def decode(blob: bytes, *, kind: BlobKind, fingerprint: str, incarnation: str | None) -> StateBlob:
    """Read a blob and make sure that it is what the caller looks for; an incarnation of None stands for any.

    Raises:
        StateDamagedError: it is torn, changed, of another version, or belongs elsewhere; the text names what is wrong.
    """
    header, data = _open(blob)
    wanted = {"kind": str(kind), "fingerprint": fingerprint, "incarnation": incarnation, "dtype": "fp32"}
    for field, value in wanted.items():
        if value is not None and header.get(field) != value:
            raise StateDamagedError(f"the blob's {field} is {header.get(field)!r}, not {value!r}")
    layers, heads, rows, columns = header["shape"]
    found = StateBlob(
        kind=kind,
        fingerprint=fingerprint,
        incarnation=header["incarnation"],
        sequence=int(header["sequence"]),
        offset=int(header["offset"]),
        shape=(layers, heads, rows, columns),
        data=data,
    )
    if len(data) != 4 * math.prod(found.shape):
        raise StateDamagedError(f"the blob holds {len(data)} bytes for the shape {found.shape}")
    return found


def _open(blob: bytes) -> tuple[dict[str, Any], bytes]:
    if len(blob) < _PREFIX.size + _DIGEST_BYTES:
        raise StateDamagedError(f"the blob is cut off after {len(blob)} bytes")
    magic, version, header_bytes = _PREFIX.unpack_from(blob)
    if magic != MAGIC:
        raise StateDamagedError("the blob does not start like a state")
    if version != VERSION:
        raise StateDamagedError(f"the blob has version {version}; this program reads version {VERSION}")
    body, digest = blob[:-_DIGEST_BYTES], blob[-_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise StateDamagedError("the blob's digest does not match its bytes")
    start = _PREFIX.size + header_bytes
    header: dict[str, Any] = json.loads(body[_PREFIX.size : start])
    return header, body[start:]
