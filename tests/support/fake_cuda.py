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
- F.grouped_mm leaves rows behind the last offset undefined (NaN here);
- a CUDA graph captures no waits, and its replay reads and writes the captured memory.

`nccl_only` makes torch.distributed's calls accept what NCCL accepts. What a GPU computes
differently (rounding, the order of sums) and how long it takes is not simulated.
"""

from __future__ import annotations

import collections
import contextlib
import os
import traceback
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda", 0)
HERE = Path(__file__).name
VIEWS = {
    "view", "_unsafe_view", "t", "transpose", "permute", "slice", "select", "expand", "unsqueeze",
    "squeeze", "detach", "alias", "as_strided", "split", "split_with_sizes", "unbind", "narrow",
    "_reshape_alias", "diagonal", "empty", "new_empty", "empty_like", "empty_strided", "chunk",
    "new_empty_strided", "unflatten", "lift_fresh", "view_as", "set_",
}  # fmt: skip
NEED_ONE_DEVICE = {
    "index_select", "mm", "bmm", "addmm", "linear", "gather", "scatter", "index_add", "index_copy",
    "searchsorted",
}  # fmt: skip
INDEXING = ("index", "index_put_", "index_put", "_index_put_impl_")
WAIT_FOR_SIZE = {"nonzero", "nonzero_numpy", "masked_select", "_unique2", "unique_dim", "equal"}
FACTORIES = {
    torch.tensor, torch.empty, torch.zeros, torch.ones, torch.arange, torch.full, torch.randn,
    torch.rand, torch.as_tensor, torch.empty_like, torch.zeros_like, torch.ones_like, torch.eye,
}  # fmt: skip
L2_BYTES = 50 << 20
MEMORY_BYTES = 80 << 30

SIMULATING = [0]  # depth: what runs on the processor in place of the GPU

_gpu: FakeCuda | None = None


class MixedDevices(RuntimeError):
    """Tensors of both devices in one operation."""


class OnDevice(Tensor):
    """A tensor whose values, in `value`, lie on the processor."""

    value: Tensor

    @staticmethod
    def __new__(cls, value: Tensor, requires_grad: bool = False) -> OnDevice:
        assert not isinstance(value, OnDevice)
        made = Tensor._make_subclass(cls, value.detach(), requires_grad)
        made.value = value.detach()
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    def tolist(self) -> Any:
        wait("tolist")
        return self.value.tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            with simulating():
                copy: Tensor = OnDevice(self.value.clone(), self.requires_grad)
            if isinstance(self, torch.nn.Parameter):
                copy = torch.nn.Parameter(copy, self.requires_grad)
            memo[id(self)] = copy
        return memo[id(self)]  # type: ignore[no-any-return]

    def data_ptr(self) -> int:
        return self.value.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.value.untyped_storage()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def __repr__(self, **rest: Any) -> str:  # type: ignore[override]
        return f"OnDevice({tuple(self.value.shape)}, {self.value.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert _gpu is not None, "a simulated tensor outlived its device"
        return _gpu.run(func, args, kwargs or {})


def raw(tree: Any) -> Any:
    """The same with the values of simulated tensors."""
    return tree_map(lambda x: x.value if isinstance(x, OnDevice) else x, tree)


def wait(kind: str) -> None:
    """Notes that the host waits for the GPU, as torch does in its sync debug mode."""
    assert _gpu is not None
    if _gpu.graph is not None:
        raise RuntimeError(f"operation not permitted when stream is capturing: {kind}")
    _gpu.waits.append((kind, _line()))
    if _gpu.sync_debug == "error":
        raise RuntimeError(f"called a synchronizing CUDA operation: {kind}")
    if _gpu.sync_debug == "warn":
        warnings.warn(f"called a synchronizing CUDA operation: {kind}", stacklevel=2)


def _line() -> str:
    """The line of the project, or of another system, that is running."""
    for frame in reversed(traceback.extract_stack()):
        if frame.filename.endswith(HERE) or "site-packages/torch" in frame.filename:
            continue
        if any(part in frame.filename for part in ("/moe/", "/runners/", "/transformers/")):
            return f"{os.path.relpath(frame.filename)}:{frame.lineno} {frame.line}"
    return "?"


class Event:
    """torch.cuda.Event: time is the number of kernels so far, in microseconds."""

    def __init__(self, **rest: Any) -> None:
        self.at, self.copies = 0, 0

    def record(self, stream: Any = None) -> None:
        assert _gpu is not None
        self.at, self.copies = _gpu.launched, len(_gpu.pending)

    def synchronize(self) -> None:
        assert _gpu is not None
        if _gpu.graph is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        _gpu.waits.append(("event", _line()))
        _gpu.deliver(self.copies)

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: Event) -> float:
        return (end.at - self.at) / 1e3


class Graph:
    """torch.cuda.CUDAGraph: operations on the values, repeated into the captured memory."""

    def __init__(self, **rest: Any) -> None:
        self.operations: list[tuple[Callable[[], Any], Any, bool]] = []

    def note(self, call: Callable[[], Any], out: Any, fresh: bool) -> None:
        self.operations.append((call, out, fresh))

    def replay(self) -> None:
        with simulating(), torch.inference_mode():
            for call, out, fresh in self.operations:
                again = call()
                if fresh:
                    for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                        if isinstance(old, Tensor):
                            old.copy_(new)

    def reset(self) -> None:
        self.operations = []


class Stream:
    """torch.cuda.Stream: everything is in order here, so there is nothing to wait for."""

    def __init__(self, *rest: Any, **named: Any) -> None: ...
    def wait_stream(self, other: Any) -> None: ...
    def wait_event(self, event: Any) -> None: ...
    def synchronize(self) -> None:
        assert _gpu is not None
        _gpu.waits.append(("stream", _line()))

    def record_event(self, event: Any = None) -> Any:
        event = event or Event()
        event.record()
        return event


@contextlib.contextmanager
def simulating() -> Iterator[None]:
    """Operations in the block are the GPU's."""
    SIMULATING[0] += 1
    try:
        with torch._C.DisableTorchFunction():
            yield
    finally:
        SIMULATING[0] -= 1


