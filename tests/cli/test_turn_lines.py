import json

import pytest

from memfold.api.values import Role
from memfold.cli.turn_lines import BadLine, TurnLine, derived_id, read_lines


def read(*lines, memory="alice", source="talk.jsonl"):
    raw = [line if isinstance(line, bytes) else (json.dumps(line) + "\n").encode() for line in lines]
    return list(read_lines(raw, source=source, memory=memory))


def test_a_line_with_everything_becomes_the_turn_it_says():
    [line] = read(
        {
            "memory": "bob",
            "role": "human",
            "content": "Hi",
            "id": "t1",
            "speaker": "Bob",
            "metadata": {"date": "2026-01-02"},
        }
    )
    assert isinstance(line, TurnLine)
    assert (line.number, line.memory, line.turn.id, line.turn.role) == (1, "bob", "t1", Role.USER)
    assert (line.turn.speaker, line.turn.metadata) == ("Bob", {"date": "2026-01-02"})


def test_empty_lines_are_passed_over_but_counted():
    [line] = read(b"\n", b"   \n", {"role": "user", "content": "Hi"})
    assert line.number == 3


def test_reading_again_gives_the_same_ids_even_where_another_line_was_mended():
    first = read({"role": "user", "content": "Hi"}, b"broken\n", {"role": "assistant", "content": "Hello"})
    again = read(
        {"role": "user", "content": "Hi"},
        {"role": "user", "content": "mended"},
        {"role": "assistant", "content": "Hello"},
    )
    assert [first[0].turn.id, first[2].turn.id] == [again[0].turn.id, again[2].turn.id]


def test_the_same_words_twice_in_a_file_are_two_turns():
    first, second = read({"role": "user", "content": "Hi"}, {"role": "user", "content": "Hi"})
    assert first.turn.id != second.turn.id


def test_the_same_line_of_two_files_is_two_turns():
    assert derived_id("a.jsonl", 1, b"x") != derived_id("b.jsonl", 1, b"x")


def test_a_line_end_of_another_system_changes_no_id():
    assert derived_id("a.jsonl", 1, b"x\r\n") == derived_id("a.jsonl", 1, b"x\n") == derived_id("a.jsonl", 1, b"x")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"no json\n", "not JSON"),
        (b'{"role": "user", "content": "\xff"}\n', "not UTF-8"),
        (b"[1]\n", "not a JSON object"),
        ({"content": "Hi"}, "role: missing"),
        ({"role": "user"}, "content: missing"),
        ({"role": "user", "content": ""}, "content: missing or empty"),
        ({"role": "wizard", "content": "Hi"}, "unknown role 'wizard'"),
        ({"role": "user", "content": 3}, "content: must be a string"),
        ({"role": "user", "content": "Hi", "metadata": {"n": 1}}, "metadata: must be an object of strings"),
        ({"role": "user", "contnet": "Hi"}, "contnet: unknown field"),
        (b'{"role": "user", "content": "\\ud800"}\n', "surrogate"),
    ],
)
def test_a_bad_line_is_named_by_number_and_reason_and_costs_no_other(line, reason):
    good, bad, after = read({"role": "user", "content": "a"}, line, {"role": "user", "content": "b"})
    assert isinstance(bad, BadLine)
    assert bad.number == 2
    assert reason in bad.reason
    assert isinstance(good, TurnLine)
    assert isinstance(after, TurnLine)


def test_without_a_memory_a_line_has_nowhere_to_go():
    [bad] = read({"role": "user", "content": "Hi"}, memory="")
    assert "--memory" in bad.reason


def test_a_very_deep_line_is_a_bad_line():
    [bad] = read(b"[" * 100_000)
    assert isinstance(bad, BadLine)
