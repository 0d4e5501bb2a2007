"""No memory ever speaks in another's reply: tried as if it were broken, and with faults put in on purpose.

Each character has a prompt, a memory (or none), a gain and a way to use it, and words that it would say alone: its canary.
Hundreds of replies share batches while others join, leave, are cancelled, stall and come back, outgrow their place and
take over that of others. A token that is not its character's next word is a foreign canary.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from memfold_osam.serving import ServedModel
from memfold_osam.state import OsamState
from memfold_osam.testing import serve_random
from memfold_reader import kv as kv_module
from memfold_reader import scheduler as scheduler_module
from memfold_reader import work as work_module
from memfold_reader.kv import Bucket
from memfold_reader.prefixes import Prefixes, PrefixKey
from memfold_reader.scheduler import Scheduler
from memfold_reader.states import StatePool

PLACES = 500
WORDS = 100  # that a character says at most
CLEAR = 1e-3  # between the first and the second choice of every word, so that rounding decides nothing
ROW_STEPS = 200_000


@dataclass(frozen=True)
class Character:
    """What is asked for, and what is to be said."""

    job: dict[str, Any]
    words: list[int]


@pytest.fixture(scope="module")
def micro() -> ServedModel:
    """Two layers, so that the second one's keys depend on the memory in the first."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=97,
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=256,
                initializer_range=0.6,
                bos_token_id=None,
            )
        )
    return serve_random(model, rank=4, num_state_heads=1)


@pytest.fixture(autouse=True)
def eventful(monkeypatch) -> None:
    """Rows outgrow their places, prompts come in pieces, and nothing depends on how fast the machine is."""
    monkeypatch.setattr(kv_module, "SMALLEST", 32)
    monkeypatch.setattr(kv_module, "TOGETHER", 1000)
    monkeypatch.setattr(scheduler_module, "PREFILL_TOKENS", 100)
    monkeypatch.setattr(Scheduler, "took", lambda *_, **__: None)
    monkeypatch.setattr(work_module, "STALL_S", math.inf)


@torch.inference_mode()
def choices(micro: ServedModel, job: dict[str, Any], words: list[int]) -> torch.Tensor:
    """The oracle: the logits of every word, in one pass over one sequence, without engine or cache."""
    tokens = [*job["prompt"], *words[:-1]]
    state = micro.memory.init_state(1) if job["state"] is None else OsamState(job["state"].unsqueeze(1))
    begin = job.get("write_from", len(tokens))
    write = torch.tensor([[at >= begin for at in range(len(tokens))]])
    with micro.memory.bind(state, write=write, gain=job.get("gain", 1.0)):
        return micro.model(input_ids=torch.tensor([tokens])).logits[0, -len(words) :]


@pytest.fixture(scope="module")
def cast(micro, by_hand) -> list[Character]:
    """Characters that never come near a tie; some share their prompt, some their memory.

    What an engine proposes as their words counts only where the oracle would say the same.
    """
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(0, 97, (3 + 3 * n,), generator=generator).tolist() for n in range(8)]
    states = [None, *(2.0 * torch.randn(micro.state_shape, generator=generator) for _ in range(6))]
    jobs: list[dict[str, Any]] = []
    for n, (prompt, (m, state)) in enumerate(itertools.product(prompts, enumerate(states))):
        jobs.append({"prompt": prompt, "state": state})
        if state is not None:
            jobs[-1] |= {"gain": 1.0 + n % 2, "digest": bytes([m])} | ({"write_from": 1} if n % 5 == 0 else {})
    engine, found = by_hand(micro, places=len(jobs)), []
    replies = [engine.submit(**job, max_tokens=WORDS) for job in jobs]
    engine.finish(*replies)
    for job, reply in zip(jobs, replies, strict=True):
        (first, second), words = choices(micro, job, reply.generated).topk(2)[0].unbind(-1), reply.generated
        if bool((first - second > CLEAR).all()):
            assert choices(micro, job, words).argmax(-1).tolist() == words
            found.append(Character(job, words))
    assert len(found) > 20
    assert len({tuple(character.words) for character in found}) == len(found)
    return found