@contextlib.contextmanager
def capture(graph: Graph, **rest: Any) -> Iterator[None]:
    """torch.cuda.graph."""
    assert _gpu is not None and _gpu.graph is None
    _gpu.graph = graph
    try:
        yield
    finally:
        _gpu.graph = None


class HostOperations(TorchDispatchMode):
    """Notes operations on the processor over at least `rows` numbers."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows, self.noted = rows, list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
        if not tensors or SIMULATING[0] or any(isinstance(x, OnDevice) for x in tensors):
            return out
        if max(x.numel() for x in tensors) >= self.rows:
            self.noted.append(f"{func._schema.name} {_line()}")
        return out


class _Functions(TorchFunctionMode):
    """Answers functions that name a device."""

    def __init__(self, gpu: FakeCuda) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.backward:
            x, *rest = args
            gradient = rest[0] if rest else (kwargs or {}).get("gradient")
            gradient = torch.ones_like(x) if gradient is None else gradient
            with self:  # not torch.autograd.backward, which would leave it again
                return _engine_run_backward(
                    (x,), (gradient,), False, False, (),
                    allow_unreachable=True, accumulate_grad=True,
                )  # fmt: skip
        return self.gpu.answer(func, args, dict(kwargs or {}))


class FakeCuda:
    """The device, while the block lasts."""

    def __init__(self) -> None:
        self.waits: list[tuple[str, str]] = []
        self.kernels: collections.Counter[str] = collections.Counter()
        self.host_operations: list[str] = []
        self.pending: list[tuple[Tensor, Tensor]] = []  # copies to pinned memory under way
        self.pinned: list[int] = []  # ids of tensors
        self.graph: Graph | None = None
        self.sync_debug = "default"
        self._patches = contextlib.ExitStack()

    @property
    def launched(self) -> int:
        return sum(self.kernels.values())

    @contextlib.contextmanager
    def watching(self, rows: int = 1 << 62) -> Iterator[None]:
        """Notes waits, kernels and processor operations over `rows` numbers in the block alone."""
        self.waits.clear()
        self.kernels.clear()
        with HostOperations(rows) as host:
            yield
        self.host_operations = host.noted

    def deliver(self, copies: int | None = None) -> None:
        """The first `copies` copies to pinned memory arrive; None: all."""
        for target, value in self.pending[:copies]:
            with torch.no_grad():
                target.copy_(value)
        del self.pending[:copies]

    def __enter__(self) -> FakeCuda:
        global _gpu
        assert _gpu is None
        _gpu = self
        properties = types.SimpleNamespace(L2_cache_size=L2_BYTES, total_memory=MEMORY_BYTES)
        patches: dict[str, Any] = {
            "synchronize": self._synchronize, "set_device": lambda d: None,
            "memory_allocated": lambda d=None: 0, "max_memory_allocated": lambda d=None: 1,
            "reset_peak_memory_stats": lambda d=None: None, "empty_cache": lambda: None,
            "get_device_properties": lambda d=None: properties, "Event": Event, "Stream": Stream,
            "get_device_capability": lambda d=None: (9, 0), "device_count": lambda: 1,
            "is_available": lambda: True, "mem_get_info": lambda d=None: (MEMORY_BYTES,) * 2,
            "CUDAGraph": Graph, "graph": capture, "current_stream": lambda d=None: Stream(),
            "stream": lambda s: contextlib.nullcontext(),
            "get_sync_debug_mode": lambda: self.sync_debug,
            "set_sync_debug_mode": lambda mode: setattr(self, "sync_debug", mode),
            "is_current_stream_capturing": lambda: self.graph is not None,
            "_sleep": lambda cycles: None,
        }  # fmt: skip
        for name, value in patches.items():
            self._patches.enter_context(mock.patch.object(torch.cuda, name, value))
        self._patches.enter_context(_Functions(self))
        return self

    def __exit__(self, *error: Any) -> None:
        global _gpu
        self._patches.close()
        _gpu = None

    def _synchronize(self, device: Any = None) -> None:
        self.waits.append(("synchronize", _line()))
        self.deliver()

    # Functions that name a device.

    def answer(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """The result of a function that may name a device."""
        if func is torch.empty and kwargs.pop("pin_memory", False):
            made = func(*args, **kwargs)
            self.pinned.append(id(made))
            return made
        device = kwargs.get("device")
        on_gpu = device is not None and torch.device(device).type == "cuda"
        if func in FACTORIES and on_gpu:
            if func in (torch.tensor, torch.as_tensor):
                wait("copy of a list to the GPU")
            kwargs["device"] = "cpu"
            return self._made(lambda: func(*raw(args), **kwargs))
        if func in (Tensor.to, Tensor.cuda, Tensor.cpu):
            return self._to(func, args, kwargs)
        if args and isinstance(args[0], OnDevice):
            if func is torch.nn.functional.one_hot:
                classes = kwargs.get("num_classes", args[1] if len(args) > 1 else -1)
                if classes == -1:
                    wait("one_hot without num_classes")
                return self._made(lambda: func(args[0].value, classes))
            if func is torch.histc:
                more = args[1:]
                return self._made(lambda: func(args[0].value.float(), *more, **kwargs).int())
        return func(*args, **kwargs)

    def _made(self, call: Callable[[], Any]) -> Tensor:
        self.kernels["factory"] += 1
        with simulating():
            value = call()
            if self.graph is not None:
                self.graph.note(call, value.detach(), True)
            return OnDevice(value, value.requires_grad)

    def _to(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        x, rest, target = args[0], [], None
        if func is Tensor.cpu:
            target = torch.device("cpu")
        elif func is Tensor.cuda:
            target = DEVICE
        else:
            for one in args[1:]:
                if isinstance(one, torch.device | str):
                    target = torch.device(one)
                elif isinstance(one, Tensor):
                    target = one.device
                    rest.append(one.dtype)
                else:
                    rest.append(one)
            if kwargs.get("device") is not None:
                target = torch.device(kwargs["device"])
        named = {k: v for k, v in kwargs.items() if k not in ("device", "non_blocking", "copy")}
        present = "cuda" if isinstance(x, OnDevice) else x.device.type
        if target is None or target.type == present:
            return func(x, *rest, **named) if func is Tensor.to and (rest or named) else x
        if target.type == "meta":
            return torch.empty(x.shape, dtype=x.dtype, device="meta")
        if target.type == "cuda":
            if not kwargs.get("non_blocking"):
                wait("copy to the GPU")
            y = _Up.apply(x) if torch.is_grad_enabled() and x.requires_grad else _Up.moved(x)
        else:
            wait("copy to the host")
            y = x.value.clone()
        return y.to(*rest, **named) if rest or named else y

    # Operations.

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """One operation on tensors of which at least one is on the device."""
        name = func._schema.name.split("::")[1]
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        self._check_devices(name, args, [x for x in tensors if not isinstance(x, OnDevice)])
        self._note_waits(name, func._schema.overload_name, args, kwargs)
        values, named = raw(args), dict(raw(kwargs))
        if named.get("device") is not None and torch.device(named["device"]).type == "cuda":
            named["device"] = torch.device("cpu")
        if name not in VIEWS:
            self.kernels[name] += 1
        if name == "copy_" and self._copied_to_pinned(args, kwargs):
            return args[0]
        if name == "mm" and func._schema.overload_name == "dtype":
            return self._wide_product(values)

        def call() -> Any:
            out = func(*values, **named)
            return _undefined(values, named, out) if name == "_grouped_mm" else out

        out = call()
        known = {id(x.value): x for x in tensors if isinstance(x, OnDevice)}
        storages = {
            x.untyped_storage().data_ptr() for x in tree_leaves((values, named))
            if isinstance(x, Tensor)
        }  # fmt: skip
        if self.graph is not None:
            fresh = not any(
                isinstance(x, Tensor) and x.untyped_storage().data_ptr() in storages
                for x in tree_leaves(out)
            )
            self.graph.note(call, out, fresh)
        meta = named.get("device") is not None and torch.device(named["device"]).type == "meta"

        def wrapped(x: Any) -> Any:
            if not isinstance(x, Tensor) or meta:
                return x
            return known[id(x)] if id(x) in known else OnDevice(x)

        return tree_map(wrapped, out)

    def _check_devices(self, name: str, args: Any, host: list[Tensor]) -> None:
        large = [x for x in host if x.dim() > 0]
        if name in ("copy_", "_to_copy") or (name == "cat" and not any(x.numel() for x in large)):
            return
        if large and name in INDEXING and isinstance(args[0], OnDevice):
            values = args[2:3]
            if not any(isinstance(v, Tensor) and not isinstance(v, OnDevice) for v in values):
                wait("index on the host")
                return
        if large or (host and name in NEED_ONE_DEVICE):
            shapes = [tuple(x.shape) for x in host]
            raise MixedDevices(f"{name}: tensors on cuda:0 and cpu, {shapes} at {_line()}")

    def _note_waits(self, name: str, overload: str, args: Any, kwargs: dict[str, Any]) -> None:
        if name == "_local_scalar_dense":
            wait("item")
        elif name == "_grouped_mm" and args[0].dtype != torch.bfloat16:
            wait("grouped_mm but in bfloat16")  # on an H100: two in a forward pass, four more back
        elif name in WAIT_FOR_SIZE:
            wait(name)
        elif name == "bincount" and args[0].numel():
            wait("bincount: minimum")
            wait("bincount: maximum")
        elif name == "repeat_interleave" and kwargs.get("output_size") is None:
            if overload != "self_int":  # that one is an expanded copy
                wait("repeat_interleave without output_size")
        elif name in INDEXING:
            masks = [i for i in args[1] if isinstance(i, Tensor) and i.dtype == torch.bool]
            if masks:
                wait("index by a mask")

    def _copied_to_pinned(self, args: Any, kwargs: dict[str, Any]) -> bool:
        """Whether a copy between the devices is under way, to arrive later; notes a wait for one
        that is not."""
        target, source = args[:2]
        if isinstance(target, OnDevice) == isinstance(source, OnDevice):
            return False
        later = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
        host = source if isinstance(target, OnDevice) else target
        if later and id(host) in self.pinned:
            if host is target:
                self.pending.append((target, source.value.clone()))
                with torch.no_grad():
                    target.fill_(-(1 << 20))
                return True
            return False
        wait("copy between host and GPU")
        return False

    def _wide_product(self, values: Any) -> Tensor:
        """torch.mm of half-precision matrices into float32, which a processor does not have."""
        left, right, out_dtype = values
        assert left.dtype == right.dtype != torch.float32 == out_dtype
        return self._made(lambda: left.float() @ right.float())


def _undefined(values: Any, named: dict[str, Any], out: Tensor) -> Tensor:
    """The result of F.grouped_mm, with NaN in rows behind the last offset."""
    ends = named.get("offs", values[2] if len(values) > 2 else None)
    if out.dim() == 2 and ends is not None and values[0].dim() == 2:
        out[int(ends[-1]) :] = torch.nan
    return out


class _Up(torch.autograd.Function):
    @staticmethod
    def moved(x: Tensor) -> Tensor:
        return OnDevice(x.detach().clone())

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _Up.moved(x)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Tensor:
        return grad.value  # type: ignore[no-any-return]


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
            assert _gpu is not None
            if _gpu.graph is not None:
                _gpu.graph.note(lambda: call(*values, **named), None, False)
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
