"""What a writer process of these tests has instead of a model, and what makes it die or fail at a chosen moment."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from memfold_faults.chain import SHAPE, ChainModel, link, start

from memfold.hints import Hinter
from memfold.store import Store
from memfold_osam.fold import Folder, FoldJob, FoldResult
from memfold_osam.open_block import OpenBlock
from memfold_writer import claims, device, drainer, service


class ChainFolder:
    """Folds as ``Folder`` does, block by block, and hands open blocks back. What is poison makes it fail as it says."""

    def __init__(self, served: ChainModel, batch_tokens: int = 0, keep_bytes: int = 0) -> None:
        self._served, self._keeps = served, keep_bytes > 0

    def fold(self, jobs: Sequence[FoldJob]) -> list[FoldResult]:
        """Fold all jobs; each on its own."""
        return [self._fold(job) for job in jobs]

    def _fold(self, job: FoldJob) -> FoldResult:
        assert job.offset == 0, "no message is larger than a block"
        state, size = (job.anchor, 0) if job.open_block is None else (job.open_block.state, job.open_block.tokens)
        digest = start(self._served.backbone) if state is None else bytes(int(one) for one in state.flatten().tolist())
        anchor, index, tokens = None, 0, 0
        for at, message in enumerate(job.messages):
            length = len(self._served.turns.encode(message))
            if size + length > self._served.block_tokens:
                anchor, index, size = (state, at, 0) if size else (anchor, index, 0)
            size, tokens = size + length, tokens + length
            digest = link(digest, message)
            state = _poisoned(message.content, torch.tensor([float(one) for one in digest]).view(*SHAPE))
        if any(message.content == "poison: nan" for message in job.messages):
            state = torch.full(SHAPE, float("nan"))
        state = torch.zeros(SHAPE) if state is None else state
        left = OpenBlock(state, size, (torch.zeros(1, 1, 1),), (torch.zeros(1, 1, 1),)) if self._keeps else None
        return FoldResult(state, anchor, index, 0, tokens, left)


def _poisoned(content: str, state: torch.Tensor) -> torch.Tensor:
    kind = content.removeprefix("poison: ") if content.startswith("poison: ") else ""
    match kind:
        case "raise":
            raise RuntimeError("no kernel for this")
        case "memory":
            raise MemoryError
        case "hang":
            time.sleep(3600)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
    return state


def install(*, real: bool, kill: tuple[str, int] | None, fold_limit_s: float, pause_s: float, hurry: bool) -> None:
    """Change this process before its service starts.

    Args:
        real: leave the model as it is.
        kill: a point, and at which passage through it the process dies by SIGKILL.
        fold_limit_s: a fold that takes longer is taken for one that never ends.
        pause_s: how long each fold takes besides.
        hurry: hardly rest after failures.
    """
    if not real:
        service.load_served_model = lambda backbone, *_, **__: ChainModel(backbone)
        device.Folder = ChainFolder
    drainer.FIRST_LIMIT_S = fold_limit_s
    if hurry:
        claims.FIRST_BACKOFF_S, claims.LONG_BACKOFF_S, drainer.SLOWEST_TOKENS_S = 0.05, 1.0, 1000
    folder = Folder if real else ChainFolder
    if pause_s:
        folder.fold = _slowed(folder.fold, pause_s)
    if kill is not None:
        _install_kill(folder, *kill)


def install_hints(*, seed: int, lost: float, doubled: float) -> None:
    """Lose and double some of the hints that this process sends, and mix up the order of the rest."""
    dice, send = random.Random(seed), Hinter._send

    def shaken(self: Hinter, pending: dict[Any, Any]) -> bool:
        kept = [pair for pair in pending.items() if dice.random() >= lost]
        again = [pair for pair in kept if dice.random() < doubled]
        dice.shuffle(kept)
        os.write(2, f"hints: {len(pending)} sent, {len(pending) - len(kept)} lost, {len(again)} doubled\n".encode())
        return send(self, dict(kept)) and send(self, dict(again))

    Hinter._send = shaken


class _Bomb:
    """Goes off at its n-th tick."""

    def __init__(self, ticks: int) -> None:
        self._left = ticks

    def tick(self) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def _install_kill(folder: Any, point: str, passage: int) -> None:
    bomb = _Bomb(passage)
    match point:
        case "after claim":
            Store.claim = _watched(Store.claim, after=lambda claims: claims and bomb.tick())
        case "after read":
            Store.read_turns = _watched(Store.read_turns, after=lambda _: bomb.tick())
        case "after compute":
            whole = folder.fold

            def fold(self: Any, jobs: Sequence[FoldJob]) -> list[FoldResult]:
                results = whole(self, jobs)
                if jobs[0].messages[0].content != "Hello.":  # that of the warm-up
                    bomb.tick()
                return results

            folder.fold = fold
        case "before commit":
            Store.commit = _watched(Store.commit, before=bomb.tick)
        case "after commit":
            Store.commit = _watched(Store.commit, after=lambda _: bomb.tick())
        case "before ack":
            drainer.Drainer.drain = _watched(drainer.Drainer.drain, after=lambda _: bomb.tick())
        case _:
            raise ValueError(point)


def _watched(
    method: Any, before: Callable[[], object] = lambda: None, after: Callable[[Any], object] = lambda _: None
) -> Any:
    async def watched(*args: Any, **kwargs: Any) -> Any:
        before()
        result = await method(*args, **kwargs)
        after(result)
        return result

    return watched


def _slowed(fold: Any, pause_s: float) -> Any:
    def slow(self: Any, jobs: Sequence[FoldJob]) -> list[FoldResult]:
        time.sleep(pause_s)
        return fold(self, jobs)

    return slow
