"""What strategy.dispatcher=symm_mem can do, and the memory it takes. Torch-free.

The limits are those of torch's operations on NVSHMEM (torch 2.11 to 2.13,
torch/csrc/distributed/c10d/symm_mem/nvshmem_extension.cu). Tables of splits and offsets are scanned
by warps of 32 lanes in blocks of 512 threads: `all_to_all_vdev_2d` takes 32 ranks and 16 experts of
a rank, `all_to_all_vdev_2d_offset` 16 ranks and 32 experts. Every row goes both ways.

Shape letters: G ranks of the group, T tokens of a rank, K slots of a token, P places of a rank.
"""

from __future__ import annotations

from typing import NamedTuple

from moe.spec import DTYPE_BYTES, Cell, Unsupported

SYMM_MEM = "symm_mem"
MOST_RANKS = 16
MOST_PLACES = 16
KERNELS = ("auto", "grouped")  # read the ends of experts' rows on the device, and no other rows


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
    other = "set strategy.dispatcher=alltoall"
    if place.device != "cuda" or place.backend != "nccl":
        _refuse("on GPUs with backend=nccl", f"{other}, or device=cuda backend=nccl")
    if ranks < 2:
        _refuse("with at least 2 ranks, each on a GPU, that share the experts",
                f"{other}, or raise strategy.ep or world_size")  # fmt: skip
    if place.nodes > 1:
        _refuse("on one node, where GPUs read each other's memory", other)
    if ranks > MOST_RANKS:
        _refuse(f"with at most {MOST_RANKS} ranks that share the experts, the most that torch's "
                f"operations take, not {ranks}", f"{other}, or lower strategy.ep")  # fmt: skip
    if places > MOST_PLACES:
        _refuse(f"with at most {MOST_PLACES} experts on a rank, the most that torch's operations "
                f"take, not {places}", f"{other}, or raise strategy.ep or world_size")  # fmt: skip
    if odd:
        _refuse("where D, O and the hidden units of a rank are multiples of 16 bytes, which "
                f"{odd[0]} is not", f"{other} or other sizes")  # fmt: skip
    if strategy.comm_dtype not in ("", layer.dtype):
        raise Unsupported("strategy.comm_dtype", strategy.comm_dtype,
                          "the layer's dtype with strategy.dispatcher=symm_mem",
                          f"set strategy.comm_dtype=null, or {other[4:]}")  # fmt: skip
    if strategy.kernel not in KERNELS:
        kernels = "|".join(KERNELS)
        raise Unsupported("strategy.kernel", strategy.kernel,
                          f"{kernels} with strategy.dispatcher=symm_mem, where only the GPU knows "
                          "the rows of each expert",
                          f"set strategy.kernel={kernels}, or {other[4:]}")  # fmt: skip


def _refuse(where: str, remedy: str) -> None:
    raise Unsupported("strategy.dispatcher", SYMM_MEM, f"symm_mem {where}", remedy)
