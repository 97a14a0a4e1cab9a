"""MPI as a torch process group: `backend=mpi` through mpi4py, for ranks that share few cores.

Over shared memory MPI's collectives cost microseconds where gloo's sockets cost milliseconds; see
docs/results/performance.md for figures. `mpiexec` starts the ranks, `init_mpi` joins them, and from
then on torch.distributed works as usual, sub-groups included.

Every call blocks and returns a finished work handle (`async_op=True` is accepted, but nothing is
overlapped), except `isend` and `irecv`. Tensors are moved as bytes. Sums of bfloat16 and float16
travel as float32 and are rounded once, so that they take twice the bytes but lose nothing.
Importing this module initialises MPI, so only ranks import it; the parent has runners.mpi.start.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any

import mpi4py
import torch
import torch.distributed as dist

mpi4py.rc.thread_level = "serialized"  # as Python calls it; "multiple" locks, at 7 us per barrier

from mpi4py import MPI  # noqa: E402

from runners.mpi.start import export_environment as export_environment  # noqa: E402

BACKEND = "mpi4py"
FORWARD_S = 0.5  # mpiexec drops unforwarded output of a rank that aborts
_dist: Any = dist  # its type stubs lack the extension API
_Work: Any = _dist._Work
_ProcessGroup: Any = _dist.ProcessGroup
MPI_TYPES = {
    torch.float32: MPI.FLOAT,
    torch.float64: MPI.DOUBLE,
    torch.int8: MPI.INT8_T,
    torch.int16: MPI.INT16_T,
    torch.int32: MPI.INT32_T,
    torch.int64: MPI.INT64_T,
    torch.uint8: MPI.UINT8_T,
}
MPI_OPS = {
    dist.ReduceOp.SUM.value: MPI.SUM,
    dist.ReduceOp.MAX.value: MPI.MAX,
    dist.ReduceOp.MIN.value: MPI.MIN,
    dist.ReduceOp.PRODUCT.value: MPI.PROD,
}
WIDENED = (torch.bfloat16, torch.float16)  # MPI has no reductions of these


def init_mpi(timeout: timedelta = timedelta(minutes=10)) -> None:
    """Joins the ranks that mpiexec started into torch.distributed's default group.

    The timeout covers torch's own bookkeeping only: MPI calls have none. Raises RuntimeError where
    mpiexec and mpi4py belong to different MPI libraries.
    """
    export_environment()
    world = MPI.COMM_WORLD
    if world.size != int(os.environ["WORLD_SIZE"]):
        raise RuntimeError(
            f"mpiexec started {os.environ['WORLD_SIZE']} ranks, but mpi4py sees {world.size}: they "
            "belong to different MPI libraries; use the mpiexec installed beside this Python"
        )
    if BACKEND.upper() not in dist.Backend._plugins:
        dist.Backend.register_backend(BACKEND, _create, extended_api=True, devices=["cpu"])
    store = _store(world, timeout)
    dist.init_process_group(
        BACKEND, store=store, rank=world.rank, world_size=world.size, timeout=timeout
    )
    _abort_on_error()


def _abort_on_error() -> None:
    """Makes a failure end all ranks: MPI's own exit handler would wait for the others forever.

    Must follow init_process_group, whose hook holds back what the previous hook prints.
    """
    show = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        show(kind, error, trace)
        sys.stdout.flush()
        sys.stderr.flush()
        time.sleep(FORWARD_S)
        MPI.COMM_WORLD.Abort(1)

    sys.excepthook = hook


def _store(world: MPI.Intracomm, timeout: timedelta) -> Any:
    """torch's key-value store on rank 0; on loopback where all ranks are on one host."""
    hosts = world.allgather(socket.gethostname())
    address = "127.0.0.1" if len(set(hosts)) == 1 else hosts[0]
    store = None
    if world.rank == 0:
        store = _dist.TCPStore(address, 0, None, True, timeout, wait_for_workers=False)
    port = world.bcast(store.port if store else None)
    return store or _dist.TCPStore(address, port, None, False, timeout)


