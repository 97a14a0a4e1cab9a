"""The experts on a rank, and the kernels that compute them.

No kernel is fastest everywhere, so `MoELayer.tune` measures. Each has its own layout:

| kernel  | fc1 stored | fc2 stored | what it does                                               |
|---------|-----------|-----------|------------------------------------------------------------|
| loop    | [P, F, D] | [P, O, H] | one x @ W.T per expert that has slots                      |
| loop_wx | [P, F, D] | [P, O, H] | the same as W @ x.T: reads the weights faster for few rows |
| packed  | oneDNN's  | oneDNN's  | loop on weights packed for it; forward on a processor only |
| wide    | [P, F, D] | [P, O, H] | loop in float32, each half-precision matrix widened first  |
| bmm     | [P, F, D] | [P, O, H] | one batched product, padded to the fullest expert          |
| bmm_t   | [P, D, F] | [P, H, O] | the same, weights stored transposed                        |
| dense   | [P, F, D] | [P, H, O] | all experts on all rows in two products; fewest operations |
| grouped | [P, F, D] | [P, O, H] | F.grouped_mm                                               |
| liger   | [P, F, D] | [P, O, H] | Liger's Triton kernels on tiles of 64 rows; on a GPU only  |
| liger_N | [P, F, D] | [P, O, H] | the same on tiles of 16 or 128 rows                        |
| triton* | [P, F, D] | [P, O, H] | our own, on tiles of 128 rows or 64, 16; on a GPU only     |

Shape letters: T tokens, S slots here, D in, H hidden, F = H or (gated) 2H, O out, P experts here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe import weights
from moe.layer import liger, liger_support, triton_experts, triton_support, weight_store
from moe.layer.activations import activate
from moe.layer.expert_autograd import GradientBuffers, PerExpertFunction
from moe.layer.onednn import Packed, runs
from moe.parallel import permute
from moe.parallel.permute import RowsElsewhere, Slots
from moe.parallel.row_counts import RowCounts
from moe.spec import (
    GROUPED_BYTES,
    GROUPED_DTYPE,
    GROUPED_MOST,
    KERNELS_BY_ENDS,
    KERNELS_WITHOUT_COUNTS,
    LayerSpec,
)

TRANSPOSED = {"bmm_t": (True, True), "dense": (False, True)}
VARIANTS = {"loop": ("loop", "loop_wx", "packed", "wide"), "bmm": ("bmm", "bmm_t"),
            "dense": ("dense",), "grouped": ("grouped",), "liger": tuple(liger.PRODUCTS),
            "triton": tuple(triton_experts.PRODUCTS)}  # fmt: skip
BY_TILES = {**liger.PRODUCTS, **triton_experts.PRODUCTS}

WITHOUT_COUNTS = tuple(name for kernel in KERNELS_WITHOUT_COUNTS for name in VARIANTS[kernel])
BY_ENDS = tuple(name for kernel in KERNELS_BY_ENDS for name in VARIANTS[kernel])
GROUPED_CAPABILITIES = (9, 10)
FEW_ROWS = 32  # up to this many rows, W @ x.T beats x @ W.T in float32


def can_be_captured(kernel: str, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a step with this kernel never makes the host wait for a GPU, in a layer without
    all-to-all. F.grouped_mm reads its offsets on the device in bfloat16 on Hopper and on data
    centers' Blackwell, elsewhere on the host (torch 2.11 to 2.13: _grouped_mm_cuda)."""
    if kernel != "grouped":
        return kernel in WITHOUT_COUNTS
    fits = torch.cuda.get_device_capability(device)[0] in GROUPED_CAPABILITIES
    return fits and dtype == weights.dtype_of(GROUPED_DTYPE)


