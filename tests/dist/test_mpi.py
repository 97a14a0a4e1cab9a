"""backend=mpi: every collective of the MPI process group, on ranks that mpiexec starts.

Run as a program, this file is one rank: it does the named check and fails by an exception.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from runners.mpi import start as mpi  # noqa: E402

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8)


def ranks() -> tuple[int, int]:
    return dist.get_rank(), dist.get_world_size()


def numbers(*shape: int, rank: int, dtype: torch.dtype) -> torch.Tensor:
    """Small integers, exact in every dtype, different on every rank."""
    count = torch.Size(shape).numel()
    return (torch.arange(count).view(shape) % 3 + 2 * rank).to(dtype)


def check_reduce() -> None:
    me, size = ranks()
    for dtype in DTYPES:
        parts = torch.stack([numbers(4, 3, rank=r, dtype=dtype).double() for r in range(size)])
        for op, expected in (
            (dist.ReduceOp.SUM, parts.sum(0)),
            (dist.ReduceOp.MAX, parts.amax(0)),
            (dist.ReduceOp.MIN, parts.amin(0)),
            (dist.ReduceOp.PRODUCT, parts.prod(0)),
        ):
            x = numbers(4, 3, rank=me, dtype=dtype)
            dist.all_reduce(x, op)
            assert x.dtype == dtype
            assert torch.equal(x.double(), expected), (dtype, op, x)
        x = numbers(4, 3, rank=me, dtype=dtype)
        dist.reduce(x, size - 1)
        expected = parts.sum(0) if me == size - 1 else parts[me]
        assert torch.equal(x.double(), expected), (dtype, x)


def check_sums_of_bfloat16_are_rounded_once() -> None:
    me, size = ranks()
    x = torch.tensor([256.0 if me == 0 else 1.25], dtype=torch.bfloat16)
    dist.all_reduce(x)  # rounding each of two sums would give 260
    assert x.item() == [256.0, 258.0, 258.0][size - 1]


def check_gather() -> None:
    me, size = ranks()
    single = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)  # renamed in 2.13
    for dtype in DTYPES:
        x = numbers(2, 3, rank=me, dtype=dtype)
        parts = [numbers(2, 3, rank=r, dtype=dtype) for r in range(size)]
        out = torch.empty(2 * size, 3, dtype=dtype)
        single(out, x)
        assert torch.equal(out, torch.cat(parts))
        rows = [torch.empty(r + 1, 3, dtype=dtype) for r in range(size)]
        dist.all_gather(rows, numbers(me + 1, 3, rank=me, dtype=dtype))
        for r, row in enumerate(rows):
            assert torch.equal(row, numbers(r + 1, 3, rank=r, dtype=dtype))
        x = numbers(5, rank=me, dtype=dtype)
        dist.broadcast(x, size - 1)
        assert torch.equal(x, numbers(5, rank=size - 1, dtype=dtype))


def check_exchange() -> None:
    """Rank s sends s + d rows to rank d (none from 0 to 0), numbered 100 s + 10 d + row."""
    me, size = ranks()

    def rows(source: int, target: int, dtype: torch.dtype) -> torch.Tensor:
        first = 100 * source + 10 * target
        return torch.arange(first, first + source + target).view(-1, 1).expand(-1, 2).to(dtype)

    for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.uint8):
        send = torch.cat([rows(me, d, dtype) for d in range(size)])
        expected = torch.cat([rows(s, me, dtype) for s in range(size)])
        out = torch.empty_like(expected)
        splits = [me + other for other in range(size)]
        dist.all_to_all_single(out, send, splits, splits)
        assert torch.equal(out, expected), (dtype, out)
        out = torch.empty_like(expected)
        work = dist.all_to_all_single(out, send, splits, splits, async_op=True)
        assert work.wait()
        assert work.is_completed()
        assert torch.equal(out, expected)
        even = numbers(2 * size, 3, rank=me, dtype=dtype)
        got = torch.empty_like(even)
        dist.all_to_all_single(got, even)
        pieces = [
            numbers(2 * size, 3, rank=s, dtype=dtype)[2 * me : 2 * me + 2] for s in range(size)
        ]
        assert torch.equal(got, torch.cat(pieces))
        listed = [torch.empty(s + me, 2, dtype=dtype) for s in range(size)]
        dist.all_to_all(listed, [rows(me, d, dtype) for d in range(size)])
        for source, piece in enumerate(listed):
            assert torch.equal(piece, rows(source, me, dtype))
    empty = torch.empty(0, 4)
    dist.all_to_all_single(torch.empty(0, 4), empty, [0] * size, [0] * size)


def check_reduce_scatter() -> None:
    me, size = ranks()
    single = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)
    for dtype in (torch.float32, torch.bfloat16, torch.int64):
        x = numbers(2 * size, 3, rank=me, dtype=dtype)
        out = torch.empty(2, 3, dtype=dtype)
        single(out, x)
        total = sum(numbers(2 * size, 3, rank=r, dtype=dtype).double() for r in range(size))
        assert isinstance(total, torch.Tensor)
        assert torch.equal(out.double(), total[2 * me : 2 * me + 2])


def check_groups() -> None:
    """Groups of some ranks, made by all ranks, used by their members only."""
    me, size = ranks()
    pairs = [dist.new_group([r, (r + 1) % size]) for r in range(size)]
    for first, group in enumerate(pairs):
        members = sorted({first, (first + 1) % size})
        if me in members:
            x = torch.tensor([10.0**me])
            dist.all_reduce(x, group=group)
            assert x.item() == sum(10.0**r for r in members)
            out = torch.empty(len(members), dtype=torch.int64)
            dist.all_gather_single(out, torch.tensor([me]), group=group)
            assert out.tolist() == members
            dist.broadcast(x := torch.tensor([me]), members[1], group=group)
            assert x.item() == members[1]
        dist.barrier()
    assert dist.get_world_size(pairs[me]) == 2
    dist.destroy_process_group(pairs[0])


def check_messages() -> None:
    me, size = ranks()
    big = torch.full((1 << 18,), float(me))  # over any eager limit: a blocking send would deadlock
    got = torch.empty_like(big)
    right, left = (me + 1) % size, (me - 1) % size
    sends = [dist.isend(big, right)]
    assert dist.irecv(got, left).wait()
    sends[0].wait()
    assert got.eq(left).all()


def check_objects_and_gradients() -> None:
    """What torch builds on top: pickled objects, and the collectives that autograd knows."""
    import torch.distributed._functional_collectives as functional

    me, size = ranks()
    found = [None] * size
    dist.all_gather_object(found, {"rank": me})
    assert found == [{"rank": r} for r in range(size)]
    x = torch.arange(2.0 * size).add(10 * me).requires_grad_()
    y = functional.all_to_all_single_autograd(x, [2] * size, [2] * size, dist.group.WORLD)
    (functional.wait_tensor(y) * (me + 1)).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [float(r + 1) for r in range(size) for _ in range(2)]


def check_errors() -> None:
    size = dist.get_world_size()

    def message(call: Callable[[], object], kind: type[Exception]) -> str:
        try:
            call()
        except kind as error:
            return str(error)
        raise AssertionError(f"{kind.__name__} expected")

    x, out = torch.ones(4, 3), torch.empty(4, 3)
    assert "contiguous" in message(lambda: dist.all_reduce(x.t()), ValueError)
    assert "torch.bool" in message(lambda: dist.all_reduce(x > 0), TypeError)
    assert "SUM" in message(lambda: dist.all_reduce(x.long(), dist.ReduceOp.BXOR), ValueError)
    assert "summing to 4" in message(
        lambda: dist.all_to_all_single(out, x, [4] + [0] * (size - 1), [5] * size), ValueError
    )
    assert "divisible" in message(
        lambda: dist.all_to_all_single(torch.empty(size + 1), torch.ones(size + 1)), ValueError
    )
    dist.barrier()


def check_one_rank_fails() -> None:
    if dist.get_rank() == 1:
        raise ValueError("planted failure")
    dist.barrier()


CHECKS = {name: check for name, check in globals().items() if name.startswith("check_")}


def start(name: str, count: int) -> subprocess.CompletedProcess[str]:
    assert mpi.unavailable_reason() is None, mpi.unavailable_reason()
    command = mpi.mpiexec_command(count, [sys.executable, __file__, name], os.environ)
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.dist
@pytest.mark.parametrize("count", [1, 2, 3])
def test_collectives(count: int) -> None:
    skipped = {"check_one_rank_fails"}
    if count == 1:  # one rank has no pairs, and no splits that do not fit
        skipped |= {"check_groups", "check_errors"}
    names = [name for name in CHECKS if name not in skipped]
    done = start(",".join(names), count)
    assert done.returncode == 0, done.stdout
    for name in names:
        assert done.stdout.count(f"passed {name}\n") == count, done.stdout


@pytest.mark.dist
def test_a_failing_rank_ends_all_of_them_soon() -> None:
    began = time.monotonic()
    done = start("check_one_rank_fails", 2)
    assert done.returncode != 0
    assert "planted failure" in done.stdout
    assert time.monotonic() - began < 90  # and not the 120 s after which they would be killed


def test_a_process_that_mpiexec_did_not_start_is_told_how(monkeypatch: pytest.MonkeyPatch) -> None:
    for names in mpi.PLACES.values():
        for name in names:
            monkeypatch.delenv(name, raising=False)
    with pytest.raises(RuntimeError, match="mpiexec -n RANKS"):
        mpi.export_environment()


@pytest.mark.parametrize("library", ["MPICH", "Open MPI"])
def test_place_of_a_rank_in_torchs_words(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for names in mpi.PLACES.values():
        for name in names:
            monkeypatch.delenv(name, raising=False)
    for name in mpi.TORCH_NAMES:
        monkeypatch.setenv(name, "?")
    for name, value in zip(mpi.PLACES[library], "5823", strict=True):
        monkeypatch.setenv(name, value)
    mpi.export_environment()
    assert [os.environ[name] for name in mpi.TORCH_NAMES] == ["5", "8", "2", "3"]


def fake_mpiexec(folder: Path, version: str) -> None:
    program = folder / "mpiexec"
    program.write_text(f"#!/bin/sh\necho '{version}'\n")
    program.chmod(0o755)


def test_command_yields_the_cores_only_where_they_are_too_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_mpiexec(tmp_path, "HYDRA build details:")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(mpi, "usable_cores", lambda: 4)
    program = str(tmp_path / "mpiexec")
    assert mpi.mpiexec_command(4, ["x"], {}) == [program, "-n", "4", "x"]
    mine = {"MPIR_CVAR_POLLS_BEFORE_YIELD": "7"}  # the user's choice stands
    command = mpi.mpiexec_command(5, ["x", "y"], mine)
    assert command[:3] == [program, "-n", "5"]
    assert command[3:6] == ["-genv", "MPIR_CVAR_POLLS_BEFORE_YIELD", "7"]
    assert command[6:] == ["-genv", "MPIR_CVAR_DEVICE_COLLECTIVES", "none", "x", "y"]


def test_command_for_open_mpi_and_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no mpiexec" in str(mpi.unavailable_reason())
    with pytest.raises(RuntimeError, match="pip install"):
        mpi.mpiexec_command(2, ["x"], {})
    fake_mpiexec(tmp_path, "mpiexec (Open MPI) 5.0.8")
    assert "--oversubscribe" in mpi.mpiexec_command(2, ["x"], {})
    monkeypatch.setattr(mpi.importlib.util, "find_spec", lambda name: None)
    assert "pip install -e '.[mpi]'" in str(mpi.unavailable_reason())


if __name__ == "__main__":
    torch.set_num_threads(1)
    from runners.mpi.backend import init_mpi

    init_mpi()
    for check_name in sys.argv[1].split(","):
        CHECKS[check_name]()
        sys.stdout.write(f"passed {check_name}\n")
        sys.stdout.flush()
    dist.destroy_process_group()
