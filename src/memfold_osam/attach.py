"""Attaches the memory to an unmodified Hugging Face decoder by hooks.

A pre-hook on each attention block sees its input, reads the state and advances it; hooks on the
block's projections add the corrections. The model's own code and weights stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from memfold_osam.binding import Binding, TokenFlags
from memfold_osam.config import AdapterConfig, Head
from memfold_osam.decoder import AttentionBlock, add_to_rows, chosen_blocks
from memfold_osam.layer import LayerMemory
from memfold_osam.state import OsamState
from memfold_osam.step import LayerStep, can_step


def _on_one_device(model: nn.Module, blocks: list[AttentionBlock]) -> list[AttentionBlock]:
    devices = sorted({str(block.device) for block in blocks})
    if len(devices) > 1 or "meta" in devices:
        raise ValueError(
            f"{type(model).__name__}'s layers lie on {', '.join(devices)}; the state needs one real device"
        )
    return blocks


class DeltaMemory(nn.Module):
    """The adapter on a model. One thread at a time may run the model while a state is bound.

    Attributes:
        config: what the adapter computes.
        block_names: the adapted blocks as adapter files name them, in the order of the state.
    """

    def __init__(self, model: nn.Module, config: AdapterConfig) -> None:
        """Attach an adapter with fresh weights.

        Raises:
            TypeError: the model cannot be adapted; see ``attention_blocks``.
            ValueError: ``target_layers`` names a layer without attention, or the layers do not lie on one device.
        """
        super().__init__()
        self.config = config
        # All that can be refused is refused before the first hook stands.
        blocks = _on_one_device(model, list(chosen_blocks(model, config).values()))
        self.block_names = [block.key for block in blocks]
        self._layers = nn.ModuleList()
        self._binding: Binding | None = None
        steered = [item for block in blocks for item in block.steered(config.delta_heads).items()]
        whole = all(list(heads.values()) == [slice(0, module.out_features)] for module, heads in steered)
        self._can_step = whole and can_step(config)
        self._steps: list[LayerStep] = []
        for index, block in enumerate(blocks):
            layer = LayerMemory(config, block.hidden, {head: p.width for head, p in block.projections.items()})
            layer.init_outputs(
                {head: block.projections[head].columns(config.base_slice_ref_width) for head in config.delta_heads}
            )
            self._layers.append(layer.to(block.device, block.dtype))
            self._hook(index, block, layer)

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
        device = self.layer(0).beta_bias.device
        return OsamState(torch.zeros(layers, batch_size, heads, rank, rank, device=device, dtype=self._state_dtype))

    @property
    def _state_dtype(self) -> torch.dtype:
        """fp32 under weights of less, where a state would drift; fp64 only in a model that is all fp64."""
        return torch.promote_types(self.layer(0).beta_bias.dtype, torch.float32)

    @contextmanager
    def bind(
        self,
        state: OsamState,
        write: bool | Tensor = True,
        token_mask: Tensor | None = None,
        message_ids: Tensor | None = None,
        sentence_ids: Tensor | None = None,
        gain: float | Tensor = 1.0,
        *,
        segment_ids: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Iterator[OsamState]:
        """Run the model with these memories, a row of the batch each.

        Several calls inside one ``bind`` carry the state on; when it ends, ``state.tensor`` is the new
        state. Masks and ids are (B, T) over the tokens of all those calls, in order.

        An adapter that writes messages or sentences writes nothing without their ids. By default it does as
        the reference: the tokens of a call read the state from before it, and what has one id is written as
        one mean at the call's end, in the order of the ids. ``segment_ids`` say where it reads and writes
        instead, however the tokens are cut into calls. An adapter that writes tokens looks at no ids.

        Args:
            state: of the batch.
            write: whether tokens write; a (B, T) mask says which.
            token_mask: (B, T), false for tokens that neither read nor write (padding, BOS).
            message_ids: (B, T), the message of each token, -1 for none, which is not written.
            sentence_ids: the same by sentence, for ``sentence_mean``.
            gain: scales the corrections, one number or one for each memory; 0 is the frozen model.
            segment_ids: (B, T), not falling along a row. A segment's tokens read the state from before it, and
                what it writes (for ``message_mean`` without ids: its mean) is written at its end. A token of -1
                writes nothing and reads as the one before it.
            cu_seqlens: (N + 1,), for a model that runs N sequences packed as (1, sum T), in one call and with
                positions and an attention mask to match: where each begins and the last one ends. The memories
                are then those of the sequences, and ``token`` writes have no gradients.

        Raises:
            RuntimeError: a state is bound already.
            ValueError: shapes do not fit the adapter or the calls, or segment ids fall.
        """
        flags = TokenFlags(write, token_mask, message_ids, sentence_ids, segment_ids)
        binding = self._new_binding(state.tensor, flags, gain, cu_seqlens)
        with self.rebind(binding):
            yield state
        if write is not False:
            state.tensor = binding.states

    def prepare(self, state: OsamState, gain: float | Tensor = 1.0) -> Binding:
        """What a ``bind`` that only reads would bind, for ``rebind`` to bind again and again: for steps of decoding.

        Raises:
            ValueError: shapes do not fit the adapter.
        """
        return self._new_binding(state.tensor, TokenFlags(write=False), gain, None)

    @contextmanager
    def rebind(self, binding: Binding) -> Iterator[None]:
        """Run the model with what was prepared.

        Raises:
            RuntimeError: a state is bound already.
        """
        if self._binding is not None:
            raise RuntimeError("a state is bound to this model already")
        self._binding = binding
        try:
            yield
            binding.finish()
        finally:
            self._binding = None

    def replays(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """What a part of the model that runs twice runs in: the ``context_fn`` of ``torch.utils.checkpoint``.

        Asked before the first run. The second run, whenever it comes, finds bound what was bound then: it reads the
        same states, and what it writes is dropped. Without it, gradient checkpointing would recompute a model
        without a memory.
        """
        return nullcontext(), _Replay(self, self._binding)

    def _new_binding(
        self, state: Tensor, flags: TokenFlags, gain: float | Tensor, cu_seqlens: Tensor | None
    ) -> Binding:
        layers, heads, rank, _ = self.state_shape
        if state.shape[0] != layers or state.shape[2:] != (heads, rank, rank):
            raise ValueError(
                f"the adapter's states are ({layers}, batch, {heads}, {rank}, {rank}), got {tuple(state.shape)}"
            )
        return Binding(self.config, state.to(self._state_dtype), flags, gain, cu_seqlens, self._current_steps())

    def _current_steps(self) -> list[LayerStep] | None:
        """What reads and corrects where no gradients are asked for; None for an adapter that has more to do."""
        if not self._can_step:
            return None
        layers = [self.layer(index) for index in range(len(self.block_names))]
        if not self._steps or not all(step.fits(layer) for step, layer in zip(self._steps, layers, strict=True)):
            self._steps = [LayerStep(layer) for layer in layers]
        return self._steps

    def _hook(self, index: int, block: AttentionBlock, layer: LayerMemory) -> None:
        """Steer one attention block. What it read lives from the block's pre-hook to its projections."""
        reads: list[Tensor] = []

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            reads.clear()
            if self._binding is not None:
                reads.append(self._binding.advance(index, layer, block.input(args, kwargs)))

        def steer(heads: dict[Head, slice], _module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor:
            if not reads or self._binding is None:
                return output
            gain, dtype, step = self._binding.gain, output.dtype, self._binding.step(index)
            if step is not None:
                return step.correct(next(iter(heads)), output, reads[0], gain)
            return add_to_rows(
                output, [(rows, layer.correction(head, reads[0], gain, dtype)) for head, rows in heads.items()]
            )

        block.module.register_forward_pre_hook(before, with_kwargs=True)
        for module, heads in block.steered(self.config.delta_heads).items():
            module.register_forward_hook(partial(steer, heads))


class _Replay(AbstractContextManager[None]):
    """Binds a copy of a binding as it was, as often as it is entered."""

    def __init__(self, memory: DeltaMemory, binding: Binding | None) -> None:
        self._memory = memory
        self._before = binding and binding.copy()
        self._outer: Binding | None = None

    def __enter__(self) -> None:
        self._outer = self._memory._binding  # noqa: SLF001 - of this module
        self._memory._binding = self._before and self._before.copy()  # noqa: SLF001

    def __exit__(self, *_: object) -> None:
        self._memory._binding = self._outer  # noqa: SLF001
