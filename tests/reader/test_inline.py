"""Answers that do not wait for a writer: what is missing is folded for them alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest
import torch

from memfold.api import errors
from memfold.api.generation import Stale
from memfold.api.v1 import generation_service_pb2 as pb
from memfold.api.values import MemoryName, ModelCard, Revision, Role, Turn
from memfold.store import State
from memfold.store.digests import chain
from memfold.store.keys import memory_keys
from memfold_osam import fold as fold_module
from memfold_osam.fold import Folder, FoldJob
from memfold_osam.serving import ServedModel
from memfold_osam.state import state_from_bytes
from memfold_osam.testing import tiny_random_model
from memfold_osam.turns import Message
from memfold_reader import inline as inline_module
from memfold_reader.inline import InlineFolder
from memfold_reader.memories import Memories
from memfold_reader.prompt import Prompter
from memfold_writer.claims import Claims
from memfold_writer.device import Device
from memfold_writer.drainer import Drainer
from memfold_writer.gatherer import Gatherer
from memfold_writer.metrics import Metrics
from memfold_writer.open_blocks import OpenBlocks
from memfold_writer.stopping import Stopping

SOON = pb.Sampling(max_tokens=16)


def inline(**fields) -> pb.MemoryOptions:
    return pb.MemoryOptions(stale=pb.STALE_FOLD_INLINE, **fields)


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> ServedModel:
    """A model that remembers: with the other one's gates nothing outlasts a hundred tokens, and every past looks right."""
    torch.set_num_threads(1)
    made = tiny_random_model(tmp_path_factory.mktemp("model"))
    for index in range(made.state_shape[0]):
        torch.nn.init.constant_(made.memory.layer(index).beta_bias, -5.0)
    return made


@pytest.fixture
async def write(store, served) -> AsyncIterator[Callable[[MemoryName], Awaitable[None]]]:
    """Folds what is due as a writer does, with the writer's own parts; the model has one user at a time here."""
    device, open_blocks, metrics = Device(served, 16384), OpenBlocks(0), Metrics()
    claims = Claims(store, metrics, fingerprint=served.fingerprint, owner="test", lease_s=30)
    gatherer = Gatherer(store, claims, device, open_blocks, metrics, batch_tokens=16384)
    drainer = Drainer(
        store,
        claims,
        gatherer,
        device,
        open_blocks,
        metrics,
        stopping=Stopping(grace_s=0),
        hint=lambda _: None,
        shape=served.state_shape,
    )

    async def write(name: MemoryName) -> None:
        await drainer.drain(name.partition)
        memory = await store.get_memory(name)
        assert memory.applied == memory.head

    yield write
    device.close()


@pytest.fixture
def folded_here(store, served) -> Callable[[MemoryName, Revision], Awaitable[torch.Tensor]]:
    """The oracle: the log as it is now, from its first turn to a revision, in one call."""

    async def folded_here(name: MemoryName, revision: Revision) -> torch.Tensor:
        log = [turn for turn in await store.read_turns(name) if turn.folds and turn.sequence <= revision.sequence]
        messages = [Message(str(turn.role), turn.content, turn.speaker) for turn in log]
        [result] = Folder(served).fold([FoldJob(anchor=None, offset=0, messages=messages)])
        return result.state

    return folded_here


@pytest.fixture
def make_memories(served, store, engine):
    """Memories as the reader reads them, with a bound of one's own."""
    prompter = Prompter(served)

    def make(most_tokens: int = 4096) -> Memories:
        folder = InlineFolder(served, store, engine, prompter.turns, most_tokens=most_tokens)
        return Memories(store, served.fingerprint, folder)

    yield make
    prompter.close()


@pytest.fixture
async def stored(store, served) -> Callable[[MemoryName], Awaitable[dict]]:
    """Everything that Redis holds of a memory."""

    async def stored(name: MemoryName) -> dict:
        server, held = store._server, {}
        for key in memory_keys(name, served.fingerprint):
            kind = await server.command("TYPE", key)
            if kind != b"none":
                held[key] = await server.command("DUMP", key)
        return held

    return stored


