"""Turns as a log takes them: quick to make, and the same bytes as ever."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis

from memfold.api.values import Role, Turn
from memfold.store.new_turns import NewTurns
from memfold.store.packing import packed, packed_random

# Where encoders differ, if they do: what has an escape of its own, other control characters, the ends of planes.
TEXTS = st.text(
    st.one_of(st.characters(codec="utf-8"), st.sampled_from('\0\b\t\n\f\r\x1b"\\/\x7f\x80\u2028\ufffe\U0010ffff'))
)
TURNS = st.builds(
    Turn,
    id=TEXTS,
    role=st.sampled_from(Role),
    content=TEXTS,
    speaker=TEXTS,
    metadata=st.dictionaries(TEXTS, TEXTS, max_size=3),
)  # fmt: skip


@settings(derandomize=True, deadline=None)
@given(st.lists(TURNS, min_size=1, max_size=3))
def test_turns_made_in_columns_are_those_made_one_by_one(turns):
    made = NewTurns.said_in(
        [turn.id for turn in turns],
        [str(turn.role) for turn in turns],
        [turn.content for turn in turns],
        [turn.speaker for turn in turns],
        [turn.metadata for turn in turns],
    )
    assert made == NewTurns.of(turns) == NewTurns.joined([NewTurns.of([turn]) for turn in turns])
    assert list(made.said) == [turn.to_bytes() for turn in turns]
    assert len(made) == len(turns)


@pytest.fixture
def unpacked(redis_url):
    """How often a list comes back from Redis's Lua, and the list."""
    with Redis.from_url(redis_url) as redis:
        yield lambda data: redis.eval("local list = cmsgpack.unpack(ARGV[1]) return {#list, list}", 0, data)


@pytest.mark.parametrize("sizes", [[1], [0], [31, 32, 0, 255, 256], [65_535, 65_536], [262_144], [7] * 1500])
def test_a_packed_list_comes_back_as_it_was(unpacked, sizes):
    strings = [bytes((at + byte) % 256 for byte in range(size)) for at, size in enumerate(sizes)]
    assert unpacked(packed(strings)) == [len(strings), strings]


def test_random_strings_have_their_size_and_differ(unpacked):
    count, strings = unpacked(packed_random(1500, 16))
    assert (count, {len(string) for string in strings}, len(set(strings))) == (1500, {16}, 1500)
