"""The layer of fsdp: weights are gathered for each step and freed after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from moe import weights
from moe.layer.base import MoELayer, known_gradient
from moe.layer.experts import Experts
from moe.phases import phase
from moe.strategies.fsdp import RULES


class _Gather(torch.autograd.Function):
    """Shard -> all weights. Backward: reduce-scatter of their gradient."""

    @staticmethod
    def forward(ctx: Any, shard: Tensor, layer: Fsdp) -> Tensor:
        ctx.layer = layer
        return layer.gathered(shard)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        layer: Fsdp = ctx.layer
        layer.whole = None
        world, size = layer.comm.world, layer.flat.numel()
        return world.reduce_scatter(grad, [size] * world.size), None


class _GatherAgain(torch.autograd.Function):
    """Identity on the outputs. Its backward runs first and gathers the weights again."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, layer: Fsdp) -> Tensor:
        ctx.layer = layer
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        layer: Fsdp = ctx.layer
        layer.whole = layer.gathered(layer.flat.detach())
        return grad, None


class Fsdp(MoELayer):
    """Between steps a rank has only `flat`, its padded shard of [elements / R]; modules have no
    weights."""

    rules = RULES
    flat: nn.Parameter
    whole: Tensor | None = None  # the weights during a backward pass
    kept_whole = False  # true while kernels are timed

    def make_experts(self) -> Experts:
        experts = super().make_experts()
        experts.resident, experts.shared_weights = False, None
        return experts

    # Sharding.

    def _owners(self) -> list[tuple[nn.Module, str]]:
        modules = [m for m in (self.router, self.experts, self.shared) if m is not None]
        names = ("weight_ED", "fc1", "fc2", "b1", "b2")
        return [(m, n) for m in modules for n in names if getattr(m, n, None) is not None]

    def use(self, kernel: str) -> None:
        """Collective: weights are gathered to change their layout."""
        if hasattr(self, "flat"):
            self._unshard()
        super().use(kernel)
        if not self.kept_whole:
            self._shard()

    def _shard(self) -> None:
        """Keeps this rank's part of all weights, which every rank has generated in full."""
        dtype = weights.dtype_of(self.layer.dtype)
        self.owners = self._owners()
        tensors = [getattr(module, name).data for module, name in self.owners]
        self.shapes = [tensor.shape for tensor in tensors]
        self.sizes = [tensor.numel() for tensor in tensors]
        size = -(-sum(self.sizes) // self.comm.world_size)
        start = size * self.comm.rank
        flat = torch.cat([tensor.to(dtype).reshape(-1) for tensor in tensors])
        own = nn.functional.pad(flat[start : start + size], (0, max(0, start + size - len(flat))))
        own = own[:size].clone()
        for module, name in self.owners:
            del module._parameters[name]
        self.flat = nn.Parameter(own, requires_grad=self.cell.workload.mode == "train")

    def _unshard(self) -> None:
        """Restores the modules' own parameters from all shards. Collective."""
        whole = self.gathered(self.flat.data)
        del self.flat
        for (module, name), tensor in zip(self.owners, self._parts(whole), strict=True):
            module.__dict__.pop(name, None)
            trained = self.cell.workload.mode == "train"
            setattr(module, name, nn.Parameter(tensor.clone(), requires_grad=trained))

    def gathered(self, shard: Tensor) -> Tensor:
        """All weights and the padding in one flat tensor. Collective."""
        world = self.comm.world
        return world.all_gather(shard, [shard.numel()] * world.size)

    def _parts(self, whole: Tensor) -> list[Tensor]:
        """Views of each weight in the flat tensor. One split, so that backward concatenates
        gradients once."""
        padding = whole.numel() - sum(self.sizes)
        parts = whole.split([*self.sizes, padding])[:-1]
        views = [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]
        return [
            part.float() if name == "weight_ED" else part
            for part, (_, name) in zip(views, self.owners, strict=True)
        ]

    @contextmanager
    def bound(self, whole: Tensor) -> Iterator[None]:
        """The modules use these weights inside the block."""
        for (module, name), tensor in zip(self.owners, self._parts(whole), strict=True):
            module.__dict__[name] = tensor
        try:
            yield
        finally:
            for module, name in self.owners:
                del module.__dict__[name]

    # The step.

    def forward(self, x_TD: Tensor) -> Tensor:
        own_TD = self.own_tokens(x_TD)
        if self.kept_whole:
            return self.outputs(own_TD)
        if not hasattr(self, "flat"):
            self._shard()
        train = torch.is_grad_enabled() and self.flat.requires_grad
        with phase("dispatch"):
            whole = _Gather.apply(self.flat, self) if train else self.gathered(self.flat)
        with self.bound(whole):
            if not train:
                y_TO = self.outputs(own_TD)
            else:
                with self._not_kept(whole):
                    y_TO = _GatherAgain.apply(self.outputs(own_TD), self)
        return y_TO if self.sharded else self.gather_batch(y_TO)

    def _not_kept(self, whole: Tensor) -> Any:
        """Makes autograd save, for views of the gathered weights, only their offsets."""
        storage = whole.untyped_storage().data_ptr()

        def pack(x: Tensor) -> Any:
            if x.untyped_storage().data_ptr() != storage:
                return x
            return x.size(), x.stride(), x.storage_offset()

        def unpack(kept: Any) -> Tensor:
            if isinstance(kept, Tensor):
                return kept
            assert self.whole is not None
            return self.whole.as_strided(*kept)

        return torch.autograd.graph.saved_tensors_hooks(pack, unpack)

    # Used by the runner.

    def tune(self, x_TD: Tensor) -> dict[str, Any]:
        """Times kernels on whole weights, as a step uses them."""
        if hasattr(self, "flat"):
            self._unshard()
        self.kept_whole = True
        chosen = super().tune(x_TD)
        self.kept_whole = False
        self._shard()
        return chosen

    def named_gradients(self) -> dict[str, Tensor]:
        """Gathered from all shards. Collective."""
        names = {id(module): name for name, module in self.named_modules()}
        parts = self._parts(self.gathered(known_gradient(self.flat)))
        return {
            f"{names[id(module)]}.{name}": part
            for (module, name), part in zip(self.owners, parts, strict=True)
        }


LAYER = Fsdp
