"""What is read without asking protovalidate is what protovalidate would have passed."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from protovalidate import Validator

from memfold.api.convert import new_turn_from_message
from memfold.api.v1 import memory_service_pb2 as pb
from memfold.store import NewTurns
from memfold_gateway.plain import plain_turn, plain_turns

VALIDATOR = Validator()
ALICE = "tenants/acme/memories/alice"


def around(*lengths: int, of: str = "x"):
    """Texts as long as a rule allows, one shorter and one longer."""
    return st.sampled_from([of * max(0, length + more) for length in lengths for more in (-1, 0, 1)])


IDS = st.one_of(
    st.text("!~azAZ09", max_size=5), around(96, 128), st.sampled_from(["", "a b", "!~", "a\n", "é", "\x7f", "\0"])
)
ROLES = ["system", "developer", "user", "human", "assistant", "ai", "model", "tool", "function"]


def good(**fields) -> pb.Turn:
    return pb.Turn(**{"role": "user", "content": "x", **fields})


# Most of what is made is plain, or nearly.
TURNS = st.fixed_dictionaries(
    {},
    optional={
        "id": IDS,
        "role": st.one_of(st.sampled_from(ROLES), st.sampled_from(["", "User", "user\n", "bot"])),
        "content": st.one_of(
            st.text(min_size=1, max_size=8), around(0, 65_536), around(65_536, of="é"), around(262_144)
        ),
        "speaker": st.one_of(st.text(max_size=8), around(64), around(64, of="é")),
        "metadata": st.one_of(
            st.dictionaries(st.text(min_size=1, max_size=3), st.text(max_size=3), max_size=3),
            st.dictionaries(around(63, of="é"), around(1024, of="é"), max_size=2),
            st.integers(31, 33).map(lambda many: {str(at): "" for at in range(many)}),
            st.just({"": ""}),
        ),
        "sequence": st.integers(-1, 1),
        "skips": st.integers(0, 1),
    },
).map(lambda fields: good(**fields))
NAMES = ["", "tenants/Acme/memories/a", "tenants/acme/memories/", ALICE + "\n", "x" + ALICE]
NAMES += [
    "tenants/acme/memories/" + "a" * 128,
    "tenants/acme/memories/" + "a" * 129,
    "tenants/" + "a" * 64 + "/memories/a",
]
MEMORIES = st.one_of(st.just(ALICE), st.just(ALICE), st.sampled_from(NAMES))
APPENDS = st.builds(
    pb.AppendTurnsRequest,
    memory=MEMORIES,
    turns=st.one_of(
        st.lists(TURNS, min_size=1, max_size=2),
        st.lists(TURNS, min_size=1, max_size=2),
        st.sampled_from([0, 1, 999, 1000, 1001]).map(lambda many: [good()] * many),
    ),
    expected_revision=st.one_of(st.just(""), around(64)),
    request_id=st.one_of(st.just(""), IDS),
)
PLENTY = settings(max_examples=400, deadline=None, derandomize=True)


@PLENTY
@given(APPENDS)
def test_turns_that_are_plain_break_no_rule_and_are_read_as_ever(request_):
    read = plain_turns(request_, "base")
    if read is not None:
        assert VALIDATOR.collect_violations(request_) == []
        turns = (new_turn_from_message(turn, turn.id or f"base/{at}") for at, turn in enumerate(request_.turns))
        assert NewTurns(list(read.ids), read.said, read.content_bytes) == NewTurns.of(turns)


@PLENTY
@given(st.builds(pb.StreamTurnsRequest, memory=MEMORIES, turn=st.one_of(st.none(), TURNS)))
def test_a_turn_of_a_stream_that_is_plain_breaks_no_rule_and_is_read_as_ever(request_):
    read = plain_turn(request_, "new")
    if read is not None:
        assert VALIDATOR.collect_violations(request_) == []
        turn = new_turn_from_message(request_.turn, request_.turn.id or "new")
        assert NewTurns(list(read.ids), read.said, read.content_bytes) == NewTurns.of([turn])


ORDINARY = {
    "least": good(),
    "all": good(id="a" * 128, speaker="é" * 64, metadata={"k" * 63: "v" * 1024} | {str(at): "" for at in range(31)}),
    "long": good(content="é" * 65_536),
    "other text": good(role="ai", content='line\nnext "quoted" 日本語 \U0001f600'),
}


@pytest.mark.parametrize("turn", ORDINARY.values(), ids=ORDINARY.keys())
def test_ordinary_turns_are_plain(turn):
    request = pb.AppendTurnsRequest(memory=ALICE, turns=[turn, good()], request_id="r" * 96)
    assert plain_turns(request, "base") is not None
    assert plain_turn(pb.StreamTurnsRequest(memory=ALICE, turn=turn), "new") is not None


@pytest.mark.parametrize("turn", [good(content="x" * 65_537), good(content="x" * 262_144)])
def test_what_is_right_but_not_plainly_is_left_to_the_rules(turn):
    request = pb.AppendTurnsRequest(memory=ALICE, turns=[turn])
    assert plain_turns(request, "base") is None
    assert VALIDATOR.collect_violations(request) == []
