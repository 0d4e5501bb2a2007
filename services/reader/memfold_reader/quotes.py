"""What of a memory's log stands in a prompt word for word: passages found by their words, and the newest turns."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass

from memfold.api.values import Memory, MemoryName, Role, Turn
from memfold.search import Search
from memfold.store import Store
from memfold_reader.inline import Encode

_PAGE_TURNS = 32
_CANDIDATES = 32  # passages looked at; what does not fit is passed over


@dataclass(frozen=True, slots=True)
class Passage:
    """A turn that was found for a request, and how well it fits; its exchange comes with it."""

    id: str
    sequence: int
    score: float


@dataclass(frozen=True, slots=True)
class Quotes:
    """Turns of a log for a prompt.

    Attributes:
        tokens: of each turn, in log order: the passages, then the window.
        passages: the best first.
        window_turns: how many of the turns are the newest ones.
    """

    tokens: list[list[int]]
    passages: tuple[Passage, ...] = ()
    window_turns: int = 0


NOTHING = Quotes([])


class Quoter:
    """Reads turns of logs for prompts.

    Args:
        store: where the logs are.
        encode: turns to tokens.
    """

    def __init__(self, store: Store, encode: Encode) -> None:
        self._store = store
        self._search = Search(store)
        self._encode = encode

    async def quote(self, memory: Memory, query: str, *, recall: int, window: int, room: int) -> Quotes | None:
        """The newest turns, and of the others those that fit a query best.

        Args:
            memory: whose.
            query: what to look for.
            recall, window: tokens of passages and of the newest turns, at most.
            room: tokens of both together, at most; the newest turns come first.

        Returns:
            None where the memory has been changed by more than appends since it was read: its turns are others now.

        Raises:
            MemoryNotFoundError: it is gone.
            StoreUnavailableError: the store does not answer.
        """
        newest = await self._newest(memory, min(window, room))
        room -= sum(map(len, newest.values()))
        passages, found = await self._found(memory, query, min(recall, room), newest)
        # Turns are read by name: they may be those of a memory that has taken this one's place.
        if (newest or found) and (await self._store.get_memory(memory.name)).incarnation != memory.incarnation:
            return None
        tokens = [found[sequence] for sequence in sorted(found)] + [newest[sequence] for sequence in sorted(newest)]
        return Quotes(tokens, passages, len(newest))

    async def _newest(self, memory: Memory, budget: int) -> dict[int, list[int]]:
        """Tokens of the newest turns, by sequence, without a gap."""
        chosen: dict[int, list[int]] = {}
        until = memory.head
        while budget > 0 and until > 0:
            turns = await self._store.read_tail(memory.name, until=until, limit=_PAGE_TURNS)
            if not turns:
                break
            for turn, tokens in zip(reversed(turns), reversed(await self._encode(turns)), strict=True):
                budget -= len(tokens)
                if budget < 0:
                    break
                chosen[turn.sequence] = tokens
            until = turns[0].sequence - 1
        return chosen

    async def _found(
        self, memory: Memory, query: str, budget: int, shown: Collection[int]
    ) -> tuple[tuple[Passage, ...], dict[int, list[int]]]:
        """Passages, the best first, and their tokens by sequence."""
        if budget <= 0:
            return (), {}
        _, hits = await self._search.find(memory.name, query, _CANDIDATES)
        exchanges = await asyncio.gather(*(self._exchange(memory.name, hit.turn) for hit in hits))
        encoded = iter(await self._encode([turn for exchange in exchanges for turn in exchange]))
        passages: list[Passage] = []
        chosen: dict[int, list[int]] = {}
        for hit, exchange in zip(hits, exchanges, strict=True):
            tokens = {turn.sequence: next(encoded) for turn in exchange}
            new = {at: one for at, one in tokens.items() if at not in shown and at not in chosen}
            size = sum(map(len, new.values()))
            if hit.turn.sequence not in shown and size <= budget:
                budget -= size
                passages.append(Passage(hit.turn.id, hit.turn.sequence, hit.score))
                chosen |= new
        return tuple(passages), chosen

    async def _exchange(self, name: MemoryName, turn: Turn) -> list[Turn]:
        """A turn and the other half of its exchange: the reply that follows it, or what it replies to."""
        first = turn.sequence if turn.role is Role.USER else turn.sequence - 1
        pair = await self._store.read_turns(name, after=max(0, first - 1), limit=2)
        if [(one.sequence, one.role) for one in pair] == [(first, Role.USER), (first + 1, Role.ASSISTANT)]:
            return pair
        return [turn]
