"""Copy a memory, go back, forget. With a platform running (memfold up): python examples/history.py HOST:PORT API_KEY."""

import sys

from memfold.client import Memfold, Role, Turn

if len(sys.argv) != 3:
    sys.exit(__doc__)
with Memfold(*sys.argv[1:3]) as memfold:
    for name in ("carol", "carol-before"):  # so that it can be run again
        memfold.delete_memory(name, allow_missing=True)
    first = memfold.append("carol", [Turn("t1", Role.USER, "My favorite color is teal.")], create=True)
    memfold.append("carol", [Turn("t2", Role.USER, "My secret is a hidden door.", metadata={"kind": "secret"})])
    memfold.wait("carol")

    memfold.wait_operation(memfold.fork("carol", "carol-before", at=first.revision))  # as it was after the first turn
    forgotten = memfold.wait_operation(memfold.forget("carol", metadata={"kind": "secret"}))
    print("forgotten:", *forgotten.receipt.turn_ids)
    print("left:", *(turn.content for turn in memfold.turns("carol")))
    print("sound:", memfold.wait_operation(memfold.verify("carol")).receipt.ok)
