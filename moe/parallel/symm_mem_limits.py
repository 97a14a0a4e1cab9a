"""What strategy.dispatcher=symm_mem can do, and the memory it takes. Torch-free.

The limits are those of torch's operations on NVSHMEM, in PyTorch's
torch/csrc/distributed/c10d/symm_mem/nvshmem_extension.cu (versions of main from July 2025 on, with
the signatures of torch 2.13). Tables of splits and offsets are scanned by warps of 32 lanes in
blocks of 512 threads: `all_to_all_vdev_2d` takes 32 ranks and 16 experts of a rank,
`all_to_all_vdev_2d_offset` 16 ranks and 32 experts. Every row goes both ways.

Shape letters: G ranks of the group, T tokens of a rank, K slots of a token, P places of a rank.
"""

from __future__ import annotations

from typing import NamedTuple

from moe.spec import DTYPE_BYTES, KERNELS_BY_ENDS, Cell, Unsupported

SYMM_MEM = "symm_mem"
MOST_RANKS = 16
MOST_PLACES = 16
FIELD, OTHER = "strategy.dispatcher", "strategy.dispatcher=alltoall"
KERNELS = ("auto", *KERNELS_BY_ENDS)


class Room(NamedTuple):
    """Symmetric memory of a rank: twice `slots` rows for what is sent and comes back, twice `rows`
    for what arrives and goes back. `places` are the copies of experts here."""

    slots: int
    rows: int
    row_bytes: int
    places: int

    @property
    def bytes(self) -> int:
        return 2 * (self.slots + self.rows) * self.row_bytes


def room(ranks: int, tokens: int, slots: int, places: int, row_bytes: int) -> Room:
    """What has room whatever the routing is. A token has at most min(K, P) slots on a rank, so
    G * T * min(K, P) rows reach one at worst, and an expert without rows is given one of padding.
    Of the T * K slots, dropped ones share one more row."""
    return Room(tokens * slots + 1, ranks * tokens * min(slots, places) + places, row_bytes, places)


def refuse(cell: Cell, degrees: tuple[int, int, int], places: int) -> None:
    """Raises Unsupported for a cell that strategy.dispatcher=symm_mem cannot run. `degrees` are
    ranks that share the experts, parts of an expert, and replicas."""
    place, strategy, layer = cell.placement, cell.strategy, cell.layer
    ranks, parts, _ = degrees
    widths = (layer.dim, layer.hidden // parts, layer.dim_out)
    odd = [width for width in widths if width * DTYPE_BYTES[layer.dtype] % 16]
    kernels = "|".join(KERNELS)
    if place.device != "cuda" or place.backend != "nccl":
        raise Unsupported(FIELD, SYMM_MEM, "symm_mem on GPUs with backend=nccl",
                          f"set device=cuda backend=nccl or {OTHER}")  # fmt: skip
    if ranks < 2:
        raise Unsupported(FIELD, SYMM_MEM, "symm_mem where at least 2 ranks, each with a GPU, "
                          "share the experts",
                          f"raise world_size or strategy.ep, or set {OTHER}")  # fmt: skip
    if place.nodes > 1:
        raise Unsupported(FIELD, SYMM_MEM, "symm_mem on one node, whose GPUs read each other's "
                          "memory", f"set {OTHER} or hosts.nnodes=1")  # fmt: skip
    if ranks > MOST_RANKS:
        raise Unsupported(FIELD, SYMM_MEM, f"symm_mem where at most {MOST_RANKS} ranks, the most "
                          f"that torch's operations take, share the experts, not {ranks}",
                          f"lower strategy.ep or set {OTHER}")  # fmt: skip
    if places > MOST_PLACES:
        raise Unsupported(FIELD, SYMM_MEM, f"symm_mem with at most {MOST_PLACES} experts on a "
                          f"rank, the most that torch's operations take, not {places}",
                          f"raise world_size or strategy.ep, or set {OTHER}")  # fmt: skip
    if odd:
        raise Unsupported(FIELD, SYMM_MEM, "symm_mem where D, O and the hidden units of a rank "
                          f"are multiples of 16 bytes, which {odd[0]} is not",
                          f"set {OTHER} or other sizes")  # fmt: skip
    if strategy.comm_dtype not in ("", layer.dtype):
        raise Unsupported("strategy.comm_dtype", strategy.comm_dtype,
                          "the layer's dtype with strategy.dispatcher=symm_mem",
                          f"set strategy.comm_dtype=null or {OTHER}")  # fmt: skip
    if strategy.kernel not in KERNELS:
        raise Unsupported("strategy.kernel", strategy.kernel,
                          f"{kernels} with strategy.dispatcher=symm_mem, where only the GPU knows "
                          "the rows of each expert",
                          f"set strategy.kernel={kernels} or {OTHER}")  # fmt: skip
