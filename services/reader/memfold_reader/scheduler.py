"""Who is in, and who runs next. Plain bookkeeping: no model, no thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from memfold_reader.work import Work

PREFILL_TOKENS = 512  # of prompts in one step
LEAST_PREFILL_TOKENS = 16
GAP = 1.5  # prompts may hold up those who stream by so many times the time of their own step
WAITING_PER_PLACE = 8
_SMOOTHING = 0.2

T = TypeVar("T", bound=Work)


@dataclass(slots=True)
class Plan(Generic[T]):
    """One step: first a token of each in ``decode``, then pieces of prompts."""

    decode: list[T] = field(default_factory=list)
    prefill: list[tuple[T, int]] = field(default_factory=list)


class Scheduler(Generic[T]):
    """Keeps ``places`` requests active and some more waiting.

    Every active request whose client keeps up gets a token in every step. Prompts share what a budget of tokens leaves;
    places and prompts go to the tenant that has had the least service, within one to whoever came first. A tenant
    that comes back starts level with the least served of those present: nobody saves up service by being away.

    Args:
        places: active requests at most.
    """

    def __init__(self, places: int) -> None:
        assert places > 0
        self.places = places
        self.active: list[T] = []
        self._waiting: dict[str, deque[T]] = {}
        self._service: dict[str, float] = {}
        self._step_s = 0.0  # of a step of those who stream
        self._token_s = 0.0  # of one token of a prompt

    @property
    def waiting(self) -> int:
        """Requests that have no place yet."""
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[T]:
        yield from self.active
        yield from self.unstarted()

    def unstarted(self) -> Iterator[T]:
        """Those that wait for a place."""
        for queue in self._waiting.values():
            yield from queue

    def has_room(self, tenant: str) -> bool:
        """Whether one more of a tenant's may wait. Where one has filled the queue, the others still get their share."""
        room, own = self.places * WAITING_PER_PLACE, len(self._waiting.get(tenant, ()))
        return self.waiting < room or own < room // (1 + len(self._waiting))

    def add(self, work: T) -> None:
        """Let a request wait for a place."""
        assert self.has_room(work.tenant)
        if work.tenant not in self._service:
            self._service[work.tenant] = min(self._service.values(), default=0.0)
        self._waiting.setdefault(work.tenant, deque()).append(work)

    def remove(self, work: T) -> None:
        """Forget a request; harmless where it is unknown."""
        self.active = [other for other in self.active if other is not work]
        queue = self._waiting.get(work.tenant)
        if queue is not None:
            self._waiting[work.tenant] = deque(other for other in queue if other is not work)
        self._tidy(work.tenant)

    def can_move(self) -> bool:
        """Whether a step would do anything."""
        return (len(self.active) < self.places and bool(self._waiting)) or any(work.can_step() for work in self.active)

    def plan(self) -> Plan[T]:
        """Fill the free places, and say what to run."""
        while self._waiting and len(self.active) < self.places:
            self.active.append(self._next())
        plan: Plan[T] = Plan()
        prompts: list[T] = []
        for work in self.active:
            if work.can_step():
                (plan.decode if work.decodes() else prompts).append(work)
        budget = self._budget(bool(plan.decode))
        # Sorting is stable: within a tenant, who came first.
        for work in sorted(prompts, key=lambda work: self._service[work.tenant]):
            if budget > 0:
                plan.prefill.append((work, work.chunk(budget)))
                budget -= plan.prefill[-1][1]
        return plan

    def ran(self, works: Iterable[T], tokens: int) -> None:
        """Charge tenants for so many tokens of each of these."""
        for work in works:
            if work.tenant in self._service:
                self._service[work.tenant] += tokens

    def took(self, *, step_s: float = 0.0, prefill_s: float = 0.0, prefill_tokens: int = 0) -> None:
        """Note how long a step took: that of those who stream, and that of prompts."""
        if step_s:
            self._step_s = _smooth(self._step_s, step_s)
        if prefill_tokens:
            self._token_s = _smooth(self._token_s, prefill_s / prefill_tokens)

    def _budget(self, streaming: bool) -> int:
        """How many tokens of prompts go with a step."""
        if not streaming or not self._step_s or not self._token_s:
            return PREFILL_TOKENS
        return max(LEAST_PREFILL_TOKENS, min(PREFILL_TOKENS, int(GAP * self._step_s / self._token_s)))

    def _next(self) -> T:
        tenant = min(self._waiting, key=lambda tenant: self._service[tenant])
        queue = self._waiting[tenant]
        work = queue.popleft()
        if not queue:
            del self._waiting[tenant]
        self._service[tenant] += 1.0  # so that those who are level take turns
        return work

    def _tidy(self, tenant: str) -> None:
        if not self._waiting.get(tenant):
            self._waiting.pop(tenant, None)
            if all(work.tenant != tenant for work in self.active):
                self._service.pop(tenant, None)


def _smooth(before: float, now: float) -> float:
    return now if not before else before + _SMOOTHING * (now - before)
