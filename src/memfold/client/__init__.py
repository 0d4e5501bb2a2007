"""The client library. Needs nothing but grpcio and protobuf.

Example::

    from memfold.client import Memfold, Role, Turn

    with Memfold("localhost:50051", api_key) as memfold:
        memfold.append("alice", [Turn("", Role.USER, "I moved to Lisbon.")], create=True)
        memfold.wait("alice")
        print(memfold.generate("Where do I live?", memory="alice").text())
"""

from memfold.api.errors import MemfoldError
from memfold.api.generation import Stale, UpdateMode
from memfold.api.values import (
    FoundTurn,
    KeptRevision,
    Memory,
    MemoryName,
    Message,
    OperationKind,
    Policy,
    Revision,
    Role,
    Turn,
)
from memfold.client.aio import AsyncMemfold, AsyncReply
from memfold.client.blocking import Memfold, Reply
from memfold.client.operations import (
    ForgetReceipt,
    ForkHolding,
    ForkReceipt,
    Operation,
    RebuildReceipt,
    RollbackReceipt,
    VerifyReceipt,
)
from memfold.client.values import (
    Ack,
    Appended,
    FinishReason,
    Model,
    RecalledTurn,
    Score,
    State,
    Summary,
    TokenAlternative,
    TokenLogProbability,
)
from memfold.rpc.status import UnreachableError

__all__ = [
    "Ack",
    "Appended",
    "AsyncMemfold",
    "AsyncReply",
    "FinishReason",
    "ForgetReceipt",
    "ForkHolding",
    "ForkReceipt",
    "FoundTurn",
    "KeptRevision",
    "Memfold",
    "MemfoldError",
    "Memory",
    "MemoryName",
    "Message",
    "Model",
    "Operation",
    "OperationKind",
    "Policy",
    "RebuildReceipt",
    "RecalledTurn",
    "Reply",
    "Revision",
    "Role",
    "RollbackReceipt",
    "Score",
    "Stale",
    "State",
    "Summary",
    "TokenAlternative",
    "TokenLogProbability",
    "Turn",
    "UnreachableError",
    "UpdateMode",
    "VerifyReceipt",
]
