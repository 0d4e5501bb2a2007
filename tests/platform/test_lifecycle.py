"""Up, down, up again, and a death in between."""

import json
import os
import signal
import stat
import time

import pytest

pytestmark = pytest.mark.platform


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_platform_stops_as_a_whole_remembers_across_restarts_and_names_who_dies(cli, tmp_path):
    with cli.up(tmp_path) as first:
        assert stat.S_IMODE((tmp_path / "connection.json").stat().st_mode) == 0o600
        chatted = cli.run("chat", "ann", "--max-tokens", "4", stdin="I live in Oslo.\n", data_dir=tmp_path)
        assert chatted.returncode == 0, chatted.stderr
        assert ": ann, new" in chatted.stdout
        before = json.loads(cli.run("turns", "ann", "--json", data_dir=tmp_path).stdout)
        assert first.stop(signal.SIGINT) == 130
        assert not any(alive(pid) for pid in first.pids.values())
    assert "memfold up" in cli.run("memories", data_dir=tmp_path).stderr

    with cli.up(tmp_path, "--readers", "2") as second:
        assert sorted(second.pids) == ["gateway", "reader-1", "reader-2", "redis", "writer"]
        assert second.api_key == first.api_key
        chatted = cli.run("chat", "ann", "--max-tokens", "4", stdin="Where do I live?\n", data_dir=tmp_path)
        assert chatted.returncode == 0, chatted.stderr
        assert f": ann, {len(before)} turns so far" in chatted.stdout
        after = json.loads(cli.run("turns", "ann", "--json", data_dir=tmp_path).stdout)
        assert after[: len(before)] == before
        assert len(after) > len(before)

        os.kill(second.pids["writer"], signal.SIGKILL)
        assert second.process.wait(300) == 1
        said = second.process.stderr.read()
        assert "the writer died (signal 9)" in said
        assert "writer.log" in said
        assert "Traceback" not in said
        assert not any(alive(pid) for pid in second.pids.values())


def test_a_second_platform_on_the_same_directory_is_refused(cli, platform):
    done = cli.run("up", "--listen", "127.0.0.1:0", data_dir=platform.data_dir)
    assert done.returncode == 1
    assert "running" in done.stderr
    assert cli.run("memories", data_dir=platform.data_dir).returncode == 0


def test_the_demo_shows_the_path_and_ends_with_its_facts(cli, tmp_path):
    started = time.monotonic()
    done = cli.run("demo", "--questions", "4", "--json", "--seed", "7")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    for arm in ("recall_state", "recall_frozen", "recall_full_context"):
        assert facts[arm]["n"] == 4
        assert 0 <= facts[arm]["value"] <= 1
    assert sum(recall["n"] for recall in facts["by_attribute"].values()) == 4
    assert facts["state_bytes"] > 0
    assert facts["turns"] == 10 + 2 * 6
    for cost in ("ack_ms_p50", "fold_ms_p50", "ttft_ms_p50"):
        assert 0 < facts[cost] < 1000 * (time.monotonic() - started)
    for said in ("pid", "from the state", "frozen backbone", "first token"):
        assert said in done.stderr
