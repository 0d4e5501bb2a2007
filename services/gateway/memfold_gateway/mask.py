"""Which fields of a memory an update changes."""

from __future__ import annotations

from memfold.api.errors import InvalidFieldError
from memfold.api.v1 import memory_service_pb2 as pb

POLICY_FIELDS = {"policy.ttl": "ttl_s", "policy.retention": "retention_s", "policy.keep_last": "keep_last"}
"""Paths of a mask -> fields of ``memfold.api.values.Policy``."""

_NAMING = {"display_name", "labels"}


def changed_fields(request: pb.UpdateMemoryRequest) -> set[str]:
    """The paths that a request changes, ``policy`` spelt out.

    Without a mask these are display name and labels, and the policy where one is given: a client that knows of no policy
    does not reset it.

    Raises:
        InvalidFieldError: a path cannot be updated.
    """
    paths = set(request.update_mask.paths)
    if not paths:
        return _NAMING | (POLICY_FIELDS.keys() if request.memory.HasField("policy") else set())
    known = _NAMING | POLICY_FIELDS.keys()
    if "*" in paths:
        return known
    if "policy" in paths:
        paths = paths - {"policy"} | POLICY_FIELDS.keys()
    unknown = paths - known
    if unknown:
        raise InvalidFieldError("update_mask", f"{min(unknown)!r} cannot be updated; {sorted({*known, 'policy'})} can")
    return paths
