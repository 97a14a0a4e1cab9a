"""Compares the definitions that layer and oracle share with a digest of their past values.

The definitions rest on a hash of a counter. A second implementation of it would be the same code
again, so past values are compared instead, by their digest. The digest leaves out the selection
bias, which floating-point rounding may change from one processor to another.

A changed definition changes every cell. After an intended change, compute the new digest with
`python -m moe.verify.golden`, and give the cells new keys.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from moe import weights
from moe.spec import Cell, LayerSpec, RankLayout, WorkloadSpec
from moe.workload import batches, routings

# kind, parameter, nominal_ep, seed
PRESCRIBED = (
    ("balanced", 0.0, 0, 0), ("balanced", 0.0, 4, 7), ("zipf", 1.2, 0, 0), ("zipf", 0.5, 0, 7),
    ("k_hot", 3.0, 0, 7), ("hot_rank", 0.4, 0, 0), ("hot_rank", 0.5, 4, 7),
    ("imbalance", 1.4, 0, 7), ("imbalance", 2.0, 4, 0),
)  # fmt: skip
LAYERS = (("float32", "relu", 0), ("bfloat16", "silu_gated", 7))  # dtype, activation, seed
DIGEST = "6dd656a9cc68c1c1f655bd36060c658ae3567cc7e164b2eb5961dc5cce810a69"


def shared_definitions(device: torch.device) -> Iterator[Tensor]:
    """Small samples of all definitions but the selection bias, whose effect is checked instead;
    numbers are drawn on `device`."""
    for dtype, activation, seed in LAYERS:
        layer = LayerSpec(16, 12, 8, 8, 2, 2, activation, "random", 1, dtype, seed)
        yield weights.router(layer, device)
        for expert in (5, 8):
            for name in weights.names(layer):
                yield weights.matrices(layer, [expert], name, device)[0]
        cell = Cell(layer, workload=WorkloadSpec(batch_size=20, seed=seed))
        yield batches.tokens(cell, (0, 20), device)
        yield batches.tokens(cell, (17, 20), device)
        yield batches.cotangent(cell, (3, 9), device)
    for kind, parameter, nominal, seed in PRESCRIBED:
        work = WorkloadSpec(20, "replicated", "forward", kind, parameter, nominal, seed=seed)
        cell = Cell(LayerSpec(num_experts=16, topk=3), workload=work, placement=RankLayout(2))
        allowed = batches.allowed(cell, (0, 20))
        assert allowed is not None
        yield allowed


def digest(device: torch.device = weights.CPU) -> str:
    """SHA-256 over all samples."""
    sha256 = hashlib.sha256()
    for sample in (one.cpu() for one in shared_definitions(device)):
        sha256.update(str((sample.dtype, tuple(sample.shape))).encode())
        sha256.update(sample.contiguous().view(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def as_written(device: torch.device = weights.CPU) -> bool:
    """Whether the digest is DIGEST; computed once for a device and the current functions."""
    makers = tuple(routings.MAKERS.values())
    return _as_written(device, weights.uniform_, weights.router, weights.matrices, weights.dtype_of,
                       batches.tokens, batches.cotangent, batches.allowed, makers)  # fmt: skip


@functools.lru_cache(maxsize=8)
def _as_written(device: torch.device, *functions: object) -> bool:
    return digest(device) == DIGEST


if __name__ == "__main__":
    print(digest())
