"""The adapter's configuration: the keys of ``delta_mem_config.json`` that mean something."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

CONFIG_FILE = "delta_mem_config.json"

Head = Literal["q", "k", "v", "o"]

# Keys of the reference's file for mechanisms that its released adapters do not use, each at the one
# value that leaves the mechanism off. Any other value would be a model that we do not compute.
ARCHIVED: dict[str, Any] = {
    "num_memory_partitions": 1,
    "num_global_memory_partitions": 0,
    "memory_partition_routing": "soft",
    "memory_partition_basis": "shared",
    "tie_memory_partition_read_write": False,
    "memory_partition_read_mode": "softmax",
    "memory_partition_sigmoid_gate_bias_init": -2.0,
    "slot_read_top_k": 0,
    "global_memory_mode": "shared_rw",
    "global_memory_read_top_k": 0,
    "global_memory_merge_mode": "gated_residual",
    "global_memory_gate_bias_init": -2.0,
    "global_memory_read_logit_bias": 0.0,
    "memory_reader_layers": [],
    "memory_reader_hidden_size": 1024,
    "memory_reader_residual_scale": 0.1,
    "memory_reader_read_only": True,
    "memory_readout_mode": "delta",
    "memory_write_source": "learned_hidden",
    "memory_write_proposals_per_message": 2,
    "synthetic_memory_slots": 1,
    "latent_memory_layers": [],
    "latent_memory_hidden_size": 1024,
    "latent_memory_residual_scale": 0.1,
    "latent_memory_slots": 4,
    "latent_memory_init_std": 0.002,
    "latent_gate_init": 0.01,
    "target_modules": ["self_attn"],
    "delta_scale_parameterization": "alpha_over_rank",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """What an adapter computes. Names are the reference's, defaults those of its released adapter.

    Attributes:
        rank: rows and columns of one state head.
        alpha: corrections are scaled by alpha / rank.
        num_state_heads: states side by side in a layer.
        memory_write_granularity: write every token, or the mean of a message or of a sentence.
        state_update_mode: how keep and erase follow from the gates; see ``LayerMemory.projections``.
        couple_lambda: the keep gate is 1 - beta instead of a gate of its own.
        rankwise_gates: a gate a row of the state instead of one a head.
        delta_heads: which projections are corrected.
        target_layers: adapted layers; all where it is empty.
        delta_o_rmsnorm: the o correction, once scaled, gets the RMS norm.
        trainable_delta_scale: corrections are scaled by a weight of the layer's, or of the head's.
        delta_scale_max: that such a weight approaches.
        beta_bias_init, delta_scale_init, output_init, base_slice_ref_width, online_gain: how a fresh adapter starts;
            no matter to one that is loaded.

    Raises:
        ValueError: a value outside its range; the message names the key.
    """

    rank: int = 8
    alpha: float = 16.0
    num_state_heads: int = 1
    memory_write_granularity: Literal["token", "message_mean", "sentence_mean"] = "token"
    state_update_mode: Literal["standard", "lambda_outside", "no_lambda"] = "standard"
    couple_lambda: bool = True
    rankwise_gates: bool = True
    normalize_qk: bool = True
    delta_heads: tuple[Head, ...] = ("q", "o")
    target_layers: tuple[int, ...] = ()
    delta_o_rmsnorm: bool = False
    delta_o_rmsnorm_eps: float = 1e-6
    trainable_delta_scale: bool = False
    delta_scale_init: float = 1.0
    delta_scale_max: float = 2.0
    delta_scale_granularity: Literal["layer", "head"] = "layer"
    beta_bias_init: float = -1.5
    output_init: Literal["random", "zero", "base_slice_fixed"] = "base_slice_fixed"
    base_slice_ref_width: int = 8
    online_gain: float = 0.05

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            _check(field.name, getattr(self, field.name), hints[field.name])
        for name in ("rank", "num_state_heads", "base_slice_ref_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.delta_heads or len(set(self.delta_heads)) < len(self.delta_heads):
            raise ValueError(f"delta_heads must name some of q, k, v, o once each, got {', '.join(self.delta_heads)}")
        if self.delta_o_rmsnorm_eps <= 0:
            raise ValueError(f"delta_o_rmsnorm_eps must be above 0, got {self.delta_o_rmsnorm_eps}")
        if not 0 < self.delta_scale_init < self.delta_scale_max:
            raise ValueError(
                f"delta_scale_init must be between 0 and delta_scale_max, got {self.delta_scale_init} "
                f"and {self.delta_scale_max}"
            )

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read ``delta_mem_config.json`` of an adapter directory.

        Raises:
            ValueError: an unknown key, or an archived one at a value that switches something on.
        """
        raw: dict[str, Any] = json.loads((directory / CONFIG_FILE).read_text())
        known = {f.name for f in dataclasses.fields(cls)}
        for key in raw.keys() - known:
            if key not in ARCHIVED:
                raise ValueError(f"{directory / CONFIG_FILE}: unknown key {key!r}")
            if raw[key] != ARCHIVED[key]:
                raise ValueError(
                    f"{directory / CONFIG_FILE}: {key} = {raw[key]!r} is not supported, only {ARCHIVED[key]!r} is"
                )
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items() if k in known}
        return cls(**values)

    def save(self, directory: Path) -> None:
        """Write ``delta_mem_config.json``."""
        (directory / CONFIG_FILE).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @property
    def width(self) -> int:
        """Numbers that one token reads or writes in a layer."""
        return self.rank * self.num_state_heads

    @property
    def gates(self) -> int:
        """Numbers in one gate."""
        return self.width if self.rankwise_gates else self.num_state_heads


def _check(name: str, value: Any, kind: Any) -> None:
    """Refuse a value outside its closed set or of another type."""
    origin = get_origin(kind)
    if origin is Literal:
        if value not in get_args(kind):
            raise ValueError(f"{name} must be one of {', '.join(map(str, get_args(kind)))}, got {value!r}")
    elif origin is tuple:
        if not isinstance(value, tuple):
            raise ValueError(f"{name} must be a list, got {value!r}")
        for item in value:
            _check(name, item, get_args(kind)[0])
    elif kind is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name} must be a number, got {value!r}")
    elif type(value) is not kind:
        raise ValueError(f"{name} must be of type {kind.__name__}, got {value!r}")
