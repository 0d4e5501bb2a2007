"""The store against a model of a few lines: whatever is asked in whatever order, both say the same.

.venv/bin/pytest tests/faults/test_state_machine.py --hypothesis-profile=long     # 2,000 examples
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from memfold_faults.chain import NAMES, SHAPE, state_of
from memfold_faults.story import COPY, NAME, A, B, few_at_once, prepare, take
from redis import Redis

from memfold.api.errors import TurnFoldedError
from memfold.api.values import OperationKind, Revision, Role, Turn
from memfold.local.redis_server import RedisServer
from memfold.store import Claim, Store
from memfold.store.digests import chain
from memfold.store.keys import member, memory_keys

CHAINS = dict(zip((A, B), NAMES, strict=True))


@dataclass
class Line:
    """Where one model's folding stands."""

    applied: int = 0
    newest: Claim | None = None  # whose commit may win
    held: bool = False  # by a lease
    fence: int = -1
    quarantined: bool = False
    spent: bool = False  # the newest claim has committed or was given back


@dataclass
class Model:
    """What a memory is."""

    incarnation: str
    serving: str
    head: int = 0
    last: int = 0
    log: dict[int, Turn | int] = field(default_factory=dict)  # a turn, or the number of the one to pass over
    lines: dict[str, Line] = field(default_factory=dict)
    building: str = ""
    rebuild: str = ""
    until: int = 0

    @property
    def turns(self) -> dict[int, Turn]:
        return {at: one for at, one in self.log.items() if isinstance(one, Turn)}

    @property
    def skips(self) -> dict[int, int]:
        return {turn: at for at, turn in self.log.items() if isinstance(turn, int)}

    def folded(self, until: int) -> list[Turn]:
        return [one for at, one in sorted(self.turns.items()) if at <= until and at not in self.skips]

    def waits(self, line: Line) -> bool:
        return any(at > line.applied for at in self.log)


