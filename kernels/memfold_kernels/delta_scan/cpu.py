"""The scan on a CPU, compiled by numba: serial in tokens, the vector lanes are the rows of the state.

The state is held transposed, column after column, so that a sum over columns adds vectors and no horizontal sum is
needed. The kernels say so with a type for a vector of ``rank`` lanes: plain loops over arrays come out four times
slower, since the compiler cannot know that the arrays do not overlap. A kernel is compiled for each rank when first
asked for (about a second), and kept on disk.

The backward pass walks the tokens in reverse. It keeps the state of every 64th token and computes those between anew.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any, cast

import numba
import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.extending import intrinsic, models, overload, register_model
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

Array = NDArray[Any]
Kernel = Callable[..., None]

# Tokens between two states that are kept for the backward pass.
SEGMENT = 64
# Products and sums may be fused; NaN and infinity keep their meaning.
FLAGS = ("contract", "nsz")


class Vector(types.Type):
    """Numba's type of ``size`` numbers that live in vector registers."""

    def __init__(self, dtype: Any, size: int) -> None:
        self.dtype = dtype
        self.size = size
        super().__init__(f"Vector({dtype}, {size})")

    @property
    def ir(self) -> Any:
        """LLVM's type."""
        return ir.VectorType(ir.FloatType() if self.dtype == types.float32 else ir.DoubleType(), self.size)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, kind.ir)  # type: ignore[no-untyped-call]


def _primitive(define: Callable[..., Any]) -> Any:
    """Make a function known to kernels, from one that takes the arguments' types and tells signature and code."""
    return intrinsic(prefer_literal=True)(define)


def _address(context: Any, builder: Any, kind: Any, array: Any, offset: Any, vector: Vector) -> Any:
    start = builder.gep(context.make_array(kind)(context, builder, array).data, [offset])
    return builder.bitcast(start, vector.ir.as_pointer())


