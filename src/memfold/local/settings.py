"""What a platform on this machine can be told, and the environment its processes run in."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

DEFAULT_LISTEN = "127.0.0.1:50051"
ANY_PORT = "127.0.0.1:0"


def default_threads(processes: int) -> int:
    """Threads for each of so many processes that compute: their share of the machine's."""
    return max(1, (os.cpu_count() or 1) // processes)


def inherited_environment() -> dict[str, str]:
    """The environment of this process, for its children; a port that only one of them could have stays behind."""
    return {name: value for name, value in os.environ.items() if name != "MEMFOLD_METRICS_PORT"}


@dataclass(frozen=True, slots=True)
class PlatformSettings:
    """What a platform on this machine can be told; everything else is derived.

    Attributes:
        data_dir: where logs, states and keys are kept.
        listen: the gateway's address; port 0 takes a free one.
        backbone: a model directory or a name on a model hub; empty for the embedded model.
        adapter: the same for the adapter.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``.
        threads: for each process that computes; 0 for ``default_threads``.
        readers: how many.
        writers: how many.
        redis_url: a Redis of yours; empty to start a private one.
        tenant: whose key is made.
        grace_s: how long a process may take to finish what it is doing when it is stopped.
    """

    data_dir: Path
    listen: str = DEFAULT_LISTEN
    backbone: str = ""
    adapter: str = ""
    device: str = "auto"
    threads: int = 0
    readers: int = 1
    writers: int = 1
    redis_url: str = ""
    tenant: str = "local"
    grace_s: float = 5.0

    def model_environment(self) -> dict[str, str]:
        """For the processes that hold a model."""
        threads = str(self.threads or default_threads(self.readers + self.writers))
        return {
            "MEMFOLD_BACKBONE": self.backbone,
            "MEMFOLD_ADAPTER": self.adapter,
            "MEMFOLD_DEVICE": self.device,
            "MEMFOLD_THREADS": threads,
            "OMP_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "false",
        }
