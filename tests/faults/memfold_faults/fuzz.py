"""Requests that nobody would send: valid ones of every method, serialised and mutated. Seeded."""

from __future__ import annotations

import asyncio
import random
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from memfold_faults.rig import API_KEY, TENANT

from memfold.api.v1 import errors_pb2
from memfold.api.v1 import generation_service_pb2 as generation_pb
from memfold.api.v1 import history_service_pb2 as history_pb
from memfold.api.v1 import memory_service_pb2 as pb
from memfold.api.v1 import operation_service_pb2 as operation_pb
from memfold.rpc.status import DOMAIN, code_of

REASONS = {name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.keys()}  # noqa: SIM118 -- an enum wrapper is no mapping
UNDOCUMENTED = {"INTERNAL", "UNSPECIFIED"}
DEADLINE_S, AT_ONCE = 1.0, 24
_NAMES = [f"tenants/{TENANT}/memories/{name}" for name in ("alice", "bob", "carol", "nobody")]
_STRINGS = (
    "",
    " ",
    "\0",
    "a" * 70_000,
    "é" * 300,
    "\U0010ffff",
    "../..",
    "{p1}",
    "alice:meta",
    "%s%n",
    "\u202e",
    "0" * 400,
)
_NUMBERS = (0, 1, -1, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63), 2**32, 10**15, 10**16)


def examples(revision: str) -> list[tuple[str, Message]]:
    """Valid requests of every method that takes one."""
    turn = pb.Turn(id="t-1", role="user", content="I live in Lisbon.", speaker="Ana", metadata={"day": "1"})
    message = generation_pb.Message(role="user", content="Where?")
    memory, history, operation, generation = (
        "MemoryService",
        "HistoryService",
        "OperationService",
        "GenerationService",
    )
    found: list[tuple[str, Message]] = []
    for name in _NAMES:
        short = name.rpartition("/")[2]
        found += [
            (f"{memory}/CreateMemory", pb.CreateMemoryRequest(
                parent=f"tenants/{TENANT}", memory_id=short, request_id="r",
                memory=pb.Memory(display_name="x", labels={"a": "b"}, policy=pb.Policy(keep_last=3)))),
            (f"{memory}/GetMemory", pb.GetMemoryRequest(name=name)),
            (f"{memory}/ListMemories", pb.ListMemoriesRequest(parent=f"tenants/{TENANT}", page_size=3, page_token="x")),
            (f"{memory}/UpdateMemory", pb.UpdateMemoryRequest(
                memory=pb.Memory(name=name, display_name="y", labels={"c": "d"}, policy=pb.Policy(keep_last=2)),
                expected_revision=revision)),
            (f"{memory}/AppendTurns", pb.AppendTurnsRequest(memory=name, turns=[turn, turn], allow_missing=True)),
            (f"{memory}/AppendTurns", pb.AppendTurnsRequest(
                memory=name, turns=[pb.Turn(role="tool", content="42")], request_id="q", expected_revision=revision)),
            (f"{memory}/ListTurns", pb.ListTurnsRequest(memory=name, page_size=2)),
            (f"{memory}/WaitForRevision", pb.WaitForRevisionRequest(memory=name, revision=revision)),
            (f"{memory}/GetState", pb.GetStateRequest(memory=name, revision=revision)),
            (f"{memory}/StreamTurns", pb.StreamTurnsRequest(memory=name, turn=turn, allow_missing=True)),
            (f"{history}/ListRevisions", history_pb.ListRevisionsRequest(memory=name)),
            (f"{history}/ForkMemory", history_pb.ForkMemoryRequest(name=name, memory_id="copy", request_id="f")),
            (f"{history}/RollbackMemory", history_pb.RollbackMemoryRequest(name=name, revision=revision)),
            (f"{history}/ForgetTurns", history_pb.ForgetTurnsRequest(
                memory=name, selector=history_pb.TurnSelector(ids=history_pb.TurnIds(ids=["t-1"])), include_forks=True)),
            (f"{history}/ForgetTurns", history_pb.ForgetTurnsRequest(
                memory=name, selector=history_pb.TurnSelector(match=history_pb.TurnMatch(metadata={"day": "1"})))),
            (f"{history}/SkipTurn", history_pb.SkipTurnRequest(memory=name, sequence=1)),
            (f"{history}/RebuildMemory", history_pb.RebuildMemoryRequest(name=name)),
            (f"{history}/VerifyMemory", history_pb.VerifyMemoryRequest(name=name)),
            (f"{operation}/GetOperation", operation_pb.GetOperationRequest(name=f"{name}/operations/abc")),
            (f"{operation}/ListOperations", operation_pb.ListOperationsRequest(memory=name, page_size=1)),
            (f"{operation}/WaitOperation", operation_pb.WaitOperationRequest(name=f"{name}/operations/abc")),
            (f"{generation}/Generate", generation_pb.GenerateRequest(memory=name, messages=[message])),
            (f"{generation}/Score", generation_pb.ScoreRequest(memory=name, text="a", continuations=["b"])),
            (f"{generation}/GetModel", generation_pb.GetModelRequest()),
        ]  # fmt: skip
    found.append((f"{memory}/DeleteMemory", pb.DeleteMemoryRequest(name=_NAMES[2], allow_missing=True)))
    return found