class Experts(nn.Module):
    """The experts `ids` with the hidden units `columns`. `bias2` is true on one of the ranks that
    share an expert, because their results are summed."""

    def __init__(
        self,
        layer: LayerSpec,
        ids: Sequence[int],
        columns: tuple[int, int],
        device: torch.device,
        bias2: bool = True,
    ) -> None:
        super().__init__()
        self.layer, self.ids, self.columns = layer, tuple(ids), columns
        self.device = device
        self.kernel = "loop"
        self.transposed = [False, False]  # fc1, fc2; as `kernel` says, unless a switch has failed
        self.wide: Tensor | None = None  # buffer for one matrix in float32
        self.packed: Packed | None = None  # replaces fc1 and fc2, which then use no memory
        self.room = GradientBuffers()  # gradient memory of kernel `loop`
        self.resident = True  # whether the weights stay on this rank between steps
        fused = weight_store.matrices(layer, ids, columns, device)
        # What other layers may hold too, and a switch back to its layout needs not make again.
        self.shared_weights = fused if device.type == "cuda" else None
        self.fc1, self.fc2 = nn.Parameter(fused.fc1), nn.Parameter(fused.fc2)
        self.b1 = None if fused.b1 is None else nn.Parameter(fused.b1)
        self.b2 = nn.Parameter(fused.b2) if fused.b2 is not None and bias2 else None

    @property
    def fused(self) -> bool:
        """Whether the kernel computes all experts on all tokens at once, gates included."""
        return self.kernel == "dense"

    @property
    def takes_tokens(self) -> bool:
        """Whether the kernel reads tokens and writes their sums itself: see `of_tokens`."""
        return self.kernel in BY_TILES

    @property
    def counts_on_host(self) -> bool:
        """Whether the host has to know how many rows each expert has."""
        return self.kernel not in WITHOUT_COUNTS

    def use(self, kernel: str) -> None:
        """Switches kernel and, where needed, the weights' layout. If memory runs out on the way,
        the next switch puts the layout right; nothing else may be called before it."""
        if self.packed is not None:
            self._hold(*self.packed.plain())
            self.packed = None
        for place, new in enumerate(TRANSPOSED.get(kernel, (False, False))):
            if self.transposed[place] != new:
                name = ("fc1", "fc2")[place]
                parameter = getattr(self, name)
                if self.shared_weights is not None and not new:
                    data = getattr(self.shared_weights, name)
                else:
                    data = parameter.data.transpose(1, 2).contiguous()
                setattr(self, name, nn.Parameter(data, parameter.requires_grad))
                self.transposed[place] = new
        self.kernel = kernel
        self.wide, self.room = None, GradientBuffers()
        if kernel == "wide":  # made here, because what inference mode makes cannot be reused
            size = max(self.fc1.shape[1:].numel(), self.fc2.shape[1:].numel())
            self.wide = torch.empty(size, device=self.device)
        if kernel == "packed":
            self.packed = Packed(self.fc1, self.fc2, self.layer.activation)
            self._hold(self.fc1.to("meta"), self.fc2.to("meta"))

    def keep_only_used(self) -> None:
        """Lets go of matrices in a layout that the kernel does not use."""
        if any(self.transposed):
            self.shared_weights = None

    def _hold(self, fc1: Tensor, fc2: Tensor) -> None:
        self.fc1 = nn.Parameter(fc1, self.fc1.requires_grad)
        self.fc2 = nn.Parameter(fc2, self.fc2.requires_grad)

    def by_expert(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Splits tensors shaped like the parameters: yields (expert, matrices) with the names,
        orientation and cut of `weights.sliced`."""
        first, second = TRANSPOSED.get(self.kernel, (False, False))
        gated = self.layer.activation == "silu_gated"
        for i, expert in enumerate(self.ids):
            fc1, fc2 = tensors["fc1"][i], tensors["fc2"][i]
            matrices = {"w1": fc1.T if first else fc1, "w2": fc2.T if second else fc2}
            if "b1" in tensors:
                matrices["b1"] = tensors["b1"][i]
            if "b2" in tensors:
                matrices["b2"] = tensors["b2"][i]
            for name in [n for n in ("w1", "b1") if gated and n in matrices]:
                matrices[name], matrices[name.replace("1", "3")] = matrices[name].chunk(2)
            yield expert, matrices

    def variants(self, kernel: str, dtype: torch.dtype) -> list[str]:
        """Kernels to try for `strategy.kernel`, given this rank's shapes, device and mode."""
        names = [v for k, vs in VARIANTS.items() if kernel in ("auto", k) for v in vs]
        forward_on_cpu = not self.fc1.requires_grad and self.device.type == "cpu"
        fits = {
            "grouped": self._grouped_fits(dtype),
            # Processors without arithmetic in half precision are faster in float32. Not in
            # training, where every widened matrix would be kept for the backward pass.
            "wide": forward_on_cpu and dtype != torch.float32,
            "packed": forward_on_cpu and self.resident and runs(dtype),
            # Its backward pass would be autograd's: a gradient of all experts for each expert.
            "loop_wx": not self.fc1.requires_grad,
        }
        # In float32 they have no tensor cores, so that it takes asking for them.
        on_tiles = self.device.type == "cuda" and (kernel != "auto" or dtype != torch.float32)
        train = self.fc1.requires_grad
        fits |= dict.fromkeys(liger.PRODUCTS, on_tiles and liger_support.fits(self.layer))
        ours = on_tiles and triton_support.fits(self.layer, train)
        fits |= dict.fromkeys(triton_experts.PRODUCTS, ours)
        return [n for n in names if fits.get(n, True)]

    def _grouped_fits(self, dtype: torch.dtype) -> bool:
        """Whether F.grouped_mm takes this rank's sizes and number of experts."""
        width = self.columns[1] - self.columns[0]
        sizes = (self.layer.dim, width, self.layer.dim_out)
        if self.device.type == "cuda" and len(self.ids) > GROUPED_MOST:
            return False
        aligned = all(n * dtype.itemsize % GROUPED_BYTES == 0 for n in sizes)
        return hasattr(F, "grouped_mm") and aligned

    def sort_slots(self, local_TK: Tensor, elsewhere: RowsElsewhere) -> Slots:
        """The slots of these experts in their order, as `permute.sort_slots`."""
        sort = triton_experts.sort_slots if self.takes_tokens else permute.sort_slots
        return sort(local_TK, len(self.ids), elsewhere)

    def of_tokens(self, x_TD: Tensor, gates_TK: Tensor, slots: Slots) -> Tensor:
        """[T, O]: gated sum over the slots of each token."""
        return liger.of_tokens(x_TD, self.fc1, self.fc2, gates_TK, slots, BY_TILES[self.kernel])

    def rows(self, x_SD: Tensor, counts: RowCounts) -> Tensor:
        """[S, D] rows in expert order, `counts` of each expert -> [S, O] in the same order. Rows
        behind the last expert's are left undefined by the kernels WITHOUT_COUNTS; others accept
        none."""
        if not x_SD.shape[0]:  # an empty product, so that every rank has the same graph
            return self._loop(x_SD, RowCounts([0] * len(self.ids)))
        if self.takes_tokens:
            return liger.of_rows(x_SD, self.fc1, self.fc2, counts, BY_TILES[self.kernel])
        kernels: dict[str, Callable[[Tensor, RowCounts], Tensor]] = {
            "loop": self._loop, "loop_wx": self._loop, "wide": self._loop, "packed": self._loop,
            "bmm": self._bmm, "bmm_t": self._bmm, "grouped": self._grouped, "dense": self._one_hot,
        }  # fmt: skip
        return kernels[self.kernel](x_SD, counts)

    def _expert(self, x_MD: Tensor, e: int) -> Tensor:
        b1 = None if self.b1 is None else self.b1[e]
        b2 = None if self.b2 is None else self.b2[e]
        if self.packed is not None:
            return self.packed.expert(x_MD, e, b1, b2)
        fc1, fc2 = self._oriented(e)
        if self.wide is not None:
            h = activate(self._widened(x_MD.float(), fc1, b1), self.layer.activation)
            return self._widened(h, fc2, b2).to(x_MD.dtype)
        if self.kernel != "loop_wx":
            h = activate(F.linear(x_MD, fc1, b1), self.layer.activation)
            return F.linear(h, fc2, b2)
        left = fc1 @ x_MD.T if b1 is None else torch.addmm(b1.unsqueeze(1), fc1, x_MD.T)
        h_T = activate(left.T, self.layer.activation).T
        out = fc2 @ h_T if b2 is None else torch.addmm(b2.unsqueeze(1), fc2, h_T)
        return out.T

    def _widened(self, x_MI: Tensor, weight_JI: Tensor, bias_J: Tensor | None) -> Tensor:
        """x @ W.T + b in float32; the float32 copy of W goes to one buffer that stays in the
        cache."""
        assert self.wide is not None
        wide_JI = self.wide[: weight_JI.numel()].view_as(weight_JI).copy_(weight_JI)
        bias_J = None if bias_J is None else bias_J.float()
        if x_MI.shape[0] > FEW_ROWS:
            return F.linear(x_MI, wide_JI, bias_J)
        y_MJ = torch.mm(wide_JI, x_MI.T).T
        return y_MJ if bias_J is None else y_MJ + bias_J

    def _oriented(self, e: int) -> tuple[Tensor, Tensor]:
        """fc1 as [F, D] and fc2 as [O, H], whatever the storage layout."""
        first, second = TRANSPOSED.get(self.kernel, (False, False))
        fc1, fc2 = self.fc1[e], self.fc2[e]
        return fc1.T if first else fc1, fc2.T if second else fc2

    def _loop(self, x_SD: Tensor, rows: RowCounts) -> Tensor:
        counts = rows.on_host
        if torch.is_grad_enabled() and self.fc1.requires_grad and self.kernel == "loop":
            result: Tensor = PerExpertFunction.apply(
                x_SD, self.fc1, self.b1, self.fc2, self.b2, counts, self.layer.activation, self.room
            )
            return result
        busy = [e for e, count in enumerate(counts) if count] or [0]
        if len(busy) == 1:
            return self._expert(x_SD, busy[0])
        sizes = [counts[e] for e in busy]
        if torch.is_grad_enabled():
            parts = zip(x_SD.split(sizes), busy, strict=True)
            return torch.cat([self._expert(part, e) for part, e in parts])
        y_SO = x_SD.new_empty((x_SD.shape[0], self.layer.dim_out))
        for x_MD, y_MO, e in zip(x_SD.split(sizes), y_SO.split(sizes), busy, strict=True):
            y_MO.copy_(self._expert(x_MD, e))  # while it is in the cache
        return y_SO

    def _bmm(self, x_SD: Tensor, rows: RowCounts) -> Tensor:
        counts = rows.on_host
        most = max(counts)
        even = min(counts) == most
        if even:
            x_PMD = x_SD.view(len(counts), most, -1)
        else:
            place = _padded_places(rows.per_expert(x_SD.device), most, x_SD.shape[0])
            flat = x_SD.new_zeros((len(counts) * most, x_SD.shape[1]))
            x_PMD = flat.index_copy(0, place, x_SD).view(len(counts), most, -1)
        stored = TRANSPOSED.get(self.kernel, (False, False))
        fc1 = self.fc1 if stored[0] else self.fc1.transpose(1, 2)
        fc2 = self.fc2 if stored[1] else self.fc2.transpose(1, 2)
        y_PMO = _batched(
            activate(_batched(x_PMD, fc1, self.b1), self.layer.activation), fc2, self.b2
        )
        y = y_PMO.reshape(len(counts) * most, -1)
        return y if even else y.index_select(0, place)

    def _grouped(self, x_SD: Tensor, counts: RowCounts) -> Tensor:
        ends = counts.ends(x_SD.device)
        h = F.grouped_mm(x_SD, self.fc1.transpose(1, 2), offs=ends)
        if self.b1 is not None:
            h = h + self._of_rows(self.b1, counts, x_SD.shape[0])
        y = F.grouped_mm(activate(h, self.layer.activation), self.fc2.transpose(1, 2), offs=ends)
        if self.b2 is not None:
            y = y + self._of_rows(self.b2, counts, x_SD.shape[0])
        return y

    def _of_rows(self, bias_PN: Tensor, counts: RowCounts, rows: int) -> Tensor:
        """[rows, N]: each row's bias."""
        if bias_PN.is_cuda:
            expert_S = counts.expert_of_rows(rows, bias_PN.device)
            return F.pad(bias_PN, (0, 0, 0, 1)).index_select(0, expert_S)
        counts_P = counts.per_expert(bias_PN.device)
        return bias_PN.repeat_interleave(counts_P, dim=0, output_size=rows)

    def _one_hot(self, x_SD: Tensor, counts: RowCounts) -> Tensor:
        experts, rows = len(self.ids), x_SD.shape[0]
        if x_SD.is_cuda:
            expert_S = counts.expert_of_rows(rows, x_SD.device)
            return self.dense(x_SD, F.one_hot(expert_S, experts + 1)[:, :-1])
        expert_S = torch.arange(experts).repeat_interleave(
            counts.per_expert(x_SD.device), output_size=rows
        )
        return self.dense(x_SD, F.one_hot(expert_S, experts))

    def dense(self, x_TD: Tensor, gates_TP: Tensor | None) -> Tensor:
        """Sum over experts of gate * expert(x), in two products: [T, D] -> [T, O]. Gates of None
        are ones."""
        num, hidden = len(self.ids), self.columns[1] - self.columns[0]
        fc1, fc2, b1, b2 = self.fc1, self.fc2, self.b1, self.b2
        in_place = not torch.is_grad_enabled()
        h_TF = F.linear(x_TD, fc1.view(-1, x_TD.shape[1]), None if b1 is None else b1.view(-1))
        if in_place and self.layer.activation == "relu":
            h_TPH = h_TF.relu_().view(-1, num, hidden)
        else:
            h_TPH = activate(h_TF.view(-1, num, h_TF.shape[1] // num), self.layer.activation)
        if gates_TP is not None:
            if gates_TP.dtype != x_TD.dtype:
                gates_TP = gates_TP.to(x_TD.dtype)
            gates_TP1 = gates_TP.unsqueeze(2)
            h_TPH = h_TPH.mul_(gates_TP1) if in_place else h_TPH * gates_TP1
        h_TQ, fc2_QO = h_TPH.reshape(-1, num * hidden), fc2.view(num * hidden, -1)
        if b2 is None:
            return torch.mm(h_TQ, fc2_QO)
        bias = b2.sum(0) if gates_TP is None else torch.mm(gates_TP, b2)
        return torch.addmm(bias, h_TQ, fc2_QO)


def _batched(x_PMI: Tensor, weight_PIJ: Tensor, bias_PJ: Tensor | None) -> Tensor:
    if bias_PJ is None:
        return torch.bmm(x_PMI, weight_PIJ)
    return torch.baddbmm(bias_PJ.unsqueeze(1), x_PMI, weight_PIJ)


def _padded_places(counts_P: Tensor, most: int, rows: int) -> Tensor:
    """Index of each of `rows` rows when every expert is padded to `most` rows."""
    device = counts_P.device
    skipped = (most * torch.arange(len(counts_P), device=device)) - (counts_P.cumsum(0) - counts_P)
    return torch.arange(rows, device=device) + skipped.repeat_interleave(counts_P, output_size=rows)
