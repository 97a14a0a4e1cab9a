"""Ranks as forks of torchrun's agent, and the differences to new processes that forks need handled.

A fork inherits the agent's signal handlers; CUDA does not work in it if the agent has initialised
CUDA; a lock that another thread of the agent held at the fork stays locked; and torch's own fork
context waits forever for a value from a rank that left without one. Imported by the agent, after
torch.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import torch
from torch.distributed.elastic import multiprocessing as elastic
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import MultiprocessContext, RunProcsResult
from torch.distributed.elastic.utils.store import barrier

from runners.host import isolation

NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"  # counts devices without initialising CUDA
HANDLED = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)  # by the agent, beside SIGINT
LAST_S, POLL_S = 1.0, 0.02  # wait for further failures after the first; interval
ALL_FORKED_S = 60.0  # from the first agent that has forked its ranks to the last
_elastic: Any = elastic
_agent: Any = LocalElasticAgent


@contextlib.contextmanager
def without_cuda() -> Iterator[None]:
    """Around calls that ask for CUDA devices, so that they do not initialise CUDA."""
    before = os.environ.get(NVML)
    os.environ[NVML] = "1"
    yield
    if before is None:
        del os.environ[NVML]
    else:
        os.environ[NVML] = before


def may_fork() -> bool:
    """False where CUDA was initialised in this process, so that its forks could not use it."""
    trial = os.fork()
    if trial == 0:
        os._exit(int(torch.cuda._is_in_bad_fork()))
    return os.waitpid(trial, 0)[1] == 0


class ForkBarrier:
    """Holds ranks back until all ranks of the launch, on all nodes, are forked.

    A rank's first connection makes the agent's store thread resolve the rank's address, under a
    lock of the C library. A rank that is forked meanwhile would wait for that lock forever when it
    resolves an address itself.
    """

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()

    def wait(self) -> None:
        """In a rank: blocks until every process has closed the writing end."""
        os.close(self.writing)
        os.read(self.reading, 1)
        os.close(self.reading)

    def release_when_forked(self) -> None:
        """In the agent: releases the ranks once every agent of the launch has forked its own."""
        start = _agent._start_workers

        def start_and_release(self_: Any, group: Any) -> Any:
            started = start(self_, group)
            if group.group_world_size > 1:
                barrier(group.store, group.group_world_size, "forked", ALL_FORKED_S)
            os.close(self.writing)
            return started

        _agent._start_workers = start_and_release


def entry(rank_main: Callable[[list[str]], int], arguments: Sequence[str]) -> Callable[[], None]:
    """The function that torch calls in every fork: runs `rank_main(arguments)` and exits with its
    code; 1, and a traceback on stderr, where it raises."""
    _elastic.MultiprocessContext = Ranks
    gc.collect()
    gc.freeze()  # so that collections in forks do not touch shared memory
    fork_barrier, agent_pid = ForkBarrier(), os.getpid()
    fork_barrier.release_when_forked()

    def begin() -> int:
        isolation.die_with_parent(agent_pid)
        fork_barrier.wait()
        for number in HANDLED:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return rank_main(list(arguments))

    def rank() -> None:  # a function, whose name torch wants
        end_with(begin)

    return rank


def end_with(call: Callable[[], int]) -> NoReturn:
    """Ends this fork with what `call` returns; with 1, and a traceback on stderr, where it raises.
    Nothing of the parent's is run, such as its handlers of an exit."""
    code = 1
    try:
        code = call()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Ranks(MultiprocessContext):
    """Forked processes that are judged by their exit codes, as torchrun judges others."""

    def _poll(self) -> RunProcsResult | None:
        assert self._pc is not None
        codes = [process.exitcode for process in self._pc.processes]
        if any(codes):
            failed = self._failed()
            self.close()
            return RunProcsResult(failures=failed, stdouts=self.stdouts, stderrs=self.stderrs)
        if None in codes:
            return None
        self.close()
        values = dict.fromkeys(range(self.nprocs))
        return RunProcsResult(return_values=values, stdouts=self.stdouts, stderrs=self.stderrs)

    def _failed(self) -> dict[int, elastic.ProcessFailure]:
        """Failures within LAST_S of the first: the system closes a killed process's sockets before
        the process has ended, so that a rank which noticed may be the first to end."""
        assert self._pc is not None
        processes, deadline = self._pc.processes, time.monotonic() + LAST_S
        while any(p.exitcode is None for p in processes) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return {
            rank: elastic.ProcessFailure(
                rank, process.pid, process.exitcode, self.error_files[rank]
            )
            for rank, process in enumerate(processes)
            if process.exitcode
        }
