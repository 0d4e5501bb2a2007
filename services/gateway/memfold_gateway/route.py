"""A request's way to a reader, and to another one where the first did not begin with it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import grpc

from memfold.api.errors import MemfoldError, ReaderUnavailableError
from memfold.rpc.deadline import answer_in
from memfold.rpc.status import UnreachableError, error_from
from memfold.rpc.tenant import TENANT
from memfold_gateway.reader_link import RETRY_MS, ReaderCall, ReaderLink
from memfold_gateway.readers import Readers, Visit

# What one reader may have and another not. Generation changes nothing that is stored, so it may begin twice.
_ELSEWHERE = {"SHUTTING_DOWN", "MODEL_LOADING", "READER_UNAVAILABLE", "STORE_UNAVAILABLE"}
_MOST_BREAKS = 2


class Route:
    """Tries readers one after the other, within the deadline, until one has begun to answer.

    Example::

        for trial in Route(readers, "Generate", request, context, tenant):
            with trial as call:
                async for response in call.call:
                    call.heard()
                    yield response
                return

    The iteration ends by an error: of the reader that had begun, of the last one where no other is left, or of the
    request itself.
    """

    def __init__(self, readers: Readers, method: str, request: Any, context: Any, tenant: str) -> None:
        self._readers = readers
        self._method, self._request, self._context, self._tenant = method, request, context, tenant
        self._tried: set[Visit] = set()
        self._breaks = 0
        self._fingerprint = ""
        self._error = readers.refusal()

    def __iter__(self) -> Iterator[AbstractContextManager[ReaderCall]]:
        while self._breaks < _MOST_BREAKS:
            link = self._readers.choose(self._tried, self._fingerprint)
            if link is None:
                break
            self._tried.add((link.address, link.visit))
            yield self._trial(link)
        raise self._error

    @contextmanager
    def _trial(self, link: ReaderLink) -> Iterator[ReaderCall]:
        """A call on one reader. Swallows an error that another reader may not have."""
        call = link.start(self._method, self._request, answer_in(self._context), {TENANT: self._tenant})
        try:
            yield call
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
            found = _failure(call, error)
            if found is None:
                raise  # the client went away, or its deadline passed
            self._error = _told(found, started=call.started)
            if call.started or not self._may_go_on(found):
                raise self._error from None
            if call.cut is not None:
                self._tried = {(link.address, link.visit)}  # others that were full may not be so any more
            elif not self._fingerprint:
                link.be_wary()
        finally:
            link.finish(call)

    def _may_go_on(self, error: MemfoldError) -> bool:
        if isinstance(error, UnreachableError):
            self._breaks += 1  # a request that breaks reader after reader may be what breaks them
            return True
        if error.reason == "MODEL_MISMATCH":
            self._fingerprint = error.facts.get("memory_fingerprint", "")
            return bool(self._fingerprint)
        return error.reason in _ELSEWHERE


def _failure(call: ReaderCall, error: BaseException) -> MemfoldError | None:
    """What became of a call; None where this side has given it up."""
    if isinstance(error, grpc.aio.AioRpcError):
        found = error_from(error)
        # A server that stops says so of calls that it had not looked at yet: of its own it cancels none.
        return UnreachableError("cancelled by the reader") if found.reason == "CANCELLED" else found
    task = asyncio.current_task()
    assert task is not None
    return None if task.cancelling() else call.cut


def _told(error: MemfoldError, *, started: bool) -> MemfoldError:
    """An error as clients hear it."""
    if not isinstance(error, UnreachableError):
        return error
    what = "the reader broke off in the middle of its answer" if started else "no reader answers"
    return ReaderUnavailableError(what, retry_after_ms=RETRY_MS)
