"""The training code: what counts in the loss, and where gradients go."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from memfold.persona import UNKNOWN_ANSWER, Question, generate
from memfold_osam import AdapterConfig, DeltaMemory
from memfold_osam.serving import ServedModel, load_served_model
from memfold_osam.testing import write_random_model
from memfold_training.adapter import WriteThenRead
from memfold_training.episodes import ContextBatches, Curriculum, MemoryBatches, Phase, TurnEncoder

CURRICULUM = Curriculum(facts=(1, 3), changes=(0, 1), small_talk=(0, 1), unknown=(0, 1), foreign=0.5)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def served(directory: Path) -> ServedModel:
    return load_served_model(str(directory))


@pytest.fixture
def backbone(directory: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


@pytest.fixture(scope="module")
def encoder(served: ServedModel) -> TurnEncoder:
    return TurnEncoder(served.tokenizer)


def test_training_reads_turns_in_the_tokens_in_which_the_writer_folds_them(
    served: ServedModel, encoder: TurnEncoder
) -> None:
    for line in generate(3, facts=2, small_talk=1).lines:
        assert encoder.turn(line.role, line.content) == [
            *served.tokenizer.apply_chat_template(
                [{"role": line.role, "content": line.content}], tokenize=True, return_dict=False
            ),
        ]


def test_what_is_recalled_is_the_value_or_all_of_an_admission_of_ignorance(encoder: TurnEncoder) -> None:
    told = Question("city", "Where do I live?", "You live in Oslo.", "Oslo")
    _, reply = encoder.question(told)
    kept = [t for t, on in zip(reply, encoder.recalled(told, reply), strict=True) if on]
    assert encoder.tokenizer.decode(kept) == " Oslo"
    never = Question("city", "Where do I live?", UNKNOWN_ANSWER, None)
    _, reply = encoder.question(never)
    assert all(encoder.recalled(never, reply))


def test_the_decision_ends_where_answers_and_ignorance_part_ways(encoder: TurnEncoder) -> None:
    for answer in ("You live in Oslo.", "Your pet is a dog."):
        reply = encoder.tokenizer.encode(answer, add_special_tokens=False)
        unknown = encoder.tokenizer.encode(UNKNOWN_ANSWER, add_special_tokens=False)
        decided = encoder.decided(reply)
        last = sum(decided) - 1
        assert decided == [1] * (last + 1) + [0] * (len(reply) - last - 1)
        assert reply[:last] == unknown[:last]
        assert reply[last] != unknown[last]


def test_the_same_seed_gives_the_same_batches(encoder: TurnEncoder) -> None:
    phases = [Phase(2, 3, CURRICULUM)]
    for kind in (ContextBatches, MemoryBatches):
        first, second = list(kind(encoder, phases, 5)), list(kind(encoder, phases, 5))
        assert len(first) == 2
        for a, b in zip(first, second, strict=True):
            assert a.keys() == b.keys()
            assert all(torch.equal(a[k], b[k]) for k in a)


def test_gradients_reach_every_weight_of_the_adapter_and_none_of_the_backbone(
    backbone: PreTrainedModel, encoder: TurnEncoder
) -> None:
    memory = DeltaMemory(backbone, AdapterConfig(num_state_heads=2, base_slice_ref_width=16))
    torch.nn.init.normal_(memory.layer(0).beta_proj, std=0.1)
    model = WriteThenRead(backbone, memory)
    (batch,) = MemoryBatches(encoder, [Phase(1, 2, CURRICULUM)], 1)
    model(**batch)["loss"].backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
    assert all(p.grad is None for p in backbone.parameters())


def test_the_loss_has_the_gradient_that_finite_differences_give(
    backbone: PreTrainedModel, encoder: TurnEncoder
) -> None:
    torch.manual_seed(0)
    memory = DeltaMemory(backbone.double(), AdapterConfig(num_state_heads=1, base_slice_ref_width=8)).double()
    model = WriteThenRead(backbone, memory)
    (batch,) = MemoryBatches(encoder, [Phase(1, 2, Curriculum(facts=(1, 1)))], 2)
    weight = memory.layer(1).memory_k_proj
    model(**batch)["loss"].backward()
    # Qwen3 normalises in fp32 whatever its weights: steps along the gradient keep the difference far above rounding,
    # a random direction of the same length does not
    direction = weight.grad / weight.grad.square().mean().sqrt()
    step, losses = 2e-4, []
    with torch.no_grad():
        for sign in (1, -1):
            weight += sign * step * direction
            losses.append(model(**batch)["loss"])
            weight -= sign * step * direction
    numeric = (losses[0] - losses[1]) / (2 * step)
    assert float(numeric) == pytest.approx(float((weight.grad * direction).sum()), rel=0.01)
