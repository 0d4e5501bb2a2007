"""The official implementation's numbers. They live beside the checkout; without them these tests are skipped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from memfold_osam import OsamState, load_adapter

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "reference" / "golden"
CASES = sorted(p.name for p in GOLDEN.iterdir() if p.is_dir()) if GOLDEN.is_dir() else []
LIMIT = 1e-4

pytestmark = pytest.mark.skipif(
    not CASES, reason=f"the reference's golden cases are not at {GOLDEN.name}/ beside the checkout"
)


@pytest.mark.parametrize("case", CASES)
def test_logits_and_states_match_the_reference(case: str) -> None:
    folder = GOLDEN / case
    spec = json.loads((folder / "case.json").read_text())
    expected = load_file(folder / "expected.safetensors")
    model = AutoModelForCausalLM.from_pretrained(folder / "backbone", attn_implementation="eager").eval()
    memory = load_adapter(model, folder / "adapter")
    state = memory.init_state(spec["batch"])
    cache = None
    for step in spec["steps"]:
        i = step["step"]
        mask = expected.get(f"{i}.attention_mask")
        if step.get("new_context") or mask is not None:
            cache = None
        optional = {name: expected.get(f"{i}.{name}") for name in ("message_ids", "sentence_ids")}
        with torch.no_grad(), memory.bind(state, write=step.get("write", True), token_mask=mask, **optional):
            out = model(
                input_ids=expected[f"{i}.input_ids"], attention_mask=mask, past_key_values=cache, use_cache=True
            )
        cache = None if mask is not None else out.past_key_values
        real = torch.ones_like(expected[f"{i}.input_ids"]).bool() if mask is None else mask.bool()
        assert (out.logits - expected[f"{i}.logits"])[real].abs().max() < LIMIT
        for layer in range(memory.state_shape[0]):
            wanted = expected[f"{i}.state.{layer}"]
            assert (state.tensor[layer].reshape(wanted.shape) - wanted).abs().max() < LIMIT


@pytest.mark.parametrize("case", CASES)
def test_a_zero_state_or_a_zero_gain_is_the_frozen_model_bit_for_bit(case: str) -> None:
    folder = GOLDEN / case
    model = AutoModelForCausalLM.from_pretrained(folder / "backbone").eval()
    ids = torch.arange(40).view(2, 20)
    with torch.no_grad():
        frozen = model(input_ids=ids).logits
        memory = load_adapter(model, folder / "adapter")
        with memory.bind(memory.init_state(2), write=False):
            assert torch.equal(model(input_ids=ids).logits, frozen)
        other = OsamState(torch.randn_like(memory.init_state(2).tensor))
        with memory.bind(other, write=False, gain=0.0):
            assert torch.equal(model(input_ids=ids).logits, frozen)
        with memory.bind(other, write=False, gain=torch.tensor([0.0, 1.0])):
            steered = model(input_ids=ids).logits
    assert torch.equal(steered[0], frozen[0])
    assert not torch.equal(steered[1], frozen[1])
