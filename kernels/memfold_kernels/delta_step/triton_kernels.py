"""The device code of the step; ``triton_step`` launches it.

**What bounds it.** The projections from the input: m = 32 rows of D = 2,560 in bf16 are 160 KB a layer for
rank 8, and every slice of the corrected output needs the whole of q's 40 KB before it can begin. One launch cannot
hand a sum over D to all its programs without a barrier across the card, so each program that corrects a slice
computes q again, from 40 KB that after the first come from the L2 cache; programs beside them project k, v and the
gates, which nothing needs before the write. All programs thus do one projection of n rows each, and
none waits for another. At 32 rows of the batch and slices of 1,024 outputs of 4,096 that is 7 * 32 * 40 KB = 9 MB
out of L2, where one program that projected everything for a row would read 5 MB and use a quarter as many
multiprocessors. A row a program: batching rows in one program would save L2 traffic and is not done.

The second launch corrects slices of the other projection with the reads that the first one noted, and one
program a row writes the state. That no program of the first launch writes a state, and none of the second reads
another's, is what makes two launches enough.
"""

# Device code: its types are the Triton compiler's.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, ANN202, N803, SIM102, SIM108

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tanh(x):
    """The tanh without the cancellation of (1 - e) / (1 + e) near 0: relative error below 1e-7 in fp32."""
    square = x * x
    near = x * (1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835)))))
    e = tl.exp(-2 * tl.abs(x))
    far = (1 - e) / (1 + e)
    return tl.where(square < 0.0625, near, tl.where(x < 0, -far, far))


