import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time

import pytest

from memfold.local.connection import Connection
from memfold.local.errors import (
    AddressInUseError,
    AlreadyRunningError,
    ChildDiedError,
    NotInstalledError,
    NotRunningError,
)
from memfold.local.paths import DataDir
from memfold.local.platform import Platform
from memfold.local.settings import ANY_PORT, PlatformSettings


def settings(tmp_path):
    return PlatformSettings(tmp_path / "data", listen=ANY_PORT, grace_s=10)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition, timeout_s=20):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_clients_find_the_running_platform_and_only_that(tmp_path, fake_services):
    data_dir = DataDir(tmp_path / "data")
    with Platform.start(settings(tmp_path)) as platform:
        assert Connection.read(data_dir) == platform.connection
        hashed = json.loads(data_dir.api_keys.read_text())
        assert list(hashed.values()) == ["local"]
    with pytest.raises(NotRunningError):
        Connection.read(data_dir)


def test_the_key_outlives_a_restart(tmp_path, fake_services):
    with Platform.start(settings(tmp_path)) as first:
        key = first.api_key
    with Platform.start(settings(tmp_path)) as second:
        assert second.api_key == key


def test_whoever_takes_requests_stops_first_and_whoever_holds_data_last(tmp_path, fake_services):
    with Platform.start(settings(tmp_path)) as platform:
        pids = [member.pid for member in platform.members]
        assert [member.name for member in platform.members] == ["redis", "writer", "reader", "gateway"]
    first, *rest = (tmp_path / "stops").read_text().split()
    assert first == "gateway"
    assert sorted(rest) == ["reader", "writer"]
    assert not any(alive(pid) for pid in pids)


def test_several_readers_and_writers_run_side_by_side_and_the_gateway_knows_all_readers(
    tmp_path, fake_services, monkeypatch
):
    monkeypatch.setattr("memfold.local.settings.os.cpu_count", lambda: 10)
    many = PlatformSettings(tmp_path / "data", listen=ANY_PORT, readers=2, writers=3)
    with Platform.start(many) as platform:
        members = {member.name: member for member in platform.members}
        assert list(members) == ["redis", "writer-1", "writer-2", "writer-3", "reader-1", "reader-2", "gateway"]
        readers = ",".join(members[name].address() for name in ("reader-1", "reader-2"))
        assert f"readers at {readers} " in members["gateway"].log.read_text()
        assert "threads 2" in members["reader-2"].log.read_text()
        assert len({member.log for member in platform.members}) == 7
    assert sorted((tmp_path / "stops").read_text().split()) == ["gateway", *["reader"] * 2, *["writer"] * 3]


def test_all_who_compute_are_asked_to_stop_before_any_is_waited_for(tmp_path, fake_services):
    script = fake_services / "memfold-writer"
    wait = "while open(os.environ['FAKE_STOPS']).read().count('writer') < 3: time.sleep(0.01)"
    script.write_text(script.read_text().replace("sys.exit(0)", f"{wait}\n    sys.exit(0)"))
    with Platform.start(PlatformSettings(tmp_path / "data", listen=ANY_PORT, writers=3)) as platform:
        writers = [member for member in platform.members if member.name.startswith("writer")]
    assert [writer.returncode() for writer in writers] == [0, 0, 0]
    assert (tmp_path / "stops").read_text().count("writer") == 3


def test_each_process_is_announced_once_as_it_begins_to_serve(tmp_path, fake_services):
    announced = []
    with Platform.start(settings(tmp_path), on_ready=lambda member: announced.append((member.name, member.address()))):
        assert sorted(name for name, _ in announced) == ["gateway", "reader", "redis", "writer"]
        assert all(address for _, address in announced)