def close(state: State, expected: torch.Tensor) -> bool:
    found = state_from_bytes(state.data, state.shape)
    return bool((found - expected).abs().max() <= 1e-5 * expected.abs().max())


LONG = [f"{n}: " + "the cat sat on the mat, and " * (n % 4) for n in range(24)]
"""Byte by byte a few times as long as a block of the test's model."""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], LONG[:1]),
        (LONG[:3], LONG[3:5]),
        (LONG[:9], LONG[9:]),
        ([], ["x" * 700, "y"]),
        (["x" * 600], ["y", "z" * 300]),
    ],
    ids=["first turn", "within the block", "blocks on", "from nothing, a split turn", "from the middle of a turn"],
)
async def test_it_says_what_is_said_once_a_writer_has_folded(ask, append, store, served, write, name, before, after):
    if before:
        await append(name, *before)
        await write(name)
    revision = await append(name, *after)
    said = await ask(memory=str(name), memory_options=inline(min_revision=str(revision)), sampling=SOON)
    assert said.summary.revision == str(revision)
    assert (said.summary.folded_inline_turns, said.summary.stale) == (len(after), False)
    assert (await store.get_memory(name)).applied == len(before)
    await write(name)
    again = await ask(memory=str(name), memory_options=inline(min_revision=str(revision)), sampling=SOON)
    assert (again.text, again.summary.revision) == (said.text, str(revision))
    assert again.summary.folded_inline_turns == 0
    assert said.text != (await ask(sampling=SOON)).text


async def test_what_is_stored_stays_as_it_is(ask, append, write, store, name, stored):
    await append(name, *LONG[:5])
    await write(name)
    await append(name, *LONG[5:9])
    before = await stored(name)
    await ask(memory=str(name), memory_options=inline(), sampling=SOON)
    assert await stored(name) == before
    assert {key.rsplit(":", 2)[-2] for key in before} >= {"state", "line"}


@pytest.mark.parametrize("resumes", [True, False])
@pytest.mark.parametrize("piece", [60, 100_000])
@pytest.mark.parametrize(
    ("before", "after"),
    [(LONG[:7], LONG[7:]), ([], ["x" * 600, *LONG[:9]]), (["a" * 62] * 3, ["b" * 254, "c" * 62, "d" * 62])],
    ids=["many turns", "a split turn", "a full block"],
)
async def test_the_state_is_the_log_s_however_it_was_cut(
    append, write, folded_here, make_memories, name, monkeypatch, piece, before, after, resumes
):
    """Within and across blocks, through a turn that is split, with a block that is full to the last token."""
    monkeypatch.setattr(inline_module, "PIECE_TOKENS", piece)
    monkeypatch.setattr(fold_module, "hands_back", lambda _: resumes)
    if before:
        await append(name, *before)
        await write(name)
    await append(name, *after)
    snapshot = await make_memories().read(name, None, Stale.FOLD_INLINE, time.monotonic() + 30)
    assert snapshot.folded_turns == len(after)
    assert close(snapshot.state, await folded_here(name, snapshot.revision))


async def test_without_a_minimum_it_reads_the_log_s_end_and_with_one_no_more_than_that(ask, append, name):
    first = await append(name, "I live in Lisbon.")
    last = await append(name, "No, in Porto.", "With a cat.")
    said = await ask(memory=str(name), memory_options=inline(), sampling=SOON)
    assert (said.summary.revision, said.summary.folded_inline_turns) == (str(last), 3)
    said = await ask(memory=str(name), memory_options=inline(min_revision=str(first)), sampling=SOON)
    assert (said.summary.revision, said.summary.folded_inline_turns) == (str(first), 1)


async def test_a_turn_that_is_passed_over_is_passed_over_here_too(ask, append, store, write, name):
    await append(name, "I live in Lisbon.", "Nonsense.", "With a cat.")
    revision = await store.skip_turn(name, 2)
    said = await ask(memory=str(name), memory_options=inline(), sampling=SOON)
    assert (said.summary.revision, said.summary.folded_inline_turns) == (str(revision), 2)
    await write(name)
    assert (await ask(memory=str(name), sampling=SOON)).text == said.text


