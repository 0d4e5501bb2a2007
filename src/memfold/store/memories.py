"""Memories as things: created, described, listed, changed, deleted."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from memfold.api.errors import MemoryExistsError, MemoryNotFoundError
from memfold.api.values import Memory, MemoryName, Policy, Revision
from memfold.store import keys
from memfold.store.models import Models
from memfold.store.part import Lines


class Memories(Models):
    """The memories of every tenant."""

    async def create_memory(
        self,
        name: MemoryName,
        *,
        display_name: str = "",
        labels: Mapping[str, str] | None = None,
        policy: Policy | None = None,
        request_id: str = "",
    ) -> Memory:
        """Create an empty memory, folded with the default model. The same ``request_id`` again: the same answer.

        Raises:
            MemoryExistsError: there is one of this name, made by another request.
            ModelLoadingError: no model has been registered yet.
        """
        fingerprint = (await self.default_model()).fingerprint
        incarnation = new_incarnation()
        await self._index(name, incarnation)

        reply = await self._on_memory(
            "create",
            name,
            incarnation,
            request_id,
            display_name,
            json.dumps(dict(labels or {})),
            policy.to_json() if policy else "",
            keys.member(name) if policy and policy.look_s else "",
            durable=True,
            guess=Lines(fingerprint),
        )
        memory = memory_of(name, reply[1]) if reply[0] == b"OK" else None
        if memory is None or memory.incarnation != incarnation:
            await self._unindex(name, incarnation)
        if memory is None:
            raise MemoryExistsError(f"{name} exists", facts={"memory": str(name)})
        return memory

    async def get_memory(self, name: MemoryName) -> Memory:
        """Describe a memory.

        Raises:
            MemoryNotFoundError: there is none.
        """
        reply = await self._on_memory("get", name)
        return memory_of(name, reply[1])

    async def list_memories(self, tenant: str, *, after: str = "", limit: int = 50) -> list[Memory]:
        """At most ``limit`` memories of a tenant, by memory id, strictly behind the id ``after``."""
        found: list[Memory] = []
        while len(found) < limit:
            count = limit - len(found)
            start = f"({after}\1" if after else "-"  # behind all entries of that id
            entries = await self._server.command(
                "ZRANGEBYLEX", keys.tenant_index(tenant), start, "+", "LIMIT", 0, count
            )
            ids = list(dict.fromkeys(keys.index_entry_of(entry)[0] for entry in entries))
            found += await self._describe([MemoryName(tenant, memory) for memory in ids])
            if len(entries) < count:
                break
            after = ids[-1]
        return found

    async def update_memory(
        self,
        name: MemoryName,
        *,
        display_name: str | None = None,
        labels: Mapping[str, str] | None = None,
        policy: Policy | None = None,
        expected: Revision | None = None,
    ) -> Memory:
        """Change what is given; None leaves a field as it is.

        Raises:
            MemoryNotFoundError: there is no such memory.
            RevisionMismatchError: the log is not at ``expected``.
        """
        changes: list[str] = []
        if display_name is not None:
            changes += ["display_name", display_name]
        if labels is not None:
            changes += ["labels", json.dumps(dict(labels))]
        look = ""
        if policy is not None:
            changes += ["policy", policy.to_json()]
            look = "look" if policy.look_s else "never"
        reply = await self._on_memory("update", name, token(expected), keys.member(name), look, *changes, durable=True)
        return memory_of(name, reply[1])

    async def delete_memory(self, name: MemoryName, *, expected: Revision | None = None) -> Revision:
        """Delete a memory, its log, its state and its ids at once; folds in flight lose. Returns the log's last revision.

        Raises:
            MemoryNotFoundError: there is no such memory.
            RevisionMismatchError: the log is not at ``expected``.
        """
        memory = await self.get_memory(name)
        told = keys.member(name), keys.moved_channel(name.partition)
        while True:
            try:
                reply = await self._on_memory("delete", name, memory.incarnation, token(expected), *told, durable=True)
                last = Revision(memory.incarnation, int(reply[2]))
                break
            except MemoryNotFoundError:
                here = await self._renamed(memory)
                if here is None:
                    # It was there a moment ago: an earlier run of this very script, or another caller, has deleted it.
                    last = memory.revision
                    break
                memory = here
        await self._unindex(name, memory.incarnation)
        return last

    async def _renamed(self, memory: Memory) -> Memory | None:
        """The same memory under a new incarnation: turns were removed meanwhile. None: it is gone, or was made again."""
        try:
            here = await self.get_memory(memory.name)
        except MemoryNotFoundError:
            return None
        same = here.create_ms == memory.create_ms and here.incarnation != memory.incarnation
        return here if same else None

    async def _describe(self, names: Sequence[MemoryName]) -> list[Memory]:
        """The memories of these names that are there, whatever incarnation an index entry is of.

        A memory that is just getting another one is listed under the old, under the new, or under both.
        """
        replies = await self._on_each("get", names)
        return [memory_of(name, reply[1]) for name, reply in zip(names, replies, strict=True) if reply[0] == b"OK"]

    async def _index(self, name: MemoryName, incarnation: str) -> None:
        """Entered before the memory exists: a list may know too much, never too little."""
        await self._server.command("ZADD", keys.tenant_index(name.tenant), 0, keys.index_entry(name, incarnation))

    async def _unindex(self, name: MemoryName, incarnation: str) -> None:
        await self._server.command("ZREM", keys.tenant_index(name.tenant), keys.index_entry(name, incarnation))


def new_incarnation() -> str:
    """Random, never a counter: a counter could come round to a value that an old fold still holds."""
    return secrets.token_hex(6)


def token(revision: Revision | None) -> str:
    """A revision as scripts take it."""
    return "" if revision is None else str(revision)


def memory_of(name: MemoryName, described: Sequence[Any]) -> Memory:
    """Read what ``describe`` in the scripts wrote."""
    flat, applied, state_bytes, quarantined, building_applied, building_quarantined = described
    meta = {flat[at].decode(): flat[at + 1].decode() for at in range(0, len(flat), 2)}
    return Memory(
        name=name,
        incarnation=meta["incarnation"],
        display_name=meta["display_name"],
        labels=json.loads(meta["labels"]),
        create_ms=int(meta["create_ms"]),
        update_ms=int(meta["update_ms"]),
        head=int(meta["head"]),
        applied=int(applied),
        turn_count=int(meta["count"]),
        log_bytes=int(meta["bytes"]),
        state_bytes=int(state_bytes),
        fingerprint=meta["fingerprint"],
        last=int(meta["last"]),
        building=meta.get("building", ""),
        building_applied=int(building_applied),
        building_quarantined=int(building_quarantined),
        quarantined=int(quarantined),
        forked_from=meta.get("forked_from", ""),
        policy=Policy.from_json(meta.get("policy", "")),
    )
