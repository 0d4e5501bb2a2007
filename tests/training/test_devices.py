"""One forward pass, whatever is around it: recomputed layers, replicas, shards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from memfold_osam import AdapterConfig, DeltaMemory
from memfold_osam.turns import Message
from memfold_training.adapter import WriteThenRead
from memfold_training.batches import Asked, Example, LossWeights, collate
from memfold_training.encoder import TurnEncoder

WEIGHTS = LossWeights(value=1.0, steady=0.5, sparsity=0.1)
TURNS = [Message("user", "I live in Oslo. My pet is a cat."), Message("assistant", "Noted."), Message("user", "Good.")]


def batch(encoder: TurnEncoder, granularity: str) -> dict[str, torch.Tensor]:
    examples = []
    for turns, answer in ((TURNS, "Oslo."), (TURNS[1:], "No idea.")):
        reply = encoder.reply(answer)
        asked = Asked(encoder.prompt("Where do I live?"), reply, [1] * len(reply), [0] * len(reply))
        examples.append(
            Example(
                encoder.context(turns, granularity),
                [asked],
                [encoder.context([Message("user", "Unrelated.")], "token")],
            )
        )
    return collate(examples, WEIGHTS)


def model_of(backbone: PreTrainedModel, granularity: str) -> WriteThenRead:
    torch.manual_seed(0)
    memory = DeltaMemory(backbone, AdapterConfig(num_state_heads=2, memory_write_granularity=granularity))
    for parameter in memory.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return WriteThenRead(backbone, memory, WEIGHTS).train()


def gradients(module: torch.nn.Module, model: WriteThenRead, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    module(**given)["loss"].backward()
    return {
        name: getattr(p.grad, "full_tensor", p.grad.clone)()
        for name, p in model.memory.named_parameters()
        if p.grad is not None
    }


@pytest.fixture
def alone() -> Iterator[None]:
    """A group of one process."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("granularity", ["token", "message_mean", "sentence_mean"])
def test_recomputed_layers_give_the_same_gradients(
    backbone: PreTrainedModel, encoder: TurnEncoder, granularity: str
) -> None:
    model, given = model_of(backbone, granularity), batch(encoder, granularity)
    plain = gradients(model, model, given)
    runs = []
    counter = backbone.model.layers[2].self_attn.register_forward_pre_hook(lambda *_: runs.append(1))
    model.activation_checkpointing_enable()
    recomputed = gradients(model, model, given)
    counter.remove()
    # written, read, unrelated text frozen and steered, and three of them again
    assert len(runs) == 7
    assert plain.keys() == recomputed.keys()
    assert len(plain) == 4 * 7
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-5, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")


def test_reentrant_recomputation_is_refused(backbone: PreTrainedModel) -> None:
    model = model_of(backbone, "token")
    with pytest.raises(ValueError, match="must not be reentrant"):
        model.gradient_checkpointing_enable({"use_reentrant": True})


def test_a_layer_is_recomputed_with_its_own_memory_whatever_is_bound_by_then(
    backbone: PreTrainedModel, encoder: TurnEncoder
) -> None:
    model, given = model_of(backbone, "token"), batch(encoder, "token")
    plain = gradients(model, model, given)
    model.activation_checkpointing_enable()
    model.zero_grad()
    loss = model(**given)["loss"]
    other = model.memory.init_state(1)
    with model.memory.bind(other):
        loss.backward()
        backbone(input_ids=given["input_ids"][:1])
    assert other.tensor.abs().sum() > 0
    for name, gradient in plain.items():
        torch.testing.assert_close(dict(model.memory.named_parameters())[name].grad, gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.usefixtures("alone")
def test_replicas_see_one_call_in_which_every_weight_has_its_part(
    backbone: PreTrainedModel, encoder: TurnEncoder
) -> None:
    model, given = model_of(backbone, "token"), batch(encoder, "token")
    plain = gradients(model, model, given)
    wrapped = DistributedDataParallel(model)
    for _ in range(2):  # a weight that had no part in the first call would stop the second
        replicated = gradients(wrapped, model, given)
    for name, gradient in plain.items():
        torch.testing.assert_close(replicated[name], gradient)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("recomputes", [False, True])
def test_shards_give_the_same_gradients(backbone: PreTrainedModel, encoder: TurnEncoder, recomputes: bool) -> None:
    model, given = model_of(backbone, "token"), batch(encoder, "token")
    plain = gradients(model, model, given)
    if recomputes:
        model.activation_checkpointing_enable()
    model.sharded = True
    mesh = distributed.init_device_mesh("cpu", (1,))
    for layer in backbone.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    sharded = gradients(model, model, given)
    for name, gradient in plain.items():
        torch.testing.assert_close(sharded[name], gradient)
