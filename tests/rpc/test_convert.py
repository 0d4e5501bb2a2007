"""Values survive the wire."""

import base64
import math
import struct

import pytest

from memfold.api.convert import (
    kept_revision_from_message,
    kept_revision_to_message,
    layer_norms,
    memory_from_message,
    memory_to_message,
    model_to_message,
    new_turn_from_message,
    operation_to_message,
    policy_from_message,
    policy_to_message,
    stale_from_message,
    stale_to_message,
    turn_from_message,
    turn_to_message,
    update_mode_from_message,
    update_mode_to_message,
)
from memfold.api.errors import DeadlineError, InvalidFieldError, MemoryExistsError
from memfold.api.generation import Stale, UpdateMode
from memfold.api.v1 import generation_service_pb2 as generation_pb
from memfold.api.v1 import memory_service_pb2 as pb
from memfold.api.values import (
    KeptRevision,
    Memory,
    MemoryName,
    ModelCard,
    Operation,
    OperationKind,
    Policy,
    Revision,
    Role,
    Turn,
)
from memfold.client import ForgetReceipt, ForkHolding, ForkReceipt, RebuildReceipt, RollbackReceipt, VerifyReceipt
from memfold.client.history_calls import operation_of

MEMORY = Memory(
    name=MemoryName("acme", "alice"),
    incarnation="0123456789ab",
    display_name="Alice",
    labels={"a": "b"},
    create_ms=1_700_000_000_123,
    update_ms=1_700_000_001_456,
    head=7,
    applied=5,
    turn_count=6,
    log_bytes=99,
    state_bytes=1024,
    fingerprint="ff",
    building="ee",
    building_applied=3,
    quarantined=6,
    forked_from="tenants/acme/memories/bob",
    policy=Policy(ttl_s=3600, retention_s=86400, keep_last=9),
)
OLD, NEW = Revision("0123456789ab", 4), Revision("ba9876543210", 7)


def through_the_wire(message):
    return type(message).FromString(message.SerializeToString())


def test_a_memory_comes_back_as_it_was():
    assert memory_from_message(through_the_wire(memory_to_message(MEMORY))) == MEMORY
    assert memory_to_message(MEMORY).lag_turns == 2
    assert memory_to_message(MEMORY).building_lag_turns == 4


@pytest.mark.parametrize("policy", [Policy(), Policy(ttl_s=1), Policy(retention_s=3_155_760_000), Policy(keep_last=1)])
def test_a_policy_comes_back_as_it_was(policy):
    assert policy_from_message(through_the_wire(policy_to_message(policy))) == policy


def test_what_a_policy_does_not_say_has_its_default():
    assert policy_from_message(pb.Policy()) == Policy()
    assert not policy_to_message(Policy()).HasField("ttl")


@pytest.mark.parametrize("field", ["ttl", "retention"])
def test_a_fraction_of_a_second_is_no_policy(field):
    message = pb.Policy()
    getattr(message, field).FromMilliseconds(1500)
    with pytest.raises(InvalidFieldError, match=rf"memory\.policy\.{field}"):
        policy_from_message(message)


def test_an_entry_that_skips_a_turn_and_the_turn_come_back_as_they_were():
    for turn in (
        Turn("", Role.SYSTEM, "", sequence=4, append_ms=1, skips=3),
        Turn("t", Role.USER, "x", sequence=3, append_ms=1, skipped=True),
    ):
        assert turn_from_message(through_the_wire(turn_to_message(turn))) == turn


def test_a_kept_revision_comes_back_as_it_was():
    kept = KeptRevision(OLD, "ff", b"l" * 32, b"s" * 32, 1_700_000_000_123)
    assert kept_revision_from_message(through_the_wire(kept_revision_to_message(kept))) == kept


def operation(kind, **fields):
    return Operation("op1", MEMORY.name, kind, create_ms=1_700_000_000_123, update_ms=1_700_000_000_456, **fields)


