"""The claims that this writer holds: kept alive while it works, given back, put off after a failure."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from memfold.api.errors import MemfoldError, StoreUnavailableError
from memfold.api.values import MemoryName
from memfold.store import Claim, Store
from memfold_writer.metrics import Metrics

_log = logging.getLogger(__name__)

MAX_ATTEMPTS = 5
LONG_BACKOFF_S = 60.0
FIRST_BACKOFF_S = 0.5


def backoff_s(attempts: int) -> float:
    """How long a memory rests after its ``attempts``-th failure: doubling, and a minute from the fifth on."""
    return LONG_BACKOFF_S if attempts >= MAX_ATTEMPTS else FIRST_BACKOFF_S * 2 ** (attempts - 1)


def describe(error: BaseException) -> str:
    """Name an error for the log: its kind and place, and its text only where no turn can be quoted in it."""
    tells = isinstance(error, MemfoldError | RuntimeError)
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    place = f" at {frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}" if frame is not None else ""
    text = f": {error}".replace("\n", " ") if tells else ""
    return type(error).__name__ + text + place


class Claims:
    """Everything claimed and neither committed nor released yet.

    Leases are renewed in thirds, so that they can be short (a dead writer's memories come free soon) and a fold can be
    long: one turn may be a quarter of a million tokens, and no batch can be smaller than one turn.
    """

    def __init__(self, store: Store, metrics: Metrics, *, fingerprint: str, owner: str, lease_s: float) -> None:
        self._store = store
        self._metrics = metrics
        self._fingerprint = fingerprint
        self._owner = owner
        self._lease_s = lease_s
        self._held: dict[MemoryName, Claim] = {}
        self._owed: list[Claim] = []

    async def take(self, partition: int, limit: int) -> list[Claim]:
        """Claim what is due in a partition."""
        claims = await self._store.claim(
            self._fingerprint, partition, owner=self._owner, lease_s=self._lease_s, limit=limit
        )
        self._held.update({claim.name: claim for claim in claims})
        # A memory that kills its writers is never released by them: its lease is its backoff.
        await self._renew([claim for claim in claims if claim.attempts >= MAX_ATTEMPTS])
        return claims

    def drop(self, claim: Claim) -> None:
        """The claim is over: committed, lost, or its memory is gone."""
        if self._held.get(claim.name) == claim:
            del self._held[claim.name]

    def give_back_later(self) -> None:
        """The store is gone: what is held is given back once it answers, or else its leases end."""
        self._owed += self._held.values()
        self._held.clear()

    async def give_back(self, claims: Iterable[Claim] | None = None) -> None:
        """Let others have these (all that are held, by default) at once, as if they had never been claimed here."""
        claims = [*self._held.values()] if claims is None else [*claims]
        for claim in claims:
            self.drop(claim)
        await asyncio.gather(*(self._store.release(claim, delay_s=0, give_back=True) for claim in claims))

    async def fail(self, claim: Claim, error: BaseException, *, died: bool = False) -> None:
        """Put the memory off for a while; the attempt counts. ``died``: this process ends of it.

        Beyond the last attempt only deaths count: whoever claims the memory then takes them for its turn's doing.
        """
        self.drop(claim)
        delay_s = backoff_s(claim.attempts)
        level = logging.ERROR if claim.attempts >= MAX_ATTEMPTS else logging.WARNING
        _log.log(
            level,
            "attempt %d to fold %s beyond %d failed, next in %.1f s: %s",
            claim.attempts, claim.name, claim.applied, delay_s, describe(error),
        )  # fmt: skip
        self._metrics.failed(type(error).__name__)
        counts = died or claim.attempts < MAX_ATTEMPTS
        await self._store.release(claim, delay_s=delay_s, give_back=not counts)

    async def quarantine(self, claim: Claim, sequence: int, reason: str) -> None:
        """Fold this memory no further: a turn of it cannot be folded."""
        self.drop(claim)
        _log.error("turn %d of %s cannot be folded and is quarantined: %s", sequence, claim.name, reason)
        self._metrics.quarantined(reason)
        await self._store.quarantine(claim, sequence=sequence, reason=reason)

    async def fail_all(self, error: BaseException) -> None:
        """Put off everything that is held, at the end of this process."""
        await asyncio.gather(*(self.fail(claim, error, died=True) for claim in [*self._held.values()]))

    async def keep(self) -> None:
        """Renew the leases for ever; to be run as a task."""
        while True:
            await asyncio.sleep(self._lease_s / 3)
            try:
                await self._renew([*self._held.values()])
                await self._pay()
            except MemfoldError as error:
                _log.warning("leases were not renewed: %s", error)  # at worst a commit loses

    async def _renew(self, claims: list[Claim]) -> None:
        await asyncio.gather(*(self._store.renew(claim, lease_s=self._lease_of(claim)) for claim in claims))

    async def _pay(self) -> None:
        """Give back what is owed. Where others have claimed it meanwhile, nothing happens."""
        owed, self._owed = self._owed, []
        try:
            await self.give_back(owed)
        except StoreUnavailableError:
            self._owed += owed
            raise

    def _lease_of(self, claim: Claim) -> float:
        return max(self._lease_s, LONG_BACKOFF_S) if claim.attempts >= MAX_ATTEMPTS else self._lease_s
