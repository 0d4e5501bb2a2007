"""A process that has imported everything and forks services on demand: a start takes a moment instead of ten seconds.

Runs as ``python -m memfold_faults.nursery``; takes an order a line (JSON) and answers each with the child's process id.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from memfold_faults import stub

from memfold.local.parent import when_parent_dies
from memfold.local.redis_server import find_redis
from memfold_gateway import __main__ as gateway_main
from memfold_gateway import gateway  # noqa: F401 -- so that children find it loaded
from memfold_writer import __main__ as writer_main


def main() -> None:
    """Serve orders until standard input ends; the children end with this process."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries them
    print("ready", flush=True)
    for line in sys.stdin:
        order, tie = json.loads(line), when_parent_dies(signal.SIGKILL)
        # Nothing here has ever had a thread, a channel or a loop: a fork is safe.
        pid = os.fork()
        if pid == 0:
            tie()
            _live(order)
        print(pid, flush=True)


def _live(order: dict[str, Any]) -> None:
    """Be the service that was ordered; never returns."""
    code = 70
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for own, others in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(own, others)
        os.environ.update(order["environment"])
        code = _SERVICES[order["kind"]](order)
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:  # noqa: BLE001 -- nothing may go back into the loop above
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _writer(order: dict[str, Any]) -> int:
    stub.install(**order["stub"])
    return writer_main.main()


def _gateway(order: dict[str, Any]) -> int:
    if order["hints"]:
        stub.install_hints(**order["hints"])
    return gateway_main.main()


def _oracle(order: dict[str, Any]) -> int:
    """Fold turns with the real model, all at once, into a file."""
    from memfold_osam.fold import Folder, FoldJob  # noqa: PLC0415
    from memfold_osam.serving import load_served_model  # noqa: PLC0415
    from memfold_osam.state import state_to_bytes  # noqa: PLC0415
    from memfold_osam.turns import Message  # noqa: PLC0415

    served = load_served_model(device="cpu")
    messages = [Message(**message) for message in order["messages"]]
    [result] = Folder(served, 16384).fold([FoldJob(anchor=None, offset=0, messages=messages)])
    path = Path(order["out"])
    path.with_suffix(".part").write_bytes(state_to_bytes(result.state))
    path.with_suffix(".part").replace(path)
    return 0


def _redis(order: dict[str, Any]) -> int:
    program = str(find_redis())
    os.execv(program, [program, order["config"]])


_SERVICES = {"redis": _redis, "writer": _writer, "gateway": _gateway, "oracle": _oracle}

if __name__ == "__main__":
    main()
