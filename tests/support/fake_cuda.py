"""A simulated GPU: tensors with real values on the processor that answer `cuda:0`.

    with FakeCuda() as gpu:
        ...                       # code that names torch.device("cuda", 0)
        with gpu.watching():
            step()
        gpu.waits                 # of the host for the GPU: (kind, line that caused it)

It holds what CUDA's rules forbid or leave open:

- tensors of both devices in one operation raise;
- whatever makes the host wait is noted, and obeys torch.cuda.set_sync_debug_mode;
- a copy to pinned memory is there only after an event behind it was waited for;
- new memory, and rows of F.grouped_mm behind the last offset, are undefined (NaN here);
- a CUDA graph captures no waits, and its replay reads and writes the captured memory.

`nccl_only` makes torch.distributed's calls accept what NCCL accepts. What a GPU computes
differently (rounding, the order of sums) and how long it takes is not simulated.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import types
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from moe.layer import liger
from tests.support.fake_cuda_queue import (
    Event,
    Graph,
    Queue,
    Stream,
    capture,
    presence,
    present,
    simulating,
)
from tests.support.fake_cuda_tensor import DEVICE as DEVICE
from tests.support.fake_cuda_tensor import (
    Functions,
    HostOperations,
    OnDevice,
    raw,
    triton_launch,
)
from tests.support.fake_cuda_tensor import MixedDevices as MixedDevices

L2_BYTES = 50 << 20
MEMORY_BYTES = 80 << 30


class FakeCuda(Queue):
    """The device, while the block lasts."""

    def __init__(self) -> None:
        super().__init__()
        self.host_operations: list[str] = []
        self._patches = contextlib.ExitStack()

    @contextlib.contextmanager
    def watching(self, rows: int = 1 << 62) -> Iterator[None]:
        """Notes waits, kernels and processor operations over `rows` numbers in the block alone."""
        self.waits.clear()
        self.kernels.clear()
        with HostOperations(rows) as host:
            yield
        self.host_operations = host.noted

    def __enter__(self) -> FakeCuda:
        self._patches.enter_context(presence(self))
        properties = types.SimpleNamespace(L2_cache_size=L2_BYTES, total_memory=MEMORY_BYTES)
        patches: dict[str, Any] = {
            "synchronize": self.synchronize, "set_device": lambda d: None,
            "set_stream": lambda s: None,
            "memory_allocated": lambda d=None: 0, "max_memory_allocated": lambda d=None: 1,
            "reset_peak_memory_stats": lambda d=None: None, "empty_cache": lambda: None,
            "get_device_properties": lambda d=None: properties, "Event": Event, "Stream": Stream,
            "get_device_capability": lambda d=None: (9, 0), "device_count": lambda: 1,
            "is_available": lambda: True, "mem_get_info": lambda d=None: (MEMORY_BYTES,) * 2,
            "CUDAGraph": Graph, "graph": capture, "current_stream": lambda d=None: Stream(),
            "stream": lambda s: contextlib.nullcontext(),
            "get_sync_debug_mode": lambda: self.sync_debug,
            "set_sync_debug_mode": self.set_sync_debug,
            "is_current_stream_capturing": lambda: self.graph is not None,
            "_sleep": self.sleep,
        }  # fmt: skip
        for name, value in patches.items():
            self._patches.enter_context(mock.patch.object(torch.cuda, name, value))
        on_values = functools.partial(triton_launch, liger.launch)
        self._patches.enter_context(mock.patch.object(liger, "launch", on_values))
        self._patches.enter_context(Functions())
        return self

    def __exit__(self, *error: Any) -> None:
        self._patches.close()


@contextlib.contextmanager
def nccl_only(comm_module: Any) -> Iterator[collections.Counter[str]]:
    """Makes `moe.parallel.comm` believe that gloo is NCCL; yields how often each call was made.
    Tensors have to be contiguous and on the GPU, and nothing makes the host wait."""
    dist, calls = comm_module.dist, collections.Counter[str]()

    def checked(call: Any) -> Any:
        def run(*args: Any, **named: Any) -> Any:
            calls[call.__name__] += 1
            for one in args:
                if isinstance(one, Tensor) and not isinstance(one, OnDevice):
                    raise RuntimeError(f"{call.__name__}: No backend type for device type cpu")
                if isinstance(one, Tensor) and not one.value.is_contiguous():
                    raise RuntimeError(f"{call.__name__}: Tensors must be contiguous")
            values = raw(args)
            if (graph := present().graph) is not None:
                graph.note(lambda: call(*values, **named), None, False)
            with simulating():
                return call(*values, **named)

        run.__name__ = call.__name__
        return run

    def reduce_scatter_tensor(out: Tensor, x: Tensor, group: Any = None) -> None:
        size = dist.get_world_size(group)
        parts = torch.empty_like(x)
        dist.all_to_all_single(parts, x, group=group)
        out.copy_(parts.view(size, *out.shape).sum(0))

    fake = types.SimpleNamespace(**{name: getattr(dist, name) for name in dir(dist)})
    fake.get_backend = lambda group=None: "nccl"
    for name in ("all_reduce", "all_to_all_single", "broadcast"):
        setattr(fake, name, checked(getattr(dist, name)))
    fake.reduce_scatter_tensor = checked(reduce_scatter_tensor)
    gathered = checked(comm_module._all_gather)
    with (
        mock.patch.object(comm_module, "dist", fake),
        mock.patch.object(comm_module, "_all_gather", gathered),
    ):
        yield calls
