"""What a reader does once its model is warm: a question in, a stream of text out."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

import torch

from memfold.api.errors import MemoryNotFoundError, ModelMismatchError, StateDamagedError
from memfold.api.generation import Stale, UpdateMode
from memfold.api.values import MemoryName, Revision
from memfold.store import State, Store
from memfold.store.digests import state_digest
from memfold_osam.serving import ServedModel
from memfold_osam.state import OsamState, state_from_bytes
from memfold_osam.turns import Message
from memfold_reader.detokenize import Detokenizer, StopScanner
from memfold_reader.engine import Engine
from memfold_reader.inline import InlineFolder
from memfold_reader.memories import Memories, Snapshot
from memfold_reader.outbox import Outbox
from memfold_reader.prompt import Prompt, Prompter
from memfold_reader.quotes import NOTHING, Quoter, Quotes
from memfold_reader.reply import Finished, Piece, Reply
from memfold_reader.sampling import Sampler, SamplingOptions
from memfold_reader.scoring import Candidate, Score, Scoring
from memfold_reader.sequence import Steering
from memfold_reader.work import Work

_ATTEMPTS = 5  # to read state and turns of one and the same log
OUTBOX_PIECES = 64  # of text that a client may leave untaken before its sequence pauses


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Which memory a request reads, how strongly, and what of its log stands in the prompt.

    Attributes:
        name: None for no memory.
        gain: scales the state's influence.
        window_tokens: of the newest turns, in the prompt word for word.
        recall_tokens: of turns that are found by words, in the prompt too.
        recall_query: those words; the last message where it is empty.
        minimum: the revision to reach; ``stale`` says what to do where the state has not.
        update: whether the request writes into its copy of the state.
        influence: say how far the memory moves the first token.
    """

    name: MemoryName | None = None
    gain: float = 1.0
    window_tokens: int = 0
    recall_tokens: int = 0
    recall_query: str = ""
    minimum: Revision | None = None
    stale: Stale = Stale.WAIT
    update: UpdateMode = UpdateMode.READ_ONLY
    influence: bool = False


@dataclass(frozen=True, slots=True)
class Basis:
    """What an answer rests on.

    Attributes:
        revision: of the state; empty without a memory.
        use: as it was asked for.
        stale: the state is behind what was asked for.
        folded_turns: for this answer alone.
    """

    revision: str
    prompt_tokens: int
    quotes: Quotes
    use: MemoryUse
    stale: bool
    folded_turns: int


