"""Every command against a platform that runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.platform


def jsonl(*lines):
    return "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)


def turn(content, **fields):
    return {"role": "user", "content": content, **fields}


def contents(memfold, name):
    return [t["content"] for t in json.loads(memfold("turns", name, "--json").stdout)]


def test_ingest_takes_every_good_line_and_names_every_bad_one(memfold, tmp_path):
    path = tmp_path / "talk.jsonl"
    path.write_text(
        jsonl(
            turn("I live in Oslo."),
            "not json\n",
            turn("And you?", role="wizard"),
            turn("I have a dog.", speaker="Ann", metadata={"date": "2026-01-02"}),
            turn("x" * 300_000),
            turn("elsewhere", memory="no such name!"),
            turn("Last.", role="assistant"),
        )
    )
    done = memfold("ingest", str(path), "--memory", "ingest-bad")
    assert done.returncode == 1
    assert "3 turns appended, 4 lines failed" in done.stdout
    reported = {line.split(":")[0] for line in done.stderr.splitlines() if line.startswith("line ")}
    assert reported == {"line 2", "line 3", "line 5", "line 6"}
    assert "not JSON" in done.stderr
    assert contents(memfold, "ingest-bad") == ["I live in Oslo.", "I have a dog.", "Last."]


def test_ingesting_again_appends_only_what_is_new(memfold, tmp_path):
    path = tmp_path / "talk.jsonl"
    path.write_text(jsonl(turn("One."), "broken\n", turn("Three.")))
    assert memfold("ingest", str(path), "--memory", "ingest-again").returncode == 1
    path.write_text(jsonl(turn("One."), turn("Two, mended."), turn("Three."), turn("Four.")))
    done = memfold("ingest", str(path), "--memory", "ingest-again", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"appended": 2, "duplicates": 2, "failed": []}
    assert contents(memfold, "ingest-again") == ["One.", "Three.", "Two, mended.", "Four."]


def test_ingest_reads_a_pipe_and_lines_choose_their_memory(memfold):
    lines = jsonl(turn("a", memory="pipe-a"), turn("b", memory="pipe-b"), turn("c"))
    done = memfold("ingest", "-", "--memory", "pipe-c", "--json", stdin=lines)
    assert json.loads(done.stdout)["appended"] == 3
    assert [contents(memfold, f"pipe-{x}") for x in "abc"] == [["a"], ["b"], ["c"]]


def test_an_id_with_other_content_is_refused_and_costs_no_other_line(memfold):
    lines = jsonl(turn("first", id="t1"), turn("other", id="t1"), turn("after", id="t2"))
    done = memfold("ingest", "-", "--memory", "conflict", "--json", stdin=lines)
    assert done.returncode == 1
    assert [failed["line"] for failed in json.loads(done.stdout)["failed"]] == [2]
    assert contents(memfold, "conflict") == ["first", "after"]


def test_a_memory_can_be_shown_listed_and_deleted(memfold):
    memfold("ingest", "-", "--memory", "shown", stdin=jsonl(turn("I live in Oslo."), turn("Nice.", role="assistant")))
    memfold("chat", "shown", "--max-tokens", "1", stdin="Hello\n")  # waits until the two are folded
    shown = json.loads(memfold("show", "shown", "--json").stdout)
    assert shown["name"] == "tenants/local/memories/shown"
    assert shown["turn_count"] >= 3
    assert shown["state_bytes"] > 0
    assert len(shown["layer_norms"]) == shown["state_shape"][0]
    for word in ("revision", "folded", "lag", "bytes", "norm, adapted layer 0"):
        assert word in memfold("show", "shown").stdout
    assert "shown" in [m["name"].rpartition("/")[2] for m in json.loads(memfold("memories", "--json").stdout)]
    assert "shown" in memfold("memories").stdout
    assert "user: I live in Oslo." in memfold("turns", "shown").stdout
    assert "sound at" in memfold("verify", "shown").stdout

    assert memfold("delete", "shown").returncode == 2
    assert memfold("delete", "shown", "--yes").returncode == 0
    gone = memfold("show", "shown")
    assert gone.returncode == 1
    assert "memfold memories" in gone.stderr


def test_chat_answers_a_pipe_line_by_line_and_both_sides_become_turns(memfold):
    done = memfold("chat", "piped", "--max-tokens", "4", stdin="Hello\n\n/state\n/nonsense\nAnd again\n/quit\nnever\n")
    assert done.returncode == 0, done.stderr
    assert "memory of" in done.stdout
    assert "lag" in done.stdout
    assert "unknown command" in done.stdout
    turns = json.loads(memfold("turns", "piped", "--json").stdout)
    assert [t["content"] for t in turns if t["role"] == "user"] == ["Hello", "And again"]
    assert "never" not in done.stdout


def test_chat_says_what_an_answer_rests_on_where_that_is_asked_for(memfold):
    options = ["--summary", "--online", "--stale", "fold_inline", "--temperature", "1", "--top-k", "5", "--seed", "7"]
    done = memfold("chat", "accounted", "--max-tokens", "4", *options, stdin="Hello\nAnd again\n")
    assert done.returncode == 0, done.stderr
    accounts = [line for line in done.stdout.splitlines() if "nats" in line]
    assert [line.split(",")[0].rpartition(".")[2] for line in accounts] == ["0", "2"]
    assert all("tokens" in line and "first after" in line for line in accounts)


def test_a_wrong_key_is_one_line_with_a_hint(memfold, platform):
    done = memfold("memories", "--api-key", "mfk_local_wrong")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "MEMFOLD_API_KEY" in done.stderr
    elsewhere = memfold("memories", "--target", platform.target)
    assert elsewhere.returncode == 1
    assert "needs an API key" in elsewhere.stderr


def test_control_characters_of_others_never_reach_the_terminal(memfold):
    memfold("ingest", "-", "--memory", "nasty", stdin=jsonl(turn("red \x1b[31mtext\x07 [bold]markup[/bold]")))
    printed = memfold("turns", "nasty").stdout
    assert "\x1b" not in printed
    assert "\x07" not in printed
    assert "[bold]markup[/bold]" in printed


def test_the_examples_work_as_they_stand(memfold, platform):
    examples = Path(__file__).parents[2] / "examples"
    done = memfold("ingest", str(examples / "conversation.jsonl"), "--json")
    assert json.loads(done.stdout) == {"appended": 10, "duplicates": 0, "failed": []}
    client = [sys.executable, str(examples / "client.py"), platform.target, platform.api_key]
    answered = subprocess.run(client, capture_output=True, text=True, timeout=300, check=False)
    assert answered.returncode == 0, answered.stderr
