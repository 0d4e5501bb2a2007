from pathlib import Path

from memfold.api.errors import MemoryNotFoundError
from memfold.cli.group import describe, hoisted
from memfold.local.errors import ChildDiedError


def test_global_options_may_stand_anywhere():
    assert hoisted(["memories", "--json", "--target", "a:1"]) == ["--target", "a:1", "memories", "--json"]
    assert hoisted(["show", "--data-dir=/x", "alice"]) == ["--data-dir=/x", "show", "alice"]


def test_after_a_double_dash_nothing_is_an_option():
    assert hoisted(["show", "--", "--target", "x"]) == ["show", "--", "--target", "x"]


def test_an_option_without_its_value_is_left_to_the_parser():
    assert hoisted(["memories", "--target"]) == ["--target", "memories"]


def test_an_error_is_one_line_with_a_hint():
    line = describe(MemoryNotFoundError("no memory tenants/local/memories/bob"))
    assert "\n" not in line
    assert "memfold memories" in line


def test_a_dead_child_is_named_with_its_last_lines_and_its_log():
    text = describe(ChildDiedError("writer", -9, ["first", "out of memory"], Path("/logs/writer.log")))
    assert "the writer died (signal 9)" in text
    assert "out of memory" in text
    assert "/logs/writer.log" in text