@_primitive
def load(_: Any, array: Any, offset: Any, size: Any) -> Any:  # noqa: ARG001
    """Numbers ``offset`` to ``offset + size`` of a contiguous array; ``size`` is a constant."""
    vector = Vector(array.dtype, size.literal_value)

    def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        address = _address(context, builder, array, args[0], args[1], vector)
        return builder.load(address, align=array.dtype.bitwidth // 8)

    return vector(array, types.intp, size), emit


@_primitive
def store(_: Any, array: Any, offset: Any, vector: Any) -> Any:  # noqa: ARG001
    """Write a vector to a contiguous array."""

    def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        address = _address(context, builder, array, args[0], args[1], vector)
        builder.store(args[2], address, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), emit


@_primitive
def zeros(_: Any, like: Any, size: Any) -> Any:
    """A vector of zeros, of an array's dtype."""
    vector = Vector(like.dtype, size.literal_value)
    return vector(like, size), lambda *_: ir.Constant(vector.ir, None)


@_primitive
def spread(_: Any, vector: Any, lane: Any) -> Any:  # noqa: ARG001
    """One lane's number in all lanes."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        index, nothing = ir.IntType(32), ir.Constant(vector.ir, ir.Undefined)
        number = builder.extract_element(args[0], builder.trunc(args[1], index))
        first = builder.insert_element(nothing, number, ir.Constant(index, 0))
        return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(index, vector.size), None))

    return vector(vector, types.intp), emit


@_primitive
def total(_: Any, vector: Any) -> Any:
    """The sum of all lanes, in the order that is fastest."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        number = vector.ir.element
        letter = "f32" if vector.dtype == types.float32 else "f64"
        name = f"llvm.vector.reduce.fadd.v{vector.size}{letter}"
        add = builder.module.declare_intrinsic(name, fnty=ir.FunctionType(number, [number, vector.ir]))
        return builder.call(add, [ir.Constant(number, -0.0), args[0]], fastmath=("reassoc",))

    return vector.dtype(vector), emit


def _define(operation: Any, instruction: str) -> None:
    """Let two vectors of one type be added, subtracted or multiplied."""

    @_primitive
    def apply(_: Any, a: Any, _b: Any) -> Any:
        return a(a, a), lambda _c, builder, _s, args: getattr(builder, instruction)(*args, flags=FLAGS)

    # Numba compiles the inner function, and looks into it: it cannot be `apply` itself.
    overload(operation)(lambda a, b: (lambda a, b: apply(a, b)) if isinstance(a, Vector) and a == b else None)  # noqa: PLW0108


for _operation, _instruction in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul")):
    _define(_operation, _instruction)


def _jit(function: Kernel) -> Kernel:
    """Compile on first use, and keep the result on disk where there is a place to write to."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        return cast("Kernel", numba.njit(cache=True, **options)(function))
    except RuntimeError:  # a read-only installation
        return cast("Kernel", numba.njit(**options)(function))


@functools.cache
def _forward(rank: int) -> Kernel:
    """Compile the kernel of a rank.

    Its arguments:

    q, k, v, keep, erase, write: what ``_flat`` makes of (B, T, H, r).
    strides: (6, 3), theirs in B, T and H.
    sequences: (N, 4), of each the row of the batch, first token, end, and place in ``states``.
    states: (slots, H, r, r), changed.
    reads: (B, T, H, r), contiguous.
    kept: (N, segments, H, r * r), state before every 64th token, transposed; no segments: none is kept.
    """

    def forward(
        q: Array, k: Array, v: Array, keep: Array, erase: Array, write: Array, strides: Array,
        sequences: Array, states: Array, reads: Array, kept: Array,
    ) -> None:  # fmt: skip
        _, length, heads, _ = reads.shape
        columns = np.empty(rank * rank, q.dtype)
        flat_reads = reads.reshape(-1)
        for n in range(sequences.shape[0]):
            row, first, end, slot = sequences[n]
            for h in range(heads):
                for j in range(rank):
                    for i in range(rank):
                        columns[j * rank + i] = states[slot, h, i, j]
                at = row * strides[:, 0] + first * strides[:, 1] + h * strides[:, 2]
                for t in range(first, end):
                    if kept.shape[1] > 0 and t % SEGMENT == 0:
                        kept[n, t // SEGMENT, h] = columns
                    query, key = load(q, at[0], rank), load(k, at[1], rank)
                    recalled, read = zeros(q, rank), zeros(q, rank)
                    for j in range(rank):
                        column = load(columns, j * rank, rank)
                        recalled = recalled + column * spread(key, j)
                        read = read + column * spread(query, j)
                    store(flat_reads, ((row * length + t) * heads + h) * rank, read)
                    kept_share = load(keep, at[3], rank)
                    update = load(write, at[5], rank) * load(v, at[2], rank) - load(erase, at[4], rank) * recalled
                    for j in range(rank):
                        column = kept_share * load(columns, j * rank, rank) + update * spread(key, j)
                        store(columns, j * rank, column)
                    at += strides[:, 1]
                for j in range(rank):
                    for i in range(rank):
                        states[slot, h, i, j] = columns[j * rank + i]

    return _jit(forward)


@functools.cache
def _backward(rank: int) -> Kernel:
    """Compile the kernel of a rank.

    Its arguments beside those of ``_forward``:

    d_reads, d_state: gradients by the results, contiguous; ``d_state`` becomes that by the state.
    d_q, ..., d_write: (B, T, H, r), contiguous, for the gradients by the arguments.
    """

    def backward(
        q: Array, k: Array, v: Array, keep: Array, erase: Array, write: Array, strides: Array, kept: Array,
        d_reads: Array, d_state: Array,
        d_q: Array, d_k: Array, d_v: Array, d_keep: Array, d_erase: Array, d_write: Array,
    ) -> None:  # fmt: skip
        batch, length, heads, _ = d_reads.shape
        size = rank * rank
        states = np.empty((SEGMENT + 1) * size, q.dtype)
        all_recalled = np.empty(SEGMENT * rank, q.dtype)
        grad = np.empty(size, q.dtype)
        flat_d_reads = d_reads.reshape(-1)
        flat_d_q, flat_d_k, flat_d_v = d_q.reshape(-1), d_k.reshape(-1), d_v.reshape(-1)
        flat_d_keep, flat_d_erase, flat_d_write = d_keep.reshape(-1), d_erase.reshape(-1), d_write.reshape(-1)
        for b in range(batch):
            for h in range(heads):
                for j in range(rank):
                    for i in range(rank):
                        grad[j * rank + i] = d_state[b, h, i, j]
                start = b * strides[:, 0] + h * strides[:, 2]
                for segment in range(kept.shape[1] - 1, -1, -1):
                    first = segment * SEGMENT
                    tokens = min(SEGMENT, length - first)
                    states[:size] = kept[b, segment, h]
                    at = start + first * strides[:, 1]
                    for t in range(tokens):
                        key, recalled = load(k, at[1], rank), zeros(q, rank)
                        for j in range(rank):
                            recalled = recalled + load(states, t * size + j * rank, rank) * spread(key, j)
                        store(all_recalled, t * rank, recalled)
                        kept_share = load(keep, at[3], rank)
                        update = load(write, at[5], rank) * load(v, at[2], rank) - load(erase, at[4], rank) * recalled
                        for j in range(rank):
                            column = kept_share * load(states, t * size + j * rank, rank) + update * spread(key, j)
                            store(states, (t + 1) * size + j * rank, column)
                        at += strides[:, 1]
                    for t in range(tokens - 1, -1, -1):
                        at -= strides[:, 1]
                        to = ((b * length + first + t) * heads + h) * rank
                        query, key, value = load(q, at[0], rank), load(k, at[1], rank), load(v, at[2], rank)
                        kept_share, erased = load(keep, at[3], rank), load(erase, at[4], rank)
                        written = load(write, at[5], rank)
                        recalled, d_read = load(all_recalled, t * rank, rank), load(flat_d_reads, to, rank)
                        d_update, d_kept = zeros(q, rank), zeros(q, rank)
                        for j in range(rank):
                            g = load(grad, j * rank, rank)
                            d_update = d_update + g * spread(key, j)
                            d_kept = d_kept + g * load(states, t * size + j * rank, rank)
                        store(flat_d_keep, to, d_kept)
                        store(flat_d_v, to, d_update * written)
                        store(flat_d_write, to, d_update * value)
                        store(flat_d_erase, to, zeros(q, rank) - d_update * recalled)
                        d_recalled = zeros(q, rank) - d_update * erased
                        update = written * value - erased * recalled
                        for j in range(rank):
                            column, g = load(states, t * size + j * rank, rank), load(grad, j * rank, rank)
                            flat_d_q[to + j] = total(column * d_read)
                            flat_d_k[to + j] = total(g * update + column * d_recalled)
                            g = kept_share * g + d_recalled * spread(key, j) + d_read * spread(query, j)
                            store(grad, j * rank, g)
                for j in range(rank):
                    for i in range(rank):
                        d_state[b, h, i, j] = grad[j * rank + i]

    return _jit(backward)


def _flat(tokens: tuple[Tensor, ...]) -> tuple[list[Array], Array]:
    """Each (B, T, H, r) as the run of memory it lies in, and their strides in B, T and H.

    Copied is only what is not contiguous in its last dimension.
    """
    arrays, strides = [], []
    for x in tokens:
        y = x.detach() if x.stride(-1) == 1 else x.detach().contiguous()
        reach = sum((size - 1) * stride for size, stride in zip(y.shape, y.stride(), strict=True))
        arrays.append(y.as_strided((reach + 1,), (1,)).numpy())
        strides.append(y.stride()[:3])
    return arrays, np.array(strides)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        *tokens, state = inputs
        batch, length, heads, rank = tokens[0].shape
        sequences = np.array([(b, 0, length, b) for b in range(batch)])
        after = state.detach().clone(memory_format=torch.contiguous_format)
        reads = torch.empty_like(tokens[0], memory_format=torch.contiguous_format)
        segments = -(-length // SEGMENT) if any(ctx.needs_input_grad) else 0
        kept = state.new_empty(batch, segments, heads, rank * rank)
        arrays, strides = _flat(tuple(tokens))
        _forward(rank)(*arrays, strides, sequences, after.numpy(), reads.numpy(), kept.numpy())
        ctx.save_for_backward(*tokens, kept)
        return reads, after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_reads: Tensor, d_state: Tensor) -> tuple[Tensor, ...]:
        *tokens, kept = ctx.saved_tensors
        d_first = d_state.clone(memory_format=torch.contiguous_format)
        outputs = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in tokens]
        arrays, strides = _flat(tuple(tokens))
        results = [x.numpy() for x in (d_reads.contiguous(), d_first, *outputs)]
        _backward(d_reads.shape[-1])(*arrays, strides, kept.numpy(), *results)
        return (*outputs, d_first)


def _check(q: Tensor, state: Tensor) -> None:
    if state.device.type != "cpu" or q.device.type != "cpu":
        raise ValueError(f"backend 'cpu' takes tensors on a CPU, got q on {q.device} and the state on {state.device}")
    if state.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"backend 'cpu' takes a state in float32 or float64, got {state.dtype}")


def scan(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor, erase: Tensor, write: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """See ``delta_scan``; for tensors on a CPU, with gradients (of the first order)."""
    _check(q, state)
    if q.numel() == 0:
        return torch.zeros_like(q), state.clone()
    tokens = (x.to(state.dtype) for x in (q, k, v, keep, erase, write))
    reads, after = _Scan.apply(*tokens, state)  # type: ignore[no-untyped-call]
    return reads.to(q.dtype), after


def scan_packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Tensor,
    erase: Tensor,
    write: Tensor,
    pool: Tensor,
    cu_seqlens: Tensor,
    state_slots: Tensor,
) -> Tensor:
    """See ``delta_scan``; for tensors on a CPU."""
    _check(q, pool)
    if q.numel() == 0:
        return torch.zeros_like(q)
    reads = torch.zeros(q.shape, dtype=pool.dtype)
    real = state_slots != 0
    slots = state_slots[real].long()
    states = pool[slots]
    bounds = torch.stack([cu_seqlens[:-1], cu_seqlens[1:]], 1)[real].long().numpy()
    places = np.arange(len(bounds))
    sequences = np.stack([np.zeros_like(places), bounds[:, 0], bounds[:, 1], places], 1)
    arrays, strides = _flat(tuple(x.to(pool.dtype) for x in (q, k, v, keep, erase, write)))
    kept = np.empty((len(bounds), 0, q.shape[2], q.shape[3] ** 2), arrays[0].dtype)
    _forward(q.shape[-1])(*arrays, strides, sequences, states.numpy(), reads.numpy(), kept)
    pool[slots] = states
    return reads.to(q.dtype)
