"""A platform under load, the faults that can be put on it, and what became of all that clients were told."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from memfold_faults.chain import NAMES, fingerprint
from memfold_faults.history import Book, Verdict, judge
from memfold_faults.load import Client, Historian, Streamer, Talker
from memfold_faults.rig import Nursery, Process, Rig, until
from redis import Redis

from memfold.api.errors import StoreUnavailableError
from memfold.api.values import MemoryName
from memfold.store import Durability, Store
from memfold.store.keys import memory_keys

POINTS = ("after claim", "after read", "after compute", "before commit", "after commit", "before ack")
LOST_HINTS, DOUBLED_HINTS = 0.2, 0.1


Held = dict[tuple[MemoryName, str], tuple[int, int]]
"""(memory, fingerprint) -> where its log ended, and the fence of the claim."""


@dataclass(frozen=True)
class Kill:
    """A writer that died: where, and how long what it held went unfolded; None where it held nothing.

    ``disturbed``: something else failed meanwhile, which is not what the bound is about.
    """

    point: str
    folded_s: float | None
    disturbed: bool


class World:
    """A rig with clients. Two writers, of an old model and a new one, always live; more come to be killed."""

    def __init__(self, folder: Path, nursery: Nursery, seed: int, *, lease_s: float, reconcile_s: float) -> None:
        hints = {"seed": seed, "lost": LOST_HINTS, "doubled": DOUBLED_HINTS}
        self.rig = Rig(folder, nursery, lease_s=lease_s, reconcile_s=reconcile_s, hints=hints)
        self.dice, self._seed = random.Random(seed), seed
        self.clients: list[Client] = []
        self.kills: list[Kill] = []
        self.counts: Counter[str] = Counter()
        self._disturbances = 0
        self._steady: list[Process] = []
        self._dead: set[int] = set()

    async def start(self, *, pause_s: float = 0.1) -> None:
        """Bring everything up and begin to talk."""
        await self.rig.start()
        self.store = await Store.open(self.rig.redis.url, durability=Durability.FSYNC)
        self._steady = [await self.rig.start_writer(name) for name in NAMES]
        await self.rig.start_gateway()
        target = self.rig.target
        self.clients = [Talker(target, f"talker-{at}", self._seed, 6, pause_s) for at in range(4)]
        self.clients += [Streamer(target, f"streamer-{at}", self._seed, 8, pause_s) for at in range(2)]
        self.clients += [Historian(target, f"historian-{at}", self._seed, 3, 2 * pause_s) for at in range(2)]
        await until(lambda: all(client.acknowledged for client in self.clients))
        await self.recover()

    async def close(self) -> None:
        """End everything, whatever has come to pass."""
        for client in self.clients:
            client._task.cancel()
        await asyncio.gather(*(client._task for client in self.clients), return_exceptions=True)
        await self.store.close()
        await self.rig.close()

    @property
    def books(self) -> list[Book]:
        """Of all clients."""
        return [book for client in self.clients for book in client.books]

    @property
    def acknowledged(self) -> int:
        """Turns that clients were told are safe."""
        return sum(client.acknowledged for client in self.clients)

    def hints(self) -> Counter[str]:
        """How many hints the gateways sent, lost on purpose, doubled."""
        total: Counter[str] = Counter()
        for log in self.rig.folder.glob("gateway-*.log"):
            for line in log.read_text("utf-8", "replace").splitlines():
                if line.startswith("hints: "):
                    total.update({part.split()[1]: int(part.split()[0]) for part in line[7:].split(", ")})
        return total

    async def recover(self, timeout_s: float = 60) -> None:
        """Wait until every client gets answers and all that is in the logs now has been folded; nothing may have ended."""
        # Not the historians: what they ask for takes its time.
        before = {client: client.answers for client in self.clients if not isinstance(client, Historian)}
        await until(
            lambda: all(client.over or client.answers > at for client, at in before.items()),
            timeout_s=timeout_s,
            why=f"a client got no answer in {timeout_s} s",
        )
        heads = {}
        for book in self.books:
            if book.head:
                memory = await self._patiently(lambda name=book.name: self.store.get_memory(name))
                heads[book.name] = memory.revision
        await until(lambda: self._folded(heads), timeout_s=timeout_s, why=f"not folded in {timeout_s} s")
        for client in self.clients:
            client.check()
        assert self.rig.gateway.alive
        assert all(writer.alive for writer in self._steady)

    async def finish(self) -> Verdict:
        """Crash after the last turn: all writers die, and no hint is left. Then see what became of everything."""
        await asyncio.gather(*(client.stop() for client in self.clients))
        for writer in self.rig.writers:
            await writer.kill()
        self.wipe_broker()
        self.counts["writers killed after the last turn"] += len(NAMES)
        self._steady = [await self.rig.start_writer(name) for name in NAMES]
        await self.recover()
        return await judge(self.store, self.books)

    # Faults ----------------------------------------------------------------------------------------------------

    async def kill_writer(self, point: str, passage: int) -> None:
        """A writer comes, works, and dies by SIGKILL at this passage through a point."""
        before = self._disturbances
        writer = await self.rig.start_writer(kill=(point, passage), ready=False)
        try:
            await writer.dead(20)
        except TimeoutError:  # it never came so far
            point = "anywhere"
            await writer.kill()
        self.counts["writers killed"] += 1
        self._dead.add(writer.pid)
        held = await self._patiently(lambda: self._held_by(writer))
        folded_s = None
        while held:
            waiting = await self._patiently(lambda known=held: self._unfolded(known))
            taken = await self._patiently(lambda known=held: self._taken_by_the_dead(known))
            if any(line not in waiting and line not in taken for line in held):
                folded_s = time.monotonic() - writer.dead_at
            held = {line: known for line, known in held.items() if line in waiting and line not in taken}
            assert time.monotonic() - writer.dead_at < 60, f"{held} not folded after {point}"
            await asyncio.sleep(0.01)
        self.kills.append(Kill(point, folded_s, disturbed=self._disturbances != before))

    async def stop_writer(self) -> None:
        """A writer sleeps past its lease and goes on, with a claim that is not its own any more."""
        writer = await self.rig.start_writer(pause_s=0.3)

        async def holds() -> bool:
            return bool(await self._held_by(writer))

        await until(holds)
        writer.signal(signal.SIGSTOP)
        held = await self._held_by(writer)
        await asyncio.sleep(self.rig.lease_s + 1)

        async def folded() -> bool:
            return not await self._patiently(lambda: self._unfolded(held))

        await until(folded)
        writer.signal(signal.SIGCONT)
        self.counts["writers stopped past their lease"] += 1
        await asyncio.sleep(1)
        assert writer.alive
        writer.signal(signal.SIGTERM)
        await writer.dead()

    async def kill_redis(self) -> None:
        """The store dies and comes back with what is on its disk."""
        self._disturbances += 1
        self.rig.redis.kill()
        await asyncio.sleep(self.dice.uniform(0.1, 0.6))
        self.rig.redis.restart()
        self.counts["redis killed"] += 1

    async def kill_broker(self) -> None:
        """The broker dies, keeping nothing."""
        self._disturbances += 1
        self.rig.broker.kill()
        await asyncio.sleep(self.dice.uniform(0.1, 0.6))
        self.rig.broker.restart()
        self.counts["broker killed"] += 1

    def wipe_broker(self) -> None:
        """Every hint is gone, and everything that the broker knows of its queues."""
        with Redis.from_url(self.rig.broker.url) as client:
            client.flushall()
        self.counts["broker wiped"] += 1

    def flush_scripts(self) -> None:
        """Redis knows no script any more."""
        with Redis.from_url(self.rig.redis.url) as client:
            client.script_flush()
        self.counts["scripts flushed"] += 1

    async def fill_store(self) -> None:
        """The store takes nothing for a while."""
        self._disturbances += 1
        with Redis.from_url(self.rig.redis.url) as client:
            client.config_set("maxmemory", 1)
            await asyncio.sleep(1)
            client.config_set("maxmemory", 0)
        self.counts["store full"] += 1

    async def kill_gateway(self) -> None:
        """The gateway dies in the middle of calls and streams, and another takes its place."""
        await self.rig.gateway.kill()
        await self.rig.start_gateway()
        self.counts["gateways killed"] += 1

    async def break_link(self, link: str, mode: str, seconds: float = 1.0, after_s: float = 0) -> None:
        """A link fails for a while."""
        await asyncio.sleep(after_s)
        self._disturbances += 1
        await self.rig.links[link].fail(mode, seconds)
        self.counts[f"links {mode}"] += 1

    # What the store knows -----------------------------------------------------------------------------------------

    async def _held_by(self, writer: Process) -> Held:
        """What a writer has claimed: (memory, fingerprint) -> the log's end."""
        lines = [(book.name, one) for book in self.books for one in map(fingerprint, NAMES)]
        keys = [memory_keys(name, one) for name, one in lines]
        found = await self.store._server.commands([("HMGET", key.line, "owner", "fence") for key in keys])
        heads = await self.store._server.commands([("HGET", key.meta, "head") for key in keys])
        held: Held = {}
        for line, (owner, fence), head in zip(lines, found, heads, strict=True):
            if head and f"-{writer.pid}-" in (owner or b"").decode():
                held[line] = int(head), int(fence)
        return held

    async def _unfolded(self, held: Held) -> set[tuple[MemoryName, str]]:
        """Those that do not stand there yet, nor have another history since."""
        keys = [memory_keys(*line) for line in held]
        found = await self.store._server.commands([("HGET", key.line, "applied") for key in keys])
        heads = await self.store._server.commands([("HGET", key.meta, "head") for key in keys])
        return {
            line
            for line, applied, head in zip(held, found, heads, strict=True)
            if applied is not None and int(applied) < min(held[line][0], int(head or 0))
        }

    async def _taken_by_the_dead(self, held: Held) -> set[tuple[MemoryName, str]]:
        """Those that another writer has claimed and died with: the wait from now on is of its death."""
        keys = [memory_keys(*line) for line in held]
        found = await self.store._server.commands([("HMGET", key.line, "owner", "fence") for key in keys])
        return {
            line
            for line, (owner, fence) in zip(held, found, strict=True)
            if owner and any(f"-{pid}-" in owner.decode() for pid in self._dead) and int(fence) > held[line][1]
        }

    async def _folded(self, heads: dict) -> bool:
        try:
            memories = await asyncio.gather(*(self.store.get_memory(name) for name in heads))
        except StoreUnavailableError:
            return False
        return all(
            memory.incarnation != revision.incarnation or memory.applied >= revision.sequence
            for memory, revision in zip(memories, heads.values(), strict=True)
        )

    async def _patiently(self, call):
        """What the store answers, once it does."""
        answer = []

        async def answered() -> bool:
            with contextlib.suppress(StoreUnavailableError):
                answer.append(await call())
            return bool(answer)

        await until(answered)
        return answer[0]


def waits(kills: Iterable[Kill]) -> list[float]:
    """How long what a killed writer held went unfolded, ascending, where nothing else failed meanwhile."""
    return sorted(kill.folded_s for kill in kills if kill.folded_s is not None and not kill.disturbed)
