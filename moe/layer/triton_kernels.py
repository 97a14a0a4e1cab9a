"""The Triton kernels of `triton_experts`. Imports triton.

Blocks of one expert's matrices stay in a GPU's L2 cache while they are used: GROUP tiles of rows
are multiplied by one block of columns, then by the next. Rows behind the last of a tile, and
columns behind the last of a matrix, repeat the last one; they are computed and not stored. So loads
need no masks, except where the depth is no multiple of its block.

Shape letters as in `liger`; M tiles of rows, A tokens, N entries of all bags.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _block(tiles, blocks, GROUP: tl.constexpr):
    """(tile of rows, block of columns) of this program."""
    program = tl.program_id(0)
    group = program // (GROUP * blocks)
    first = group * GROUP
    size = tl.minimum(tiles - first, GROUP)
    place = program - group * GROUP * blocks
    return first + place % size, place // size


@triton.jit
def _rows(tile, starts_P1, row_M, expert_M):
    """(first row, expert, number of rows) of a tile; no rows for tiles that are not needed."""
    row, expert = tl.load(row_M + tile).to(tl.int64), tl.load(expert_M + tile).to(tl.int64)
    return row, expert, (tl.load(starts_P1 + expert + 1) - row).to(tl.int32)


@triton.jit(do_not_specialize=["tiles"])
def first_product(
    x_TD, fc1_PFD, token_S, starts_P1, row_M, expert_M, h_SF, activated_SH,
    tiles, INPUTS: tl.constexpr, HIDDEN: tl.constexpr, KEEP: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Gathers tokens, multiplies them by fc1, and writes silu(gate) * other half to `activated_SH`;
    with KEEP, both halves to `h_SF`."""
    tile, block = _block(tiles, tl.cdiv(HIDDEN, BLOCK_N), GROUP)
    row, expert, used = _rows(tile, starts_P1, row_M, expert_M)
    if used <= 0:
        return
    m, k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_K)
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    token = tl.load(token_S + row + tl.minimum(m, used - 1)).to(tl.int64)
    x = x_TD + token[:, None] * INPUTS + k[None, :]
    weight = (
        fc1_PFD
        + expert * (2 * HIDDEN * INPUTS)
        + (tl.minimum(n, HIDDEN - 1)[None, :] * INPUTS + k[:, None])
    )
    gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    other = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, INPUTS, BLOCK_K):
        if INPUTS % BLOCK_K == 0:
            x_MK = tl.load(x)
            gate_KN, other_KN = tl.load(weight), tl.load(weight + HIDDEN * INPUTS)
        else:
            inside = k < INPUTS - start
            x_MK = tl.load(x, mask=inside[None, :], other=0.0)
            gate_KN = tl.load(weight, mask=inside[:, None], other=0.0)
            other_KN = tl.load(weight + HIDDEN * INPUTS, mask=inside[:, None], other=0.0)
        gate = tl.dot(x_MK, gate_KN, gate, input_precision="ieee")
        other = tl.dot(x_MK, other_KN, other, input_precision="ieee")
        x += BLOCK_K
        weight += BLOCK_K
    stored = (m < used)[:, None] & (n < HIDDEN)[None, :]
    if KEEP:
        h = h_SF + row * (2 * HIDDEN) + (m[:, None] * (2 * HIDDEN) + n[None, :])
        tl.store(h, gate.to(h_SF.dtype.element_ty), mask=stored)
        tl.store(h + HIDDEN, other.to(h_SF.dtype.element_ty), mask=stored)
    activated = activated_SH + row * HIDDEN + (m[:, None] * HIDDEN + n[None, :])
    value = gate * tl.sigmoid(gate) * other
    tl.store(activated, value.to(activated_SH.dtype.element_ty), mask=stored)


