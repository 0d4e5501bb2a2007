"""The gateway as a whole: what it is made of, from start to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from memfold.api.v1.generation_service_pb2_grpc import add_GenerationServiceServicer_to_server
from memfold.api.v1.history_service_pb2_grpc import add_HistoryServiceServicer_to_server
from memfold.api.v1.memory_service_pb2_grpc import add_MemoryServiceServicer_to_server
from memfold.api.v1.operation_service_pb2_grpc import add_OperationServiceServicer_to_server
from memfold.hints import Hinter
from memfold.rpc.server import Server
from memfold.store import Store, when_there
from memfold_gateway.appender import Appender
from memfold_gateway.backlog import Backlog
from memfold_gateway.generation_service import GenerationServicer
from memfold_gateway.guard import Guard
from memfold_gateway.history_service import HistoryServicer
from memfold_gateway.keys import ApiKeys
from memfold_gateway.memory_service import MemoryServicer
from memfold_gateway.operation_service import OperationServicer
from memfold_gateway.operations import Operations
from memfold_gateway.reader_name import ReaderName
from memfold_gateway.readers import Readers
from memfold_gateway.settings import Settings
from memfold_gateway.watch import Watch

_LOG = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def gateway(settings: Settings) -> AsyncIterator[Server]:
    """A gateway that serves; ``run`` the server, or leave the block, to stop it.

    Raises:
        OSError: the file of keys or the address cannot be had.
        ValueError: the file of keys is broken.
        NotDurableError: the store cannot hold the durability that is asked for.
    """
    keys = ApiKeys(settings.api_keys_file)
    async with contextlib.AsyncExitStack() as stack:
        store = await when_there(
            lambda: Store.open(
                settings.redis_url, durability=settings.durability, replicas=settings.durability_replicas
            )
        )
        stack.push_async_callback(store.close)
        hinter = Hinter(settings.broker_url or settings.redis_url)
        stack.push_async_callback(asyncio.to_thread, hinter.close)
        readers = await stack.enter_async_context(Readers(ReaderName.parse_list(settings.reader_target)))
        server = Server(
            settings.listen, grace_s=settings.grace_s, reflection=settings.reflection, ready_file=settings.ready_file
        )
        guard = Guard(keys)
        backlog = Backlog(store, settings.backlog_memories_tenant, settings.backlog_memories_system)
        appender = Appender(store, hinter, backlog, settings.backlog_turns)
        server.add(add_MemoryServiceServicer_to_server, MemoryServicer(store, guard, appender, server.stopping))
        operations = Operations(store)
        server.add(add_HistoryServiceServicer_to_server, HistoryServicer(store, guard, operations))
        server.add(add_OperationServiceServicer_to_server, OperationServicer(store, guard, operations))
        server.add(add_GenerationServiceServicer_to_server, GenerationServicer(readers, guard))
        await server.start()
        stack.push_async_callback(server.stop)
        for watching in (Watch(server, store, readers, keys).run(), backlog.run()):
            stack.callback(asyncio.create_task(watching).cancel)
        yield server
