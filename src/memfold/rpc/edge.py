"""The one edge where errors become statuses: every method of every service runs inside it."""

from __future__ import annotations

import asyncio
import inspect
import logging
import secrets
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from opentelemetry import trace

from memfold.api.errors import (
    DeadlineError,
    InvalidFieldError,
    MalformedRequestError,
    MemfoldError,
    ShuttingDownError,
)
from memfold.rpc.deadline import answer_at
from memfold.rpc.status import make_error, status_of

LARGEST_REQUEST = 16 * 2**20
_LOG = logging.getLogger(__name__)

Decode = Callable[[Any], Any]  # of one request's bytes, or of a stream of them


class Edge:
    """Wraps method handlers so that each failed call ends with one documented status.

    The one place besides a worker's loop that catches everything. It decodes requests itself, so that bytes that are no
    message are an error of ours, not the transport's. It ends calls a little before their deadline. What is no
    ``MemfoldError`` becomes INTERNAL; its kind and place are logged under the trace id, never its text, which may hold
    contents.
    """

    def __init__(self) -> None:
        self._calls: set[asyncio.Task[Any]] = set()
        self._interrupted = False

    def interrupt(self) -> None:
        """End the calls that still run, with SHUTTING_DOWN."""
        self._interrupted = True
        for task in self._calls:
            task.cancel()

    @property
    def calls(self) -> int:
        """Calls that run now."""
        return len(self._calls)

    def wrap(self, method: str, handler: Any) -> Any:
        """A handler of gRPC as one that runs inside the edge and takes raw bytes."""
        decode = handler.request_deserializer
        encode = handler.response_serializer
        if handler.request_streaming and handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._streaming(method, handler.stream_stream, _decode_each(decode)), None, encode
            )
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._streaming(method, handler.unary_stream, _decode_one(decode)), None, encode
            )
        assert not handler.request_streaming, f"{method}: client streams are not in use"
        return grpc.unary_unary_rpc_method_handler(
            self._unary(method, handler.unary_unary, _decode_one(decode)), None, encode
        )

    def refusal(self, error: MemfoldError) -> Any:
        """A handler for a method of any kind that always fails."""

        async def refuse(_: object, context: Any) -> AsyncIterator[bytes]:
            await _fail(context, error)
            yield b""  # never reached; makes this a generator, as gRPC wants it

        return grpc.stream_stream_rpc_method_handler(refuse, None, None)

    def _unary(
        self, method: str, behavior: Callable[[Any, Any], Coroutine[Any, Any, Any]], decode: Decode
    ) -> Callable[[bytes, Any], Coroutine[Any, Any, Any]]:
        calls = self._calls

        async def call(data: bytes, context: Any) -> Any:
            task = asyncio.current_task()
            assert task is not None
            calls.add(task)
            limit = asyncio.timeout_at(answer_at(context))
            try:
                async with limit:
                    return await behavior(decode(data), context)
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001
                await self._end(method, context, error, late=limit.expired())
            finally:
                calls.discard(task)

        return call

    def _streaming(
        self, method: str, behavior: Callable[[Any, Any], Any], decode: Decode
    ) -> Callable[[Any, Any], AsyncIterator[Any]]:
        calls = self._calls

        async def call(data: Any, context: Any) -> AsyncIterator[Any]:
            task = asyncio.current_task()
            assert task is not None
            calls.add(task)
            at = answer_at(context)
            limit = asyncio.timeout_at(at)
            try:
                responses = behavior(decode(data), context)
                if inspect.isawaitable(responses):  # writes by itself, as gRPC's own health service does
                    await responses
                    return
                while True:
                    limit = asyncio.timeout_at(at)
                    try:
                        async with limit:
                            response = await anext(responses)
                    except StopAsyncIteration:
                        return
                    yield response
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001
                await self._end(method, context, error, late=limit.expired())
            finally:
                calls.discard(task)

        return call

    async def _end(self, method: str, context: Any, error: BaseException, *, late: bool) -> NoReturn:
        if isinstance(error, grpc.aio.AbortError):
            raise error
        if isinstance(error, asyncio.CancelledError):
            task = asyncio.current_task()
            assert task is not None
            if self._interrupted:
                task.uncancel()
                await _fail(context, ShuttingDownError("the server is stopping"))
            if task.cancelling():
                raise error  # the client went away: gRPC cancelled this task and expects it to end so
            # Otherwise something inside was cancelled. gRPC would take it for the client's doing and never answer.
        if late and isinstance(error, TimeoutError):
            await _fail(context, DeadlineError("the deadline passed before the work was done"))
        if isinstance(error, MemfoldError) and (error.reason != "INTERNAL" or "trace_id" in error.facts):
            await _fail(context, error)  # a fault that carries its trace id was logged by the server that it comes from
        await _fail(context, _fault(method, error))


def _fault(method: str, error: BaseException) -> MemfoldError:
    span = trace.get_current_span().get_span_context()
    trace_id = format(span.trace_id, "032x") if span.is_valid else secrets.token_hex(16)
    frames = "".join(traceback.format_tb(error.__traceback__))
    _LOG.error("fault in %s: %s (trace %s)\n%s", method, type(error).__qualname__, trace_id, frames)
    return make_error("INTERNAL", "a fault of the server", {"trace_id": trace_id}, 0)


async def _fail(context: Any, error: MemfoldError) -> NoReturn:
    code, message, metadata = status_of(error)
    await context.abort(code, message, metadata)
    raise AssertionError("abort raises")


def _decode_one(decode: Decode) -> Decode:
    def one(data: bytes) -> Any:
        if len(data) > LARGEST_REQUEST:
            raise InvalidFieldError("request", f"{len(data)} bytes are more than the {LARGEST_REQUEST} of a request")
        try:
            return decode(data)
        except (DecodeError, UnicodeDecodeError):
            raise MalformedRequestError("these bytes are no message of this method") from None

    return one


def _decode_each(decode: Decode) -> Decode:
    one = _decode_one(decode)

    async def each(datas: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for data in datas:
            yield one(data)

    return each
