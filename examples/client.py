"""The client in ten lines. With a platform running (memfold up): python examples/client.py HOST:PORT API_KEY."""

import sys

from memfold.client import Memfold, Role, Turn

if len(sys.argv) != 3:
    sys.exit(__doc__)
with Memfold(*sys.argv[1:3]) as memfold:
    memfold.append("alice", [Turn("chat-1", Role.USER, "My favorite color is teal.")], create=True)
    memfold.wait("alice")
    for text in memfold.generate("What is my favorite color?", memory="alice"):
        print(text, end="", flush=True)
    print()
