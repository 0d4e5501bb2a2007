"""Who may come in: a known key, a valid request, the own tenant's resources."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from protovalidate import Validator, Violation

from memfold.api.errors import InvalidFieldError, TenantMismatchError
from memfold.api.values import MemoryName
from memfold_gateway.keys import ApiKeys

_MEMORY_FORM = (
    "is not of the form tenants/TENANT/memories/MEMORY; a memory's id has 1 to 128 letters, digits and . _ ~ -, the first "
    "a letter or a digit"
)
# What a field must look like, in words; the proto has it as a pattern.
_FORMS = {
    "name": _MEMORY_FORM,
    "memory": _MEMORY_FORM,
    "memory_id": "has 1 to 128 letters, digits and . _ ~ -, the first a letter or a digit",
    "parent": "is not of the form tenants/TENANT",
    "role": "is not a role: system, developer, user, human, assistant, ai, model, tool, function",
    "id": "has characters other than visible ASCII",
    "request_id": "has characters other than visible ASCII",
    "fingerprint": "has 64 hexadecimal digits",
}
_OPERATION_FORM = "is not of the form tenants/TENANT/memories/MEMORY/operations/OPERATION"


class Guard:
    """Checks every request before anything else sees it."""

    def __init__(self, keys: ApiKeys) -> None:
        self._keys = keys
        self._validator = Validator()

    def tenant(self, context: Any) -> str:
        """The tenant that a call speaks for.

        Raises:
            ApiKeyError: no key, or an unknown one.
        """
        return self._keys.tenant(context.invocation_metadata() or ())

    def check(self, request: Any) -> None:
        """Check a message against the rules in its proto.

        Raises:
            InvalidFieldError: names the first field that breaks one.
        """
        violations = self._validator.collect_violations(request, fail_fast=True)
        if violations:
            forms = _FORMS
            if request.DESCRIPTOR.name.endswith("OperationRequest"):
                forms = _FORMS | {"name": _OPERATION_FORM}
            raise _error(violations[0], forms)

    def admit(self, request: Any, context: Any) -> str:
        """Check key and message of a call, and return its tenant."""
        tenant = self.tenant(context)
        self.check(request)
        return tenant

    def memory(self, request: Any, context: Any, name: str, field: str = "memory") -> MemoryName:
        """Check a call on one memory, and return its name.

        Raises:
            ApiKeyError: no key, or an unknown one.
            InvalidFieldError: names the field.
            TenantMismatchError: the memory is another tenant's, whether there is one or not.
        """
        return own_memory(name, self.admit(request, context), field)


def own_memory(name: str, tenant: str, field: str = "memory") -> MemoryName:
    """Read a memory's name and make sure that it is the tenant's own."""
    try:
        parsed = MemoryName.parse(name)
    except InvalidFieldError:
        raise InvalidFieldError(field, "is not of the form tenants/TENANT/memories/MEMORY") from None
    own_tenant(parsed.tenant, tenant)
    return parsed


def own_tenant(named: str, tenant: str) -> None:
    """Make sure that a resource is the tenant's own."""
    if named != tenant:
        raise TenantMismatchError("the resource belongs to another tenant than the API key")


def _error(violation: Violation, forms: Mapping[str, str]) -> InvalidFieldError:
    proto = violation.proto
    path = ""
    for element in proto.field.elements if proto.field else ():
        path += f".{element.field_name}" if path else element.field_name
        if element.subscript is not None:
            path += f"[{element.subscript.value}]"
    key = "the key " if proto.for_key else ""
    if proto.rule_id == "string.pattern":
        return InvalidFieldError(path, key + forms.get(path.rpartition(".")[2], "has characters that are not allowed"))
    return InvalidFieldError(path or "request", key + (proto.message or proto.rule_id))
