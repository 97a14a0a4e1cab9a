"""Memory that a cell takes on a GPU, by arithmetic: all figures are of one rank. Torch-free.

Shape letters: B global batch, T tokens a rank starts with, D in, H hidden, O out, E experts, P
experts here, U hidden units here, F = U or (gated) 2U, M rows of the fullest expert, W bytes of the
rank's weights, s bytes of a number, k = 2 in training (gradients), else 1.

    needed   1 GiB + the larger of         context, libraries' workspaces, what the allocator loses
               kept + max(step, check)
               copy + step + layout        the kernels are tuned before there is a snapshot
                 + symm_mem
    kept     c copy + snapshot + symm_mem  between steps; c = 2 sets where the cache is to be cold
    copy     k W + k T (D + O) s           weights, input and output, and their gradients
    snapshot (k - 1) W + k T (D + O) s     moe.verify.snapshot: a GPU's later steps are compared
                                           with all that was proven, not with a digest of it
    step     peak_bytes - k W + padding    what a step adds (moe.cost.work)
    symm_mem 2 (S + N) max(D, O) s         strategy.dispatcher=symm_mem: S slots, N rows at most
             + 512 MiB                     (`room` in moe.parallel.rules), N in a step, too; by how
                                           much NVSHMEM's memory grows
    layout   P max(F D, U O) s             one matrix of all experts a second time: some kernels
                                           store it transposed (kernel=auto or bmm)
    check    moe.verify.reference, of the whole batch on every rank:
             k B (D + O) (s + 4 + 8)       tokens and outputs in the dtype, float32 and float64
             32 B E                        logits and scores in float64
             4 k M (D + F + U + O)         rows of one expert, in float32
             e (s + 8), training e (s + 12)   its e numbers: as float64, or float32, gradient, table
             (k - 1) gathered              all gradients of a strategy that keeps shards (fsdp)

An estimate: `fullest` is what evenly drawn experts give. What runs out all the same has failed,
with its reason in the record.
"""

from __future__ import annotations

from dataclasses import replace

from moe.cost.load import expected, fullest
from moe.cost.work import expert_elements, padded_bytes, peak_bytes, weight_bytes
from moe.parallel.rules import first_width
from moe.parallel.symm_mem_limits import SYMM_MEM
from moe.spec import DTYPE_BYTES, Cell
from moe.strategies import degrees, rules_of

CONTEXT_BYTES = 1 << 30
TWO_LAYOUTS = ("auto", "bmm")  # values of strategy.kernel
HEAP_STEP_BYTES = 512 << 20
COLD_SETS = 2  # of a layer larger than the cache; more sets of a smaller one are as large together


def needed_bytes(cell: Cell, rank: int = 0) -> float:
    """Peak from building to the last check."""
    load = expected(cell, rank)
    if cell.strategy.dispatcher == SYMM_MEM:
        load = replace(load, slots=rules_of(cell.strategy.name).room(cell).rows)
    weights = _copies(cell) * weight_bytes(cell, rank)
    step = peak_bytes(cell, load, rank) - weights + padded_bytes(cell, load, rank)
    tuning = _copy_bytes(cell, rank) + step + _layout_bytes(cell) + _symmetric_bytes(cell)
    return CONTEXT_BYTES + max(kept_bytes(cell, rank) + max(step, _check_bytes(cell)), tuning)


def kept_bytes(cell: Cell, rank: int = 0) -> float:
    """What a cell that was checked keeps between its steps."""
    sets = COLD_SETS if cell.workload.cache == "cold" else 1
    snapshot = (_copies(cell) - 1) * weight_bytes(cell, rank) + _ends_bytes(cell)
    return sets * _copy_bytes(cell, rank) + snapshot + _symmetric_bytes(cell)


def _symmetric_bytes(cell: Cell) -> float:
    if cell.strategy.dispatcher != SYMM_MEM:
        return 0.0
    return HEAP_STEP_BYTES + rules_of(cell.strategy.name).room(cell).bytes


def _copies(cell: Cell) -> int:
    """k: a number, and its gradient in training."""
    return 2 if cell.workload.mode == "train" else 1


def _ends_bytes(cell: Cell) -> float:
    """Input and output of a rank."""
    layer, work = cell.layer, cell.workload
    rows: float = work.batch_size
    if work.tokens == "sharded":
        rows /= cell.placement.world_size
    return _copies(cell) * rows * (layer.dim + layer.dim_out) * DTYPE_BYTES[layer.dtype]


def _copy_bytes(cell: Cell, rank: int) -> float:
    return _copies(cell) * weight_bytes(cell, rank) + _ends_bytes(cell)


def _layout_bytes(cell: Cell) -> float:
    if cell.strategy.kernel not in TWO_LAYOUTS:
        return 0.0
    layer, (ep, tp, _) = cell.layer, degrees(cell)
    units = layer.hidden // tp
    matrix = max(first_width(layer, units) * layer.dim, units * layer.dim_out)
    return layer.num_experts / ep * matrix * DTYPE_BYTES[layer.dtype]


def _check_bytes(cell: Cell) -> float:
    layer, batch, copies = cell.layer, cell.workload.batch_size, _copies(cell)
    size, elements = DTYPE_BYTES[layer.dtype], expert_elements(layer)
    ends = copies * batch * (layer.dim + layer.dim_out) * (size + 4 + 8)
    rows: float = batch  # of a shared expert
    if not layer.shared_experts:
        rows = min(batch, fullest(batch * layer.topk, layer.num_experts))
    widths = layer.dim + first_width(layer, layer.hidden) + layer.hidden + layer.dim_out
    matrices = elements * (size + (12 if copies == 2 else 8))
    gathered = (copies - 1) * rules_of(cell.strategy.name).gathered_bytes(cell)
    logits = 32 * batch * layer.num_experts
    return ends + logits + 4 * copies * rows * widths + matrices + gathered
