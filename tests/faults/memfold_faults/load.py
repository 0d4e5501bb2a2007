"""Clients: each writes to memories of its own, repeats what was not acknowledged, and keeps books."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from memfold_faults.chain import fingerprint
from memfold_faults.history import Book, Seen
from memfold_faults.rig import API_KEY, TENANT

from memfold.api.errors import MemfoldError
from memfold.api.values import MemoryName, OperationKind, Role, Turn
from memfold.client import AsyncMemfold, ForgetReceipt, ForkReceipt, Operation, RollbackReceipt

T = TypeVar("T")

PASSING = {
    "UNREACHABLE", "STORE_UNAVAILABLE", "NOT_DURABLE", "MODEL_LOADING", "SHUTTING_DOWN", "DEADLINE_EXCEEDED",
    "CANCELLED", "BACKLOG_FULL", "STATE_DAMAGED",
}  # fmt: skip
CALL_S, PAUSE_S = 5.0, 0.05
_ROLES = (Role.USER, Role.ASSISTANT, Role.SYSTEM, Role.TOOL)


class Client:
    """What all clients do; ``stop`` ends it once everything that was sent is acknowledged."""

    def __init__(self, target: str, name: str, seed: int, memories: int, pause_s: float) -> None:
        self.dice = random.Random(f"{seed} {name}")
        self.books = [Book(MemoryName(TENANT, f"{name}-{at}")) for at in range(memories)]
        self.pause_s = pause_s
        self.answers = self.retries = 0
        self._memfold = AsyncMemfold(target, API_KEY, timeout_s=CALL_S)
        self._stopped = asyncio.Event()
        self._numbers = 0
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Finish what was begun; raises what the client stumbled over."""
        self._stopped.set()
        await self._task
        await self._memfold.close()

    def check(self) -> None:
        """Raise what it has stumbled over, if it has."""
        if self._task.done():
            self._task.result()

    @property
    def over(self) -> bool:
        """It has stopped, or stumbled."""
        return self._task.done()

    @property
    def acknowledged(self) -> int:
        """Turns that it was told are safe."""
        return sum(book.acknowledged for book in self.books)

    async def _run(self) -> None:
        while not self._stopped.is_set():
            await self._act(self.dice.choice(self.books))
            await asyncio.sleep(self.dice.uniform(0, 2 * self.pause_s))

    async def _act(self, book: Book) -> None:
        raise NotImplementedError

    def _turns(self, count: int) -> list[Turn]:
        return [self._turn() for _ in range(count)]

    def _turn(self) -> Turn:
        self._numbers += 1
        words = " ".join(self.dice.choice(("blue", "green", "Grüße", "\u2603")) for _ in range(self.dice.randint(1, 8)))
        role, speaker = self.dice.choice(_ROLES), self.dice.choice(("", "Caroline"))
        return Turn(f"turn-{self._numbers}", role, f"{self._numbers} {words}", speaker)

    async def _insist(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat a call until it is answered."""
        while True:
            try:
                answer = await call()
            except MemfoldError as error:
                if error.reason not in PASSING:
                    raise
            else:
                self.answers += 1
                return answer
            self.retries += 1
            await asyncio.sleep(PAUSE_S)

    async def _append(self, book: Book, turns: list[Turn]) -> None:
        appended = await self._insist(lambda: self._memfold.append(str(book.name), turns, create=True))
        for turn, ack in zip(turns, appended.turns, strict=True):
            assert turn.id == ack.id
            book.acknowledge(turn, ack.sequence, appended.revision, duplicate=ack.duplicate)

    async def _read(self, book: Book) -> None:
        if book.log:
            state = await self._insist(lambda: self._memfold.state(str(book.name), timeout_s=CALL_S))
            book.see(Seen(state.revision, state.fingerprint, state.data))


class Talker(Client):
    """Appends in batches, now and then something again, and reads states."""

    async def _act(self, book: Book) -> None:
        chance = self.dice.random()
        if chance < 0.05 and book.log:
            known = [*book.log.values()]
            at = self.dice.randrange(len(known))
            await self._append(book, known[at : at + 5])
        elif chance < 0.15:
            await self._read(book)
        else:
            await self._append(book, self._turns(self.dice.choice((1, 1, 2, 4, 12))))


class Streamer(Client):
    """Sends all its memories' turns over one stream, and those that were rejected again, each memory in order."""

    async def _run(self) -> None:
        self._flying: dict[MemoryName, deque[Turn]] = {book.name: deque() for book in self.books}
        self._back: dict[MemoryName, list[Turn]] = {book.name: [] for book in self.books}
        by_name = {str(book.name): book for book in self.books}
        async for ack in self._memfold.stream(self._outgoing(), create=True):
            book = by_name[ack.memory]
            turn = self._flying[book.name].popleft()
            assert turn.id == ack.id, (turn.id, ack)
            if ack.error is None:
                self.answers += 1
                book.acknowledge(turn, ack.sequence, ack.revision, duplicate=ack.duplicate)
            else:
                assert ack.error.reason in PASSING, ack.error
                self.retries += 1
                self._back[book.name].append(turn)

    async def _outgoing(self) -> AsyncIterator[tuple[str, Turn]]:
        while True:
            book = self.dice.choice([one for one in self.books if self._back[one.name]] or self.books)
            flying, back = self._flying[book.name], self._back[book.name]
            if not back and self._stopped.is_set():
                if not any(self._flying.values()):
                    return
            elif not back or not flying:  # what comes back is sent again once all of it is back
                turns = [*back] or [self._turn()]
                back.clear()
                for turn in turns:
                    flying.append(turn)
                    yield str(book.name), turn
            await asyncio.sleep(self.dice.uniform(0, 2 * self.pause_s))


class Historian(Client):
    """Appends, and takes back, forgets, copies, exchanges the model, while everything else goes on."""

    def __init__(self, *args, **kwargs) -> None:
        self.done: dict[str, int] = {}
        self._requests = 0
        super().__init__(*args, **kwargs)

    async def _act(self, book: Book) -> None:
        if len(book.log) < 6 or self.dice.random() < 0.6:
            await self._append(book, self._turns(self.dice.randint(1, 6)))
            await self._read(book)
            return
        act = self.dice.choice((self._rollback, self._forget, self._fork, self._rebuild))
        kind = await act(book)
        self.done[str(kind)] = self.done.get(str(kind), 0) + 1
        await self._read(book)

    async def _rollback(self, book: Book) -> OperationKind:
        memory = await self._insist(lambda: self._memfold.get_memory(str(book.name)))
        kept = await self._insist(lambda: self._memfold.revisions(str(book.name)))
        to = self.dice.choice([memory.revision, *(one.revision for one in kept)])
        receipt = await self._carry_out(lambda key: self._memfold.rollback(str(book.name), to, request_id=key))
        assert isinstance(receipt, RollbackReceipt)
        gone = [at for at in book.log if at > to.sequence]
        if receipt.removed_turns != len(gone):
            book.faults.append(f"rolled back to {to}: {receipt.removed_turns} turns removed, not {len(gone)}")
        book.begin_anew(receipt.revision, [at for at in book.log if at <= to.sequence])
        return OperationKind.ROLLBACK

    async def _forget(self, book: Book) -> OperationKind:
        chosen = self.dice.sample(sorted(book.log), k=self.dice.randint(1, 3))
        ids = [book.log[at].id for at in chosen]
        receipt = await self._carry_out(lambda key: self._memfold.forget(str(book.name), ids=ids, request_id=key))
        assert isinstance(receipt, ForgetReceipt)
        if sorted(receipt.sequences) != sorted(chosen):
            book.faults.append(f"forgot {sorted(chosen)}, was told {sorted(receipt.sequences)}")
        book.begin_anew(receipt.revision, [at for at in book.log if at not in chosen])
        return OperationKind.FORGET

    async def _fork(self, book: Book) -> OperationKind:
        new = MemoryName(TENANT, f"{book.name.memory}-copy-{self._requests}")
        receipt = await self._carry_out(lambda key: self._memfold.fork(str(book.name), str(new), request_id=key))
        assert isinstance(receipt, ForkReceipt)
        if receipt.turn_count != len(book.log):
            book.faults.append(f"copied {receipt.turn_count} turns, not {len(book.log)}")
        copy = book.copy(new, receipt.revision)
        if len(self.books) < 20:
            self.books.append(copy)
        return OperationKind.FORK

    async def _rebuild(self, book: Book) -> OperationKind:
        memory = await self._insist(lambda: self._memfold.get_memory(str(book.name)))
        wanted = next(one for one in map(fingerprint, ("chain-a", "chain-b")) if one != memory.fingerprint)
        await self._carry_out(lambda key: self._memfold.rebuild(str(book.name), fingerprint=wanted, request_id=key))
        return OperationKind.REBUILD

    async def _carry_out(self, ask: Callable[[str], Awaitable[Operation]]):
        """Ask for an operation, as often as it takes, and wait for its receipt."""
        self._requests += 1
        key = f"request-{self.books[0].name.memory}-{self._requests}"
        operation = await self._insist(lambda: ask(key))
        if not operation.done:
            name = operation.name
            operation = await self._insist(lambda: self._memfold.wait_operation(name, timeout_s=CALL_S))
        return operation.settled().receipt
