"""The files of Redis: what was deleted in memory stands in them until they are written anew.

A rewrite covers what was deleted before it began, so those who wait for one draw a number, and one rewrite serves all
numbers drawn before it: a thousand deletions do not make a thousand rewrites. Numbers belong to one run of one server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memfold.store import keys
from memfold.store.part import StorePart
from memfold.store.server import Node

_KEPT_S = 24 * 3600
_FAILURES = 3
_REST_MS = 60_000
"""Where nobody waits for it, a rewrite begins so long after the last at the earliest."""


@dataclass(frozen=True, slots=True)
class _File:
    """A kind of file: what starts its rewrite, and where INFO says how the last one ended."""

    command: str
    status: str


_FILES = {
    "aof": _File("BGREWRITEAOF", "aof_last_bgrewrite_status"),
    "rdb": _File("BGSAVE", "rdb_last_bgsave_status"),
}
_BUSY = ("aof_rewrite_in_progress", "aof_rewrite_scheduled", "rdb_bgsave_in_progress")


class Persistence(StorePart):
    """Has the files of the node that holds a key written anew, without waiting inside."""

    async def want_rewrite(self, key: str) -> dict[str, Any]:
        """Draw a number for each file that the node of a key writes; JSON, to be shown to ``rewritten``."""
        node = self._server.node_of(key)
        info = await self._info(node)
        wanted: dict[str, int] = {}
        numbers = keys.rewrites(info["run_id"])
        for file in await self._files(node, info):
            wanted[file] = await self._server.command("HINCRBY", numbers, f"{file}:wanted", 1)
        if wanted:
            await self._server.command("EXPIRE", numbers, _KEPT_S)
        return {"run_id": info["run_id"], "files": wanted, "notes": [] if wanted else ["the store writes no files"]}

    async def rewritten(self, key: str, ticket: dict[str, Any]) -> bool:
        """Whether each file has been written anew since, or cannot be; starts the rewrites that are due.

        ``notes`` of the ticket, which is changed, then say which could not be, and why.
        """
        node = self._server.node_of(key)
        for file, number in list(ticket["files"].items()):
            refusal = await self._drive(node, ticket["run_id"], file, number, rest_ms=0)
            if refusal is None:
                continue
            del ticket["files"][file]
            if refusal:
                ticket["notes"].append(f"{file}: {refusal}")
        if ticket["files"] and (await self._info(node))["run_id"] != ticket["run_id"]:
            ticket |= await self.want_rewrite(key) | {"notes": ticket["notes"]}
        return not ticket["files"]

    async def rewrite_files(self) -> None:
        """Start what rewrites are wanted and nobody waits for, on every node; not too often."""
        for node in self._server.nodes():
            run_id = (await self._info(node))["run_id"]
            wanted = await self._server.command("HMGET", keys.rewrites(run_id), *(f"{file}:wanted" for file in _FILES))
            for file, number in zip(_FILES, wanted, strict=True):
                if number is not None:
                    await self._drive(node, run_id, file, int(number), rest_ms=_REST_MS)

    async def _drive(self, node: Node, run_id: str, file: str, number: int, *, rest_ms: int) -> str | None:
        """One look: '' where it is done, why it cannot be done, None where it takes longer."""
        numbers = keys.rewrites(run_id)
        fields = [f"{file}:{name}" for name in ("started", "wanted", "finished", "failures", "asked_ms")]
        # Read before INFO, and compared when written: else a rewrite that began in between would be taken for finished.
        found = await self._server.command("HMGET", numbers, *fields)
        started, wanted, finished, failures, asked_ms = (int(value or 0) for value in found)
        if finished >= number:
            return ""
        info = await self._info(node)
        if info["run_id"] != run_id or any(int(info.get(name, 0)) for name in _BUSY):
            return None
        mark = numbers, fields[0], found[0] or b""
        if started > finished:
            if info.get(_FILES[file].status) == "ok":
                await self._note(*mark, {fields[2]: started, fields[3]: 0})
                return "" if started >= number else None
            await self._note(*mark, {fields[0]: finished, fields[3]: failures + 1})
            return f"failed {_FAILURES} times" if failures + 1 >= _FAILURES else None
        now = await self._server.now_ms()
        if now >= asked_ms + rest_ms:
            _, refusal = await self._server.ask(node, _FILES[file].command)
            if refusal and "in progress" not in refusal:
                return f"refused ({refusal})"
            if not refusal:
                await self._note(*mark, {fields[0]: wanted, fields[4]: now})
        return None

    async def _note(self, numbers: str, field: str, read: bytes, changes: Mapping[str, int]) -> None:
        """Note where the rewrites stand, unless somebody else has since ``field`` was read."""
        pairs = [part for pair in changes.items() for part in pair]
        await self._server.run("mark_rewrites", [numbers], field, read, *pairs)

    async def _files(self, node: Node, info: Mapping[str, str]) -> list[str]:
        """The files that the node writes. Where it does not tell whether it takes snapshots, it is taken to."""
        config, refusal = await self._server.ask(node, "CONFIG GET", "save")
        snapshots = bool(refusal) or any(config.values())
        return ["aof"] * (info.get("aof_enabled") == "1") + ["rdb"] * snapshots

    async def _info(self, node: Node) -> dict[str, str]:
        found, refusal = await self._server.ask(node, "INFO")
        if refusal:
            return {"run_id": "unknown"}
        return {name: str(value) for name, value in found.items()}
