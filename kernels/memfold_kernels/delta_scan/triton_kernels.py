"""The device code of the scan in Triton; ``triton_scan`` launches it and says what for.

A lane holds one row of a state as a tuple of its columns, each a tile over the lanes: the columns of a row are
registers of one thread, so that a row's product with a key needs no exchange between threads. (A 2-D tile says the
same in fewer words, but leaves it to the compiler which of its axes lies across threads, and its versions differ.)
Rows are padded to a power of two by masks. Words used here:

- *sequence*: tokens that share a state; all of one ``length``, or packed: from token ``starts[n]`` to
  ``starts[n + 1]``.
- *chunk*: ``CHUNK`` tokens of a sequence, the last one fewer. The chunks of sequence ``n`` are numbered from
  ``n * ceil(length / CHUNK)``, or from ``starts[n] // CHUNK + n`` where packed: never too few numbers, and
  found without a table.
- *item*: what one group of lanes walks serially: of one head a chunk where ``SPLIT``, else a sequence.

Compute is in the state's dtype; the tokens' tensors may have any.
"""
# Device code: its types are the Triton compiler's.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, ANN202, N803, RUF005, SIM102, SIM108, RET505, PLR0915

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _first_chunk(sequence, starts, length, CHUNK: tl.constexpr, PACKED: tl.constexpr):
    """The number of a sequence's first chunk; of several where ``sequence`` is a tile."""
    if PACKED:
        return tl.load(starts + sequence).to(tl.int32) // CHUNK + sequence
    else:
        return sequence * ((length + CHUNK - 1) // CHUNK)


@triton.jit
def _sequence_of(chunk, starts, sequences, CHUNK: tl.constexpr):
    """The packed sequence that each chunk of a tile belongs to: the last one that does not begin after it."""
    sequence = chunk * 0
    beyond = sequence + sequences
    while tl.max(beyond - sequence, axis=0) > 1:
        middle = (sequence + beyond) // 2
        after = _first_chunk(middle, starts, 0, CHUNK, True) > chunk
        beyond = tl.where(after, middle, beyond)
        sequence = tl.where(after, sequence, middle)
    return sequence


@triton.jit
def _locate(
    item, items, starts, slots, sequences, length, heads,
    CHUNK: tl.constexpr, SPLIT: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Where a tile of items is.

    Returns:
        The number of its state, the first token, one past the last token (none where the item does not
        exist), and whether it reads and writes at all (those of slot 0 do not).
    """
    exists = item < items
    span = tl.where(exists, item // heads, 0)
    sequence = span
    if SPLIT:
        if PACKED:
            sequence = _sequence_of(span, starts, sequences, CHUNK)
        else:
            sequence = span // ((length + CHUNK - 1) // CHUNK)
    if PACKED:
        first = tl.load(starts + sequence).to(tl.int64)
        last = tl.load(starts + sequence + 1).to(tl.int64)
        slot = tl.load(slots + sequence).to(tl.int64)
        active = exists & (slot != 0)
    else:
        first = sequence.to(tl.int64) * length
        last = first + length
        slot = sequence.to(tl.int64)
        active = exists
    if SPLIT:
        first += (span - _first_chunk(sequence, starts, length, CHUNK, PACKED)).to(tl.int64) * CHUNK
        last = tl.minimum(last, first + CHUNK)
    last = tl.where(exists, last, first)
    return slot * heads + item % heads, first, last, active


@triton.jit
def _dot(a, b, RANK: tl.constexpr):
    """Sum over columns, in two chains: a step of the scan waits for it."""
    even = a[0] * b[0]
    odd = tl.zeros_like(even)
    for j in tl.static_range(1, RANK):
        if j % 2 == 1:
            odd += a[j] * b[j]
        else:
            even += a[j] * b[j]
    return even + odd


@triton.jit
def _mix(a, x, b, y, RANK: tl.constexpr):
    """Columns of a * x + b * y."""
    mixed = ()
    for j in tl.static_range(RANK):
        mixed = mixed + (a * x[j] + b * y[j],)
    return mixed


@triton.jit
def _scale(a, x, RANK: tl.constexpr):
    """Columns of a * x."""
    scaled = ()
    for j in tl.static_range(RANK):
        scaled = scaled + (a * x[j],)
    return scaled


@triton.jit
def _load_columns(pointer, at, mask, dtype, RANK: tl.constexpr):
    """RANK numbers in a row of memory, from ``at`` of each lane; zeros where masked."""
    columns = ()
    for j in tl.static_range(RANK):
        columns = columns + (tl.load(pointer + at + j, mask=mask, other=0.0).to(dtype),)
    return columns


@triton.jit
def _store_columns(pointer, at, columns, mask, RANK: tl.constexpr):
    for j in tl.static_range(RANK):
        tl.store(pointer + at + j, columns[j], mask=mask)


@triton.jit
def _load_token(k, keep, erase, write, v, at, row, real, dtype, RANK: tl.constexpr):
    """What writing a token takes: key (by columns), keep, erase and write * v of the lane's row.

    ``at`` is where the token's head begins. Where not ``real``, the token leaves the state as it is.
    """
    key = _load_columns(k, at, real, dtype, RANK)
    kept = tl.load(keep + at + row, mask=real, other=1.0).to(dtype)
    erased = tl.load(erase + at + row, mask=real, other=0.0).to(dtype)
    gate = tl.load(write + at + row, mask=real, other=0.0).to(dtype)
    value = tl.load(v + at + row, mask=real, other=0.0).to(dtype)
    return key, kept, erased, gate * value


@triton.jit
def _write_token(state, token, RANK: tl.constexpr):
    """The row after a token: keep * s - erase * (s . k) k + write * v * k."""
    key, kept, erased, written = token
    return _mix(kept, state, written - erased * _dot(state, key, RANK), key, RANK)


@triton.jit(do_not_specialize=["items", "sequences", "length"])
def replay(
    q, k, v, keep, erase, write, state, after, checkpoints, reads,
    starts, slots, items, sequences, length, heads,
    RANK: tl.constexpr, R: tl.constexpr, LANES: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
    SPLIT: tl.constexpr, PACKED: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """Walk every item's tokens: what each reads.

    Where ``SPLIT``, items start from their checkpoint. Else they start from ``state``, write ``after`` (the same
    tensor where states are updated in place) and, where ``SAVE``, a checkpoint at the start of every chunk.
    The loads of ``BLOCK`` tokens are issued together, ahead of the arithmetic that waits for the first.
    """
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    item, row = lane // R, lane % R
    index, first, last, active = _locate(item, items, starts, slots, sequences, length, heads, CHUNK, SPLIT, PACKED)
    dtype = state.dtype.element_ty
    row_exists = row < RANK
    works = active & row_exists
    head = item % heads
    stride = heads * RANK
    if SPLIT:
        s = _load_columns(checkpoints, (item * RANK + row).to(tl.int64) * RANK, works, dtype, RANK)
    else:
        s = _load_columns(state, (index * RANK + row) * RANK, works, dtype, RANK)
    if SAVE:
        chunk = _first_chunk(item // heads, starts, length, CHUNK, PACKED)
    longest = tl.max(last - first, axis=0).to(tl.int32)

    for t in range(0, longest, BLOCK):
        if SAVE:
            if t % CHUNK == 0:
                saved = ((chunk + t // CHUNK) * heads + head).to(tl.int64)
                _store_columns(checkpoints, (saved * RANK + row) * RANK, s, works & (first + t < last), RANK)
        tokens = ()
        queries = ()
        for i in tl.static_range(BLOCK):
            at = (first + (t + i)) * stride + head * RANK
            real = works & (first + (t + i) < last)
            tokens = tokens + (_load_token(k, keep, erase, write, v, at, row, real, dtype, RANK),)
            queries = queries + (_load_columns(q, at, real, dtype, RANK),)
        for i in tl.static_range(BLOCK):
            at = (first + (t + i)) * stride + head * RANK
            # Of a sequence in slot 0 too: its tokens read 0.
            real = row_exists & (first + (t + i) < last)
            tl.store(reads + at + row, _dot(s, queries[i], RANK), mask=real)
            s = _write_token(s, tokens[i], RANK)

    if not SPLIT:
        _store_columns(after, (index * RANK + row) * RANK, s, works, RANK)


@triton.jit(do_not_specialize=["items", "sequences", "length"])
def map_chunks(
    q, k, v, keep, erase, write, d_reads, maps,
    starts, slots, items, sequences, length, heads,
    RANK: tl.constexpr, R: tl.constexpr, LANES: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
    PACKED: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Every chunk as a map of each row: s -> s F + c, found by walking it with the rows of the identity and 0.

    A lane walks one start: RANK unit rows without writes, for F, and one zero row with them, for c. ``REVERSE`` maps
    the gradient of the row from the chunk's end to its start instead; what it gathers are the reads' gradients.
    ``maps`` is (items, RANK + 1, RANK, R): start, column, row.
    """
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    item, start, row = lane // (R * (RANK + 1)), lane // R % (RANK + 1), lane % R
    _, first, last, active = _locate(item, items, starts, slots, sequences, length, heads, CHUNK, True, PACKED)
    dtype = maps.dtype.element_ty
    works = active & (row < RANK)
    gathers = works & (start == RANK)
    stride = heads * RANK
    longest = tl.max(last - first, axis=0).to(tl.int32)
    s = ()
    for j in tl.static_range(RANK):
        s = s + ((start == j).to(dtype),)

    for t in range(0, longest, BLOCK):
        tokens = ()
        sources = ()
        for i in tl.static_range(BLOCK):
            position = first + (t + i)
            if REVERSE:
                position = last - 1 - (t + i)
            inside = (position >= first) & (position < last)
            at = position * stride + item % heads * RANK
            key = _load_columns(k, at, works & inside, dtype, RANK)
            kept = tl.load(keep + at + row, mask=works & inside, other=1.0).to(dtype)
            erased = tl.load(erase + at + row, mask=works & inside, other=0.0).to(dtype)
            if REVERSE:
                written = tl.load(d_reads + at + row, mask=gathers & inside, other=0.0).to(dtype)
                sources = sources + (_load_columns(q, at, gathers & inside, dtype, RANK),)
            else:
                gate = tl.load(write + at + row, mask=gathers & inside, other=0.0).to(dtype)
                written = gate * tl.load(v + at + row, mask=gathers & inside, other=0.0).to(dtype)
            tokens = tokens + ((key, kept, erased, written),)
        for i in tl.static_range(BLOCK):
            if REVERSE:
                key, kept, erased, written = tokens[i]
                s = _mix(kept, s, -erased * _dot(s, key, RANK), key, RANK)
                s = _mix(1.0, s, written, sources[i], RANK)
            else:
                s = _write_token(s, tokens[i], RANK)

    place = (item * (RANK + 1) + start).to(tl.int64) * (RANK * R) + row
    for j in tl.static_range(RANK):
        tl.store(maps + place + j * R, s[j], mask=item < items)


@triton.jit(do_not_specialize=["length"])
def chain_chunks(
    maps, state, after, checkpoints, starts, slots, length, heads,
    RANK: tl.constexpr, R: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
    PACKED: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """The serial part of the two-level scan: one sequence and head a program, one chunk a step.

    Stores the state that each chunk starts with as its checkpoint (``REVERSE``: the gradient of the state that it
    ends with), and what comes after the last one in ``after``. A lane holds one number of the state and
    gets the others of its row from their lanes. The maps of ``BLOCK`` chunks are loaded together.
    """
    sequence, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    tokens = length
    slot = sequence.to(tl.int64)
    lane = tl.arange(0, R * R)
    column, row = lane // R, lane % R
    real = (column < RANK) & (row < RANK)
    if PACKED:
        tokens = (tl.load(starts + sequence + 1) - tl.load(starts + sequence)).to(tl.int32)
        slot = tl.load(slots + sequence).to(tl.int64)
        real = real & (lane < tl.where(slot == 0, 0, R * R))
    chunks = (tokens + CHUNK - 1) // CHUNK
    chunk = _first_chunk(sequence, starts, length, CHUNK, PACKED)
    at = row * RANK + column
    own = (slot * heads + head) * (RANK * RANK)
    s = tl.load(state + own + at, mask=real, other=0.0)

    for c in range(0, chunks, BLOCK):
        block = ()
        for i in tl.static_range(BLOCK):
            number = chunk + c + i
            if REVERSE:
                number = chunk + chunks - 1 - (c + i)
            exists = tl.full([R * R], c + i, tl.int32) < chunks
            own_map = maps + (number * heads + head).to(tl.int64) * ((RANK + 1) * RANK * R)
            rows = ()
            for start in tl.static_range(RANK + 1):
                at_start = own_map + start * (RANK * R) + lane
                rows = rows + (tl.load(at_start, mask=(column < RANK) & exists, other=0.0),)
            block = block + (rows,)
        for i in tl.static_range(BLOCK):
            number = chunk + c + i
            if REVERSE:
                number = chunk + chunks - 1 - (c + i)
            exists = tl.full([R * R], c + i, tl.int32) < chunks
            saved = (number * heads + head).to(tl.int64) * (RANK * RANK)
            tl.store(checkpoints + saved + at, s, mask=real & exists)
            even = block[i][RANK]
            odd = tl.zeros_like(even)
            for start in tl.static_range(RANK):
                part = tl.gather(s, start * R + row, 0) * block[i][start]
                if start % 2 == 1:
                    odd += part
                else:
                    even += part
            s = tl.where(exists, even + odd, s)

    tl.store(after + own + at, s, mask=real)


@triton.jit
def _sum_rows(columns, row, RANK: tl.constexpr, R: tl.constexpr, LANES: tl.constexpr):
    """Each column summed over the lanes of its state, in a fixed order; the lane of row j gets column j's.

    Every round, a lane keeps half of its columns and hands the other half to its partner: R - 1 exchanges
    for all columns, where a sum of each would take log2(R) a column.
    """
    lane = tl.arange(0, LANES)
    for _ in tl.static_range(RANK, R):
        columns = columns + (tl.zeros_like(columns[0]),)
    for level in tl.static_range(1, R.bit_length()):
        upper = (row & (R >> level)) != 0
        halves = ()
        for j in tl.static_range(R >> level):
            kept = tl.where(upper, columns[j + (R >> level)], columns[j])
            given = tl.where(upper, columns[j], columns[j + (R >> level)])
            halves = halves + (kept + tl.gather(given, lane ^ (R >> level), 0),)
        columns = halves
    return columns[0]


@triton.jit(do_not_specialize=["items", "length"])
def replay_backward(
    q, k, v, keep, erase, write, checkpoints, ends, d_reads, d_state, d_before, scratch,
    d_q, d_k, d_v, d_keep, d_erase, d_write,
    items, length, heads,
    RANK: tl.constexpr, R: tl.constexpr, LANES: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """Walk every item's tokens backwards: the gradients of all that ``replay`` read. For padded batches only.

    Items begin with ``ends``, the gradients of the states at the chunks' ends, where ``SPLIT``; else with
    ``d_state``, and write ``d_before``. A chunk's states are computed again from its checkpoint, twice: first those
    before every ``BLOCK``-th token, then, block by block, those before each token of the block. Both
    are noted in ``scratch`` (item, CHUNK / BLOCK + BLOCK, RANK, RANK), which only the lane that wrote them reads.
    """
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    item, row = lane // R, lane % R
    index, first, last, active = _locate(item, items, q, q, 0, length, heads, CHUNK, SPLIT, False)
    dtype = checkpoints.dtype.element_ty
    works = active & (row < RANK)
    head = item % heads
    stride = heads * RANK
    if SPLIT:
        chunk = item // heads
        g = _load_columns(ends, (item * RANK + row).to(tl.int64) * RANK, works, dtype, RANK)
    else:
        chunk = _first_chunk(item // heads, q, length, CHUNK, False)
        g = _load_columns(d_state, (index * RANK + row) * RANK, works, dtype, RANK)
    blocks_noted = (item.to(tl.int64) * (CHUNK // BLOCK + BLOCK) * RANK + row) * RANK
    tokens_noted = blocks_noted + (CHUNK // BLOCK) * RANK * RANK
    longest = tl.max(last - first, axis=0).to(tl.int32)
    chunks = (longest + CHUNK - 1) // CHUNK

    for chunk_back in range(chunks):
        number = chunks - 1 - chunk_back
        begin = first + number * CHUNK
        saved = ((chunk + number) * heads + head).to(tl.int64)
        s = _load_columns(checkpoints, (saved * RANK + row) * RANK, works, dtype, RANK)
        tokens = tl.minimum(longest - number * CHUNK, CHUNK)
        for t in range(tokens):
            if t % BLOCK == 0:
                _store_columns(scratch, blocks_noted + t // BLOCK * RANK * RANK, s, works, RANK)
            at = (begin + t) * stride + head * RANK
            real = works & (begin + t < last)
            s = _write_token(s, _load_token(k, keep, erase, write, v, at, row, real, dtype, RANK), RANK)

        blocks = (tokens + BLOCK - 1) // BLOCK
        for block_back in range(blocks):
            block = blocks - 1 - block_back
            s = _load_columns(scratch, blocks_noted + block * RANK * RANK, works, dtype, RANK)
            for i in range(BLOCK):
                _store_columns(scratch, tokens_noted + i * RANK * RANK, s, works, RANK)
                position = begin + (block * BLOCK + i)
                at = position * stride + head * RANK
                real = works & (position < last)
                s = _write_token(s, _load_token(k, keep, erase, write, v, at, row, real, dtype, RANK), RANK)
            for back in range(BLOCK):
                i = BLOCK - 1 - back
                before = _load_columns(scratch, tokens_noted + i * RANK * RANK, works, dtype, RANK)
                position = begin + (block * BLOCK + i)
                at = position * stride + head * RANK
                real = works & (position < last)
                key, kept, erased, written = _load_token(k, keep, erase, write, v, at, row, real, dtype, RANK)
                query = _load_columns(q, at, real, dtype, RANK)
                d_read = tl.load(d_reads + at + row, mask=real, other=0.0).to(dtype)
                gate = tl.load(write + at + row, mask=real, other=0.0).to(dtype)
                value = tl.load(v + at + row, mask=real, other=0.0).to(dtype)
                recalled = _dot(before, key, RANK)
                d_update = _dot(g, key, RANK)
                d_recalled = -erased * d_update
                tl.store(d_keep + at + row, _dot(g, before, RANK), mask=real)
                tl.store(d_erase + at + row, -d_update * recalled, mask=real)
                tl.store(d_write + at + row, d_update * value, mask=real)
                tl.store(d_v + at + row, d_update * gate, mask=real)
                d_key = _mix(written - erased * recalled, g, d_recalled, before, RANK)
                tl.store(d_k + at + row, _sum_rows(d_key, row, RANK, R, LANES), mask=real)
                d_query = _scale(d_read, before, RANK)
                tl.store(d_q + at + row, _sum_rows(d_query, row, RANK, R, LANES), mask=real)
                g = _mix(1.0, _mix(kept, g, d_recalled, key, RANK), d_read, query, RANK)

    if not SPLIT:
        _store_columns(d_before, (index * RANK + row) * RANK, g, works, RANK)
