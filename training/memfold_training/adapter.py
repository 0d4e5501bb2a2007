"""The module that is trained: one forward pass writes conversations into the state and reads answers from it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from memfold_osam import DeltaMemory, OsamState
from memfold_osam.decoder import AttentionBlock, chosen_blocks
from memfold_osam.layer import LayerMemory
from memfold_training.batches import LossWeights

# Nats below which a change of a log-likelihood counts by its square.
SMALL_CHANGE = 0.1


class WriteThenRead(nn.Module):
    """A frozen backbone and the memory that is trained.

    All that a wrapper for several devices has to see happens in ``forward``. The state passes from the write to the
    read as a value, layer by layer, so gradients reach the writing weights through it, and a layer that is recomputed
    reads the state that it read the first time.

    Attributes:
        backbone: always in evaluation mode, without gradients.
        memory: attached to it.
        sharded: the backbone's layers are gathered when a gradient reaches their output. That of a state reaches the
            last layer from within, so then a zero is sent there first.
    """

    def __init__(self, backbone: PreTrainedModel, memory: DeltaMemory, weights: LossWeights | None = None) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.memory = memory
        self.weights = weights or LossWeights()
        self.sharded = False
        # The mean write gate of each layer while a context is written; None while nothing looks.
        self._gates: list[Tensor] | None = None
        self._writing: Tensor | None = None
        for index, block in enumerate(chosen_blocks(backbone, memory.config).values()):
            block.module.register_forward_pre_hook(partial(self._look, memory.layer(index), block), with_kwargs=True)
        self.train(False)

    def train(self, mode: bool = True) -> WriteThenRead:
        """Only the memory trains. Layers that are recomputed are told, for they ask."""
        super().train(mode)
        self.backbone.train(False)
        for module in self.backbone.modules():
            if getattr(module, "gradient_checkpointing", False):
                module.training = mode
        return self

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Recompute the backbone's layers in the backward pass instead of keeping what they computed.

        Raises:
            ValueError: the reentrant form is asked for. It cuts the state off from the gradients, silently.
        """
        asked = dict(activation_checkpointing_kwargs or {})
        if asked.get("use_reentrant"):
            raise ValueError("gradient checkpointing must not be reentrant here: the state would get no gradients")
        asked |= {"use_reentrant": False, "context_fn": self._runs}
        today = hasattr(self.backbone, "activation_checkpointing_enable")  # older releases have the other name alone
        kind = "activation_checkpointing" if today else "gradient_checkpointing"
        getattr(self.backbone, f"{kind}_enable")(**{f"{kind}_kwargs": asked}, **options)
        # That is for frozen models without a trained part inside; here it would send gradients below the first layer.
        self.backbone.disable_input_require_grads()  # type: ignore[no-untyped-call]
        self.train(self.training)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """The same, as older releases of transformers call it."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **options)

    def write(self, context_ids: Tensor, context_mask: Tensor, **flags: Tensor) -> Tensor:
        """(B, T) tokens and which are real, to the states (layers, B, H, r, r)."""
        state = self.memory.init_state(context_ids.shape[0])
        with self.memory.bind(state, token_mask=context_mask, **flags):
            hidden = self.backbone.base_model(input_ids=context_ids, use_cache=False).last_hidden_state
        return state.tensor + 0.0 * hidden.mean() if self.sharded else state.tensor

    def read(self, states: Tensor, input_ids: Tensor, mask: Tensor | None = None, first: int = 0) -> Tensor:
        """Logits, from position ``first`` on, of prompts (Q, T) that read the states (layers, Q, H, r, r)."""
        with self.memory.bind(OsamState(states), write=False, token_mask=mask):
            return self._logits(input_ids, first)

    def forward(
        self,
        context_ids: Tensor,
        context_mask: Tensor,
        input_ids: Tensor,
        input_mask: Tensor,
        weights: Tensor,
        owner: Tensor,
        write_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        sentence_ids: Tensor | None = None,
        other_ids: Tensor | None = None,
        other_mask: Tensor | None = None,
        other_owner: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The loss of a batch of ``collate``.

        Returns:
            ``loss``; ``tally``: how many of the replies have all tokens right, how many replies there are, the negative
            log-likelihood of all replies in nats, their tokens; ``parts``: what replies and unrelated text cost, and the
            write gates.
        """
        flags = {"write": write_mask, "segment_ids": segment_ids, "sentence_ids": sentence_ids}
        self._gates = [] if self.weights.sparsity else None
        self._writing = context_mask if write_mask is None else context_mask & write_mask
        states = self.write(context_ids, context_mask, **{k: v for k, v in flags.items() if v is not None})
        gates, self._gates = self._gates, None
        first = max(0, int(weights.any(0).int().argmax()) - 1)
        logits = self.read(states[:, owner], input_ids, input_mask, first)[:, :-1].float()
        targets, weights = input_ids[:, first + 1 :], weights[:, first + 1 :]
        losses = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(weights)
        replies = (losses * weights).sum()
        others, sparsity = replies.new_zeros(()), replies.new_zeros(())
        if other_ids is not None and other_mask is not None and other_owner is not None:
            others = self._change(states[:, other_owner], other_ids, other_mask)
        if gates:
            sparsity = (torch.stack(gates).mean() - self.weights.sparsity_target).square()
        loss = replies + others + self.weights.sparsity * sparsity
        with torch.no_grad():
            counted = weights > 0
            right = ((logits.argmax(-1) == targets) | ~counted).all(1)
            tally = torch.stack([right.sum(), counted.any(1).sum(), (losses * counted).sum(), counted.sum()]).float()
            parts = torch.stack([replies, others, sparsity])
        return {"loss": loss, "tally": tally, "parts": parts}

    def _logits(self, input_ids: Tensor, first: int) -> Tensor:
        """The backbone's logits from a position on."""
        kept = input_ids.shape[1] - first
        logits: Tensor = self.backbone(input_ids=input_ids, use_cache=False, logits_to_keep=kept).logits
        return logits[:, -kept:]

    def _change(self, states: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """What a memory's effect on texts that it has nothing to do with costs."""
        with torch.no_grad():
            frozen = self._logits(ids, 0).float().log_softmax(-1)
        steered = self.read(states, ids, mask).float().log_softmax(-1)
        divergence = functional.kl_div(steered, frozen, reduction="none", log_target=True).sum(-1)[mask].mean()
        if not self.weights.likelihood:
            return self.weights.steady * divergence
        tokens, real = ids[:, 1:, None], mask[:, 1:]
        before, after = (found[:, :-1].gather(2, tokens).squeeze(2)[real] for found in (frozen, steered))
        changes = functional.smooth_l1_loss(after, before, beta=SMALL_CHANGE)
        return self.weights.steady * divergence + self.weights.likelihood * changes

    def _look(self, layer: LayerMemory, block: AttentionBlock, _: nn.Module, args: Any, kwargs: Any) -> None:
        """Note the mean gate with which a layer's tokens write."""
        if self._gates is None or self._writing is None:
            return
        x = block.input(args, kwargs)
        logits = functional.linear(x.to(layer.beta_proj.dtype), layer.beta_proj, layer.beta_bias)
        self._gates.append(logits[self._writing].sigmoid().mean())

    def _runs(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """What a checkpointed layer runs in, and runs in again."""
        first, again = self.memory.replays()
        return first, _Again(self, again)


class _Again(AbstractContextManager[None]):
    """The second run of a layer: the same operations as in the first one, and nobody looks at their results."""

    def __init__(self, model: WriteThenRead, replay: AbstractContextManager[None]) -> None:
        self._model, self._replay = model, replay
        self._looked, self._writing = model._gates is not None, model._writing  # noqa: SLF001 - of this module

    def __enter__(self) -> None:
        self._replay.__enter__()
        self._model._gates = [] if self._looked else None  # noqa: SLF001
        self._model._writing = self._writing  # noqa: SLF001

    def __exit__(self, *error: object) -> None:
        self._model._gates = None  # noqa: SLF001
        self._replay.__exit__(None, None, None)