class Answer:
    """A running reply: iterate for its pieces; the last item is a ``Finished``."""

    def __init__(self, basis: Basis, reply: Reply, outbox: Outbox[Piece | Finished], engine: Engine) -> None:
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

    def __aiter__(self) -> AsyncIterator[Piece | Finished]:
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
        inline_tokens: the most that are folded for one answer alone.
    """

    def __init__(self, served: ServedModel, store: Store, engine: Engine, *, inline_tokens: int) -> None:
        self.served = served
        self._prompter = Prompter(served)
        self._engine = engine
        # Of its own for the engine's thread: the other one changes settings of the tokenizer that they would share.
        turns = copy.deepcopy(served.turns)
        self._decoding = turns.tokenizer
        folding = replace(served, tokenizer=turns.tokenizer, turns=turns)
        inline = InlineFolder(folding, store, engine, self._prompter.turns, most_tokens=inline_tokens)
        self._memories = Memories(store, served.fingerprint, inline)
        self._quoter = Quoter(store, self._prompter.turns)

    async def generate(
        self, messages: Sequence[Message], use: MemoryUse, options: SamplingOptions, deadline: float, tenant: str = ""
    ) -> Answer:
        """Start a reply.

        Args:
            messages: what is new; at least one.
            use: the memory.
            options: how tokens are drawn.
            deadline: a time of ``time.monotonic``, or infinity.
            tenant: whose request it is.

        Raises:
            MemfoldError: the prompt does not fit, the memory cannot be read, the reader is full.
        """
        own = await self._prompter.messages(messages)
        max_tokens, room = self._prompter.plan(len(own.tokens), options.max_tokens)
        snapshot, quotes = await self._read(use, messages[-1].content, room, deadline)
        prompt = self._prompter.whole(quotes.tokens, own)
        steering = self._steering(snapshot, use, prompt)
        outbox: Outbox[Piece | Finished] = Outbox(OUTBOX_PIECES, self._engine.wake)
        reply = Reply(
            prompt.tokens,
            max_tokens=max_tokens,
            end_ids=self.served.turns.end_ids,
            stop_ids=frozenset(options.stop_tokens),
            steering=steering,
            sampler=Sampler(options),
            detokenizer=Detokenizer(self._decoding),
            stops=StopScanner(options.stop),
            outbox=outbox,
            deadline=deadline,
            tenant=tenant,
            top_logprobs=options.top_logprobs,
            influence=use.influence and steering is not None,
        )
        self._engine.submit(reply)
        basis = Basis(
            revision=_token(snapshot),
            prompt_tokens=len(prompt.tokens),
            quotes=quotes,
            use=use,
            stale=snapshot is not None and snapshot.stale,
            folded_turns=0 if snapshot is None else snapshot.folded_turns,
        )
        return Answer(basis, reply, outbox, self._engine)

    async def score_replies(
        self,
        messages: Sequence[Message],
        continuations: Sequence[str],
        use: MemoryUse,
        deadline: float,
        tenant: str = "",
    ) -> tuple[list[Score], str]:
        """How likely each continuation is as the reply to messages, and the revision that was read.

        Raises:
            MemfoldError: as for ``generate``.
        """
        own = await self._prompter.messages(messages)
        replies = await self._prompter.texts(continuations)
        _, room = self._prompter.plan(len(own.tokens), max(map(len, replies)))
        snapshot, quotes = await self._read(use, messages[-1].content, room, deadline)
        prompt = self._prompter.whole(quotes.tokens, own).tokens
        candidates = [Candidate((*prompt, *reply), len(prompt)) for reply in replies]
        return await self._score(candidates, snapshot, use, deadline, tenant)

    async def score_text(
        self, prompt: str, continuations: Sequence[str], use: MemoryUse, deadline: float, tenant: str = ""
    ) -> tuple[list[Score], str]:
        """How likely each continuation is after a text; the log's turns have no place in it.

        Raises:
            MemfoldError: as for ``generate``.
        """
        candidates = await self._prompter.continued(prompt, continuations)
        snapshot, _ = await self._read(use, "", 0, deadline)
        return await self._score(candidates, snapshot, use, deadline, tenant)

    def close(self) -> None:
        """End the tokenizer's thread."""
        self._prompter.close()

    async def _score(
        self,
        candidates: Sequence[Candidate],
        snapshot: Snapshot | None,
        use: MemoryUse,
        deadline: float,
        tenant: str,
    ) -> tuple[list[Score], str]:
        outbox: Outbox[Score] = Outbox(len(candidates), self._engine.wake)
        steering = self._steering(snapshot, use)
        scoring = Scoring(candidates, steering=steering, outbox=outbox, deadline=deadline, tenant=tenant)
        self._engine.submit(scoring)
        try:
            return [score async for score in outbox], _token(snapshot)
        finally:
            _cancel(scoring, self._engine)

    async def _read(self, use: MemoryUse, query: str, room: int, deadline: float) -> tuple[Snapshot | None, Quotes]:
        """The state, and the turns of the same log that stand in the prompt, in ``room`` tokens at most."""
        if use.name is None:
            return None, NOTHING
        for _ in range(_ATTEMPTS):
            snapshot = await self._memories.read(use.name, use.minimum, use.stale, deadline)
            quotes = await self._quoter.quote(
                snapshot.memory,
                use.recall_query or query,
                recall=use.recall_tokens,
                window=use.window_tokens,
                room=room,
            )
            if quotes is not None:
                return snapshot, quotes
        raise MemoryNotFoundError(f"{use.name} was changed again and again during the request")

    def _steering(self, snapshot: Snapshot | None, use: MemoryUse, prompt: Prompt | None = None) -> Steering | None:
        """None where nothing would steer: then the frozen backbone runs as it is."""
        if snapshot is None or use.gain == 0:
            return None
        stored, unread = snapshot.state, self._prompter.unread
        if use.update is UpdateMode.ONLINE:
            assert prompt is not None, "a score only reads"
            state = self.served.memory.init_state(1) if stored is None else self._state(stored)
            return Steering(state, use.gain, unread, write_from=prompt.own, segments=prompt.segments)
        if stored is None:
            return None
        return Steering(self._state(stored), use.gain, unread, digest=state_digest(stored.data))

    def _state(self, state: State) -> OsamState:
        return OsamState(self._tensor(state).to(self.served.device).unsqueeze(1))

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
