import pytest

SERVICE = """
import json, os, signal, sys, time
from pathlib import Path

name = {name!r}
print(f"{{name}} says hello", flush=True)
if os.environ.get("FAKE_BREAKS") == name:
    print("cannot find the model", flush=True)
    sys.exit(3)

print("readers at", os.environ.get("MEMFOLD_READER_TARGET"), "threads", os.environ.get("MEMFOLD_THREADS"), flush=True)

def stop(*_):
    with open(os.environ["FAKE_STOPS"], "a") as stops:
        stops.write(name + "\\n")
    sys.exit(0)

signal.signal(signal.SIGTERM, stop)
ready = Path(os.environ["MEMFOLD_READY_FILE"])
ready.with_suffix(".new").write_text(json.dumps({{"address": f"127.0.0.1:{{os.getpid()}}", "pid": os.getpid()}}))
ready.with_suffix(".new").rename(ready)
while True:
    time.sleep(60)
"""


@pytest.fixture
def fake_services(tmp_path, monkeypatch):
    """Services that announce themselves and wait; FAKE_BREAKS names one that ends instead, FAKE_STOPS collects who was stopped."""
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    for name in ("memfold-writer", "memfold-reader", "memfold-gateway"):
        (scripts / name).write_text(SERVICE.format(name=name.removeprefix("memfold-")))
    monkeypatch.setattr("memfold.local.child.program", lambda name: scripts / name)
    monkeypatch.setenv("FAKE_STOPS", str(tmp_path / "stops"))
    monkeypatch.setenv("MEMFOLD_REDIS_URL", "redis://not.used.invalid:1/0")
    return scripts
