"""What the host and the simulated GPU know of each other: waits, events, streams, graphs and copies
to pinned memory that are under way. tests/support/fake_cuda.py describes the whole.

Simulated: a copy to pinned memory has arrived only after an event behind it, or the whole GPU, was
waited for; what makes the host wait raises inside a capture, and obeys
torch.cuda.set_sync_debug_mode; a replay repeats the captured operations on the captured memory.

Not simulated: work that is really under way (every kernel has ended when its call returns), so
streams have no order to get wrong; memory that a graph's own pool would reuse.
"""

from __future__ import annotations

import collections
import contextlib
import os
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

HERE = Path(__file__).parent
PROJECT = ("/moe/", "/runners/", "/transformers/", "/tests/")

MODES = ("default", "warn", "error")  # of torch.cuda.set_sync_debug_mode

SIMULATING = [0]  # depth: what runs on the processor in place of the GPU


class Queue:
    """The state of the one GPU that is present."""

    def __init__(self) -> None:
        self.waits: list[tuple[str, str]] = []  # (kind, line that caused it)
        self.kernels: collections.Counter[str] = collections.Counter()
        self.pending: list[tuple[Tensor, Tensor]] = []  # copies to pinned memory under way
        self.graph: Graph | None = None  # that is being captured
        self.sync_debug = 0  # default, warn, error
        self.held = False  # by torch.cuda._sleep: nothing that was enqueued since has begun

    @property
    def launched(self) -> int:
        return sum(self.kernels.values())

    def deliver(self, copies: int | None = None) -> None:
        """The first `copies` copies to pinned memory arrive; None: all."""
        for target, value in self.pending[:copies]:
            with torch.no_grad():
                target.copy_(value)
        del self.pending[:copies]

    def set_sync_debug(self, mode: str | int) -> None:
        """torch.cuda.set_sync_debug_mode."""
        self.sync_debug = MODES.index(mode) if isinstance(mode, str) else mode

    def synchronize(self, device: Any = None) -> None:
        """torch.cuda.synchronize."""
        asked_wait("synchronize")
        self.held = False
        self.deliver()

    def sleep(self, cycles: int) -> None:
        """torch.cuda._sleep, which is never over before the host waits."""
        self.held = True


_present: list[Queue] = []


def present() -> Queue:
    """The GPU; raises AssertionError where a simulated tensor has outlived it."""
    assert _present, "there is no simulated GPU"
    return _present[0]


@contextlib.contextmanager
def presence(gpu: Queue) -> Iterator[None]:
    """The GPU is there in the block."""
    assert not _present, "there is a simulated GPU already"
    _present.append(gpu)
    try:
        yield
    finally:
        _present.clear()


def wait(kind: str) -> None:
    """Notes that an operation makes the host wait for the GPU, as torch does in its sync debug
    mode."""
    asked_wait(kind)
    mode = MODES[present().sync_debug]
    if mode == "error":
        raise RuntimeError(f"called a synchronizing CUDA operation: {kind}")
    if mode == "warn":
        warnings.warn(f"called a synchronizing CUDA operation: {kind}", stacklevel=2)


def asked_wait(kind: str) -> None:
    """Notes a wait that the code asks for by name, which sync debug mode does not report."""
    gpu = present()
    if gpu.graph is not None:
        raise RuntimeError(f"operation not permitted when stream is capturing: {kind}")
    gpu.waits.append((kind, line()))


def line() -> str:
    """The line of the project, or of another system, that is running."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.parent == HERE or "site-packages/torch" in frame.filename:
            continue
        if any(part in frame.filename for part in PROJECT):
            return f"{os.path.relpath(frame.filename)}:{frame.lineno} {frame.line}"
    return "?"


class Event:
    """torch.cuda.Event: time is the number of kernels so far, in microseconds."""

    def __init__(self, **rest: Any) -> None:
        self.at, self.copies = 0, 0

    def record(self, stream: Any = None) -> None:
        self.at, self.copies = present().launched, len(present().pending)

    def synchronize(self) -> None:
        asked_wait("event")
        present().held = False
        present().deliver(self.copies)

    def query(self) -> bool:
        return not present().held

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
        asked_wait("stream")
        present().deliver()

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
    gpu = present()
    assert gpu.graph is None
    gpu.graph = graph
    try:
        yield
    finally:
        gpu.graph = None