async def test_what_is_too_much_waits_for_the_writer(served, append, store, write, make_memories, name, prompt_of):
    await append(name, *LONG[:2])
    await write(name)
    revision = await append(name, *LONG[2:4])
    spent = sum(len(tokens) for tokens in map(prompt_of, LONG[:4])) - 4 * len(prompt_of())
    within = await make_memories(spent).read(name, None, Stale.FOLD_INLINE, time.monotonic() + 30)
    assert within.folded_turns == 2
    with pytest.raises(errors.DeadlineError):
        await make_memories(spent - 1).read(name, None, Stale.FOLD_INLINE, time.monotonic() + 0.5)
    asked = asyncio.create_task(make_memories(spent - 1).read(name, revision, Stale.FOLD_INLINE, time.monotonic() + 30))
    await asyncio.sleep(0.1)
    assert not asked.done()
    await write(name)
    waited = await asked
    assert (waited.revision, waited.folded_turns, waited.stale) == (revision, 0, False)


async def test_a_memory_with_a_turn_that_cannot_be_folded_waits_too(append, store, served, make_memories, name):
    await append(name, "poison")
    claims = await store.claim(served.fingerprint, name.partition, owner="test", lease_s=30, limit=9)
    (claim,) = (claim for claim in claims if claim.name == name)
    await store.quarantine(claim, sequence=1, reason="Poison")
    with pytest.raises(errors.DeadlineError):
        await make_memories().read(name, None, Stale.FOLD_INLINE, time.monotonic() + 0.5)
    revision = await store.skip_turn(name, 1)
    snapshot = await make_memories().read(name, None, Stale.FOLD_INLINE, time.monotonic() + 30)
    assert (snapshot.revision, snapshot.folded_turns) == (revision, 0)


async def test_a_state_that_is_not_finite_is_nobody_s_answer(append, engine, make_memories, name, monkeypatch):
    await append(name, "I live in Lisbon.")

    def broken(self, jobs):
        return [replace(result, state=result.state * float("nan")) for result in whole(self, jobs)]

    whole = inline_module.Folder.fold
    monkeypatch.setattr(inline_module.Folder, "fold", broken)
    with pytest.raises(errors.DeadlineError):
        await make_memories().read(name, None, Stale.FOLD_INLINE, time.monotonic() + 0.5)


async def test_a_torn_log_and_a_damaged_anchor_give_no_wrong_state(
    append, store, served, write, make_memories, folded_here, name
):
    await append(name, *LONG[:12])
    await write(name)
    await append(name, *LONG[12:14])
    line = memory_keys(name, served.fingerprint)
    [anchor] = [field for field in await store._server.command("HKEYS", line.history) if field.startswith(b"@")][-1:]
    await store._server.command("HSET", line.history, anchor, b"garbage")
    mended = await make_memories().read(name, None, Stale.FOLD_INLINE, time.monotonic() + 30)
    assert close(mended.state, await folded_here(name, mended.revision))
    await append(name, "one more")
    await store._server.command("XDEL", line.log, "13-0")
    with pytest.raises(errors.DeadlineError):
        await make_memories().read(name, None, Stale.FOLD_INLINE, time.monotonic() + 0.5)


class Interrupted:
    """A store in which something happens to a memory at one point of a read."""

    def __init__(self, store, method: str, happens: Callable[[], Awaitable[object]]) -> None:
        self._store = store
        self._method = method
        self._happens = happens
        self.happened = 0

    def __getattr__(self, name):
        found = getattr(self._store, name)
        if name != self._method or self.happened:
            return found

        async def call(*args, **kwargs):
            if not self.happened:
                self.happened += 1
                await self._happens()
            return await found(*args, **kwargs)

        return call


@pytest.fixture
def reading_through(served, engine):
    """Memories that are read through another store."""
    prompter = Prompter(served)

    def through(store) -> Memories:
        folder = InlineFolder(served, store, engine, prompter.turns, most_tokens=4096)
        return Memories(store, served.fingerprint, folder)

    yield through
    prompter.close()


