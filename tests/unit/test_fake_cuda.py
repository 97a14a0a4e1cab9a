"""The simulated GPU holds what its docstrings promise."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moe import waits
from tests.support.fake_cuda import DEVICE, FakeCuda, MixedDevices, nccl_only
from tests.support.fake_cuda_tensor import GARBAGE, OnDevice

# In inference mode torch hands over whole functions that it takes apart in others.
MODES = pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])


@pytest.fixture
def gpu() -> Iterator[FakeCuda]:
    with FakeCuda() as gpu:
        yield gpu


def on_gpu(*numbers: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return OnDevice(torch.tensor(numbers, dtype=dtype))


def kinds(gpu: FakeCuda, call: Callable[[], object]) -> list[str]:
    """What waits the call makes."""
    with gpu.watching():
        call()
    return [kind for kind, _ in gpu.waits]


def pinned(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(count, dtype=dtype, pin_memory=True)


def test_a_tensor_knows_its_device_and_has_its_values(gpu: FakeCuda) -> None:
    x = torch.arange(3, device=DEVICE) + 1
    assert (x.device, x.is_cuda, x.is_cpu) == (DEVICE, True, False)
    assert x.cpu().tolist() == [1, 2, 3] and x.cpu().device.type == "cpu"
    with pytest.raises(TypeError, match="cuda:0"):
        x.numpy()


@pytest.mark.parametrize("call", [
    lambda x, y: x + y,
    lambda x, y: torch.mm(x.view(1, 2), y.view(2, 1)),
    lambda x, y: torch.cat([x, y]),
    lambda x, y: x.index_select(0, y.long()),
    lambda x, y: torch.where(x > 0, x, y),
    lambda x, y: y.add_(x),
], ids=["add", "mm", "cat", "index_select", "where", "add_"])  # fmt: skip
def test_tensors_of_both_devices_in_one_operation_raise(
    call: Callable[[Tensor, Tensor], object], gpu: FakeCuda
) -> None:
    with pytest.raises(MixedDevices, match="cuda:0 and cpu"):
        call(on_gpu(1, 2), torch.tensor([0.0, 1.0]))


def test_a_number_of_the_host_may_be_in_an_operation(gpu: FakeCuda) -> None:
    assert (on_gpu(1, 2) + torch.tensor(1.0)).tolist() == [2, 3]


WAITING: dict[str, tuple[Callable[[Tensor], object], list[str]]] = {
    "item": (lambda x: x[0].item(), ["item"]),
    "bool": (lambda x: bool(x[0] > 0), ["item"]),
    "index by one number": (lambda x: x[x[0]], ["item"]),
    "where": (lambda x: torch.where(x > 1), ["nonzero"]),
    "tolist": (lambda x: x.tolist(), ["tolist"]),
    "nonzero": (lambda x: x.nonzero(), ["nonzero"]),
    "unique": (lambda x: x.unique(), ["_unique2"]),
    "bincount": (lambda x: torch.bincount(x), ["bincount: minimum", "bincount: maximum"]),
    "index by a mask": (lambda x: x[x > 1], ["index by a mask"]),
    "masked_select": (lambda x: torch.masked_select(x, x > 1), ["masked_select"]),
    "cpu": (lambda x: x.cpu(), ["copy to the host"]),
    "to the GPU": (lambda x: torch.ones(2).to(DEVICE), ["copy to the GPU"]),
    "copy_ to pageable memory": (
        lambda x: torch.empty(3, dtype=torch.int64).copy_(x, non_blocking=True),
        ["copy between host and GPU"],
    ),
    "blocking copy_": (
        lambda x: pinned(3, torch.int64).copy_(x), ["copy between host and GPU"]
    ),
    "tensor": (lambda x: torch.tensor([1, 2], device=DEVICE), ["copy of a list to the GPU"]),
    "repeat_interleave": (
        lambda x: torch.repeat_interleave(x, x), ["repeat_interleave without output_size"]
    ),
    "one_hot": (lambda x: F.one_hot(x), ["one_hot without num_classes"]),
    "equal": (lambda x: torch.equal(x, x), ["equal"]),
    "synchronize": (lambda x: torch.cuda.synchronize(), ["synchronize"]),
}  # fmt: skip

WITHOUT: dict[str, Callable[[Tensor], object]] = {
    "sort": lambda x: x.sort(stable=True),
    "searchsorted": lambda x: torch.searchsorted(x, x),
    "embedding_bag": lambda x: F.embedding_bag(
        x, torch.ones(4, 2, device=DEVICE), torch.zeros(1, dtype=torch.int64, device=DEVICE)
    ),
    "nonzero_static": lambda x: x.nonzero_static(size=3),
    "repeat_interleave with output_size": lambda x: torch.repeat_interleave(x, x, output_size=6),
    "copy to pinned memory": lambda x: pinned(3, torch.int64).copy_(x, non_blocking=True),
    "copy from pinned memory": lambda x: x.copy_(pinned(3, torch.int64), non_blocking=True),
    "one_hot with num_classes": lambda x: F.one_hot(x, 4),
    "histc": lambda x: torch.histc(x, bins=4, min=0, max=3),
    "arange": lambda x: torch.arange(3, device=DEVICE),
    "index by numbers": lambda x: x[torch.zeros(2, dtype=torch.int64, device=DEVICE)],
    "topk": lambda x: x.topk(2),
    "grouped_mm in bfloat16": lambda x: grouped(torch.bfloat16, x[:2]),
}


def grouped(dtype: torch.dtype, ends: Tensor) -> Tensor:
    """Four rows for two experts, by their ends."""
    x, w = torch.ones(4, 8, device=DEVICE, dtype=dtype), torch.ones(2, 8, 8, device=DEVICE)
    return F.grouped_mm(x, w.to(dtype), offs=ends.to(torch.int32))


@MODES
@pytest.mark.parametrize("name", WAITING)
def test_what_makes_the_host_wait_is_noted_with_its_line(
    name: str, mode: Any, gpu: FakeCuda
) -> None:
    call, expected = WAITING[name]
    with mode():
        x = on_gpu(1, 2, 3, dtype=torch.int64)
        assert kinds(gpu, lambda: call(x)) == expected
    assert all("tests/unit/test_fake_cuda.py:" in line for _, line in gpu.waits)


@MODES
@pytest.mark.parametrize("name", WITHOUT)
def test_nothing_is_noted_for_what_stays_on_the_gpu(name: str, mode: Any, gpu: FakeCuda) -> None:
    with mode():
        x = on_gpu(1, 2, 3, dtype=torch.int64)
        assert kinds(gpu, lambda: WITHOUT[name](x)) == []
    assert gpu.launched > 0


def test_grouped_mm_waits_but_in_bfloat16_and_leaves_rows_behind_the_last_offset(
    gpu: FakeCuda,
) -> None:
    ends = on_gpu(1, 3, dtype=torch.int32)
    y = grouped(torch.bfloat16, ends).cpu()
    assert y[:3].eq(8).all() and y[3].isnan().all()
    assert kinds(gpu, lambda: grouped(torch.float32, ends)) == ["grouped_mm but in bfloat16"]


def test_new_memory_is_undefined(gpu: FakeCuda) -> None:
    x = on_gpu(1, 2)
    for new in (x.new_empty(3), torch.empty_like(x), torch.empty(2, device=DEVICE)):
        assert new.cpu().isnan().all()
    assert torch.zeros(2, device=DEVICE).tolist() == [0, 0]
    assert x.new_empty(2, dtype=torch.int64).shape == (2,)


def test_pinned_memory_is_garbage_until_its_event_was_waited_for(gpu: FakeCuda) -> None:
    host, later = pinned(2), pinned(2)
    host.copy_(on_gpu(1, 2), non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    later.copy_(on_gpu(3, 4), non_blocking=True)
    assert host.tolist() == [GARBAGE, GARBAGE]
    copied.synchronize()
    assert host.tolist() == [1, 2]
    assert later.tolist() == [GARBAGE, GARBAGE]  # enqueued behind the event
    torch.cuda.synchronize()
    assert later.tolist() == [3, 4]


def captured(call: Callable[[], Tensor]) -> tuple[Any, Tensor]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    return graph, out


@pytest.mark.parametrize("call", [
    lambda x: x.sum().item(), lambda x: x.cpu(), lambda x: x[x > 1],
    lambda x: torch.cuda.synchronize(), lambda x: torch.cuda.Event().synchronize(),
], ids=["item", "cpu", "mask", "synchronize", "event"])  # fmt: skip
def test_a_wait_inside_a_capture_raises(call: Callable[[Tensor], Any], gpu: FakeCuda) -> None:
    x = on_gpu(1, 2)
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        captured(lambda: call(x))
    assert not torch.cuda.is_current_stream_capturing()


def test_a_replay_reads_the_captured_input_and_writes_the_captured_output(gpu: FakeCuda) -> None:
    x = on_gpu(1, 2)

    def step() -> Tensor:
        y = torch.zeros(2, device=DEVICE)
        y[:1] += 1
        return (x * 2 + y).sort(descending=True).values

    graph, out = captured(step)
    assert out.cpu().tolist() == [4, 3]
    x.copy_(on_gpu(10, 1))
    assert out.cpu().tolist() == [4, 3]
    for _ in range(2):  # what it adds in place does not add up
        graph.replay()
        assert out.cpu().tolist() == [21, 2]


def test_a_replay_of_a_backward_pass_writes_the_captured_gradient(gpu: FakeCuda) -> None:
    x = on_gpu(1, 2).requires_grad_()
    with torch.enable_grad():
        graph, _ = captured(lambda: (x * x).sum().backward() or x)
    gradient = x.grad
    assert gradient is not None and gradient.cpu().tolist() == [2, 4]
    with torch.no_grad():
        x.copy_(on_gpu(5, 6))
    graph.replay()
    assert gradient.cpu().tolist() == [10, 12]


def test_sync_debug_mode(gpu: FakeCuda) -> None:
    x = on_gpu(1, 2)
    torch.cuda.set_sync_debug_mode("error")
    with pytest.raises(RuntimeError, match="called a synchronizing CUDA operation"):
        x.sum().item()
    torch.cuda.synchronize()  # what is asked for by its name is no error
    torch.cuda.set_sync_debug_mode("warn")
    with pytest.warns(UserWarning, match="synchronizing"):
        x.sum().item()
    torch.cuda.set_sync_debug_mode("default")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x.sum().item()


@pytest.mark.parametrize("items, copies", [(0, 0), (2, 0), (0, 2), (1, 1)])
def test_the_count_of_a_step_is_what_the_gpu_notes(items: int, copies: int, gpu: FakeCuda) -> None:
    x = on_gpu(1, 2, dtype=torch.int64)

    def step() -> None:
        for _ in range(items):
            x.sum().item()
        for _ in range(copies):
            assert waits.to_host(x) == [1, 2]

    assert kinds(gpu, step) == ["item"] * items + ["event"] * copies
    torch.cuda.set_sync_debug_mode("default")
    assert waits.count(step, DEVICE) == items + copies
    assert torch.cuda.get_sync_debug_mode() == 0


def test_operations_on_the_processor_are_noted_from_a_size_on(gpu: FakeCuda) -> None:
    x, host = on_gpu(1, 2, 3, 4), torch.ones(4)
    with gpu.watching(rows=4):
        x.mul(2)
        host[:3].mul(2)
    assert [one.split(" ")[0] for one in gpu.host_operations] == ["aten::slice"]  # reads all four
    with gpu.watching(rows=4):
        host.mul(2)
        torch.empty_like(x)
    assert [one.split(" ")[0] for one in gpu.host_operations] == ["aten::mul"]


def test_nothing_of_it_is_left_behind() -> None:
    with FakeCuda():
        assert torch.cuda.is_available()
    assert not torch.cuda.is_available()
    assert torch.zeros(1).add(1).tolist() == [1]
    with FakeCuda() as second:
        assert second.waits == []


# NCCL's rules.


def all_reduce(x: Tensor, *rest: Any, **named: Any) -> None:
    """Of one rank: nothing changes."""


def all_to_all_single(out: Tensor, x: Tensor, *rest: Any, **named: Any) -> None:
    out.copy_(x)


def all_gather(out: Tensor, x: Tensor, *rest: Any, **named: Any) -> None:
    out.copy_(x)


def one_rank() -> Any:
    """A module like moe.parallel.comm on a process group of one rank."""
    dist = SimpleNamespace(
        all_reduce=all_reduce, all_to_all_single=all_to_all_single, broadcast=all_reduce,
        get_world_size=lambda group=None: 1, get_backend=lambda group=None: "gloo",
    )  # fmt: skip
    return SimpleNamespace(dist=dist, _all_gather=all_gather)


def test_nccl_takes_contiguous_tensors_of_the_gpu_alone(gpu: FakeCuda) -> None:
    comm = one_rank()
    square = OnDevice(torch.arange(4.0).view(2, 2))
    with nccl_only(comm) as calls:
        assert comm.dist.get_backend() == "nccl"
        out = torch.zeros(2, 2, device=DEVICE)
        assert kinds(gpu, lambda: comm.dist.all_to_all_single(out, square)) == []
        assert out.tolist() == [[0, 1], [2, 3]]
        with pytest.raises(RuntimeError, match="device type cpu"):
            comm.dist.all_reduce(torch.ones(2))
        with pytest.raises(RuntimeError, match="contiguous"):
            comm._all_gather(out, square.t())
        comm.dist.reduce_scatter_tensor(out, square)
        assert out.tolist() == [[0, 1], [2, 3]]
    assert calls == {
        "all_to_all_single": 1, "all_reduce": 1, "all_gather": 1, "reduce_scatter_tensor": 1,
    }  # fmt: skip
    assert comm.dist.get_backend() == "gloo"


def test_a_collective_is_repeated_by_a_replay(gpu: FakeCuda) -> None:
    comm, x = one_rank(), on_gpu(1, 2)
    with nccl_only(comm):
        out = torch.zeros(2, device=DEVICE)

        def step() -> Tensor:
            comm.dist.all_to_all_single(out, x)
            return out * 2

        graph, result = captured(step)
        x.copy_(on_gpu(3, 4))
        graph.replay()
    assert result.tolist() == [6, 8]