class Silent:
    """Text is of no matter here."""

    def push(self, _token: int) -> str:
        return ""


@dataclass
class Heard:
    """A reply, whose it is, and how many words of it have been listened to."""

    reply: Any
    character: Character
    words: int = 0


class Stage:
    """An engine full of characters, and chance."""

    def __init__(self, engine: Any, cast: list[Character], places: int, seed: int) -> None:
        self.foreign = 0
        self.row_steps = 0
        self._engine = engine
        self._cast = cast
        self._dice = random.Random(seed)
        self._places = places
        self._open: list[Heard] = []

    def act(self, row_steps: int) -> int:
        """Play on until so many tokens have been said; how many of them were not the speaker's."""
        while self.row_steps < row_steps and not self.foreign:
            self._change()
            self._engine.step()
            self._listen()
        return self.foreign

    def _change(self) -> None:
        dice = self._dice
        for _ in range(min(16, self._places + 16 - len(self._open))):
            character = dice.choice(self._cast)
            job = character.job | {"max_tokens": min(WORDS, dice.randint(1, 2 * WORDS))}
            reply = self._engine.submit(**job, tenant=dice.choice("abc"))
            reply._detokenizer = Silent()
            self._open.append(Heard(reply, character))
        for heard in dice.sample(self._open, 3):
            heard.reply._outbox.is_full = not heard.reply._outbox.is_full
        if dice.random() < 0.3:
            dice.choice(self._open).reply.cancel()

    def _listen(self) -> None:
        for heard in self._open:
            reply, words = heard.reply, heard.character.words
            said = len(reply.generated)
            if said > heard.words:
                self.row_steps += said - heard.words
                self.foreign += reply.generated[heard.words :] != words[heard.words : said]
                heard.words = said
            assert reply._outbox.error is None
        self._open = [h for h in self._open if not (h.reply.cancelled or h.reply._outbox.is_closed)]


@pytest.fixture
def stage(micro, cast, by_hand) -> Callable[[int], Stage]:
    return lambda places: Stage(by_hand(micro, places=places, prefix_bytes=100_000), cast, places, seed=0)


def test_in_two_hundred_thousand_row_steps_there_is_no_foreign_canary(stage):
    playing = stage(PLACES)
    assert playing.act(ROW_STEPS) == 0
    assert playing.row_steps >= ROW_STEPS


def swap_states(patch: pytest.MonkeyPatch) -> None:
    """In one step in fifty, two rows of a batch read each other's memory."""
    real, count = StatePool.rows, itertools.count()

    def rows(self: StatePool, slots: Any) -> torch.Tensor:
        if len(slots) > 1 and next(count) % 50 == 49:
            slots = [slots[1], slots[0], *slots[2:]]
        return real(self, slots)

    patch.setattr(StatePool, "rows", rows)


def forget_that_states_change(patch: pytest.MonkeyPatch) -> None:
    """What was prepared for a batch is used again although a slot has a new owner."""
    patch.setattr(StatePool, "changes", property(lambda _: 0, lambda *_: None), raising=False)


def move_without_luggage(patch: pytest.MonkeyPatch) -> None:
    """Rows change places, and their keys and values stay."""
    patch.setattr(Bucket, "_all", lambda _: iter(()))


def share_by_tokens(patch: pytest.MonkeyPatch) -> None:
    """Keys and values are used again whatever memory they were made with."""
    patch.setattr(Prefixes, "key", lambda *_: PrefixKey("", writes=False, gain=0.0, digest=b"", unread=0))


def write_where_others_read(patch: pytest.MonkeyPatch) -> None:
    """What one row has written goes to its neighbour's slot."""
    real = StatePool.store
    patch.setattr(StatePool, "store", lambda self, slots, states: real(self, [slot % 8 + 1 for slot in slots], states))


@pytest.mark.parametrize(
    "fault",
    [swap_states, forget_that_states_change, move_without_luggage, share_by_tokens, write_where_others_read],
)
def test_a_fault_that_is_put_in_on_purpose_is_heard(stage, monkeypatch, fault):
    with monkeypatch.context() as patch:
        fault(patch)
        assert stage(4).act(10_000) > 0
