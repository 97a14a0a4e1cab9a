"""Tensors of the simulated GPU, and what torch's operations do with them.
tests/support/fake_cuda.py describes the whole.

Simulated: a tensor knows its device; operations on tensors of both devices raise; what makes the
host wait is noted; new memory is undefined (NaN here), as are the rows of F.grouped_mm behind the
last offset; torch.mm of half-precision matrices into float32; Triton kernels of `moe.layer.liger`,
in Triton's interpreter (TRITON_INTERPRET=1).

Not simulated: rounding and the order of sums; dtypes or shapes that a GPU's kernels refuse.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tests.support.fake_cuda_queue import SIMULATING, line, present, simulating, wait

DEVICE = torch.device("cuda", 0)
GARBAGE = -(1 << 20)  # in pinned memory until a copy has arrived
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
UNDEFINED = {"empty", "new_empty", "empty_like"}
INDEXING = ("index", "index_put_", "index_put", "_index_put_impl_")
WAIT_FOR_SIZE = {"nonzero", "nonzero_numpy", "masked_select", "_unique2", "unique_dim", "equal"}
FACTORIES = {
    torch.tensor, torch.empty, torch.zeros, torch.ones, torch.arange, torch.full, torch.randn,
    torch.rand, torch.as_tensor, torch.empty_like, torch.zeros_like, torch.ones_like, torch.eye,
}  # fmt: skip


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
        return run(func, args, kwargs or {})


def raw(tree: Any) -> Any:
    """The same with the values of simulated tensors."""
    return tree_map(lambda x: x.value if isinstance(x, OnDevice) else x, tree)


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
            self.noted.append(f"{func._schema.name} {line()}")
        return out


class Functions(TorchFunctionMode):
    """Answers functions that name a device."""

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
        return answer(func, args, dict(kwargs or {}))


def answer(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The result of a function that may name a device."""
    if func is torch.empty and kwargs.pop("pin_memory", False):
        made = func(*args, **kwargs)
        made.pinned_here = True
        return made
    device = kwargs.get("device")
    on_gpu = device is not None and torch.device(device).type == "cuda"
    if func in FACTORIES and on_gpu:
        if func in (torch.tensor, torch.as_tensor):
            wait("copy of a list to the GPU")
        kwargs["device"] = "cpu"
        return _made(lambda: _filled(func.__name__, func(*raw(args), **kwargs)))
    if func in (Tensor.to, Tensor.cuda, Tensor.cpu):
        return _to(func, args, kwargs)
    if args and isinstance(args[0], OnDevice):
        if func is torch.nn.functional.one_hot:
            classes = kwargs.get("num_classes", args[1] if len(args) > 1 else -1)
            if classes == -1:
                wait("one_hot without num_classes")
            return _made(lambda: func(args[0].value, classes))
        if func is torch.histc:
            more = args[1:]
            return _made(lambda: func(args[0].value.float(), *more, **kwargs).int())
    return func(*args, **kwargs)


def _made(call: Callable[[], Any]) -> Tensor:
    present().kernels["factory"] += 1
    with simulating():
        value = call()
        if (graph := present().graph) is not None:
            graph.note(call, value.detach(), True)
        return OnDevice(value, value.requires_grad)


def _to(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
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
    at = "cuda" if isinstance(x, OnDevice) else x.device.type
    if target is None or target.type == at:
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


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation on tensors of which at least one is on the device."""
    if _is_composite(func):  # in inference mode torch leaves it to this: item, where, linear
        return func.decompose(*args, **kwargs)
    name = func._schema.name.split("::")[1]
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    _check_devices(name, args, [x for x in tensors if not isinstance(x, OnDevice)])
    _note_waits(name, func._schema.overload_name, args, kwargs)
    values, named = raw(args), dict(raw(kwargs))
    if named.get("device") is not None and torch.device(named["device"]).type == "cuda":
        named["device"] = torch.device("cpu")
    if name not in VIEWS:
        present().kernels[name] += 1
    if name == "copy_" and _copied_to_pinned(args, kwargs):
        return args[0]
    if name == "mm" and func._schema.overload_name == "dtype":
        return _wide_product(values)

    def call() -> Any:
        out = func(*values, **named)
        return _undefined(values, named, out) if name == "_grouped_mm" else _filled(name, out)

    out = call()
    known = {id(x.value): x for x in tensors if isinstance(x, OnDevice)}
    storages = {
        x.untyped_storage().data_ptr() for x in tree_leaves((values, named))
        if isinstance(x, Tensor)
    }  # fmt: skip
    if (graph := present().graph) is not None:
        fresh = not any(
            isinstance(x, Tensor) and x.untyped_storage().data_ptr() in storages
            for x in tree_leaves(out)
        )
        graph.note(call, out, fresh)
    meta = named.get("device") is not None and torch.device(named["device"]).type == "meta"

    def wrapped(x: Any) -> Any:
        if not isinstance(x, Tensor) or meta:
            return x
        return known[id(x)] if id(x) in known else OnDevice(x)

    return tree_map(wrapped, out)


@functools.cache
def _is_composite(func: Any) -> bool:
    return bool(func._can_decompose())


def _check_devices(name: str, args: Any, host: list[Tensor]) -> None:
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
        raise MixedDevices(f"{name}: tensors on cuda:0 and cpu, {shapes} at {line()}")


def _note_waits(name: str, overload: str, args: Any, kwargs: dict[str, Any]) -> None:
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


def _copied_to_pinned(args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a copy between the devices is under way, to arrive later; notes a wait for one
    that is not."""
    target, source = args[:2]
    if isinstance(target, OnDevice) == isinstance(source, OnDevice):
        return False
    later = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
    host = source if isinstance(target, OnDevice) else target
    if later and hasattr(host, "pinned_here"):
        if host is target:
            present().pending.append((target, source.value.clone()))
            with torch.no_grad():
                target.fill_(GARBAGE)
            return True
        return False
    wait("copy between host and GPU")
    return False


def _wide_product(values: Any) -> Tensor:
    """torch.mm of half-precision matrices into float32, which a processor does not have."""
    left, right, out_dtype = values
    assert left.dtype == right.dtype != torch.float32 == out_dtype
    return _made(lambda: left.float() @ right.float())


def _undefined(values: Any, named: dict[str, Any], out: Tensor) -> Tensor:
    """The result of F.grouped_mm, with NaN in rows behind the last offset."""
    ends = named.get("offs", values[2] if len(values) > 2 else None)
    if out.dim() == 2 and ends is not None and values[0].dim() == 2:
        out[int(ends[-1]) :] = torch.nan
    return out


def _filled(name: str, out: Any) -> Any:
    """New memory, with NaN where it is undefined."""
    undefined = name in UNDEFINED and out.is_floating_point()
    return out.fill_(torch.nan) if undefined else out


def triton_launch(
    run_kernel: Callable[..., None], kernel: Any, grid: Any, tensors: Any, widths: Any,
    strided: Any, options: Any,
) -> None:  # fmt: skip
    """`moe.layer.liger.launch` on the values."""
    values, strides = raw(tensors), raw(strided)
    assert all(isinstance(x, OnDevice) and x.value.is_contiguous() for x in tensors)
    present().kernels["triton"] += 1

    def call() -> None:
        run_kernel(kernel, grid, values, widths, strides, options)

    with simulating():
        call()
    if (graph := present().graph) is not None:
        graph.note(call, None, False)


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
