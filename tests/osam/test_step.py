"""Without gradients the same numbers come in fewer operations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from memfold_osam import AdapterConfig, DeltaMemory, OsamState

SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS = {
    "the released one": {},
    "every head": {"delta_heads": tuple("qkvo")},
    "four states": {"num_state_heads": 4, "rank": 4},
    "no unit vectors": {"normalize_qk": False},
    "a norm over o": {"delta_o_rmsnorm": True},
    "trained scales": {"trainable_delta_scale": True, "delta_scale_granularity": "head"},
}
IDS = torch.randint(0, 64, (3, 6), generator=torch.Generator().manual_seed(0))


def attached(**config) -> tuple[LlamaForCausalLM, DeltaMemory, Tensor]:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMALL)).eval()
    memory = DeltaMemory(model, AdapterConfig(**config))
    for parameter in memory.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model, memory, torch.randn(memory.init_state(3).tensor.shape)


def logits(model, memory, state: Tensor, *, gradients: bool, ids: Tensor = IDS, **options) -> Tensor:
    with torch.set_grad_enabled(gradients), memory.bind(OsamState(state), **options):
        return model(input_ids=ids).logits.detach()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
@pytest.mark.parametrize(
    "options",
    [
        {"write": False},
        {"write": True},
        {"write": False, "gain": torch.tensor([0.0, 0.5, 2.0])},
        {"write": IDS > 20, "gain": torch.tensor([0.0, 0.5, 2.0])},
        {"write": False, "token_mask": IDS > 20},
    ],
    ids=["read", "write", "read with gains", "write some with gains", "read some"],
)
def test_with_and_without_gradients_it_is_the_same(config, options):
    model, memory, state = attached(**config)
    slow, fast = (logits(model, memory, state, gradients=gradients, **options) for gradients in (True, False))
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)
    one = {name: x[:, :1] if isinstance(x, Tensor) and x.ndim == 2 else x for name, x in options.items()}
    slow, fast = (logits(model, memory, state, gradients=g, ids=IDS[:, :1], **one) for g in (True, False))
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)
    zeros = torch.zeros_like(state)
    assert not torch.allclose(fast, logits(model, memory, zeros, gradients=False, ids=IDS[:, :1], write=False))


@pytest.mark.parametrize("gain", [1.0, 0.5, torch.tensor([0.0, 1.0, 2.0])])
def test_what_is_prepared_once_can_be_bound_for_every_step(gain):
    model, memory, state = attached()
    prepared = memory.prepare(OsamState(state), gain)
    for step in range(6):
        ids = IDS[:, step : step + 1]
        with torch.no_grad(), memory.rebind(prepared):
            found = model(input_ids=ids).logits
        assert torch.equal(found, logits(model, memory, state, gradients=False, ids=ids, write=False, gain=gain))


def test_what_is_prepared_is_bound_like_anything_else():
    model, memory, state = attached()
    prepared = memory.prepare(OsamState(state))
    with memory.rebind(prepared):
        with pytest.raises(RuntimeError, match="already"), memory.bind(OsamState(state)):
            pass
        with pytest.raises(ValueError, match="3 rows"):
            model(input_ids=IDS[:2])
    with pytest.raises(ValueError, match="states are"):
        memory.prepare(OsamState(state[:1]))


def test_weights_that_change_or_move_are_seen():
    model, memory, state = attached()
    before = logits(model, memory, state, gradients=False, write=False)
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.mul_(0.5)
    changed = logits(model, memory, state, gradients=False, write=False)
    assert not torch.allclose(changed, before)
    model.double()
    memory.double()
    moved = logits(model, memory, state.double(), gradients=False, write=False)
    torch.testing.assert_close(moved.float(), changed, rtol=1e-4, atol=1e-4)
