"""Clients: they append, wait, ask, score, go away in the middle, and replace old memories by new ones."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from memfold import persona
from memfold.api.errors import DeadlineError, MemfoldError
from memfold.api.generation import Stale, UpdateMode
from memfold.api.values import Revision, Role, Turn
from memfold.client import AsyncMemfold, AsyncReply
from memfold.local.connection import Connection
from platform_load.ledger import Known, Ledger

TIMEOUT_S = 60.0
MOST_UNDER_WAY = 400
FILL_AT_ONCE = 20
DIALOGUES = 200


@dataclass(frozen=True, slots=True)
class Rates:
    """What the clients do.

    Attributes:
        appends, generations, scores: calls a second, at random moments (Poisson).
        memories: that live at a time.
        life: turns after which a memory is deleted, and another takes its place.
        max_tokens: of a reply.
    """

    appends: float
    generations: float
    scores: float
    memories: int = 48
    life: int = 60
    max_tokens: int = 24


class Traffic:
    """The clients of one platform, on one event loop.

    Args:
        connection: the gateway.
        rates: what they do.
        ledger: where they note it.
        seed: of all that is left to chance.
    """

    def __init__(self, connection: Connection, rates: Rates, ledger: Ledger, seed: int) -> None:
        self._connection, self._rates, self._ledger = connection, rates, ledger
        self._dice = random.Random(seed)
        self._client = self._new_client()
        self._made = 0
        self._memories = [self._new_memory() for _ in range(rates.memories)]
        self._under_way: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()

    async def fill(self) -> None:
        """Give the memories logs of all ages, so that from the first second as many are young and old as ever after."""
        step = asyncio.Semaphore(8)

        async def fill_one(at: int, known: Known) -> None:
            async with step:
                for begin in range(0, at * self._rates.life // self._rates.memories, FILL_AT_ONCE):
                    end = min(begin + FILL_AT_ONCE, at * self._rates.life // self._rates.memories)
                    await self._append(known, end - begin)
                if known.acknowledged is not None:
                    await self._client.wait(known.name, known.acknowledged, timeout_s=TIMEOUT_S)

        await asyncio.gather(*(fill_one(at, known) for at, known in enumerate(self._memories)))

    async def run(self, seconds: float) -> None:
        """Let calls arrive for so long, whatever has become of those before; then wait for the last."""
        until = time.perf_counter() + seconds
        await asyncio.gather(
            self._arrivals(self._rates.appends, self._ingest, until),
            self._arrivals(self._rates.generations, self._generate, until),
            self._arrivals(self._rates.scores, self._score, until),
        )
        await asyncio.gather(*self._under_way, return_exceptions=True)

    async def count(self) -> None:
        """Hold the logs against what was acknowledged."""
        failed = any(key.startswith(("append", "stream")) for key in self._ledger.errors)
        for known in self._memories:
            if known.acknowledged is None or failed:  # what failed may have been written all the same
                continue
            memory = await self._client.get_memory(known.name)
            if memory.turn_count != known.acknowledged.sequence:
                self._ledger.wrong.append(f"{known.name}: {memory.turn_count} turns, {known.acknowledged} acknowledged")

    async def _arrivals(self, rate: float, call: Callable[[float], Coroutine[Any, Any, None]], until: float) -> None:
        """Start a call at each moment. Latencies count from that moment, however busy this process is."""
        due = time.perf_counter()
        while rate:
            due += self._dice.expovariate(rate)
            if due >= until:
                return
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            if len(self._under_way) >= MOST_UNDER_WAY:
                self._ledger.errors["not sent: too many calls under way"] += 1
                continue
            task = asyncio.create_task(call(due))
            self._under_way.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._ledger.errors[f"client {fault!r}"] += 1

    async def _ingest(self, due: float) -> None:
        """Append one to three turns, or stream ten; now and then wait until they are folded."""
        async with self._use(empty=True) as known:
            if self._dice.random() < 0.1:
                await self._counted("stream", self._stream(known))
                return
            asked = await self._counted("append", self._append(known, self._dice.randint(1, 3)))
            if asked is None:
                return
            self._ledger.took("ack", time.perf_counter() - due)
            if self._dice.random() < 0.3:
                wait = self._client.wait(known.name, asked, timeout_s=TIMEOUT_S)
                folded = await self._counted("wait", wait)
                if folded is not None:
                    self._ledger.took("folded", time.perf_counter() - due)
                    self._ledger.waited(known, folded, asked)

    async def _generate(self, due: float) -> None:
        """Ask; some go away in the middle, some have too little time, some read slowly, some connect anew."""
        async with self._use() as known:
            way = self._dice.choices(("whole", "leaves", "hurried", "slow", "connects"), (76, 10, 5, 4, 5))[0]
            asked = known.acknowledged if self._dice.random() < 0.7 else None
            if way == "connects":
                async with self._new_client() as client:
                    await self._counted("generate", self._ask(client, known, asked, due, way))
            elif way == "hurried":
                timeout_s = self._dice.uniform(0.02, 0.4)
                call = self._ask(self._client, known, asked, due, way, timeout_s)
                await self._counted("generate", call, expected=DeadlineError)
            else:
                await self._counted("generate", self._ask(self._client, known, asked, due, way))

    async def _ask(
        self,
        client: AsyncMemfold,
        known: Known,
        asked: Revision | None,
        due: float,
        way: str,
        timeout_s: float = TIMEOUT_S,
    ) -> bool:
        folded, sampled = known.folded, self._dice.random() < 0.5
        stale = self._dice.choices(list(Stale), (6, 2, 2))[0]
        question = self._dice.choice(_dialogue(known.seed).questions).text
        reply = client.generate(
            question,
            memory=known.name,
            min_revision=asked,
            stale=stale,
            update=self._dice.choices(list(UpdateMode), (8, 2))[0],
            report_influence=self._dice.random() < 0.1,
            window_tokens=self._dice.choice((0, 0, 64)),
            temperature=2.0 if sampled else 0.0,  # hot, so that answers get long
            seed=self._dice.getrandbits(31) if sampled else None,
            max_tokens=self._rates.max_tokens,
            timeout_s=timeout_s,
        )
        async with reply:
            if not await self._read(reply, way, due):
                self._ledger.expected["generate left by its client"] += 1
                return True
        assert reply.summary is not None, "a reply ends with a summary"
        self._ledger.tokens += reply.summary.generated_tokens
        self._ledger.answered(known, asked, stale, folded, reply.summary)
        return True

    async def _read(self, reply: AsyncReply, way: str, due: float) -> bool:
        """Take a reply piece by piece; False for a client that left."""
        leaves_after = self._dice.randint(0, 6) if way == "leaves" else None
        if leaves_after == 0:
            await asyncio.sleep(self._dice.uniform(0, 0.1))
            return False
        seen, last = 0, 0.0
        async for _ in reply:
            now = time.perf_counter()
            if not seen:
                self._ledger.took("first token", now - due)
            elif way != "slow":
                self._ledger.took("gap between tokens", now - last)
            seen, last = seen + 1, now
            if seen == leaves_after:
                return False
            if way == "slow":
                await asyncio.sleep(0.1)
        return True

    async def _score(self, due: float) -> None:  # noqa: ARG002 - every call is told
        async with self._use() as known:
            question = self._dice.choice(_dialogue(known.seed).questions)
            answers = [question.answer, "I do not know."]
            call = self._client.score(
                answers,
                messages=question.text,
                memory=known.name,
                min_revision=known.acknowledged,
                timeout_s=TIMEOUT_S,
            )
            await self._counted("score", call)

    async def _append(self, known: Known, count: int) -> Revision:
        turns = self._turns(known, count)
        appended = await self._client.append(known.name, turns, create=True)
        known.acknowledge(appended.revision)
        self._ledger.turns += count
        return appended.revision

    async def _stream(self, known: Known) -> bool:
        async for ack in self._client.stream(((known.name, turn) for turn in self._turns(known, 10)), create=True):
            if ack.revision is None:
                assert ack.error is not None
                raise ack.error
            known.acknowledge(ack.revision)
            self._ledger.turns += 1
        return True

    async def _counted(self, what: str, call: Awaitable[Any], expected: type[MemfoldError] | None = None) -> Any:
        """The answer, or None for an error, which is counted by its code; apart, where it was asked for."""
        try:
            answer = await call
        except MemfoldError as error:
            asked_for = expected is not None and isinstance(error, expected)
            (self._ledger.expected if asked_for else self._ledger.errors)[f"{what} {error.reason}"] += 1
            return None
        self._ledger.done[what] += 1
        return answer

    @asynccontextmanager
    async def _use(self, *, empty: bool = False) -> AsyncIterator[Known]:
        """A memory, at random; whoever is last to use one that has lived long enough deletes it."""
        fit = self._memories if empty else [one for one in self._memories if one.acknowledged is not None]
        known = self._dice.choice(fit)
        known.busy += 1
        try:
            yield known
        finally:
            known.busy -= 1
            if known.sent >= self._rates.life and not known.retired:
                known.retired = True
                self._memories[self._memories.index(known)] = self._new_memory()
            if known.retired and not known.busy:
                await self._counted("delete", self._client.delete_memory(known.name, allow_missing=True))

    def _turns(self, known: Known, count: int) -> list[Turn]:
        lines = _dialogue(known.seed).lines
        said = [lines[at % len(lines)] for at in range(known.sent, known.sent + count)]
        known.sent += count
        return [Turn("", Role(line.role), line.content) for line in said]

    def _new_memory(self) -> Known:
        self._made += 1
        return Known(f"load-{self._made:06}", self._made % DIALOGUES)

    def _new_client(self) -> AsyncMemfold:
        return AsyncMemfold(self._connection.target, self._connection.api_key)


@cache
def _dialogue(seed: int) -> persona.Dialogue:
    return persona.generate(seed, facts=6, changes=2, small_talk=10)
