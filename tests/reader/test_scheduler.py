"""Who runs next: everybody who streams in every step, prompts within a budget, tenants evenly."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from memfold.api.errors import MemfoldError
from memfold_reader.scheduler import (
    GAP,
    LEAST_PREFILL_TOKENS,
    PREFILL_TOKENS,
    WAITING_PER_PLACE,
    Scheduler,
)
from memfold_reader.work import Work


class Job(Work):
    """A prompt and tokens to say, as numbers."""

    def __init__(self, prompt: int = 1, says: int = 1, tenant: str = "") -> None:
        super().__init__(math.inf, tenant)
        self.prompt = prompt
        self.says = says
        self.paused = False

    def can_step(self) -> bool:
        return not self.paused

    def decodes(self) -> bool:
        return self.prompt == 0

    def chunk(self, budget: int) -> int:
        return min(budget, self.prompt)

    def fail(self, error: MemfoldError) -> None:
        raise error


def run(scheduler: Scheduler[Job]) -> Counter[str]:
    """One step; tokens by tenant."""
    plan, ran = scheduler.plan(), Counter[str]()
    for job in plan.decode:
        job.says -= 1
        ran[job.tenant] += 1
        scheduler.ran([job], 1)
    for job, count in plan.prefill:
        job.prompt -= count
        ran[job.tenant] += count
        scheduler.ran([job], count)
    for job in list(scheduler.active):
        if job.says == 0:
            scheduler.remove(job)
    return ran


def filled(jobs: list[Job], places: int) -> Scheduler[Job]:
    scheduler: Scheduler[Job] = Scheduler(places)
    for job in jobs:
        scheduler.add(job)
    return scheduler


def test_everybody_who_streams_gets_a_token_in_every_step_whatever_prompts_wait():
    scheduler = filled([Job(0, 50) for _ in range(5)] + [Job(10_000) for _ in range(3)], 8)
    for _ in range(10):
        plan = scheduler.plan()
        assert len(plan.decode) == 5
        assert sum(count for _, count in plan.prefill) <= PREFILL_TOKENS


def test_prompts_take_turns_by_arrival_and_fill_the_budget_together():
    jobs = [Job(PREFILL_TOKENS - 100), Job(300), Job(300)]
    assert filled(jobs, 3).plan().prefill == [(jobs[0], PREFILL_TOKENS - 100), (jobs[1], 100)]


def test_places_are_never_more_than_there_are_and_the_rest_waits_in_order():
    jobs = [Job(0, 1 + n % 3) for n in range(10)]
    scheduler, begun = filled(jobs, 3), []
    while list(scheduler):
        run(scheduler)
        assert len(scheduler.active) <= 3
        begun += [job for job in jobs if job.says < 1 + jobs.index(job) % 3 and job not in begun]
    assert begun == sorted(begun, key=jobs.index)


def test_only_so_many_may_wait():
    scheduler: Scheduler[Job] = Scheduler(2)
    for _ in range(2 * WAITING_PER_PLACE):
        assert scheduler.has_room("")
        scheduler.add(Job())
    assert not scheduler.has_room("")


def test_whoever_is_paused_keeps_the_place_and_gets_no_turn():
    jobs = [Job(0, 5), Job(0, 5), Job(0, 5)]
    scheduler = filled(jobs, 2)
    scheduler.plan()
    jobs[0].paused = True
    assert scheduler.plan().decode == [jobs[1]]
    assert scheduler.can_move()
    jobs[1].paused = True
    assert not scheduler.can_move()
    assert not scheduler.plan().decode
    assert scheduler.active == jobs[:2]


def test_a_tenant_with_many_requests_does_not_hold_up_one_with_few():
    scheduler = filled([Job(0, 20, "many") for _ in range(30)], 4)
    for _ in range(10):
        run(scheduler)
    few = Job(0, 20, "few")
    scheduler.add(few)
    while few not in scheduler.active:
        run(scheduler)
    assert scheduler.waiting == 30 - 4 - 3  # one of the first four places that came free was theirs


def test_tenants_get_equal_shares_however_many_requests_they_have():
    """Requests that are five times as long bring no more service."""
    scheduler, served = filled([], 8), Counter[str]()
    for _ in range(1000):
        for tenant, prompt, says in (("long", 100, 50), ("short", 20, 10)):
            if scheduler.has_room(tenant):
                scheduler.add(Job(prompt, says, tenant))
        served += run(scheduler)
    assert served["long"] == pytest.approx(served["short"], rel=0.05)


def test_a_tenant_that_fills_the_queue_leaves_room_for_others():
    scheduler: Scheduler[Job] = Scheduler(2)
    while scheduler.has_room("many"):
        scheduler.add(Job(tenant="many"))
    for tenant in ("one", "two", "three"):
        assert scheduler.has_room(tenant)
        scheduler.add(Job(tenant=tenant))
    assert not scheduler.has_room("many")


def test_nobody_saves_up_service_by_being_away():
    scheduler = filled([Job(0, 1000, "steady") for _ in range(4)], 4)
    for _ in range(100):
        run(scheduler)
    served = Counter[str]()
    for _ in range(200):
        for tenant in ("late", "steady"):
            if scheduler.has_room(tenant):
                scheduler.add(Job(0, 10, tenant))
        for job in scheduler.active:
            job.says = min(job.says, 10)
        served += run(scheduler)
    assert served["late"] == pytest.approx(served["steady"], rel=0.05)


def test_what_has_gone_leaves_nothing_behind():
    scheduler = filled([Job(3, 2, f"tenant {n}") for n in range(16)], 4)
    while list(scheduler):
        run(scheduler)
    assert not scheduler._service
    assert not scheduler._waiting


def test_a_prompt_holds_up_those_who_stream_by_no_more_than_it_may():
    scheduler = filled([Job(0, 100), Job(10_000)], 2)
    for _ in range(50):
        scheduler.took(step_s=0.030, prefill_s=0.064, prefill_tokens=64)
    (_, count), *_ = scheduler.plan().prefill
    assert count == pytest.approx(GAP * 30, abs=1)


def test_a_prompt_goes_on_even_where_steps_are_short_and_in_large_pieces_where_nobody_streams():
    scheduler = filled([Job(0, 1), Job(10_000)], 2)
    for _ in range(50):
        scheduler.took(step_s=0.001, prefill_s=1.0, prefill_tokens=64)
    assert scheduler.plan().prefill[0][1] == LEAST_PREFILL_TOKENS
    run(scheduler)
    assert scheduler.plan().prefill[0][1] == PREFILL_TOKENS