def _create(options: Any, _: Any) -> MpiGroup:
    """Called by torch on the members of a new group only, as Create_group requires."""
    ranks = list(options.global_ranks_in_group) or list(range(options.group_size))
    members = MPI.COMM_WORLD.Get_group().Incl(ranks)
    communicator = MPI.COMM_WORLD.Create_group(members)
    members.Free()
    return MpiGroup(communicator, options.group_id)


class Finished(_Work):  # type: ignore[misc]
    """The handle of a finished operation."""

    def wait(self, timeout: timedelta | None = None) -> bool:
        return True

    def is_completed(self) -> bool:
        return True

    def is_success(self) -> bool:
        return True


class PendingSend(_Work):  # type: ignore[misc]
    """A point-to-point message in flight; keeps the tensor alive until it has arrived."""

    def __init__(self, request: MPI.Request, tensor: torch.Tensor) -> None:
        super().__init__()
        self.request, self.tensor = request, tensor

    def wait(self, timeout: timedelta | None = None) -> bool:
        self.request.Wait()
        return True

    def is_completed(self) -> bool:
        return bool(self.request.Test())


DONE = Finished()  # shared: making one costs as much as a small message


def _bytes(tensor: torch.Tensor) -> list[Any]:
    """mpi4py's buffer specification of a contiguous tensor, moved as raw bytes.

    It has no count, so that mpi4py divides the size by the ranks where the call requires it.
    """
    if not tensor.is_contiguous():
        raise ValueError(f"tensor of strides {tensor.stride()}: MPI needs it contiguous")
    return [MPI.buffer.fromaddress(tensor.data_ptr(), tensor.nbytes), MPI.BYTE]


def _numbers(tensor: torch.Tensor) -> list[Any]:
    """Like `_bytes`, but typed, for reductions."""
    kind = MPI_TYPES.get(tensor.dtype)
    if kind is None:
        allowed = ", ".join(str(dtype) for dtype in (*MPI_TYPES, *WIDENED))
        raise TypeError(f"{tensor.dtype}: MPI reduces {allowed}")
    return [_bytes(tensor)[0], kind]


def _split(tensor: torch.Tensor, rows: Sequence[int], ranks: int) -> list[Any]:
    """Buffer specification of `tensor` cut along its first dimension, `rows[r]` for rank r."""
    if not rows:
        if tensor.shape[0] % ranks:
            raise ValueError(f"{tensor.shape[0]} rows: not divisible among {ranks} ranks")
        return _bytes(tensor)
    if len(rows) != ranks or sum(rows) != tensor.shape[0]:
        raise ValueError(f"splits {list(rows)}: allowed are {ranks} summing to {tensor.shape[0]}")
    row_bytes = tensor.nbytes // tensor.shape[0] if tensor.shape[0] else 0
    counts = [count * row_bytes for count in rows]
    return [_bytes(tensor)[0], counts, MPI.BYTE]