class Machine(RuleBasedStateMachine):
    """Drives both."""

    loop: asyncio.AbstractEventLoop
    store: Store
    redis: Redis

    def __init__(self) -> None:
        super().__init__()
        self.run(prepare(self.store, self.redis))
        self.model: Model | None = None
        self.claims: list[Claim] = []
        self.number = 0

    def run(self, call):
        return self.loop.run_until_complete(call)

    def fresh(self, count: int) -> list[Turn]:
        self.number += count
        return [
            Turn(f"turn-{at}", Role.USER, f"message {at}") for at in range(self.number - count + 1, self.number + 1)
        ]

    # Rules ---------------------------------------------------------------------------------------------------------

    @rule(count=st.integers(1, 3), again=st.booleans())
    def append(self, count, again):
        model, turns = self.model, self.fresh(count)
        known = sorted(model.turns.items())[:1] if model and again else []
        result = self.run(self.store.append(NAME, [turn for _, turn in known] + turns, create=True))
        if model is None:
            model = self.model = Model(result.revision.incarnation, A, lines={A: Line()})
        numbers = [at for at, _ in known] + [model.last + at for at in range(1, count + 1)]
        assert [one.sequence for one in result.turns] == numbers
        assert [one.duplicate for one in result.turns] == [True] * len(known) + [False] * count
        model.log |= dict(zip(numbers[len(known) :], turns, strict=True))
        model.head = model.last = model.last + count

    @precondition(lambda self: self.model)
    @rule(which=st.sampled_from((A, B)))
    def claim(self, which):
        model, line = self.model, self.model.lines.get(which)
        claim = self.run(take(self.store, which))
        if line is None or line.held or line.quarantined or not model.waits(line):
            assert claim is None
            return
        assert (claim.incarnation, claim.applied, claim.head) == (model.incarnation, line.applied, model.head)
        assert claim.fence > line.fence
        assert claim.log_digest == self.digest(line.applied)
        line.fence, line.newest, line.held, line.spent = claim.fence, claim, True, False
        self.claims.append(claim)

    @precondition(lambda self: self.model)
    @rule(which=st.sampled_from((A, B)))
    def lease_ends(self, which):
        if which in self.model.lines:
            self.redis.zadd(memory_keys(NAME, which).dirty, {member(NAME): 0}, xx=True)
            self.model.lines[which].held = False

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def commit(self, data):
        claim = data.draw(st.sampled_from(self.claims))
        model, line = self.model, self.line_of(claim)
        ends = [at for at in (model.log if model else ()) if claim.applied < at <= claim.head]
        target = data.draw(st.sampled_from([*ends[-3:], claim.head]))
        data_ = (
            state_of(CHAINS[claim.fingerprint], model.folded(target)) if model and model.folded(target) else bytes(128)
        )
        at = max((at for at in model.turns if at <= target and at not in model.skips), default=0) if model else 0
        won = self.run(
            self.store.commit(
                claim,
                applied=target,
                at=at,
                state=data_,
                shape=SHAPE,
                anchor=None,
                log_digest=self.digest(target) if model else bytes(32),
            )
        )
        mine = line is not None and line.newest is claim
        assert won == (mine and line.applied in (claim.applied, target))
        if won and line.applied == claim.applied:
            line.applied, line.held, line.spent = target, False, True

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), give_back=st.booleans())
    def release(self, data, give_back):
        claim = data.draw(st.sampled_from(self.claims))
        self.run(self.store.release(claim, delay_s=0, give_back=give_back))
        line = self.line_of(claim)
        if line is not None and line.newest is claim and not line.spent:
            line.held, line.spent = False, True

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def quarantine(self, data):
        claim = data.draw(st.sampled_from(self.claims))
        line = self.line_of(claim)
        if line is None or line.newest is not claim or line.spent:
            return
        self.run(self.store.quarantine(claim, sequence=claim.applied + 1, reason="poison"))
        self.claims.remove(claim)
        line.newest, line.held, line.quarantined = None, False, True

    @precondition(lambda self: self.model and self.model.turns)
    @rule(data=st.data())
    def skip(self, data):
        model = self.model
        sequence = data.draw(st.sampled_from(sorted(model.turns)))
        if sequence in model.skips:
            assert self.run(self.store.skip_turn(NAME, sequence)).sequence == model.skips[sequence]
        elif any(line.applied >= sequence for line in model.lines.values()):
            with pytest.raises(TurnFoldedError):
                self.run(self.store.skip_turn(NAME, sequence))
        else:
            revision = self.run(self.store.skip_turn(NAME, sequence))
            assert revision == Revision(model.incarnation, model.last + 1)
            model.head = model.last = model.last + 1
            model.log[model.last] = sequence
            self.free()

    @precondition(lambda self: self.model and self.model.turns)
    @rule(data=st.data(), many=st.booleans())
    def forget(self, data, many):
        model = self.model
        chosen = data.draw(st.sets(st.sampled_from(sorted(model.turns)), min_size=1, max_size=4))
        kept = self.kept()
        with few_at_once() if many else contextlib.nullcontext():
            gone = self.run(self.store.forget(NAME, chosen, expected_incarnation=model.incarnation))
        assert gone.sequences == tuple(sorted(chosen))
        assert gone.ids == tuple(model.turns[at].id for at in sorted(chosen))
        for at in chosen | {model.skips[at] for at in chosen if at in model.skips}:
            del model.log[at]
        self.begin_anew(gone.revision, min(chosen) - 1, kept)
        assert gone.restored_to == model.lines[model.serving].applied

    @precondition(lambda self: self.model)
    @rule(data=st.data(), many=st.booleans())
    def roll_back(self, data, many):
        model = self.model
        target = data.draw(st.integers(0, model.head))
        kept = self.kept()
        with few_at_once() if many else contextlib.nullcontext():
            back = self.run(self.store.rollback(NAME, Revision(model.incarnation, target)))
        limit = min([target, *(turn - 1 for turn, at in model.skips.items() if at > target)])
        model.log = {at: one for at, one in model.log.items() if at <= target}
        model.head = target
        self.begin_anew(back.revision, limit, kept)
        assert back.restored_to == model.lines[model.serving].applied

    @precondition(lambda self: self.model)
    @rule()
    def scrub(self):
        while not self.run(self.store.scrub(NAME)):
            pass

    @precondition(lambda self: self.model)
    @rule()
    def fork(self):
        model = self.model
        operation = self.run(
            self.store.request_operation(NAME, OperationKind.FORK, {"target": str(COPY), "revision": ""})
        )
        done = self.run(self.store.advance(NAME, operation.id, until=0))
        while not done.done:
            done = self.run(self.store.advance(NAME, operation.id, until=0))
        copy, log = self.run(self.store.get_memory(COPY)), self.run(self.store.read_turns(COPY))
        assert (copy.head, copy.last, copy.turn_count) == (model.head, model.head, len(model.turns))
        assert [one.id for one in log if not one.skips] == [turn.id for _, turn in sorted(model.turns.items())]
        _, state = self.run(self.store.read_state(COPY))
        self.check_state(state, copy.fingerprint, copy.applied)
        self.run(self.store.delete_memory(COPY))

    @precondition(lambda self: self.model and not self.model.building)
    @rule()
    def begin_rebuild(self):
        model = self.model
        wanted = B if model.serving == A else A
        operation = self.run(self.store.request_operation(NAME, OperationKind.REBUILD, {"fingerprint": wanted}))
        self.run(self.store.advance(NAME, operation.id, until=0))
        model.building, model.rebuild, model.until = wanted, operation.id, model.head
        model.lines[wanted] = Line()
        if not model.log:
            model.lines[wanted].applied = model.head

    @precondition(lambda self: self.model and self.model.building)
    @rule()
    def go_on_with_rebuild(self):
        self.run(self.store.advance(NAME, self.model.rebuild, until=0))
        self.settle_rebuild()

    @precondition(lambda self: self.model and self.model.building)
    @rule()
    def call_rebuild_off(self):
        model = self.model
        args = {"fingerprint": model.serving}
        operation = self.run(self.store.request_operation(NAME, OperationKind.REBUILD, args))
        assert self.run(self.store.advance(NAME, operation.id, until=0)).done
        del model.lines[model.building]
        model.building = ""

    @precondition(lambda self: self.model)
    @rule()
    def delete(self):
        assert self.run(self.store.delete_memory(NAME)) == Revision(self.model.incarnation, self.model.head)
        self.model = None

    # What must hold ----------------------------------------------------------------------------------------------------

    @invariant()
    def both_say_the_same(self):
        model = self.model
        if model is None:
            return
        memory, log = self.run(self.store.get_memory(NAME)), self.run(self.store.read_turns(NAME))
        serving = model.lines[model.serving]
        assert (memory.incarnation, memory.head, memory.last) == (model.incarnation, model.head, model.last)
        assert (memory.fingerprint, memory.building) == (model.serving, model.building)
        assert (memory.applied, bool(memory.quarantined)) == (serving.applied, serving.quarantined)
        assert memory.building_applied == (model.lines[model.building].applied if model.building else 0)
        assert memory.turn_count == len(model.turns)
        assert memory.log_bytes == sum(len(turn.content) for turn in model.turns.values())
        assert [one.sequence for one in log] == sorted(model.log)
        for one in log:
            said = model.log[one.sequence]
            assert one.skips == said if isinstance(said, int) else one.to_bytes() == said.to_bytes()
            assert one.skipped == (one.sequence in model.skips)
        _, state = self.run(self.store.read_state(NAME))
        self.check_state(state, model.serving, serving.applied)
        for which in model.lines:
            for kept in self.run(self.store.list_revisions(NAME, fingerprint=which)):
                assert kept.log_digest == self.digest(kept.revision.sequence, log)

    def check_state(self, state, which: str, applied: int) -> None:
        folded = self.model.folded(applied)
        if state is None or state.data == bytes(128):
            assert not folded
        else:
            assert state.data == state_of(CHAINS[which], folded)

    # Helpers -----------------------------------------------------------------------------------------------------------

    def line_of(self, claim: Claim) -> Line | None:
        if self.model is None or claim.incarnation != self.model.incarnation:
            return None
        return self.model.lines.get(claim.fingerprint)

    def digest(self, until: int, log: list[Turn] | None = None) -> bytes:
        log = self.run(self.store.read_turns(NAME)) if log is None else log
        return chain(bytes(32), [one for one in log if one.sequence <= until])

    def kept(self) -> dict[str, list[int]]:
        return {
            which: [one.revision.sequence for one in self.run(self.store.list_revisions(NAME, fingerprint=which))]
            for which in self.model.lines
        }

    def begin_anew(self, revision: Revision, limit: int, kept: dict[str, list[int]]) -> None:
        model = self.model
        assert revision.incarnation != model.incarnation
        assert revision.sequence == model.head
        model.incarnation = revision.incarnation
        for which, line in model.lines.items():
            line.applied = max((at for at in kept[which] if at <= limit), default=0)
            if not model.waits(line):
                line.applied = model.head
        self.free()

    def free(self) -> None:
        for line in self.model.lines.values():
            line.newest, line.held, line.quarantined = None, False, False

    def settle_rebuild(self) -> None:
        model = self.model
        serving, building = model.lines[model.serving], model.lines[model.building]
        if building.applied >= serving.applied and building.applied >= min(model.until, model.head):
            del model.lines[model.serving]
            model.serving, model.building = model.building, ""


@pytest.fixture(scope="module", autouse=True)
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Redis that need not be durable, and a loop for the store."""
    server = RedisServer.start(tmp_path_factory.mktemp("redis"), appendfsync="no")
    Machine.loop = asyncio.new_event_loop()
    Machine.redis = Redis.from_url(server.url)
    Machine.store = Machine.loop.run_until_complete(Store.open(server.url))
    yield
    Machine.loop.run_until_complete(Machine.store.close())
    Machine.redis.close()
    Machine.loop.close()
    server.stop()


Test = Machine.TestCase
Test.settings = settings(
    deadline=None,
    stateful_step_count=25,
    derandomize=settings.default.max_examples <= 100,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
Test.pytestmark = [pytest.mark.timeout(3600)]
