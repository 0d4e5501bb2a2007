"""What counts in the loss, and where gradients go."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from transformers import PreTrainedModel

from memfold.persona import UNKNOWN_ANSWER, Question, generate
from memfold_osam import AdapterConfig, DeltaMemory
from memfold_osam.serving import load_served_model
from memfold_osam.turns import Message
from memfold_training.adapter import WriteThenRead
from memfold_training.batches import Asked, Context, Example, LossWeights, collate
from memfold_training.encoder import TurnEncoder
from memfold_training.episodes import ContextBatches, Curriculum, MemoryBatches, Phase, decided, recalled
from memfold_training.rounds import Round, run
from memfold_training.score import from_state, perplexity_ratio
from memfold_training.starts import start_from_attention
from memfold_training.trainer import AdapterTrainer

CURRICULUM = Curriculum(facts=(1, 3), changes=(0, 1), small_talk=(0, 1), unknown=(0, 1), times=(1, 2), strange=0.5)
ALL = LossWeights(reply=0.2, value=1.0, opening=0.5, steady=0.5, likelihood=0.5, sparsity=0.1)
ADAPTER = AdapterConfig(num_state_heads=2, beta_bias_init=-1.0)


def batch(encoder: TurnEncoder, rows: int = 2, weights: LossWeights = ALL) -> dict[str, torch.Tensor]:
    (one,) = MemoryBatches(encoder, [Phase(1, rows, (CURRICULUM,))], 1, weights)
    return one


def test_training_reads_turns_in_the_tokens_in_which_the_writer_folds_them(directory, encoder: TurnEncoder) -> None:
    served = load_served_model(str(directory))
    turns = [Message(line.role, line.content) for line in generate(3, facts=2, small_talk=1).lines]
    assert encoder.context(turns, "token").tokens == [
        *served.turns.bos,
        *(i for turn in turns for i in served.turns.encode(turn)),
    ]


def test_a_reply_is_what_the_model_would_write_behind_its_header(encoder: TurnEncoder) -> None:
    whole = encoder.turn("user", "Where do I live?") + encoder.turn("assistant", "You live in Oslo.")
    assert encoder.prompt("Where do I live?") + encoder.reply("You live in Oslo.") == whole


def test_of_a_long_conversation_the_newest_tokens_are_written(encoder: TurnEncoder) -> None:
    turns = [Message("user", "first"), Message("system", "rules"), Message("user", "One. Two.")]
    whole, cut = encoder.context(turns, "sentence_mean"), encoder.context(turns, "sentence_mean", most=12)
    assert cut == Context(
        *(getattr(whole, name)[-12:] for name in ("tokens", "memory", "segments", "writes", "sentences"))
    )
    assert set(whole.segments) == {0, 1, 2}
    assert [w for w, s in zip(whole.writes, whole.segments, strict=True) if s == 1] == [0] * whole.segments.count(1)
    assert set(cut.sentences) == {-1, 0, 1}


def test_what_is_recalled_is_the_value_or_all_of_an_admission_of_ignorance(encoder: TurnEncoder) -> None:
    told = Question("city", "Where do I live?", "You live in Oslo.", "Oslo")
    reply = encoder.reply(told.answer)
    kept = [t for t, on in zip(reply, recalled(encoder, told, reply), strict=True) if on]
    assert encoder.tokenizer.decode(kept) == " Oslo"
    never = Question("city", "Where do I live?", UNKNOWN_ANSWER, None)
    assert all(recalled(encoder, never, encoder.reply(UNKNOWN_ANSWER)))


def test_the_decision_ends_where_answers_and_ignorance_part_ways(encoder: TurnEncoder) -> None:
    unknown = encoder.turns.content(UNKNOWN_ANSWER)
    for answer in ("You live in Oslo.", "Your pet is a dog."):
        reply = encoder.reply(answer)
        flags = decided(encoder, reply)
        last = sum(flags) - 1
        assert flags == [1] * (last + 1) + [0] * (len(reply) - last - 1)
        assert reply[:last] == unknown[:last]
        assert reply[last] != unknown[last]


def test_each_kind_of_token_weighs_its_share_however_many_there_are() -> None:
    asked = [Asked([5, 6], [7, 8, 9], [0, 1, 1], [1, 0, 0]), Asked([5], [7, 8], [0, 1], [1, 0])]
    found = collate([Example(Context([1], [1]), asked)], LossWeights(reply=1.0, value=3.0, opening=0.5))["weights"]
    expected = [[0, 0, 1 / 5 + 1 / 4, 1 / 5 + 1, 1 / 5 + 1], [0, 1 / 5 + 1 / 4, 1 / 5 + 1, 0, 0]]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_the_same_seed_gives_the_same_batches(encoder: TurnEncoder) -> None:
    phases = [Phase(2, 3, (CURRICULUM, CURRICULUM), 400)]
    for first, second in (
        (ContextBatches(encoder, phases, 5), ContextBatches(encoder, phases, 5)),
        (MemoryBatches(encoder, phases, 5, ALL), MemoryBatches(encoder, phases, 5, ALL)),
    ):
        for a, b in zip(first, second, strict=True):
            assert a.keys() == b.keys()
            assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_batch_reaches_the_model_whole(backbone: PreTrainedModel, encoder: TurnEncoder) -> None:
    model = WriteThenRead(backbone, DeltaMemory(backbone, ADAPTER), ALL)
    seen = []
    model.register_forward_pre_hook(lambda _, args, batch: seen.append(batch), with_kwargs=True)
    this = Round((Phase(1, 2, (Curriculum(facts=(2, 2)),)),), 1e-3, ALL)
    data = MemoryBatches(encoder, this.phases, 1, ALL)
    run(partial(AdapterTrainer, card={}), model, data, this, seed=0, weight_decay=0.0)
    (expected,) = data
    assert len(expected["owner"]) > len(expected["context_ids"])
    assert all(torch.equal(expected[name], tensor) for name, tensor in seen[0].items())


def test_gradients_reach_every_weight_of_the_adapter_and_none_of_the_backbone(
    backbone: PreTrainedModel, encoder: TurnEncoder
) -> None:
    memory = DeltaMemory(backbone, ADAPTER)
    start_from_attention(backbone, memory, 0.5)
    torch.nn.init.normal_(memory.layer(0).beta_proj, std=0.1)
    model = WriteThenRead(backbone, memory, ALL).train()
    assert not backbone.training
    model(**batch(encoder))["loss"].backward()
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
    model = WriteThenRead(backbone, memory, LossWeights(value=1.0, sparsity=0.1))
    given = batch(encoder)
    weight = memory.layer(1).memory_k_proj
    model(**given)["loss"].backward()
    # Qwen3 normalises in fp32 whatever its weights: steps along the gradient keep the difference far above rounding,
    # a random direction of the same length does not
    direction = weight.grad / weight.grad.square().mean().sqrt()
    step, losses = 2e-4, []
    with torch.no_grad():
        for sign in (1, -1):
            weight += sign * step * direction
            losses.append(model(**given)["loss"])
            weight -= sign * step * direction
    numeric = (losses[0] - losses[1]) / (2 * step)
    assert float(numeric) == pytest.approx(float((weight.grad * direction).sum()), rel=0.01)


def test_write_sparsity_is_about_the_tokens_that_write(backbone: PreTrainedModel, encoder: TurnEncoder) -> None:
    memory = DeltaMemory(backbone, ADAPTER)
    given = batch(encoder) | {"context_mask": torch.zeros(2, 1).bool(), "context_ids": torch.zeros(2, 1).long()}
    given["context_mask"][0] = True
    found = WriteThenRead(backbone, memory, ALL)(**given)["parts"][2]
    # beta_proj starts at zero: every gate is the sigmoid of its bias
    assert float(found) == pytest.approx((1 / (1 + math.e) - 0.05) ** 2, rel=1e-5)


def test_an_empty_memory_changes_no_text_and_knows_nothing(backbone: PreTrainedModel, encoder: TurnEncoder) -> None:
    memory = DeltaMemory(backbone, ADAPTER)
    model = WriteThenRead(backbone, memory, ALL)
    for index in range(4):
        torch.nn.init.zeros_(memory.layer(index).memory_v_proj)
    assert perplexity_ratio(model, encoder, ["Some text.", "And some more of it."]) == 1.0
    assert from_state(model, encoder, dialogues=2, facts=1, unknown=1).by_attribute()["never told"] == 0.0
