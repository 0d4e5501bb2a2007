"""Stream the LoCoMo conversations through a running platform, and account for every revision.

    memfold up                                        # in another terminal
    python benchmarks/locomo.py path/to/locomo10.json # the data set's own file (CC BY-NC, not part of this repository)

All conversations go in interleaved on one stream, with their speakers' names and dates. Afterwards every
turn is read back and compared, and every memory must be folded to its last revision. Prints one JSON object; the
exit code is 1 if anything is missing, doubled, out of order or changed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from memfold.client import Memfold, Turn
from memfold.evaluation.suites.locomo import conversation
from memfold.local.connection import Connection
from memfold.local.paths import DataDir, default_data_dir


def interleaved(talks: dict[str, list[Turn]]) -> Iterator[tuple[str, Turn]]:
    """A turn of each memory, again and again."""
    for row in zip_longest(*([(name, turn) for turn in turns] for name, turns in talks.items())):
        yield from (pair for pair in row if pair is not None)


def stream(memfold: Memfold, talks: dict[str, list[Turn]]) -> dict[str, Any]:
    """Send everything, wait for the folds, read everything back."""
    started = time.perf_counter()
    acknowledged, wrong = append(memfold, talks)
    appended = time.perf_counter()
    for name, turns in talks.items():
        folded = memfold.wait(name, timeout_s=1800)
        memory = memfold.get_memory(name)
        if not folded.sequence == memory.revision.sequence == memory.applied == len(turns):
            wrong.append(f"{name}: {len(turns)} turns, log at {memory.head}, folded to {memory.applied}")
        if memfold.state(name).revision != memory.revision:
            wrong.append(f"{name}: the state is not that of the last revision")
    finished = time.perf_counter()
    for name, turns in talks.items():
        wrong += differences(name, turns, memfold.turns(name))
    return {
        "memories": len(talks),
        "turns": sum(map(len, talks.values())),
        "acknowledged": acknowledged,
        "wrong": wrong,
        "append_s": round(appended - started, 1),
        "folded_s": round(finished - started, 1),
        "turns_per_s": round(acknowledged / (finished - started), 1),
    }


def append(memfold: Memfold, talks: dict[str, list[Turn]]) -> tuple[int, list[str]]:
    """Stream all turns in; how many were acknowledged, and what was not taken."""
    acks = list(memfold.stream(interleaved(talks), create=True))
    wrong = [f"{ack.memory} {ack.id}: {ack.error}" for ack in acks if ack.error is not None]
    return len(acks) - len(wrong), wrong


def differences(name: str, sent: Iterable[Turn], stored: Iterable[Turn]) -> Iterator[str]:
    """What of a memory's log is not what was sent."""
    for number, (have, said) in enumerate(zip_longest(stored, sent), 1):
        if have is None or said is None or (have.sequence, have.to_bytes()) != (number, said.to_bytes()):
            yield f"{name}: turn {number} is not what was sent"


def main() -> int:
    """Stream the file named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="locomo10.json")
    parser.add_argument("--data-dir", type=Path, help="of the platform, if not the usual one")
    parser.add_argument("--sessions", type=int, default=0, help="only so many conversations")
    arguments = parser.parse_args()
    samples = json.loads(arguments.file.read_text())[: arguments.sessions or None]
    connection = Connection.read(DataDir(arguments.data_dir or default_data_dir()))
    run = f"locomo-{int(time.time())}"
    talks = {f"{run}-{sample['sample_id']}": conversation(sample) for sample in samples}
    with Memfold(connection.target, connection.api_key) as memfold:
        facts = stream(memfold, talks)
    print(json.dumps(facts))
    return 1 if facts["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
