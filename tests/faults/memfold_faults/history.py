"""What clients were told, and whether store and states agree with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from memfold_faults.chain import NAMES, fingerprint, state_of

from memfold.api.values import MemoryName, Revision, Turn
from memfold.store import Store
from memfold.store.digests import chain
from memfold.store.digests import state_digest as digest_of

_MODELS = {fingerprint(name): name for name in NAMES}


@dataclass(frozen=True)
class Seen:
    """A state that a client was given."""

    revision: Revision
    fingerprint: str
    data: bytes


@dataclass
class Book:
    """What the one client that writes to a memory knows of it.

    Attributes:
        logs: for each incarnation that the client learned of, the turns as it was told where they are.
        incarnation: the present one; empty before the first answer.
    """

    name: MemoryName
    logs: dict[str, dict[int, Turn]] = field(default_factory=dict)
    incarnation: str = ""
    head: int = 0
    seen: list[Seen] = field(default_factory=list)
    acknowledged: int = 0
    repeated: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def log(self) -> dict[int, Turn]:
        """The present log."""
        return self.logs.setdefault(self.incarnation, {})

    def acknowledge(self, turn: Turn, sequence: int, revision: Revision, *, duplicate: bool) -> None:
        """A turn was said to be at a place."""
        self._enter(revision)
        known = next((at for at, one in self.log.items() if one.id == turn.id), None)
        if known is not None:
            self.repeated += 1
            if known != sequence or not duplicate:
                self.faults.append(f"{turn.id} was at {known}, then said to be at {sequence} (duplicate {duplicate})")
            return
        if sequence <= self.head:
            self.faults.append(f"{turn.id} was put at {sequence}, behind it was {self.head} already")
        self.log[sequence] = turn
        self.head = max(self.head, sequence)
        self.acknowledged += 1

    def begin_anew(self, revision: Revision, kept: Iterable[int]) -> None:
        """Turns were taken out: these are left, under the same numbers."""
        left = {at: self.log[at] for at in kept}
        self.incarnation = revision.incarnation
        self.logs[self.incarnation] = left

    def copy(self, name: MemoryName, revision: Revision) -> Book:
        """The book of a copy that was made at the log's end."""
        return Book(name, {revision.incarnation: dict(self.log)}, revision.incarnation, revision.sequence)

    def see(self, seen: Seen) -> None:
        """A state was read."""
        before = [one for one in self.seen[-1:] if one.revision.incarnation == seen.revision.incarnation]
        if (
            before
            and before[0].fingerprint == seen.fingerprint
            and before[0].revision.sequence > seen.revision.sequence
        ):
            self.faults.append(f"the state went back from {before[0].revision} to {seen.revision}")
        self.seen.append(seen)

    def _enter(self, revision: Revision) -> None:
        if not self.incarnation:
            self.incarnation = revision.incarnation
        if revision.incarnation != self.incarnation:
            self.faults.append(f"incarnation {revision.incarnation} came out of nowhere")


@dataclass
class Verdict:
    """How often each law was broken, with the words for it."""

    memories: int = 0
    acknowledged: int = 0
    repeated: int = 0
    in_logs: int = 0
    states_read: int = 0
    revisions: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    reordered: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    @property
    def broken(self) -> dict[str, list[str]]:
        """What is not empty here must be."""
        kinds = ("lost", "doubled", "reordered", "foreign", "wrong", "told")
        return {kind: getattr(self, kind) for kind in kinds if getattr(self, kind)}

    def counts(self) -> dict[str, int]:
        """For people."""
        return {name: value if isinstance(value, int) else len(value) for name, value in vars(self).items()}


async def judge(store: Store, books: Sequence[Book]) -> Verdict:
    """Hold what clients were told against logs, states and digests. All must have been folded."""
    verdict = Verdict()
    for book in books:
        if book.incarnation:
            await _judge_one(store, book, verdict)
    return verdict


async def _judge_one(store: Store, book: Book, verdict: Verdict) -> None:
    name, told = book.name, book.log
    memory = await store.get_memory(name)
    log = await _read_all(store, name)
    turns = {turn.sequence: turn for turn in log if not turn.skips}
    verdict.memories += 1
    verdict.acknowledged += book.acknowledged
    verdict.repeated += book.repeated
    verdict.in_logs += len(turns)
    verdict.told += [f"{name}: {fault}" for fault in book.faults]
    if memory.incarnation != book.incarnation:
        verdict.wrong.append(f"{name} is {memory.incarnation}, not {book.incarnation}")
    for at, turn in told.items():
        if at not in turns or turns[at].to_bytes() != turn.to_bytes():
            verdict.lost.append(f"{name}: {turn.id} is not at {at}")
    ids = {turn.id for turn in told.values()}
    verdict.foreign += [f"{name}: {turn.id} at {at}" for at, turn in turns.items() if turn.id not in ids]
    if len({turn.id for turn in turns.values()}) != len(turns):
        verdict.doubled.append(f"{name}: {len(turns)} turns, fewer ids")
    # Clients number their turns and send them in that order, each memory by one client.
    numbers = [int(turn.id.rsplit("-", 1)[1]) for turn in turns.values()]
    if numbers != sorted(numbers):
        verdict.reordered.append(f"{name}: {numbers}")
    _judge_counts(memory, turns, verdict)
    await _judge_states(store, book, log, verdict)


def _judge_counts(memory, turns: dict[int, Turn], verdict: Verdict) -> None:
    found = memory.applied, memory.turn_count, memory.log_bytes
    wanted = memory.head, len(turns), sum(len(turn.content.encode()) for turn in turns.values())
    if found != wanted:
        verdict.wrong.append(f"{memory.name}: applied, turns and bytes are {found}, not {wanted}")


async def _judge_states(store: Store, book: Book, log: list[Turn], verdict: Verdict) -> None:
    for kept in await store.list_revisions(book.name):
        until = [entry for entry in log if entry.sequence <= kept.revision.sequence]
        verdict.revisions += 1
        data = state_of(_MODELS[kept.fingerprint], (entry for entry in until if entry.folds))
        _, state = await store.read_state_at(book.name, kept.revision)
        if chain(bytes(32), until) != kept.log_digest:
            verdict.wrong.append(f"{book.name}: the log's digest at {kept.revision}")
        if state is None or state.data != data or digest_of(data) != kept.state_digest:
            verdict.wrong.append(f"{book.name}: the state at {kept.revision}")
    _, state = await store.read_state(book.name)
    folded = [entry for entry in log if entry.folds]
    if folded and (state is None or state.data != state_of(_MODELS[state.fingerprint], folded)):
        verdict.wrong.append(f"{book.name}: the state at the end")
    for seen in book.seen:
        verdict.states_read += 1
        turns = book.logs.get(seen.revision.incarnation, {})
        until = [turn for at, turn in sorted(turns.items()) if at <= seen.revision.sequence]
        zero = bytes(len(seen.data))
        wanted = state_of(_MODELS[seen.fingerprint], until) if until else zero
        if seen.data != wanted:
            verdict.wrong.append(f"{book.name}: a client was given another state at {seen.revision}")


async def _read_all(store: Store, name: MemoryName) -> list[Turn]:
    log: list[Turn] = []
    while page := await store.read_turns(name, after=log[-1].sequence if log else 0):
        log += page
    return log