@pytest.mark.parametrize("name", ["writer", "reader", "gateway"])
def test_a_child_that_does_not_come_up_is_named_with_its_last_lines_and_the_rest_is_stopped(
    tmp_path, fake_services, monkeypatch, name
):
    monkeypatch.setenv("FAKE_BREAKS", name)
    begun = []
    with pytest.raises(ChildDiedError) as caught:
        Platform.start(settings(tmp_path), on_ready=lambda member: begun.append(member.pid))
    assert caught.value.name == name
    assert caught.value.returncode == 3
    assert caught.value.last_lines == (f"{name} says hello", "cannot find the model")
    assert not any(alive(pid) for pid in begun)


@pytest.mark.parametrize("name", ["redis", "writer", "reader", "gateway"])
def test_a_child_that_is_killed_is_named(tmp_path, fake_services, name):
    with Platform.start(settings(tmp_path)) as platform:
        platform.check()
        os.kill(next(member.pid for member in platform.members if member.name == name), signal.SIGKILL)
        with pytest.raises(ChildDiedError, match=rf"the {name} died \(signal 9\)"):
            platform.wait()


def test_a_child_that_ignores_sigterm_is_killed_after_its_grace(tmp_path, fake_services, monkeypatch):
    monkeypatch.setattr("memfold.local.platform._TEARDOWN_S", 0)
    script = fake_services / "memfold-writer"
    script.write_text(script.read_text().replace("signal.SIGTERM, stop", "signal.SIGTERM, signal.SIG_IGN"))
    platform = Platform.start(PlatformSettings(tmp_path / "data", listen=ANY_PORT, grace_s=0.2))
    pids = [member.pid for member in platform.members]
    platform.stop()
    assert not any(alive(pid) for pid in pids)


def test_one_directory_holds_one_platform(tmp_path, fake_services):
    with (
        Platform.start(settings(tmp_path)) as platform,
        pytest.raises(AlreadyRunningError, match="running on"),
    ):
        Platform.start(settings(tmp_path))
    assert platform.members == []


def test_a_second_platform_that_is_refused_leaves_the_first_one_findable(tmp_path, fake_services):
    with Platform.start(settings(tmp_path)) as platform:
        with pytest.raises(AlreadyRunningError):
            Platform.start(settings(tmp_path))
        assert Connection.read(DataDir(tmp_path / "data")) == platform.connection


def test_an_address_in_use_is_said_before_anything_starts(tmp_path, fake_services):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(AddressInUseError, match="--listen"):
            Platform.start(PlatformSettings(tmp_path / "data", listen=address))


def test_a_missing_service_is_named_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("memfold.local.child.sysconfig.get_path", lambda _: str(tmp_path))
    with pytest.raises(NotInstalledError, match=r"memfold-writer is not installed.*memfold\[local\]"):
        Platform.start(settings(tmp_path))


def test_when_the_platform_itself_is_killed_no_child_survives(tmp_path, fake_services):
    program = textwrap.dedent(f"""
        from pathlib import Path
        from memfold.local import child
        child.program = lambda name: Path({str(fake_services)!r}) / name
        from memfold.local.platform import Platform
        from memfold.local.settings import ANY_PORT, PlatformSettings
        platform = Platform.start(PlatformSettings(Path({str(tmp_path / "data")!r}), listen=ANY_PORT))
        print(*[member.pid for member in platform.members], flush=True)
        platform.wait()
    """)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 4
        assert all(alive(pid) for pid in pids)
        parent.kill()
        wait_until(lambda: not any(alive(pid) for pid in pids))


def test_a_platform_that_a_shell_started_in_the_background_obeys_ctrl_c(tmp_path, fake_services):
    program = textwrap.dedent(f"""
        from pathlib import Path
        from memfold.local import child
        child.program = lambda name: Path({str(fake_services)!r}) / name
        from memfold.cli import app
        app(["up", "--json", "--listen", "127.0.0.1:0", "--redis-url", "", "--data-dir", {str(tmp_path / "data")!r}])
    """)
    background = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-c", program]
    with subprocess.Popen(background, stdout=subprocess.PIPE, text=True) as platform:
        pids = json.loads(platform.stdout.readline())["pids"]
        platform.send_signal(signal.SIGINT)
        assert platform.wait(60) == 130
    assert not any(alive(pid) for pid in pids.values())