@pytest.mark.parametrize("between", ["read_open_block", "read_turns", "get_memory"])
@pytest.mark.parametrize("change", ["forget", "rollback", "delete", "fold", "go on"])
async def test_a_memory_that_changes_meanwhile_gives_its_own_state(
    store, append, write, folded_here, reading_through, name, between, change
):
    """Whatever comes between any two reads: the state is that of the log which its revision names."""
    await append(name, *LONG[:6])
    await write(name)
    await append(name, *LONG[6:8])
    memory = await store.get_memory(name)

    async def happens() -> None:
        match change:
            case "forget":
                await store.forget(name, [2, 7], expected_incarnation=memory.incarnation)
            case "rollback":
                await store.rollback(name, Revision(memory.incarnation, 6))
            case "delete":
                await store.delete_memory(name)
                await append(name, "somebody else's turn")
            case "fold":
                await write(name)
            case "go on":
                await append(name, *LONG[8:])
                await write(name)

    seen = Interrupted(store, between, happens)
    reading = reading_through(seen)
    snapshot = await reading.read(name, None, Stale.FOLD_INLINE, time.monotonic() + 30)
    assert seen.happened
    now = await store.get_memory(name)
    assert snapshot.revision.incarnation == now.incarnation
    assert close(snapshot.state, await folded_here(name, snapshot.revision))
    if change in {"fold", "go on"}:
        assert memory.head <= snapshot.revision.sequence
        return
    assert snapshot.revision == now.revision
    with pytest.raises(errors.RevisionForeignError):
        await reading.read(name, memory.revision, Stale.FOLD_INLINE, time.monotonic() + 30)


@pytest.mark.parametrize("between", ["read_open_block", "read_turns", "get_memory"])
async def test_a_memory_that_another_model_takes_over_meanwhile_is_a_mismatch(
    store, served, append, write, reading_through, name, between
):
    await append(name, *LONG[:6])
    await write(name)
    await append(name, *LONG[6:8])
    other = ModelCard("f" * 64, "other", "other", served.state_shape, 256, 2048)
    await store.register_model(other, default=False)
    operation = await store.request_operation(name, "rebuild", {"fingerprint": other.fingerprint})
    await store.advance(name, operation.id, until=0)

    async def happens() -> None:
        claims = await store.claim(other.fingerprint, name.partition, owner="test", lease_s=30, limit=9)
        (claim,) = (claim for claim in claims if claim.name == name)
        assert await store.commit(
            claim,
            applied=claim.head,
            at=claim.head,
            state=bytes(served.memory.init_state(1).tensor.nbytes),
            shape=served.state_shape,
            anchor=None,
            log_digest=chain(claim.log_digest, await store.read_turns(name)),
        )
        assert (await store.advance(name, operation.id, until=0)).done

    reading = reading_through(Interrupted(store, between, happens))
    with pytest.raises(errors.ModelMismatchError):
        await reading.read(name, None, Stale.FOLD_INLINE, time.monotonic() + 30)


async def test_many_at_once_and_everybody_gets_an_answer(ask, append, remember, write):
    """Folds take turns with the steps of those who stream."""
    names = [MemoryName("reader", f"at-once-{n}") for n in range(4)]
    for n, name in enumerate(names):
        await append(name, *LONG[n : n + 8])
    streaming = [ask(f"Question {n}?", memory=str(await remember(n)), sampling=SOON) for n in range(4)]
    folding = [ask(memory=str(name), memory_options=inline(), sampling=SOON) for name in names]
    said = await asyncio.gather(*streaming, *folding)
    assert [one.summary.folded_inline_turns for one in said] == [0] * 4 + [8] * 4
    for name, one in zip(names, said[4:], strict=True):
        await write(name)
        assert (await ask(memory=str(name), sampling=SOON)).text == one.text


async def test_roles_and_speakers_fold_as_a_writer_folds_them(ask, store, write, name):
    turns = [
        Turn("a", Role.SYSTEM, "Be brief."),
        Turn("b", Role.USER, "Hello.", speaker="Caroline"),
        Turn("c", Role.ASSISTANT, "Yes?"),
        Turn("d", Role.TOOL, "42"),
    ]
    await store.append(name, turns, create=True)
    said = await ask(memory=str(name), memory_options=inline(), sampling=SOON)
    await write(name)
    assert (await ask(memory=str(name), sampling=SOON)).text == said.text