class MpiGroup(_ProcessGroup):  # type: ignore[misc]
    """The collectives of torch.distributed on one MPI communicator.

    Methods that torch 2.13 renamed have both names.
    """

    def __init__(self, communicator: MPI.Intracomm, name: str) -> None:
        super().__init__(communicator.rank, communicator.size)
        self.name = name
        self.communicator, self.ranks = communicator, communicator.size

    def getBackendName(self) -> str:
        return BACKEND

    @property
    def group_name(self) -> str:
        return self.name

    def barrier(self, opts: Any = None) -> Finished:
        self.communicator.Barrier()
        return DONE

    def broadcast(self, tensors: list[torch.Tensor], opts: Any) -> Finished:
        self.communicator.Bcast(_bytes(tensors[0]), opts.rootRank)
        return DONE

    def allreduce(self, tensors: list[torch.Tensor], opts: Any) -> Finished:
        (tensor,) = tensors
        wide = tensor.float() if tensor.dtype in WIDENED else tensor
        self.communicator.Allreduce(MPI.IN_PLACE, _numbers(wide), _op(opts.reduceOp))
        if wide is not tensor:
            tensor.copy_(wide)
        return DONE

    def reduce(self, tensors: list[torch.Tensor], opts: Any) -> Finished:
        (tensor,) = tensors
        wide = tensor.float() if tensor.dtype in WIDENED else tensor.clone()
        total = torch.empty_like(wide)
        op, root = _op(opts.reduceOp), opts.rootRank
        self.communicator.Reduce(_numbers(wide), _numbers(total), op, root)
        if self.rank() == root:
            tensor.copy_(total)
        return DONE

    def all_gather_single(
        self, output: torch.Tensor, tensor: torch.Tensor, opts: Any = None
    ) -> Finished:
        self.communicator.Allgather(_bytes(tensor), _split(output, (), self.ranks))
        return DONE

    _allgather_base = all_gather_single

    def allgather(
        self, outputs: list[list[torch.Tensor]], tensors: list[torch.Tensor], opts: Any = None
    ) -> Finished:
        """Sizes may differ, unlike with gloo."""
        sizes = [output.nbytes for output in outputs[0]]
        gathered = torch.empty(sum(sizes), dtype=torch.uint8)
        self.communicator.Allgatherv(
            _bytes(tensors[0].contiguous()), [_bytes(gathered)[0], sizes, MPI.BYTE]
        )
        _unpack(gathered, outputs[0])
        return DONE

    def all_to_all_single(
        self,
        output: torch.Tensor,
        tensor: torch.Tensor,
        output_rows: Sequence[int],
        input_rows: Sequence[int],
        opts: Any = None,
    ) -> Finished:
        send = _split(tensor, input_rows, self.ranks)
        receive = _split(output, output_rows, self.ranks)
        if output_rows or input_rows:
            self.communicator.Alltoallv(send, receive)
        else:
            self.communicator.Alltoall(send, receive)
        return DONE

    alltoall_base = all_to_all_single

    def alltoall(
        self, outputs: list[torch.Tensor], tensors: list[torch.Tensor], opts: Any = None
    ) -> Finished:
        packed = torch.cat([t.contiguous().view(-1).view(torch.uint8) for t in tensors])
        received = torch.empty(sum(output.nbytes for output in outputs), dtype=torch.uint8)
        self.all_to_all_single(
            received, packed, [t.nbytes for t in outputs], [t.nbytes for t in tensors]
        )
        _unpack(received, outputs)
        return DONE

    def reduce_scatter_single(
        self, output: torch.Tensor, tensor: torch.Tensor, opts: Any
    ) -> Finished:
        wide = tensor.float() if tensor.dtype in WIDENED else tensor
        total = torch.empty_like(output, dtype=wide.dtype) if wide is not tensor else output
        op = _op(opts.reduceOp)
        self.communicator.Reduce_scatter_block(_numbers(wide), _numbers(total), op)
        if total is not output:
            output.copy_(total)
        return DONE

    _reduce_scatter_base = reduce_scatter_single

    def send(self, tensors: list[torch.Tensor], rank: int, tag: int) -> PendingSend:
        return PendingSend(self.communicator.Isend(_bytes(tensors[0]), rank, tag), tensors[0])

    def recv(self, tensors: list[torch.Tensor], rank: int, tag: int) -> PendingSend:
        return PendingSend(self.communicator.Irecv(_bytes(tensors[0]), rank, tag), tensors[0])

    def shutdown(self) -> None:
        if self.communicator != MPI.COMM_NULL:
            self.communicator.Free()


def _unpack(packed: torch.Tensor, outputs: list[torch.Tensor]) -> None:
    pieces = torch.split(packed, [output.nbytes for output in outputs])
    for output, piece in zip(outputs, pieces, strict=True):
        output.copy_(piece.clone().view(output.dtype).view(output.shape))


def _op(op: Any) -> MPI.Op:
    mpi_op = MPI_OPS.get(op.op.value)
    if mpi_op is None:
        raise ValueError(f"{op}: MPI reduces by SUM, MAX, MIN and PRODUCT")
    return mpi_op
