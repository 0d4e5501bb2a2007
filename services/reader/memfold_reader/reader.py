"""What a reader does once its model is warm: a question in, a stream of text out."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import torch

from memfold.api.errors import ModelMismatchError, StateDamagedError
from memfold.api.values import MemoryName, Revision
from memfold.store import State, Store
from memfold_osam.serving import ServedModel
from memfold_osam.state import OsamState, state_from_bytes
from memfold_osam.turns import Message
from memfold_reader.detokenize import Detokenizer, StopScanner
from memfold_reader.engine import Engine
from memfold_reader.memories import Memories, Snapshot
from memfold_reader.outbox import Outbox
from memfold_reader.prompt import Prompter
from memfold_reader.reply import Finished, Reply
from memfold_reader.runner import Steering
from memfold_reader.sampling import Sampler, SamplingOptions
from memfold_reader.scoring import Candidate, Score, Scoring
from memfold_reader.work import Work

OUTBOX_PIECES = 64  # of text that a client may leave untaken before its sequence pauses


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Which memory a request reads, how strongly, and what of its log stands in the prompt."""

    name: MemoryName | None = None
    gain: float = 1.0
    window_tokens: int = 0
    minimum: Revision | None = None


@dataclass(frozen=True, slots=True)
class Basis:
    """What an answer rests on. ``revision`` is empty without a memory."""

    revision: str
    prompt_tokens: int
    window_turns: int


class Answer:
    """A running reply: iterate for its text; the last item is a ``Finished``."""

    def __init__(self, basis: Basis, reply: Reply, outbox: Outbox[str | Finished], engine: Engine) -> None:
        self.basis = basis
        self._reply = reply
        self._outbox = outbox
        self._engine = engine

    @property
    def generated_tokens(self) -> int:
        """Tokens drawn so far."""
        return len(self._reply.generated)

    @property
    def first_token_at(self) -> float:
        """A time of ``time.monotonic``; 0 before the first token."""
        return self._reply.first_token_at

    def __aiter__(self) -> AsyncIterator[str | Finished]:
        return self._outbox.__aiter__()

    def cancel(self) -> None:
        """Let the engine go of it; harmless when it has ended."""
        _cancel(self._reply, self._engine)


class Reader:
    """Answers from memories with one model.

    Args:
        served: the model.
        store: where states and logs are.
        engine: started, running that model.
    """

    def __init__(self, served: ServedModel, store: Store, engine: Engine) -> None:
        self.served = served
        self._memories = Memories(store, served.fingerprint)
        self._prompter = Prompter(served)
        self._engine = engine
        # Of its own for the engine's thread: the other one changes settings of the tokenizer that they would share.
        self._decoding = copy.deepcopy(served.tokenizer)

    async def generate(
        self, messages: Sequence[Message], use: MemoryUse, options: SamplingOptions, deadline: float
    ) -> Answer:
        """Start a reply.

        Args:
            messages: what is new; at least one.
            use: the memory.
            options: how tokens are drawn.
            deadline: a time of ``time.monotonic``, or infinity.

        Raises:
            MemfoldError: the prompt does not fit, the memory cannot be read, the reader is full.
        """
        own = await self._prompter.messages(messages)
        max_tokens, room = self._prompter.plan(len(own), options.max_tokens)
        snapshot = await self._read(use, deadline)
        window = await self._window(snapshot, use, room)
        prompt = self._prompter.whole(window, own)
        outbox: Outbox[str | Finished] = Outbox(OUTBOX_PIECES, self._engine.wake)
        reply = Reply(
            prompt,
            max_tokens=max_tokens,
            end_ids=self.served.turns.end_ids,
            steering=self._steering(snapshot, use.gain),
            sampler=Sampler(options),
            detokenizer=Detokenizer(self._decoding),
            stops=StopScanner(options.stop),
            outbox=outbox,
            deadline=deadline,
        )
        self._engine.submit(reply)
        return Answer(Basis(_token(snapshot), len(prompt), len(window)), reply, outbox, self._engine)

    async def score_replies(
        self, messages: Sequence[Message], continuations: Sequence[str], use: MemoryUse, deadline: float
    ) -> tuple[list[Score], str]:
        """How likely each continuation is as the reply to messages, and the revision that was read.

        Raises:
            MemfoldError: as for ``generate``.
        """
        own = await self._prompter.messages(messages)
        replies = await self._prompter.texts(continuations)
        _, room = self._prompter.plan(len(own), max(map(len, replies)))
        snapshot = await self._read(use, deadline)
        prompt = self._prompter.whole(await self._window(snapshot, use, room), own)
        candidates = [Candidate((*prompt, *reply), len(prompt)) for reply in replies]
        return await self._score(candidates, snapshot, use, deadline)

    async def score_text(
        self, prompt: str, continuations: Sequence[str], use: MemoryUse, deadline: float
    ) -> tuple[list[Score], str]:
        """How likely each continuation is after a text; the log's turns have no place in it.

        Raises:
            MemfoldError: as for ``generate``.
        """
        candidates = await self._prompter.continued(prompt, continuations)
        return await self._score(candidates, await self._read(use, deadline), use, deadline)

    def close(self) -> None:
        """End the tokenizer's thread."""
        self._prompter.close()

    async def _score(
        self, candidates: Sequence[Candidate], snapshot: Snapshot | None, use: MemoryUse, deadline: float
    ) -> tuple[list[Score], str]:
        outbox: Outbox[Score] = Outbox(len(candidates), self._engine.wake)
        scoring = Scoring(candidates, steering=self._steering(snapshot, use.gain), outbox=outbox, deadline=deadline)
        self._engine.submit(scoring)
        try:
            return [score async for score in outbox], _token(snapshot)
        finally:
            _cancel(scoring, self._engine)

    async def _read(self, use: MemoryUse, deadline: float) -> Snapshot | None:
        return None if use.name is None else await self._memories.read(use.name, use.minimum, deadline)

    async def _window(self, snapshot: Snapshot | None, use: MemoryUse, room: int) -> list[list[int]]:
        if snapshot is None:
            return []
        return await self._memories.newest_turns(snapshot, min(use.window_tokens, room), self._prompter.turns)

    def _steering(self, snapshot: Snapshot | None, gain: float) -> Steering | None:
        """None where nothing would steer: then the frozen backbone runs as it is."""
        if snapshot is None or snapshot.state is None or gain == 0:
            return None
        state = self._tensor(snapshot.state).to(self.served.device).unsqueeze(1)
        return Steering(OsamState(state), gain, self._prompter.unread)

    def _tensor(self, state: State) -> torch.Tensor:
        if tuple(state.shape) != tuple(self.served.state_shape):
            raise ModelMismatchError(f"the state has the shape {state.shape}, the model {self.served.state_shape}")
        try:
            tensor = state_from_bytes(state.data, state.shape)
        except ValueError as error:
            raise StateDamagedError(str(error)) from None
        if not bool(tensor.isfinite().all()):
            raise StateDamagedError("the state holds numbers that are not finite")
        return tensor


def _token(snapshot: Snapshot | None) -> str:
    return "" if snapshot is None else str(snapshot.revision)


def _cancel(work: Work, engine: Engine) -> None:
    work.cancel()
    engine.wake()
