"""Where a Hugging Face decoder can be steered: its attention blocks and their projections.

What is needed is little: a stack ``layers`` whose attention has ``o_proj``, and ``q_proj`` or a packed
``qkv_proj``. Whatever lacks it is refused by name, so that no model is ever half adapted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from memfold_osam.config import AdapterConfig, Head

# What a layer calls its attention. Nemotron-H has a ``mixer`` in every layer; those with projections are attention.
BLOCK_NAMES = ("self_attn", "mixer")
_BLOCK = re.compile(rf"(?:^|.*\.)layers\.(\d+)\.(?:{'|'.join(BLOCK_NAMES)})$")
# Linear attention has q_proj to o_proj as well, in some decoders under the name self_attn.
_NOT_SOFTMAX = "linear_attention"
# Weights of any other type are packed or scaled: their numbers are not the matrix.
_PLAIN = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Projection:
    """The rows of one of q, k, v, o in a linear module: all of them, or a slice of a packed one."""

    module: nn.Module
    rows: slice

    @property
    def width(self) -> int:
        """Output features."""
        return int(self.rows.stop - self.rows.start)

    def columns(self, count: int) -> Tensor:
        """The first columns of the frozen weight as fp32 on the CPU: (width, at most ``count``)."""
        count = min(count, _features(self.module)[0])
        weight = getattr(self.module, "weight", None)
        if isinstance(weight, Tensor) and weight.dtype in _PLAIN and weight.ndim == 2:
            return weight.detach()[self.rows, :count].cpu().float()
        return self._probe(count)

    @torch.no_grad()
    def _probe(self, count: int) -> Tensor:
        """The same of a quantised weight: what the module makes of unit vectors."""
        inputs = torch.zeros(
            count + 1, _features(self.module)[0], device=_device(self.module), dtype=_dtype([self.module])
        )
        inputs[:count].fill_diagonal_(1.0)
        output: Tensor = self.module(inputs)
        return (output[:count] - output[count]).T[self.rows].cpu().float()


@dataclass(frozen=True, slots=True)
class AttentionBlock:
    """One attention block.

    Attributes:
        number: of its layer in the decoder.
        name: of the module in the model, for messages; ``key`` is its name in files.
        module: whose input the memory reads.
        hidden: width of that input.
        projections: of q, k, v, o, those that it has.
        device, dtype: of the adapter's weights beside it.
    """

    number: int
    name: str
    module: nn.Module
    hidden: int
    projections: Mapping[Head, Projection]
    device: torch.device
    dtype: torch.dtype

    @property
    def key(self) -> str:
        """The block's name in adapter files, whatever a model wraps its decoder in."""
        return f"model.layers.{self.number}.self_attn"

    def steered(self, heads: Iterable[Head]) -> dict[nn.Module, dict[Head, slice]]:
        """The modules that compute these projections, each with the rows of its heads, in order.

        Raises:
            TypeError: the block has not all of them; the message names those missing.
        """
        if missing := [f"{head}_proj" for head in heads if head not in self.projections]:
            raise TypeError(
                f"{self.name} has no {', '.join(missing)}; delta_heads may be {', '.join(self.projections)} there"
            )
        modules: dict[nn.Module, dict[Head, slice]] = {}
        for head, projection in self.projections.items():
            if head in heads:
                modules.setdefault(projection.module, {})[head] = projection.rows
        return modules

    def input(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The hidden states (B, T, D) among the arguments of the block's call.

        Raises:
            TypeError: they are neither the first nor called ``hidden_states``.
        """
        x = kwargs.get("hidden_states", args[0] if args else None)
        if not isinstance(x, Tensor):
            raise TypeError(f"{self.name} was called without hidden_states")
        return x


def attention_blocks(model: nn.Module) -> dict[int, AttentionBlock]:
    """Find the attention blocks of a model's text decoder, by layer number, in order.

    Of a hybrid decoder, the layers with softmax attention.

    Raises:
        TypeError: the model cannot be adapted; the message names it, the block and the reason.
    """
    kind = type(model).__name__
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise TypeError(f"{kind} is an encoder-decoder; only decoders can be adapted")
    decoder = _text_decoder(model)
    names = {module: name for name, module in model.named_modules()}
    found: dict[int, AttentionBlock] = {}
    seen: dict[nn.Module, int] = {}
    for number, module in _candidates(kind, decoder):
        if module in seen:
            raise TypeError(
                f"{kind}: layers {seen[module]} and {number} share one attention block; it has no one state"
            )
        seen[module] = number
        found[number] = _block(kind, number, names[module], module, decoder)
    if not found:
        raise TypeError(f"{kind} has no layers with self_attn, q_proj and o_proj{_what_it_has(decoder)}")
    return dict(sorted(found.items()))


def chosen_blocks(model: nn.Module, config: AdapterConfig) -> dict[int, AttentionBlock]:
    """The blocks that an adapter is for, by layer number, in order.

    Raises:
        TypeError: the model cannot be adapted, or a block lacks a projection that is to be corrected.
        ValueError: ``target_layers`` names a layer without attention.
    """
    blocks = attention_blocks(model)
    if unknown := sorted(set(config.target_layers) - blocks.keys()):
        raise ValueError(
            f"target_layers names {unknown}, but the layers with attention are {', '.join(map(str, blocks))}"
        )
    chosen = {n: block for n, block in blocks.items() if n in config.target_layers or not config.target_layers}
    for block in chosen.values():
        block.steered(config.delta_heads)
    return chosen


def add_to_rows(output: Tensor, corrections: Iterable[tuple[slice, Tensor]]) -> Tensor:
    """Add corrections (B, T, width), in the order of their rows, to a projection's output (B, T, out), at once."""
    parts: list[Tensor] = []
    end = 0
    for rows, correction in corrections:
        if rows.start > end:
            parts.append(_zeros(output, rows.start - end))
        parts.append(correction)
        end = rows.stop
    if end < output.shape[-1]:
        parts.append(_zeros(output, output.shape[-1] - end))
    return output + (parts[0] if len(parts) == 1 else torch.cat(parts, -1))


def _zeros(output: Tensor, width: int) -> Tensor:
    return output.new_zeros(()).expand(*output.shape[:-1], width)


def _text_decoder(model: nn.Module) -> nn.Module:
    """The stack that a wrapper puts beside vision or audio towers; the model itself where there is none."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model  # type: ignore[operator]
    # ModernBERT's decoder has its unembedding under that name.
    return decoder if isinstance(decoder, nn.Module) and any(decoder.children()) else model


def _candidates(kind: str, decoder: nn.Module) -> Iterator[tuple[int, nn.Module]]:
    """Layer number and attention of the decoder's own stack, the one nearest to it: towers lie deeper."""
    stacks: dict[str, list[tuple[int, nn.Module]]] = {}
    layer_types = getattr(getattr(decoder, "config", None), "layer_types", None) or ()
    for name, module in decoder.named_modules(remove_duplicate=False):
        if not (match := _BLOCK.match(name)):
            continue
        number = int(match[1])
        linear = number < len(layer_types) and layer_types[number] == _NOT_SOFTMAX
        if not linear and (name.endswith("self_attn") or hasattr(module, "o_proj")):
            stacks.setdefault(name.rpartition("layers.")[0], []).append((number, module))
    depth = min((stack.count(".") for stack in stacks), default=0)
    nearest = [stack for stack in stacks if stack.count(".") == depth]
    if len(nearest) > 1:
        raise TypeError(f"{kind} has several stacks of layers: {', '.join(s + 'layers' for s in nearest)}")
    return iter(stacks[nearest[0]] if nearest else ())


def _block(kind: str, number: int, name: str, module: nn.Module, decoder: nn.Module) -> AttentionBlock:
    """Look at one attention block.

    Raises:
        TypeError: it cannot be adapted.
    """
    children: dict[str, nn.Module] = dict(module.named_children())
    where = f"{kind}: {name}"
    if getattr(module, "is_causal", True) is False:
        raise TypeError(f"{where} attends to later tokens as well; a memory follows the tokens in order")
    if "o_proj" not in children or not children.keys() & {"q_proj", "qkv_proj"}:
        raise TypeError(f"{where} has {', '.join(children)}, but q_proj (or qkv_proj) and o_proj are needed")
    linear: dict[str, nn.Module] = {
        child: children[child] for child in ("qkv_proj", "q_proj", "k_proj", "v_proj", "o_proj") if child in children
    }
    for child, projection in linear.items():
        if not all(isinstance(getattr(projection, f, None), int) for f in ("in_features", "out_features")):
            raise TypeError(
                f"{where}.{child} is a {type(projection).__name__} that tells no in_features and out_features"
            )
    projections: dict[Head, Projection] = {}
    if "q_proj" in linear:
        for head in ("q", "k", "v"):
            if own := linear.get(f"{head}_proj"):
                projections[head] = Projection(own, slice(0, _features(own)[1]))
    else:
        projections.update(_unpack(where, linear["qkv_proj"], linear["o_proj"]))
    projections["o"] = Projection(linear["o_proj"], slice(0, _features(linear["o_proj"])[1]))
    first = projections["q"].module
    return AttentionBlock(
        number, name, module, _features(first)[0], projections, _device(first), _dtype([first, decoder])
    )


def _unpack(where: str, packed: nn.Module, output: nn.Module) -> dict[Head, Projection]:
    """Phi-3's layout: the rows of all q heads, then of all k heads, then of all v heads.

    Raises:
        TypeError: the module has no such number of rows.
    """
    query, rows = _features(output)[0], _features(packed)[1]
    keys = (rows - query) // 2
    if keys <= 0 or query % keys or query + 2 * keys != rows:
        raise TypeError(f"{where}.qkv_proj has {rows} rows, which are not {query} of q and as many of k as of v")
    ends: dict[Head, slice] = {
        "q": slice(0, query),
        "k": slice(query, query + keys),
        "v": slice(query + keys, rows),
    }
    return {head: Projection(packed, part) for head, part in ends.items()}


def _features(module: nn.Module) -> tuple[int, int]:
    """Input and output features of a linear module, quantised or wrapped ones included."""
    return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]


def _device(module: nn.Module) -> torch.device:
    return next(chain(module.parameters(), module.buffers())).device


def _dtype(modules: Iterable[nn.Module]) -> torch.dtype:
    """What the modules compute in: the type of their first weight that is not quantised."""
    weights = chain.from_iterable(module.parameters() for module in modules)
    return next((weight.dtype for weight in weights if weight.dtype in _PLAIN), torch.get_default_dtype())


def _what_it_has(decoder: nn.Module) -> str:
    """Names the first module that looks like attention, for one who wonders why it was not taken."""
    for name, module in decoder.named_modules():
        layers = [child for child, value in module.named_children() if hasattr(value, "weight")]
        if "attention" in type(module).__name__.lower() and len(layers) > 1:
            return f"; its {name} has {', '.join(layers)}"
    return ""
