"""Values survive the wire."""

import struct

import pytest

from memfold.api.convert import (
    layer_norms,
    memory_from_message,
    memory_to_message,
    model_to_message,
    new_turn_from_message,
    turn_from_message,
    turn_to_message,
)
from memfold.api.errors import InvalidFieldError
from memfold.api.v1 import memory_service_pb2 as pb
from memfold.api.values import Memory, MemoryName, ModelCard, Role, Turn

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
)


def through_the_wire(message):
    return type(message).FromString(message.SerializeToString())


def test_a_memory_comes_back_as_it_was():
    assert memory_from_message(through_the_wire(memory_to_message(MEMORY))) == MEMORY
    assert memory_to_message(MEMORY).lag_turns == 2


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
