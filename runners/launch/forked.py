"""Ranks as forks of torchrun's agent: what a new process would have, and a fork has not.

A fork takes over the agent's signal handlers; CUDA does not work in it where the agent has begun
CUDA; and torch's context for forks waits for a value from every rank, for ever where a rank has
left without one. Imported by the agent, after torch.
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
from torch.distributed.elastic.multiprocessing.api import MultiprocessContext, RunProcsResult

NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"  # counts devices without beginning CUDA
HANDLED = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)  # by the agent, beside SIGINT
LAST_S, POLL_S = 1.0, 0.02  # after the first failure
_elastic: Any = elastic


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


def entry(rank_main: Callable[[list[str]], int], arguments: Sequence[str]) -> Callable[[], None]:
    """What torch is to call in every fork: `rank_main(arguments)`, then the process ends with its
    exit code; 1, and the traceback on stderr, where it raises."""
    _elastic.MultiprocessContext = Ranks
    gc.collect()
    gc.freeze()  # a fork's collections leave alone what it shares with the others

    def rank() -> None:
        code = 1
        try:
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
