import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from memfold.cli import app

HISTORY = ["revisions", "fork", "rollback", "forget", "skip", "rebuild", "verify", "operations"]
USE = ["chat", "ingest", "memories", "show", "turns", "create", "update", "delete"]
COMMANDS = ["demo", "up", *USE, *HISTORY]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a command where no platform is."""
    for name in ("TARGET", "API_KEY", "BACKBONE", "ADAPTER", "REDIS_URL"):
        monkeypatch.delenv(f"MEMFOLD_{name}", raising=False)
    monkeypatch.setenv("MEMFOLD_DATA_DIR", str(tmp_path / "nobody"))
    return lambda *args: CliRunner().invoke(app, list(args))


@pytest.mark.parametrize("command", [["--help"], ["-h"], *([name, "--help"] for name in COMMANDS)])
def test_help_is_there_for_everything(run, command):
    done = run(*command)
    assert done.exit_code == 0
    assert "Usage" in done.stdout


def test_the_version_is_printed(run):
    done = run("--version")
    assert done.exit_code == 0
    assert done.stdout.startswith("memfold ")


@pytest.mark.parametrize(
    "command",
    [
        ["memories"],
        ["show", "x"],
        ["turns", "x"],
        ["create", "x", "--ttl", "30d"],
        ["update", "x", "--keep-last", "8"],
        ["delete", "x", "--yes"],
        ["chat", "x"],
        ["ingest", "-", "--memory", "x"],
        ["revisions", "x"],
        ["fork", "x", "y"],
        ["rollback", "x", "3", "--yes"],
        ["forget", "x", "--ids", "a", "--yes"],
        ["forget", "x", "--range", "3-7", "--yes"],
        ["forget", "x", "--match", "day=Monday", "--role", "user", "--yes"],
        ["skip", "x", "3"],
        ["rebuild", "x"],
        ["verify", "x"],
        ["operations", "x"],
    ],
)
def test_where_no_platform_runs_one_line_says_how_to_start_one(run, command):
    done = run(*command)
    assert done.exit_code == 1
    assert len(done.stderr.splitlines()) == 1
    assert "memfold up" in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["nonsense"],
        ["memories", "--nonsense"],
        ["show"],
        ["chat", "--window", "-1"],
        ["delete", "x"],
        ["ingest", "/no/such/file.jsonl"],
        ["up", "--listen", "nonsense"],
        ["up", "--listen", "127.0.0.1:99999"],
        ["demo", "--questions", "0"],
        ["memories", "--target"],
        ["fork", "x"],
        ["rollback", "x", "3"],
        ["rollback", "x", "yesterday", "--yes"],
        ["fork", "x", "y", "--at", "0123.4"],
        ["update", "x"],
        ["update", "x", "--ttl", "30"],
        ["update", "x", "--keep-last", "0"],
        ["update", "x", "--label", "day"],
        ["create", "x", "--retention", "soon"],
        ["forget", "x", "--ids", "a"],
        ["forget", "x", "--yes"],
        ["forget", "x", "--ids", "", "--yes"],
        ["forget", "x", "--ids", "a", "--range", "3", "--yes"],
        ["forget", "x", "--range", "7-3", "--yes"],
        ["forget", "x", "--range", "0", "--yes"],
        ["forget", "x", "--match", "day", "--yes"],
        ["forget", "x", "--role", "bot", "--yes"],
        ["skip", "x", "0"],
        ["verify", "x", "--timeout", "0"],
    ],
)
def test_wrong_usage_ends_with_2(run, command):
    assert run(*command).exit_code == 2


def test_an_address_needs_a_key_and_the_local_key_is_not_sent_to_it(run, tmp_path):
    (tmp_path / "nobody").mkdir()
    (tmp_path / "nobody" / "connection.json").write_text('{"target": "127.0.0.1:1", "api_key": "mfk_local_secret"}')
    done = run("memories", "--target", "memfold.invalid:443")
    assert done.exit_code == 1
    assert "needs an API key" in done.stderr


COMMAND = [sys.executable, "-m", "memfold.cli"]


@pytest.mark.parametrize("args", [["--help"], ["--version"]])
def test_a_full_disk_is_one_line_and_code_1(args):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, *args], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert done.returncode == 1
    assert done.stderr == "memfold: cannot write the output: No space left on device\n"


def test_a_reader_that_went_away_and_an_output_that_was_closed_end_it_quietly():
    away, pipe = os.pipe()
    os.close(away)
    done = subprocess.run([*COMMAND, "--help"], stdout=pipe, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(pipe)
    assert (done.returncode, done.stderr) == (1, b"")
    closed = " ".join([*COMMAND, "--version", ">&-"])
    assert subprocess.run(["sh", "-c", closed], stderr=subprocess.PIPE, timeout=60, check=True).stderr == b""


def test_a_file_that_cannot_be_read_is_one_line(run, tmp_path):
    (tmp_path / "nobody").write_text("not a directory")
    done = run("memories")
    assert done.exit_code == 1
    assert done.stderr.endswith("Not a directory\n")
    assert len(done.stderr.splitlines()) == 1


def test_no_help_text_waits_for_grpc():
    code = (
        "import sys; from typer.testing import CliRunner; from memfold.cli import app;"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0;"
        "sys.exit('grpc' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
