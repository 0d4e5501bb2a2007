"""Attaches the memory to an unmodified Hugging Face decoder by hooks.

A pre-hook on each attention block sees its input, reads the state and advances it; hooks on the
block's projections add the corrections. The model's own code and weights stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from memfold_osam.config import AdapterConfig, Head
from memfold_osam.layer import LayerMemory
from memfold_osam.state import OsamState


@dataclass(slots=True)
class _Binding:
    """One ``bind``: the states by adapted layer, and who reads and writes them."""

    states: list[Tensor]
    write: bool | Tensor
    token_mask: Tensor | None
    segment_ids: Tensor | None
    gain: Tensor | float


def attention_blocks(model: nn.Module) -> dict[int, tuple[str, nn.Module]]:
    """Find the attention blocks of a decoder: layer number to (name, module).

    Raises:
        TypeError: the model has none with q_proj and o_proj; the message names it.
    """
    found: dict[int, tuple[str, nn.Module]] = {}
    for name, module in model.named_modules():
        parts = name.split(".")
        if parts[-1] == "self_attn" and len(parts) > 2 and parts[-2].isdigit() and parts[-3] == "layers":
            missing = [p for p in ("q_proj", "k_proj", "v_proj", "o_proj") if not hasattr(module, p)]
            if missing:
                raise TypeError(f"{type(model).__name__}: {name} has no {', '.join(missing)}; it cannot be adapted")
            found[int(parts[-2])] = (name, module)
    if not found:
        raise TypeError(
            f"{type(model).__name__} has no layers.N.self_attn with q_proj and o_proj; it cannot be adapted"
        )
    return dict(sorted(found.items()))


class DeltaMemory(nn.Module):
    """The adapter on a model. One thread at a time may run the model while a state is bound.

    Attributes:
        config: what the adapter computes.
        layers: the adapted layers, by the name of their attention block.
    """

    def __init__(self, model: nn.Module, config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        blocks = attention_blocks(model)
        unknown = set(config.target_layers) - blocks.keys()
        if unknown:
            raise ValueError(f"target_layers names {sorted(unknown)}, but the model has layers 0 to {max(blocks)}")
        self.block_names: list[str] = []
        self._layers = nn.ModuleList()
        self._binding: _Binding | None = None
        for number in config.target_layers or blocks:
            name, block = blocks[number]
            outputs: dict[Head, int] = {h: getattr(block, f"{h}_proj").out_features for h in ("q", "k", "v", "o")}
            weight: Tensor = block.q_proj.weight  # type: ignore[union-attr,assignment]
            layer = LayerMemory(config, weight.shape[1], outputs)
            layer.init_outputs(
                {h: getattr(block, f"{h}_proj").weight.detach().cpu().float() for h in config.delta_heads}
            )
            layer.to(weight.device, weight.dtype)
            self._hook(len(self.block_names), block, layer)
            self.block_names.append(name)
            self._layers.append(layer)

    def layer(self, index: int) -> LayerMemory:
        """The adapted layer at a place of the state, counted from 0."""
        layer = self._layers[index]
        assert isinstance(layer, LayerMemory)
        return layer

    @property
    def state_shape(self) -> tuple[int, int, int, int]:
        """Shape of one memory's state: (layers, heads, r, r)."""
        return (len(self.block_names), self.config.num_state_heads, self.config.rank, self.config.rank)

    def init_state(self, batch_size: int) -> OsamState:
        """The state of memories that have seen nothing: zeros, with which the model is the frozen one."""
        layers, heads, rank, _ = self.state_shape
        weights = self.layer(0).beta_bias
        # fp32 under weights of less, where a state would drift; fp64 only in a model that is all fp64.
        dtype = torch.promote_types(weights.dtype, torch.float32)
        return OsamState(torch.zeros(layers, batch_size, heads, rank, rank, device=weights.device, dtype=dtype))

    @contextmanager
    def bind(
        self,
        state: OsamState,
        write: bool | Tensor = True,
        token_mask: Tensor | None = None,
        message_ids: Tensor | None = None,
        sentence_ids: Tensor | None = None,
        gain: float | Tensor = 1.0,
    ) -> Iterator[OsamState]:
        """Run the model with these memories, a row of the batch each.

        Several calls inside one ``bind`` carry the state on; when it ends, ``state.tensor`` is the new
        state. Masks and ids are (B, T) and belong to a single call.

        Args:
            state: of the batch.
            write: whether tokens write; a (B, T) mask says which.
            token_mask: (B, T), false for tokens that neither read nor write (padding, BOS).
            message_ids: (B, T), the message of each token, -1 for none; for ``message_mean``.
            sentence_ids: the same by sentence, for ``sentence_mean``.
            gain: scales the corrections, one number or (B,); 0 is the frozen model.

        Raises:
            RuntimeError: a state is bound already.
            ValueError: shapes do not fit the adapter or the call.
        """
        if self._binding is not None:
            raise RuntimeError("a state is bound to this model already")
        layers, heads, rank, _ = self.state_shape
        if state.tensor.shape[0] != layers or state.tensor.shape[2:] != (heads, rank, rank):
            raise ValueError(
                f"the adapter's states are ({layers}, batch, {heads}, {rank}, {rank}), got {tuple(state.tensor.shape)}"
            )
        ids = {"token": None, "message_mean": message_ids, "sentence_mean": sentence_ids}
        if isinstance(gain, Tensor):
            gain = gain.to(state.tensor.device, torch.float32)[:, None, None]
        self._binding = _Binding(
            list(state.tensor.unbind(0)), write, token_mask, ids[self.config.memory_write_granularity], gain
        )
        try:
            yield state
            if write is not False:
                state.tensor = torch.stack(self._binding.states)
        finally:
            self._binding = None

    def _hook(self, index: int, block: nn.Module, layer: LayerMemory) -> None:
        """Steer one attention block. The corrections live from the block's pre-hook to its projections."""
        reads: list[Tensor] = []

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            reads.clear()
            if self._binding is not None:
                x: Tensor = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
                reads.append(self._advance(self._binding, index, layer, x))

        def steer(head: Head, output: Tensor) -> Tensor:
            if not reads or self._binding is None:
                return output
            return output + layer.correction(head, reads[0], self._binding.gain, output.dtype)

        block.register_forward_pre_hook(before, with_kwargs=True)
        for head in self.config.delta_heads:
            projection: nn.Module = getattr(block, f"{head}_proj")
            projection.register_forward_hook(lambda _m, _a, output, head=head: steer(head, output))

    def _advance(self, binding: _Binding, index: int, layer: LayerMemory, x: Tensor) -> Tensor:
        """Read the layer's state for every token of ``x`` and write what is to be written."""
        state, mask, write = binding.states[index], binding.token_mask, binding.write
        for name, ids in {"token_mask": mask, "write": write, "message or sentence ids": binding.segment_ids}.items():
            if isinstance(ids, Tensor) and ids.shape != x.shape[:2]:
                raise ValueError(f"{name} must be {tuple(x.shape[:2])}, as this call's tokens, got {tuple(ids.shape)}")
        if state.shape[0] != x.shape[0]:
            raise ValueError(f"the state has {state.shape[0]} rows, the batch {x.shape[0]}")
        if mask is not None:
            mask = mask.bool()
        if self.config.memory_write_granularity == "token" and write is not False:
            writes = write.bool() if isinstance(write, Tensor) else None
            reads, binding.states[index] = layer.read_and_write(x, state, mask, writes)
            return reads
        reads = layer.read(x, state)
        if write is not False and binding.segment_ids is not None:
            ids = binding.segment_ids
            for allowed in (mask, write.bool() if isinstance(write, Tensor) else None):
                ids = ids if allowed is None else ids.masked_fill(~allowed, -1)
            binding.states[index] = layer.write_segments(x, state, ids)
        return reads if mask is None else reads * mask[:, :, None, None]
