"""The readers behind this gateway: which there are, and which of them takes the next request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Sequence
from typing import Self

from memfold.api.errors import MemfoldError, ModelLoadingError, ReaderUnavailableError
from memfold_gateway.reader_link import BEAT_S, RETRY_MS, ReaderLink
from memfold_gateway.reader_name import ReaderName

_RESOLVE_S = 2.0
_FIRST_LOOK_S = 2.0

_LOG = logging.getLogger(__name__)

Visit = tuple[str, int]
"""A reader's address, and which time it was that it served there."""


class Readers:
    """Keeps a link to every reader that the names stand for, as long as the ``async with`` block runs.

    Args:
        names: asked again and again; a reader that has left its name gets no new requests and ends what it has.
    """

    def __init__(self, names: Sequence[ReaderName]) -> None:
        self._names = names
        self._links: dict[str, ReaderLink] = {}
        self._found: dict[ReaderName, set[str]] = {}
        self._unanswered: set[ReaderName] = set()
        self._chosen = 0

    async def __aenter__(self) -> Self:
        """Look for readers; those that are there are known when this returns, or the time for it is over."""
        self._tasks = [asyncio.create_task(work) for work in (self._resolve_on_and_on(), self._beat_on_and_on())]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_LOOK_S):
                await self._resolve()
                await asyncio.gather(*(link.known.wait() for link in self._links.values()))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(link.close() for link in self._links.values()))

    @property
    def any_serves(self) -> bool:
        """Whether a request has somewhere to go."""
        return bool(self._serving())

    def choose(self, tried: Collection[Visit], fingerprint: str) -> ReaderLink | None:
        """The reader with the least to do; None where none is left.

        Args:
            tried: these not.
            fingerprint: only readers of this model; of any if empty.
        """
        fit = [link for link in self._serving(fingerprint) if (link.address, link.visit) not in tried]
        if not fit:
            return None
        link = min(fit, key=lambda link: link.burden)
        self._chosen += 1
        link.chosen = self._chosen
        return link

    def refusal(self) -> MemfoldError:
        """What to say to a request where no reader serves."""
        if any(link.loads for link in self._links.values()):
            return ModelLoadingError("the readers are loading their model", retry_after_ms=RETRY_MS)
        return ReaderUnavailableError("no reader answers", retry_after_ms=RETRY_MS)

    def _serving(self, fingerprint: str = "") -> list[ReaderLink]:
        return [
            link
            for link in self._links.values()
            if link.named and link.serves and fingerprint in ("", link.fingerprint)
        ]

    async def _beat_on_and_on(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            for link in self._links.values():
                link.beat()
                if link.leaves:
                    self._relieve(link)

    def _relieve(self, link: ReaderLink) -> None:
        """Take what has not started off a reader that stops or hangs, where there is another to do it."""
        if self._serving(link.fingerprint):
            for call in list(link.calls):
                if not call.started:
                    call.end(ReaderUnavailableError("the reader stops or hangs", retry_after_ms=RETRY_MS))

    async def _resolve_on_and_on(self) -> None:
        while True:
            await asyncio.sleep(_RESOLVE_S)
            await self._resolve()

    async def _resolve(self) -> None:
        """Ask for all names; one that is not answered keeps the addresses that it had."""
        await asyncio.gather(*(self._ask(name) for name in self._names))
        named = set().union(*self._found.values())
        for address in named - self._links.keys():
            self._links[address] = ReaderLink(address)
        for address, link in list(self._links.items()):
            link.named = address in named
            if not link.named and not link.calls:
                del self._links[address]
                await link.close()

    async def _ask(self, name: ReaderName) -> None:
        try:
            self._found[name] = await name.addresses()
            self._unanswered.discard(name)
        except OSError as error:
            if name not in self._unanswered:
                _LOG.warning("nobody knows the readers' name %s: %s", name, error)
            self._unanswered.add(name)
