"""Block sizes for the kernel `triton`: each of its products alone, and whole forward passes beside
Liger's kernels. Its choice in moe/layer/triton_experts.py should be the best of these.

    python -m benchmarks.gpu blocks [MODEL:TOKENS ...]

A line for each block size, with the rate of its arithmetic, and WRONG where its result is not that
of the first one. A block size compiles for about a second. Needs a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.facts import median_ms
from benchmarks.gpu.rows import error_of
from moe.layer import liger, triton_experts
from moe.layer.experts import BY_TILES
from moe.layer.liger import SlotRows, Tile
from moe.parallel.permute import Slots, sort_slots

SIZES = {  # D, H, experts, top-k
    "qwen3": (2048, 768, 128, 8), "mixtral": (4096, 14336, 8, 2), "deepseek": (7168, 2048, 256, 8),
    "tiny": (32, 32, 4, 2),
}  # fmt: skip
CASES = ("qwen3:32768", "mixtral:1024", "qwen3:128")
FEW_TOKENS = 512  # up to here, tiles of 16 rows; above, of 64 and 128
FIRST = tuple(Tile(*sizes) for sizes in (
    (128, 128, 64, 8, 4), (128, 128, 64, 8, 3), (128, 64, 64, 8, 3), (128, 64, 64, 8, 4),
    (64, 128, 64, 8, 4), (64, 128, 64, 4, 4), (64, 64, 64, 4, 4),
    (16, 64, 128, 4, 3), (16, 32, 256, 4, 3), (16, 128, 64, 4, 4), (16, 32, 128, 4, 4),
))  # fmt: skip
SECOND = tuple(Tile(*sizes) for sizes in (
    (128, 256, 64, 8, 4), (128, 256, 64, 8, 3), (128, 128, 64, 8, 3), (128, 128, 64, 8, 4),
    (64, 256, 64, 8, 4), (64, 256, 64, 4, 4), (64, 128, 64, 4, 4),
    (16, 128, 128, 4, 3), (16, 64, 256, 4, 3), (16, 64, 128, 4, 4), (16, 256, 64, 4, 4),
))  # fmt: skip
CLOSE = 2e-2


@dataclass
class Case:
    """A layer's matrices, its tokens and their slots, drawn at random."""

    x_TD: Tensor
    fc1_PFD: Tensor
    fc2_POH: Tensor
    gates_TK: Tensor
    slots: Slots

    @property
    def flops(self) -> int:
        """Of a forward pass; a third is the second product's."""
        _, outputs, hidden = self.fc2_POH.shape
        return 6 * self.gates_TK.numel() * outputs * hidden

    def rows(self, tile: Tile) -> SlotRows:
        bags = self.slots.bags
        assert bags is not None
        return liger.slot_rows(self.slots.counts, bags.source_S, self.slots.order_S, tile, bags)


def case_of(name: str, device: torch.device, dtype: torch.dtype) -> Case:
    """MODEL:TOKENS; raises KeyError or ValueError."""
    model, tokens = name.split(":")
    dim, hidden, experts, topk = SIZES[model]

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype) * shape[-1] ** -0.5

    x_TD = torch.randn(int(tokens), dim, device=device, dtype=dtype)
    gates_TK = torch.rand(int(tokens), topk, device=device, dtype=dtype)
    chosen_TK = torch.rand(int(tokens), experts, device=device).topk(topk).indices
    slots = sort_slots(chosen_TK, experts, "kept")
    return Case(x_TD, drawn(experts, 2 * hidden, dim), drawn(experts, dim, hidden), gates_TK, slots)


def line(name: str, call: Callable[[], object], flops: float, device: torch.device) -> str:
    """A time and its rate, or why there is none."""
    try:
        ms = median_ms(call, device, 0.1)
    except Exception as error:
        return f"{name} {error_of(error)}"
    return f"{name} {ms:.3f} ms {flops / ms * 1e-9:.0f} TFLOP/s"


def same(one: Tensor, other: Tensor) -> str:
    return "" if torch.allclose(one, other, rtol=CLOSE, atol=CLOSE) else " WRONG"


def products(case: Case, few: bool, device: torch.device) -> list[str]:
    """Both products with every block size of so many rows."""
    activated_SH = case.x_TD.new_empty((case.gates_TK.numel(), case.fc2_POH.shape[2]))
    lines, expected = [], None
    for tile in (tile for tile in FIRST if (tile.rows == 16) == few):
        call = partial(triton_experts.first_mm, case.x_TD, case.fc1_PFD, activated_SH,
                       case.rows(tile), tile=tile)  # fmt: skip
        text = line(f"fc1 {tuple(tile)}", call, case.flops * 2 / 3, device)
        expected = activated_SH.clone() if expected is None else expected
        lines.append(text + same(activated_SH, expected))
    result = None
    for tile in (tile for tile in SECOND if (tile.rows == 16) == few):
        call = partial(triton_experts.second_mm, activated_SH, case.fc2_POH, case.rows(tile),
                       tile=tile)  # fmt: skip
        text = line(f"fc2 {tuple(tile)}", call, case.flops / 3, device)
        result = call() if result is None else result
        lines.append(text + same(call(), result))
    return lines


def passes(case: Case, device: torch.device) -> list[str]:
    """Whole forward passes without the router, by every kernel on tiles."""
    matrices = (case.x_TD, case.fc1_PFD, case.fc2_POH, case.gates_TK, case.slots)
    return [
        line(f"whole {name}", partial(liger.of_tokens, *matrices, by), case.flops, device)
        for name, by in BY_TILES.items()
    ]


def main(names: Sequence[str], device: torch.device, dtype: torch.dtype = torch.bfloat16) -> None:
    with torch.inference_mode():
        for name in names or CASES:
            case = case_of(name, device, dtype)
            few = len(case.x_TD) <= FEW_TOKENS
            for text in (*products(case, few, device), *passes(case, device)):
                print(f"{name} {text}", flush=True)
