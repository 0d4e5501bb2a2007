"""A slot for each sequence that a memory steers, and one for none."""

from __future__ import annotations

import torch

from memfold_reader.states import NO_MEMORY, StatePool

SHAPE = (2, 1, 3, 3)


def state(number: float) -> torch.Tensor:
    return torch.full((SHAPE[0], 1, *SHAPE[1:]), number)


def test_each_keeps_its_own_however_many_there_are_and_who_goes_makes_room():
    pool = StatePool(SHAPE, torch.device("cpu"))
    slots = [pool.open() for _ in range(40)]
    assert len(set(slots)) == 40
    assert NO_MEMORY not in slots
    for number, slot in enumerate(slots):
        pool.load(slot, state(number + 1))
    found = pool.rows([*slots[::-1], NO_MEMORY])
    assert found[0, :, 0, 0, 0].tolist() == [*range(40, 0, -1), 0]
    pool.close(slots[7])
    assert pool.open() == slots[7]


def test_what_is_given_and_taken_is_a_copy():
    pool, given = StatePool(SHAPE, torch.device("cpu")), state(1)
    slot = pool.open()
    pool.load(slot, given)
    given.fill_(5)
    pool.rows([slot]).fill_(6)
    assert (pool.rows([slot]) == 1).all()


def test_writing_changes_the_writers_and_is_noticed():
    pool = StatePool(SHAPE, torch.device("cpu"))
    slots = [pool.open() for _ in range(3)]
    for slot in slots:
        pool.load(slot, state(1))
    before = pool.changes
    pool.store([slots[2], slots[0]], torch.cat([state(7), state(8)], 1))
    assert pool.changes > before
    assert pool.rows(slots)[0, :, 0, 0, 0].tolist() == [8, 1, 7]
