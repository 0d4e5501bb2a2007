"""The mechanism once more, as the formulas are written down: one sequence, one layer, one token after another.

An oracle. It shares nothing with the package but the names of the weights and of the configuration's fields,
and it computes in the dtype of the block's input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Answer:
    """What one layer makes of one sequence.

    Attributes:
        reads: (T, H, r).
        corrections: what is added to the output of each corrected projection, (T, out).
        state: (H, r, r), after the last token.
    """

    reads: Tensor
    corrections: dict[str, Tensor]
    state: Tensor


def run(
    config: Any,
    weights: Mapping[str, Tensor],
    state: Tensor,
    x: Tensor,
    *,
    real: Sequence[bool] | None = None,
    writes: Sequence[bool] | None = None,
    messages: Sequence[int] | None = None,
    sentences: Sequence[int] | None = None,
    segments: Sequence[int] | None = None,
    gain: float = 1.0,
) -> Answer:
    """One layer on one sequence.

    Args:
        config: has the fields of the adapter's configuration.
        weights: the layer's tensors by name (``memory_q_proj`` and so on).
        state: (H, r, r).
        x: what the attention block receives, (T, D).
        real: which tokens read and write; all where it is None.
        writes: which of them write; all where it is None.
        messages: for each token the message, -1 for none.
        sentences: the same by sentence.
        segments: for each token its segment: a sequence-state adapter reads the state from before it and writes it
            at its end. All tokens are one segment where it is None.
        gain: scales the corrections.
    """
    weights = {name: tensor.detach().to(x.dtype) for name, tensor in weights.items()}
    state = state.detach().to(x.dtype)
    length = len(x)
    real = [True] * length if real is None else [bool(r) for r in real]
    writes = real if writes is None else [r and bool(w) for r, w in zip(real, writes, strict=True)]
    reads = torch.zeros(length, config.num_state_heads, config.rank, dtype=x.dtype)
    if config.memory_write_granularity == "token":
        for t in range(length):
            if real[t]:
                reads[t] = _read(config, weights, state, x[t])
            if writes[t]:
                state = _write(config, weights, state, x[t])
    else:
        units = _units(config, length, messages, sentences, segments)
        segments = [0] * length if segments is None else [int(s) for s in segments]
        for segment in _in_order(segments):
            inside = [t for t in range(length) if segments[t] == segment]
            for t in inside:
                if real[t]:
                    reads[t] = _read(config, weights, state, x[t])
            for unit in sorted({units[t] for t in inside if writes[t] and units[t] >= 0}):
                members = [x[t] for t in inside if writes[t] and units[t] == unit]
                state = _write(config, weights, state, sum(members) / len(members))
    steering = {h: torch.stack([_correction(config, weights, h, m) for m in reads]) for h in config.delta_heads}
    return Answer(reads, {h: gain * delta for h, delta in steering.items()}, state)


def _in_order(segments: Sequence[int]) -> list[int]:
    return list(dict.fromkeys(segments))


def _units(
    config: Any,
    length: int,
    messages: Sequence[int] | None,
    sentences: Sequence[int] | None,
    segments: Sequence[int] | None,
) -> list[int]:
    """What is written as one mean within a segment; -1 where nothing is."""
    if config.memory_write_granularity == "message_mean":
        if messages is not None:
            return [int(m) for m in messages]
        return [-1] * length if segments is None else [0] * length
    if sentences is None:
        return [-1] * length
    outside = [False] * length if messages is None else [int(m) < 0 for m in messages]
    return [-1 if none else int(s) for s, none in zip(sentences, outside, strict=True)]


def _split(config: Any, x: Tensor) -> Tensor:
    """Numbers of all state heads to (H, r)."""
    return x.reshape(config.num_state_heads, config.rank)


def _unit(config: Any, x: Tensor) -> Tensor:
    heads = _split(config, x)
    if not config.normalize_qk:
        return heads
    rows = []
    for row in heads.tanh():
        norm = row.pow(2).sum().sqrt()
        rows.append(row / max(float(norm), 1e-6))
    return torch.stack(rows)


def _gate(config: Any, logits: Tensor) -> Tensor:
    """A number a row of the state: its own, or its head's."""
    gate = 1 / (1 + torch.exp(-logits))
    if config.rankwise_gates:
        return _split(config, gate)
    return torch.stack([torch.stack([g] * config.rank) for g in gate])


def _read(config: Any, weights: Mapping[str, Tensor], state: Tensor, x: Tensor) -> Tensor:
    q = _unit(config, weights["memory_q_proj"] @ x)
    return torch.stack([state[h] @ q[h] for h in range(config.num_state_heads)])


def _write(config: Any, weights: Mapping[str, Tensor], state: Tensor, x: Tensor) -> Tensor:
    k = _unit(config, weights["memory_k_proj"] @ x)
    v = _split(config, weights["memory_v_proj"] @ x)
    beta = _gate(config, weights["beta_proj"] @ x + weights["beta_bias"])
    lam = 1 - beta if config.couple_lambda else _gate(config, weights["lambda_proj"] @ x + weights["lambda_bias"])
    keep, erase = {
        "standard": (lam, beta),
        "lambda_outside": (lam, lam * beta),
        "no_lambda": (torch.ones_like(beta), beta),
    }[config.state_update_mode]
    after = []
    for h in range(config.num_state_heads):
        recalled = state[h] @ k[h]
        kept = keep[h][:, None] * state[h]
        after.append(kept - torch.outer(erase[h] * recalled, k[h]) + torch.outer(beta[h] * v[h], k[h]))
    return torch.stack(after)


def _correction(config: Any, weights: Mapping[str, Tensor], head: str, read: Tensor) -> Tensor:
    delta = config.alpha / config.rank * (weights[f"delta_{head}_proj"] @ read.reshape(-1))
    if config.trainable_delta_scale:
        raw = weights["delta_scale_raw"]
        number = "qkvo".index(head) if config.delta_scale_granularity == "head" else 0
        delta = delta * config.delta_scale_max / (1 + torch.exp(-raw[number]))
    if head == "o" and config.delta_o_rmsnorm:
        mean = delta.pow(2).mean()
        delta = delta / torch.sqrt(mean + config.delta_o_rmsnorm_eps) * weights["delta_o_rmsnorm_weight"]
    return delta