@triton.jit
def _project(
    x, inputs, bias, part, gates, dtype,
    D: tl.constexpr, WIDTH: tl.constexpr, RANK: tl.constexpr, N: tl.constexpr, TILE: tl.constexpr,
    RANKWISE: tl.constexpr,
):  # fmt: skip
    """One row of the batch by one part of the weights, (N,): 0 is q, 1 k, 2 v, 3 beta, 4 lambda."""
    i = tl.arange(0, N)
    weight_row = part * WIDTH + i
    if not RANKWISE:
        weight_row = tl.where(part < 3, weight_row, 3 * WIDTH + (part - 3) * gates + i // RANK)
    columns = tl.arange(0, TILE // N)
    total = tl.zeros([N, TILE // N], dtype)
    for d in tl.range(0, D, TILE // N, loop_unroll_factor=4):
        inside = d + columns < D
        mask = (i < WIDTH)[:, None] & inside[None, :]
        weight = tl.load(inputs + weight_row[:, None] * D + (d + columns)[None, :], mask=mask, other=0.0)
        total += weight.to(dtype) * tl.load(x + d + columns, mask=inside, other=0.0).to(dtype)[None, :]
    return tl.sum(total, axis=1) + tl.load(bias + weight_row, mask=i < WIDTH, other=0.0).to(dtype)


@triton.jit
def _unit(x, same_head, EPS: tl.constexpr):
    """tanh, then of unit length per head; ``same_head`` is (N, N)."""
    x = _tanh(x)
    square = tl.sum(tl.where(same_head, (x * x)[None, :], 0.0), axis=1)
    return x / tl.maximum(tl.sqrt(square), EPS)


@triton.jit
def _state_tile(WIDTH: tl.constexpr, RANK: tl.constexpr, N: tl.constexpr):
    """All heads' states as one block-diagonal (N, N): where an entry is in memory, and whether it is one."""
    i = tl.arange(0, N)
    real = (i < WIDTH)[:, None] & ((i // RANK)[:, None] == (i // RANK)[None, :])
    return i[:, None] * RANK + (i % RANK)[None, :], real


@triton.jit
def _correct(
    out, outputs, reads, scale, piece,
    OUT: tl.constexpr, WIDTH: tl.constexpr, N: tl.constexpr, SLICE: tl.constexpr,
):  # fmt: skip
    """Add a slice of scale * W reads to ``out``; ``scale`` is a number or (SLICE,)."""
    i = tl.arange(0, N)
    o = piece * SLICE + tl.arange(0, SLICE)
    mask = (o < OUT)[:, None] & (i < WIDTH)[None, :]
    weight = tl.load(outputs + o[:, None] * WIDTH + i[None, :], mask=mask, other=0.0).to(reads.dtype)
    delta = tl.sum(weight * reads[None, :], axis=1) * scale
    before = tl.load(out + o, mask=o < OUT, other=0.0)
    tl.store(out + o, before.to(reads.dtype) + delta, mask=o < OUT)


@triton.jit(do_not_specialize=["rows", "gates"])
def read_kernel(
    x, inputs, bias, pool, slots, buffers, outputs, out, gain, scale, rows, gates, x_stride, out_stride,
    D: tl.constexpr, OUT: tl.constexpr, WIDTH: tl.constexpr, RANK: tl.constexpr, N: tl.constexpr,
    TILE: tl.constexpr, SLICE: tl.constexpr, PIECES: tl.constexpr, EPS: tl.constexpr,
    RANKWISE: tl.constexpr, NORMALIZE: tl.constexpr, CORRECTS: tl.constexpr, GAIN: tl.constexpr,
):  # fmt: skip
    """Program (row, job): the first ``PIECES`` jobs read the state and correct a slice each, the others project.

    The first job notes the reads; the others note keys, values and gates.
    """
    row, job = tl.program_id(0), tl.program_id(1)
    slot = tl.load(slots + row).to(tl.int64)
    dtype = pool.dtype.element_ty
    i = tl.arange(0, N)
    part = tl.maximum(job - PIECES + 1, 0)
    place = buffers + (row * WIDTH + i)
    if slot != 0:
        x += row.to(tl.int64) * x_stride
        projected = _project(x, inputs, bias, part, gates, dtype, D, WIDTH, RANK, N, TILE, RANKWISE)
        at, real = _state_tile(WIDTH, RANK, N)
        if NORMALIZE:
            if part < 2:
                projected = _unit(projected, real, EPS)
        if job < PIECES:
            state = tl.load(pool + slot * (WIDTH * RANK) + at, mask=real, other=0.0)
            reads = tl.sum(state * projected[None, :], axis=1)
            if job == 0:
                tl.store(place, reads, mask=i < WIDTH)
            if CORRECTS:
                if GAIN:
                    scale *= tl.load(gain + row).to(dtype)
                _correct(out + row.to(tl.int64) * out_stride, outputs, reads, scale, job, OUT, WIDTH, N, SLICE)
        else:
            if part >= 3:
                projected = tl.sigmoid(projected)
            tl.store(place + part * rows * WIDTH, projected, mask=i < WIDTH)


@triton.jit(do_not_specialize=["rows"])
def steer_kernel(
    pool, slots, buffers, outputs, out, gain, writes, norm_weight, gram, scale, rows, out_stride,
    OUT: tl.constexpr, WIDTH: tl.constexpr, RANK: tl.constexpr, N: tl.constexpr,
    SLICE: tl.constexpr, PIECES: tl.constexpr, MODE: tl.constexpr, EPS: tl.constexpr,
    OWN_LAMBDA: tl.constexpr, NORM: tl.constexpr, GAIN: tl.constexpr, SOME: tl.constexpr,
):  # fmt: skip
    """Program (row, job): the first ``PIECES`` jobs correct a slice each; the one after them writes the state."""
    row, job = tl.program_id(0), tl.program_id(1)
    slot = tl.load(slots + row).to(tl.int64)
    dtype = pool.dtype.element_ty
    i = tl.arange(0, N)
    place = buffers + (row * WIDTH + i)
    if slot != 0:
        if job < PIECES:
            reads = tl.load(place, mask=i < WIDTH, other=0.0).to(dtype)
            if GAIN:
                scale *= tl.load(gain + row).to(dtype)
            if NORM:
                mask = (i < WIDTH)[:, None] & (i < WIDTH)[None, :]
                form = tl.load(gram + i[:, None] * WIDTH + i[None, :], mask=mask, other=0.0).to(dtype)
                # A small rest of large terms may come out below zero.
                square = tl.maximum(tl.sum(tl.sum(form * reads[None, :], axis=1) * reads, axis=0), 0.0)
                o = job * SLICE + tl.arange(0, SLICE)
                weight = tl.load(norm_weight + o, mask=o < OUT, other=0.0).to(dtype)
                by_output = weight * (scale / tl.sqrt(square + EPS))
                _correct(out + row.to(tl.int64) * out_stride, outputs, reads, by_output, job, OUT, WIDTH, N, SLICE)
            else:
                _correct(out + row.to(tl.int64) * out_stride, outputs, reads, scale, job, OUT, WIDTH, N, SLICE)
        else:
            allowed = slot != 0
            if SOME:
                allowed = tl.load(writes + row) != 0
            if allowed:
                exists = i < WIDTH
                k = tl.load(place + rows * WIDTH, mask=exists, other=0.0).to(dtype)
                v = tl.load(place + 2 * rows * WIDTH, mask=exists, other=0.0).to(dtype)
                beta = tl.load(place + 3 * rows * WIDTH, mask=exists, other=0.0).to(dtype)
                if OWN_LAMBDA:
                    keep = tl.load(place + 4 * rows * WIDTH, mask=exists, other=0.0).to(dtype)
                else:
                    keep = 1 - beta
                erase = beta
                if MODE == "lambda_outside":
                    erase = keep * beta
                if MODE == "no_lambda":
                    keep = keep * 0 + 1
                at, real = _state_tile(WIDTH, RANK, N)
                own = pool + slot * (WIDTH * RANK)
                state = tl.load(own + at, mask=real, other=0.0)
                update = beta * v - erase * tl.sum(state * k[None, :], axis=1)
                tl.store(own + at, keep[:, None] * state + update[:, None] * k[None, :], mask=real)