def mutated(dice: random.Random, message: Message, others: list[bytes]) -> bytes:
    """One request's bytes: changed as a message, or as bytes, or both, or not at all."""
    copy = type(message)()
    copy.CopyFrom(message)
    for _ in range(dice.choice((0, 0, 0, 1, 1, 2))):
        _change_field(dice, copy)
    data = copy.SerializeToString()
    for _ in range(dice.choice((0, 0, 0, 0, 1, 3))):
        data = _change_bytes(dice, data, others)
    return data


def _change_field(dice: random.Random, message: Message) -> None:
    """Some field, maybe deep inside, takes a value from the edge."""
    one = dice.choice(message.DESCRIPTOR.fields or [None])
    if one is None:
        return
    if one.message_type is not None:
        if one.message_type.GetOptions().map_entry:
            entries = getattr(message, one.name)
            if one.message_type.fields_by_name["value"].cpp_type == FieldDescriptor.CPPTYPE_STRING:
                entries[dice.choice(_STRINGS[:-1])] = dice.choice(_STRINGS)
            return
        inner = getattr(message, one.name)
        if one.is_repeated:
            inner = inner.add() if dice.random() < 0.5 or not inner else dice.choice(inner)
        else:
            inner.SetInParent()
        _change_field(dice, inner)
        return
    value = _extreme(dice, one)
    try:
        if one.is_repeated:
            getattr(message, one.name).extend([value] * dice.choice((1, 3, 2000 if len(str(value)) < 1000 else 5)))
        else:
            setattr(message, one.name, value)
    except ValueError:  # beyond the field's range: the bytes will see to that
        message.ClearField(one.name)


def _extreme(dice: random.Random, one: FieldDescriptor) -> Any:
    match one.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            some = dice.choice(_STRINGS)
            return some.encode() if one.type == FieldDescriptor.TYPE_BYTES else some
        case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
            return dice.choice((0.0, -1.0, float("nan"), float("inf"), 1e30))
        case FieldDescriptor.CPPTYPE_BOOL:
            return dice.random() < 0.5
    return dice.choice(_NUMBERS)


def _change_bytes(dice: random.Random, data: bytes, others: list[bytes]) -> bytes:  # noqa: PLR0911
    at, end = sorted((dice.randint(0, len(data)), dice.randint(0, len(data))))
    match dice.randrange(7):
        case 0:
            flipped = bytearray(data)
            for _ in range(min(len(data), dice.choice((1, 1, 2, 8)))):
                flipped[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
            return bytes(flipped)
        case 1:
            return data[:at]
        case 2:
            return data[:at] + data[end:]
        case 3:
            other = dice.choice(others)
            return data[:at] + other[: dice.randint(0, len(other))] + data[end:]
        case 4:  # a field of any number and type, its value at random
            return data[:at] + _varint(dice.randrange(1 << 29)) + dice.randbytes(dice.randint(0, 20)) + data[at:]
        case 5:  # a length that promises more, or a number that is too large
            return data[:at] + _varint(dice.choice((2**31, 2**63, 2**64 - 1))) + data[at:]
    return data[:at] + struct.pack("<d", float("nan")) * dice.randint(1, 4) + data[at:]


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


@dataclass
class Findings:
    """What came back: how often each code, and what must not have."""

    codes: Counter[str] = field(default_factory=Counter)
    methods: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)


async def fuzz(target: str, requests: int, seed: int, revision: str) -> Findings:
    """Send so many mutated requests; every answer is looked at."""
    dice, found = random.Random(seed), Findings()
    valid = examples(revision)
    others = [message.SerializeToString() for _, message in valid]
    jobs: Iterator[tuple[str, bytes]] = (
        (method, mutated(dice, message, others)) for method, message in (dice.choice(valid) for _ in range(requests))
    )
    async with grpc.aio.insecure_channel(target) as channel:
        await asyncio.gather(*(_send_all(channel, jobs, found) for _ in range(AT_ONCE)))
    return found


async def _send_all(channel: grpc.aio.Channel, jobs: Iterator[tuple[str, bytes]], found: Findings) -> None:
    for method, data in jobs:
        path = f"/memfold.api.v1.{method}"
        options = {"metadata": (("authorization", f"Bearer {API_KEY}"),), "timeout": DEADLINE_S}
        try:
            if method.endswith("StreamTurns"):
                await _drain(channel.stream_stream(path)(_each(data), **options))
            elif method.endswith("Generate"):
                await _drain(channel.unary_stream(path)(data, **options))
            else:
                await channel.unary_unary(path)(data, **options)
        except grpc.aio.AioRpcError as error:
            found.codes[error.code().name] += 1
            wrong = _wrong(error)
            if wrong:
                found.bad.append(f"{method}: {wrong}; request {data.hex()[:2000]}")
        else:
            found.codes["OK"] += 1
        found.methods[method] += 1


async def _each(data: bytes):
    yield data


async def _drain(call: Any) -> None:
    async for _ in call:
        pass


def _wrong(error: grpc.aio.AioRpcError) -> str:
    """What is not as documented about a failure; empty where all is."""
    infos = []
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            info = error_details_pb2.ErrorInfo()
            infos += [info for packed in status_pb2.Status.FromString(value).details if packed.Unpack(info)]
    if not infos and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return ""  # the client's own clock was faster
    if len(infos) != 1 or infos[0].domain != DOMAIN or infos[0].reason not in REASONS - UNDOCUMENTED:
        return f"{error.code().name} {error.details()!r} with {infos}"
    return "" if code_of(infos[0].reason) is error.code() else f"{infos[0].reason} as {error.code().name}"


def resident_mib(pid: int) -> float:
    """What a process has in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 2**20