@pytest.mark.parametrize(
    ("kind", "result", "receipt"),
    [
        (
            OperationKind.FORK,
            {"memory": "tenants/acme/memories/b", "revision": str(NEW), "source_revision": str(OLD), "turn_count": 4},
            ForkReceipt("tenants/acme/memories/b", NEW, OLD, 4),
        ),
        (
            OperationKind.ROLLBACK,
            {
                "revision": str(NEW),
                "restored_revision": str(OLD),
                "removed_turns": 3,
                "log_rewritten": True,
                "files_rewritten": False,
                "files_note": "refused",
            },
            RollbackReceipt(NEW, OLD, 3, True, False, "refused"),
        ),
        (
            OperationKind.FORGET,
            {
                "revision": str(NEW),
                "restored_revision": str(OLD),
                "removed_turns": 2,
                "ranges": [{"first": 2, "last": 2}, {"first": 5, "last": 5}],
                "sequences": [2, 5],
                "turn_ids": ["a", "b"],
                "dropped_revisions": [3],
                "forks": [{"memory": "tenants/acme/memories/b", "held_turns": 1, "forgotten_turns": 0}],
                "log_rewritten": True,
                "files_rewritten": False,
                "files_note": "refused",
            },
            ForgetReceipt(
                NEW,
                OLD,
                (2, 5),
                ("a", "b"),
                (3,),
                (ForkHolding("tenants/acme/memories/b", 1, 0),),
                True,
                False,
                "refused",
                2,
                ((2, 2), (5, 5)),
            ),
        ),
        (
            OperationKind.REBUILD,
            {"fingerprint": "ee", "replaced_fingerprint": "ff", "revision": str(NEW)},
            RebuildReceipt("ee", "ff", NEW),
        ),
        (
            OperationKind.VERIFY,
            {
                "ok": True,
                "revision": str(NEW),
                "fingerprint": "ff",
                "turn_count": 7,
                "log_matches": True,
                "state_matches": True,
                "relative_error": 1.5e-7,
                "log_digest": base64.b64encode(b"l" * 32).decode(),
                "state_digest": base64.b64encode(b"s" * 32).decode(),
            },
            VerifyReceipt(True, NEW, "ff", 7, True, True, 1.5e-7, b"l" * 32, b"s" * 32),
        ),
    ],
)
def test_an_operation_arrives_with_the_receipt_of_its_kind(kind, result, receipt):
    found = operation_of(through_the_wire(operation_to_message(operation(kind, done=True, result=result))))
    assert found.name == "tenants/acme/memories/alice/operations/op1"
    assert (found.kind, found.done, found.create_ms, found.update_ms) == (
        kind,
        True,
        1_700_000_000_123,
        1_700_000_000_456,
    )
    assert found.receipt == receipt
    assert found.settled() is found


def test_an_error_that_is_no_number_arrives():
    result = {"ok": False, "revision": str(NEW), "relative_error": math.inf}
    message = operation_to_message(operation(OperationKind.VERIFY, done=True, result=result))
    assert through_the_wire(message).verify.relative_error == math.inf


def test_an_operation_under_way_has_progress_and_no_receipt():
    under_way = operation(OperationKind.VERIFY, progress={"stage": "refold", "completed": 3, "total": 7})
    found = operation_of(through_the_wire(operation_to_message(under_way)))
    assert (found.done, found.stage, found.completed, found.total, found.receipt) == (False, "refold", 3, 7, None)
    with pytest.raises(DeadlineError, match="refold"):
        found.settled()


def test_an_operation_that_failed_raises_the_error_of_its_reason():
    failed = operation(OperationKind.FORK, done=True, error="MEMORY_ALREADY_EXISTS", message="b exists")
    found = operation_of(through_the_wire(operation_to_message(failed)))
    with pytest.raises(MemoryExistsError, match="b exists"):
        found.settled()
    assert found.receipt is None


def test_a_turn_comes_back_as_it_was():
    turn = Turn("t", Role.TOOL, "22 °C\x00", "probe", {"day": "Monday"}, sequence=3, append_ms=1_700_000_000_001)
    assert turn_from_message(through_the_wire(turn_to_message(turn))) == turn
    assert not turn_to_message(Turn("t", Role.USER, "x")).HasField("append_time")


def test_what_is_output_only_does_not_come_in():
    message = pb.Turn(id="theirs", role="human", content="x", sequence=9)
    message.append_time.GetCurrentTime()
    assert new_turn_from_message(message, "ours") == Turn("ours", Role.USER, "x")
    with pytest.raises(InvalidFieldError):
        new_turn_from_message(pb.Turn(role="bot"), "t")


def test_norms_are_of_each_layer():
    data = struct.pack("<8f", 3, 4, 0, 0, 1, 1, 1, 1)
    assert layer_norms((2, 1, 2, 2), data) == [5.0, 2.0]


def test_a_model_says_how_large_its_states_are():
    card = ModelCard("f", "b", "a", (2, 1, 4, 4), 128, 256, "understands this", ("one", "two"))
    message = model_to_message(card)
    assert (message.state_bytes, list(message.state_shape), list(message.examples)) == (
        128,
        [2, 1, 4, 4],
        ["one", "two"],
    )


@pytest.mark.parametrize(
    ("field", "kind", "to_message", "from_message"),
    [
        ("stale", Stale, stale_to_message, stale_from_message),
        ("update", UpdateMode, update_mode_to_message, update_mode_from_message),
    ],
)
def test_closed_sets_survive_the_wire_and_have_a_default(field, kind, to_message, from_message):
    for value in kind:
        sent = generation_pb.MemoryOptions(**{field: to_message(value)}).SerializeToString()
        assert from_message(getattr(generation_pb.MemoryOptions.FromString(sent), field)) is value
    descriptor = generation_pb.MemoryOptions.DESCRIPTOR.fields_by_name[field].enum_type
    assert len(descriptor.values) == len(kind) + 1
    assert from_message(0) is next(iter(kind))
    with pytest.raises(InvalidFieldError) as caught:
        from_message(77)
    assert caught.value.facts["field"] == f"memory_options.{field}"