@triton.jit(do_not_specialize=["tiles"])
def second_product(
    activated_SH, fc2_POH, starts_P1, row_M, expert_M, y_SO,
    tiles, OUTPUTS: tl.constexpr, HIDDEN: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Multiplies activated rows by fc2."""
    tile, block = _block(tiles, tl.cdiv(OUTPUTS, BLOCK_N), GROUP)
    row, expert, used = _rows(tile, starts_P1, row_M, expert_M)
    if used <= 0:
        return
    m, k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_K)
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    activated = (
        activated_SH + row * HIDDEN + (tl.minimum(m, used - 1)[:, None] * HIDDEN + k[None, :])
    )
    weight = (
        fc2_POH
        + expert * (OUTPUTS * HIDDEN)
        + (tl.minimum(n, OUTPUTS - 1)[None, :] * HIDDEN + k[:, None])
    )
    y = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, HIDDEN, BLOCK_K):
        if HIDDEN % BLOCK_K == 0:
            activated_MK, weight_KN = tl.load(activated), tl.load(weight)
        else:
            inside = k < HIDDEN - start
            activated_MK = tl.load(activated, mask=inside[None, :], other=0.0)
            weight_KN = tl.load(weight, mask=inside[:, None], other=0.0)
        y = tl.dot(activated_MK, weight_KN, y, input_precision="ieee")
        activated += BLOCK_K
        weight += BLOCK_K
    out = y_SO + row * OUTPUTS + (m[:, None] * OUTPUTS + n[None, :])
    stored = (m < used)[:, None] & (n < OUTPUTS)[None, :]
    tl.store(out, y.to(y_SO.dtype.element_ty), mask=stored)


@triton.jit(do_not_specialize=["slots"])
def sort_few(
    local_N, order_S, token_S, row_N, expert_S, starts_P1,
    slots, EXPERTS: tl.constexpr, TOPK: tl.constexpr, PADDED: tl.constexpr,
    SLOTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The tables of moe.parallel.permute.Slots, by counting for each slot those before it in expert
    order, and for each expert the slots of those before it. `slots` is at most SLOTS."""
    m, n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, SLOTS)
    every = tl.load(local_N + n, mask=n < slots, other=EXPERTS).to(tl.int32)
    own = tl.load(local_N + m, mask=m < slots, other=EXPERTS).to(tl.int32)
    every, own = tl.minimum(every, EXPERTS)[None, :], tl.minimum(own, EXPERTS)
    earlier = n[None, :] < m[:, None]
    before = (every < own[:, None]) | ((every == own[:, None]) & earlier)
    place = tl.sum(before.to(tl.int32), axis=1)
    used = m < slots
    tl.store(order_S + place, m, mask=used)
    tl.store(token_S + place, m // TOPK, mask=used)
    tl.store(expert_S + place, tl.minimum(own, EXPERTS - 1), mask=used)
    if PADDED:
        row = tl.where(own < EXPERTS, place, slots)
        tl.store(order_S + m, 0, mask=m == slots)
        tl.store(token_S + m, 0, mask=m == slots)
    else:
        row = place
    tl.store(row_N + m, row, mask=used)
    start = tl.sum((every < m[:, None]).to(tl.int32), axis=1)
    tl.store(starts_P1 + m, start, mask=m <= EXPERTS)


@triton.jit
def sum_of_rows(
    rows_SO, row_N, weights_N, starts_P1, sums_AO,
    OUTPUTS: tl.constexpr, TOPK: tl.constexpr, EXPERTS: tl.constexpr, WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds the rows of a token, weighted, in their order and in float32. Entries behind the last
    expert's rows add nothing."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    end = tl.load(starts_P1 + EXPERTS)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in tl.range(0, TOPK, loop_unroll_factor=8):
        row = tl.load(row_N + token * TOPK + k)
        columns = tl.where(row < end, OUTPUTS, 0)
        value = tl.load(rows_SO + row * OUTPUTS + column, mask=column < columns, other=0.0)
        value = value.to(tl.float32)
        if WEIGHTED:
            weight = tl.load(weights_N + token * TOPK + k)
            value *= weight.to(tl.float32)
        total += value
    tl.store(
        sums_AO + token * OUTPUTS + column,
        total.to(sums_AO.dtype.element_ty),
        mask=column < OUTPUTS,
    )
