"""Ranks as forks of torchrun's agent: what a new process would have, and a fork has not.

A fork takes over the agent's signal handlers; CUDA does not work in it where the agent has begun
CUDA; a lock that another thread of the agent held while the fork was made stays locked in it; and
torch's context for forks waits for a value from every rank, for ever where a rank has left without
one. Imported by the agent, after torch.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.distributed.elastic import multiprocessing as elastic
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import MultiprocessContext, RunProcsResult
from torch.distributed.elastic.utils.store import barrier

from runners.host import isolation

NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"  # counts devices without beginning CUDA
HANDLED = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)  # by the agent, beside SIGINT
LAST_S, POLL_S = 1.0, 0.02  # after the first failure
ALL_FORKED_S = 60.0  # from the first agent that has forked its ranks to the last
_elastic: Any = elastic
_agent: Any = LocalElasticAgent


@contextlib.contextmanager
def without_cuda() -> Iterator[None]:
    """Around calls that ask whether there are CUDA devices."""
    before = os.environ.get(NVML)
    os.environ[NVML] = "1"
    yield
    if before is None:
        del os.environ[NVML]
    else:
        os.environ[NVML] = before


def may_fork() -> bool:
    """False where CUDA has been begun in this process, so that its forks could not use it."""
    trial = os.fork()
    if trial == 0:
        os._exit(int(torch.cuda._is_in_bad_fork()))
    return os.waitpid(trial, 0)[1] == 0


class Gate:
    """Holds ranks back until all of the launch, on all nodes, have been forked.

    A rank's first connection wakes the thread of the agent that serves torch's store: it looks up
    the rank's address, under a lock of the C library. A rank that is forked meanwhile waits for
    that lock for ever when it looks up an address itself.
    """

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()

    def wait(self) -> None:
        """In a rank: until nobody has the writing end."""
        os.close(self.writing)
        os.read(self.reading, 1)
        os.close(self.reading)

    def open_when_forked(self) -> None:
        """In the agent: as soon as every agent of the launch has forked its ranks."""
        start = _agent._start_workers

        def start_and_open(self_: Any, group: Any) -> Any:
            started = start(self_, group)
            if group.group_world_size > 1:
                barrier(group.store, group.group_world_size, "forked", ALL_FORKED_S)
            os.close(self.writing)
            return started

        _agent._start_workers = start_and_open


def entry(rank_main: Callable[[list[str]], int], arguments: Sequence[str]) -> Callable[[], None]:
    """What torch is to call in every fork: `rank_main(arguments)`, then the process ends with its
    exit code; 1, and the traceback on stderr, where it raises."""
    _elastic.MultiprocessContext = Ranks
    gc.collect()
    gc.freeze()  # a fork's collections leave alone what it shares with the others
    gate, agent_pid = Gate(), os.getpid()
    gate.open_when_forked()

    def rank() -> None:
        code = 1
        try:
            isolation.die_with_parent(agent_pid)
            gate.wait()
            for number in HANDLED:
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            code = rank_main(list(arguments))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    return rank


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
        """Those that end by themselves within LAST_S: the system closes a killed process's sockets
        before the process has ended, so that a rank which noticed may be the first to end."""
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
