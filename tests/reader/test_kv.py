"""Keys and values stay with the sequence that they are of, wherever its row is moved."""

from __future__ import annotations

import random

import pytest
import torch

from memfold_reader.kv import SMALLEST, KvSlots, Slot
from memfold_reader.masks import Masks

LAYERS, HEADS, WIDTH = 2, 2, 3


class Config:
    """A model's, as far as masks ask for it."""


@pytest.fixture(autouse=True)
def small(monkeypatch) -> None:
    monkeypatch.setattr("memfold_reader.kv.SMALLEST", 4)
    monkeypatch.setattr("memfold_reader.kv.TOGETHER", 20)


@pytest.fixture
def slots() -> KvSlots:
    return KvSlots(Masks(Config(), torch.float32), torch.device("cpu"))


class Owner:
    """A row and what it must hold: at each position a number that says whose it is and where."""

    def __init__(self, slots: KvSlots, name: int) -> None:
        self.slot: Slot = slots.open(1)
        self.name = name

    def value(self, layer: int, position: int) -> float:
        return self.name * 1000 + position + layer / 10

    def new(self, layer: int, count: int) -> torch.Tensor:
        values = [self.value(layer, self.slot.length + n) for n in range(count)]
        return torch.tensor(values)[None, None, :, None].expand(1, HEADS, count, WIDTH)

    def check(self, layer: int, held: torch.Tensor, length: int) -> None:
        wanted = torch.tensor([self.value(layer, at) for at in range(length)])
        assert torch.equal(held[:, :length], wanted[None, :, None].expand(HEADS, length, WIDTH))
        # Beyond that, nothing, or what it held itself before it was rewound.
        rest = held[:, length:]
        assert bool(((rest == 0) | (rest // 1000 == self.name)).all())


def run_chunk(slots: KvSlots, owner: Owner, count: int) -> None:
    view = slots.chunk(owner.slot, count)["past_key_values"]
    for layer in range(LAYERS):
        new = owner.new(layer, count)
        for sign, held in zip((1, -1), view.update(new, -new, layer), strict=True):
            owner.check(layer, sign * held[0], owner.slot.length + count)
    owner.slot.length += count


def run_batch(slots: KvSlots, owners: list[Owner]) -> None:
    """One token of each, in as many batches as it takes; every row sees its own history and nothing else."""
    ran = 0
    for group in slots.groups([owner.slot for owner in owners]):
        members = [next(owner for owner in owners if owner.slot is slot) for slot in group]
        view = slots.batch(group)["past_key_values"]
        for layer in range(LAYERS):
            new = torch.cat([owner.new(layer, 1) for owner in members])
            keys, values = view.update(new, -new, layer)
            assert torch.equal(keys, -values)
            assert keys.shape[2] == 1 + max(owner.slot.length for owner in members)
            for row, owner in enumerate(members):
                owner.check(layer, keys[row], owner.slot.length + 1)
        for owner in members:
            owner.slot.length += 1
        ran += len(members)
    assert ran == len(owners)


@pytest.mark.parametrize("seed", range(5))
def test_rows_that_come_go_pause_rewind_and_outgrow_their_pools_keep_what_is_theirs(slots, seed):
    dice, owners = random.Random(seed), []
    for name in range(1, 300):
        event = dice.random()
        if event < 0.25 and len(owners) < 12:
            owners.append(Owner(slots, name))
            run_chunk(slots, owners[-1], dice.randint(1, 9))
        elif event < 0.35 and owners:
            owner = owners.pop(dice.randrange(len(owners)))
            slots.close(owner.slot)
        elif event < 0.45 and owners:
            owner = dice.choice(owners)
            owner.slot.rewind(dice.randint(0, owner.slot.length))
            run_chunk(slots, owner, dice.randint(1, 5))
        elif owners:
            run_batch(slots, dice.sample(owners, dice.randint(1, len(owners))))
    assert slots.held == sum(owner.slot.length for owner in owners)


def test_history_is_not_copied_from_step_to_step(slots):
    owners = [Owner(slots, name) for name in (1, 2)]
    for owner in owners:
        run_chunk(slots, owner, 9)

    def pools() -> set[int]:
        (group,) = slots.groups([owner.slot for owner in owners])
        keys, values = slots.batch(group)["past_key_values"].update(*[torch.zeros(2, HEADS, 1, WIDTH)] * 2, 0)
        return {keys.data_ptr(), values.data_ptr()}

    first = pools()
    assert first == pools()


def test_what_runs_together_lies_at_the_front(slots):
    owners = [Owner(slots, name) for name in range(1, 6)]
    for owner in owners:
        run_chunk(slots, owner, 3)
    (group,) = slots.groups([owners[4].slot, owners[1].slot])
    assert [slot.place for slot in group] == [0, 1]
    (group,) = slots.groups([owner.slot for owner in owners])
    assert [slot.place for slot in group] == [0, 1, 2, 3, 4]


def test_short_rows_join_long_ones_where_a_batch_of_their_own_would_cost_more(slots, monkeypatch):
    owners = [Owner(slots, name) for name in range(1, 6)]
    for owner, length in zip(owners, (3, 3, 9, 17, 40), strict=True):
        run_chunk(slots, owner, length)
    rows = [owner.slot for owner in owners]
    monkeypatch.setattr("memfold_reader.kv.TOGETHER", 0)
    assert [len(group) for group in slots.groups(rows)] == [2, 1, 1, 1]
    monkeypatch.setattr("memfold_reader.kv.TOGETHER", 2 * 6)
    assert [len(group) for group in slots.groups(rows)] == [3, 1, 1]
    monkeypatch.setattr("memfold_reader.kv.TOGETHER", 4 * 23)
    assert [len(group) for group in slots.groups(rows)] == [5]
    run_batch(slots, owners)


def test_what_an_owner_leaves_is_gone(slots):
    """Also where a masked position is multiplied by 0, for 0 times NaN is NaN."""
    owner = Owner(slots, 1)
    view = slots.chunk(owner.slot, 3)["past_key_values"]
    view.update(*[torch.full((1, HEADS, 3, WIDTH), torch.nan)] * 2, 0)
    owner.slot.length = 3
    longer = Owner(slots, 2)
    run_chunk(slots, longer, 3)
    slots.close(owner.slot)
    run_chunk(slots, Owner(slots, 3), 1)
    for bucket in slots._buckets.values():
        assert all(pool.isfinite().all() for pair in bucket.pools.values() for pool in pair)


def test_when_the_last_one_has_left_the_memory_is_free(slots):
    owners = [Owner(slots, name) for name in range(1, 20)]
    for owner in owners:
        run_chunk(slots, owner, 30)
    assert any(bucket.pools for bucket in slots._buckets.values())
    for owner in owners:
        slots.close(owner.slot)
    assert not any(bucket.pools for bucket in slots._buckets.values())


def test_copies_bring_a_row_back(slots):
    one = Owner(slots, 1)
    run_chunk(slots, one, 9)
    layers = slots.copy_out(one.slot, 7)
    assert slots.bytes_of(one.slot, 7) == sum(k.nbytes + v.nbytes for _, k, v in layers)
    slots.close(one.slot)
    other = Owner(slots, 1)
    slots.copy_in(other.slot, layers, 6)
    run_chunk(slots, other, 3)
    run_batch(slots, [other])


def test_the_smallest_pools_hold_short_prompts():
    assert SMALLEST == 256


@pytest.mark.parametrize("window", [None, 3])
def test_a_mask_shows_each_token_what_is_before_it_within_the_window(window):
    class Windowed:
        layer_types = ("full_attention", "sliding_attention")
        sliding_window = window or 100

    positions = torch.tensor([[4, 5], [0, 1]])
    masks = Masks(Windowed(), torch.float32).of(positions, 6)
    assert isinstance(masks, dict)
    shown = masks["sliding_attention"] == 0
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        here = int(positions[row, column])
        wanted = [here - Windowed.sliding_window < key <= here for key in range(6)]
        assert shown[row, 0, column].tolist() == wanted
    assert (masks["full_attention"][0, 0, 1] == 0).all()


def test_a_kind_of_attention_without_a_known_mask_is_refused():
    class Odd:
        layer_types = ("full_attention", "chunked_attention")

    with pytest.raises(ValueError, match="chunked_attention"):
        Masks(Odd(), torch.float32)
