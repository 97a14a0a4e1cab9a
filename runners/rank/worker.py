"""One rank of a launch: builds, verifies, times and verifies again the cells of a frozen plan.

Started by torchrun, srun or mpiexec as `python -m runners.worker PLAN`; needs nothing but torch.
It writes its results to its own file of JSON lines in the launch's folder; the process that
started the ranks makes records of them.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from moe.layer.out_of_memory import is_out_of_memory, out_of_memory_text
from moe.parallel import algorithms
from moe.parallel.comm import Comm
from moe.spec import Unsupported
from moe.strategies import names
from runners.host import environment, gpu_monitor, isolation
from runners.host.hardware import usable_cores
from runners.mpi.start import export_environment
from runners.plan import LaunchPlan, load
from runners.rank import gpu
from runners.rank.cells import CellRunner
from runners.rank.engine import Sample, TimedCell, empty_step
from runners.rank.process_group import RankPlace, TorchRanks
from runners.rank.stoppable_engine import StoppableEngine
from runners.records.rank_log import RankLog, rank_path

GO_POLL_S = 0.05
BACKWARD_MODULE = "torch.fx.experimental.symbolic_shapes"  # torch imports it in the first backward
DUMP_S = 10.0  # to write the stacks after the limit, before the kernel's timer ends the rank
SLICE_MS = 3.0  # time slice of Linux's scheduler
YOUNG = 1  # generation of the garbage collector: objects since the last full collection
GPU_FLOORS = 100  # a GPU's floor is short: ranks that begin apart are 1% of a block at most
REBUILT_STEPS = 2  # unmeasured steps after a heavy cell was built again
UNTIMED_STEPS = 3  # of a cell that is checked and not timed, between its two checks

T = TypeVar("T")


class Worker:
    """One rank's run of a launch."""

    ranks_type = TorchRanks

    def __init__(
        self, plan: LaunchPlan, place: RankPlace, log: RankLog, pinned: list[int] | None
    ) -> None:
        self.plan, self.place, self.log, self.pinned = plan, place, log, pinned
        self.launch_dir = Path(plan.launch_dir)
        limit_s = plan.measure.cell_limit_s
        self.ranks = self.ranks_type(place, plan.placement, limit_s + 60)
        self.comm = Comm(self.ranks.device, place.world_size, place.rank)
        self.engine = StoppableEngine(
            self.ranks, plan.measure, self.emit, self.flush, self.launch_dir / "stop"
        )
        if plan.placement.device == "cuda":
            self.engine.floors = max(plan.measure.block_floors, GPU_FLOORS)
        if plan.placement.device == "cpu":
            self.engine.turn_ms = turn_ms(place.local_ranks * plan.placement.threads)
        if plan.placement.backend == "gloo" and place.world_size > 1:
            self.engine.min_block_ms = plan.measure.block_gloo_ms
        if plan.placement.nodes > 1:
            self.engine.node_of = tuple(row[0] for row in self.ranks.gather([place.node]))
        self.cells = CellRunner(plan, self.comm, self.ranks, log)
        self.engine.outlives = self.outlives

    def emit(self, sample: Sample) -> None:
        if sample.kind != "sizing":
            self.log.write("sample", flush=False, **vars(sample))

    def flush(self) -> None:
        """Between samples: flushes the log and collects garbage, so that samples need not."""
        self.log.flush()
        gc.collect(YOUNG)

    def enter_stage(self, cell: int, stage: str) -> None:
        """Logs the stage of this rank, and re-arms the watchdog that ends it if it hangs there."""
        self.log.write("enter", cell=cell, stage=stage, clock_ns=self.ranks.now_ns())
        arm_watchdog(self.plan.measure.cell_limit_s)

    def run(self) -> None:
        """Runs the waves of the plan; between waves it waits for the launcher."""
        self._log_environment()
        gc.collect()
        gc.freeze()  # otherwise every wave's collection would scan all imports, for 80 ms
        with self._monitored() as gpu_readings:
            for number, wave in enumerate(self.plan.waves):
                gpu_readings()  # those from before the wave
                self._wave(number, wave)
                after = {**environment.snapshot(), **gpu_readings()}
                self.log.write("wave_end", wave=number, after=after)
                if number + 1 < len(self.plan.waves):
                    self._wait_for_launcher(number)
        disarm_watchdog()

    def _monitored(self) -> AbstractContextManager[gpu_monitor.Readings]:
        """Of what sums up the GPUs' readings since its last call, on a node's first rank."""
        timed = self.comm.device.type == "cuda" and not self.plan.placement.staged
        if not timed or self.place.local_rank:
            return nullcontext(dict)
        path = self.launch_dir / f"gpus-{self.place.node}.csv"
        return gpu_monitor.watching(path, gpu.ids(self.place.local_ranks))

    def facts(self) -> dict[str, Any]:
        """Facts of the rank's node, for the record."""
        facts = environment.capture(self.plan.placement.device, self.place.local_ranks)
        return {**facts, "network": os.environ.get(isolation.NETWORK)}

    def _log_environment(self) -> None:
        """Logs the environment; calibrates where the machine's limits are not known yet."""
        self.enter_stage(-1, "environment")
        if self.place.local_rank == 0:
            self.log.write("environment", value=self.facts())
        if self.engine.node_of and self.place.rank == 0:
            self.log.write("nodes", value=self.engine.node_of)
        self.log.write("pinned", value=self.pinned)
        exchanged = self.plan.exchanged or (self.plan.calibration or {}).get("exchanged")
        if self.plan.calibrate:
            from runners.rank.calibrate import calibrate_ranks

            self.enter_stage(-1, "calibrate")
            limit_s = self.plan.measure.calibration_limit_s
            calibration = calibrate_ranks(limit_s, nodes=self.plan.placement.nodes)
            self.log.write("calibration", value=calibration)
            exchanged = exchanged or calibration.get("exchanged")
            self.enter_stage(-1, "settle")
            gc.collect()
            self.engine.settle(control_step(self.comm.device))
        if self.comm.backend == "gloo":
            self.comm.exchanged = exchanged or algorithms.table(self.comm.world_size)
            self.log.write("exchanged", value=self.comm.exchanged)

    def _wave(self, number: int, wave: list[int]) -> None:
        if self.plan.placement.staged:
            self._check_untimed(wave)
            return
        self.enter_stage(-1, "floor")
        gc.collect()  # garbage of the last wave
        self.engine.measure_floor()
        resident, timed = self.plan.resident[number], []
        for index in wave:
            if cell := self.within_memory(index, partial(self._prepare, index, resident)):
                timed.append(cell)
        gc.collect()  # moves what was built to the oldest generation
        if timed:
            report = self._progress_writer(number, timed)
            seed = f"{self.plan.measure.order_seed}:{self.plan.launch}:{number}"
            rule = self.engine.run(timed, seed, report)
            self.log.write("stop", wave=number, rule=rule)
            for cell in timed:
                self.outlives(cell, partial(self._verify_again, cell))
        self.cells.discard(wave)

    def _check_untimed(self, wave: list[int]) -> None:
        """Verifies every cell, takes some steps, and verifies it again on other tokens."""
        for index in wave:
            self.enter_stage(index, "gate")
            if self.cells.verify(index):
                self.enter_stage(index, "check")
                self.cells.inspect(index)
                for _ in range(UNTIMED_STEPS):
                    self.cells.built[index].call()
                    self.cells.compare(index, "after a step that was not timed")
                self.cells.verify_again(index)
            self.cells.discard([index])

    def within_memory(self, index: int, call: Callable[[], T]) -> T | None:
        """What `call` returns; None, and the cell has failed, where this GPU cannot run it, which
        all ranks find alike, or where it ran out of its memory. With several ranks the launch ends
        then, since the others may wait for a message."""
        try:
            return call()
        except Unsupported as error:
            self.cells.fail(index, str(error))
        except RuntimeError as error:
            if self.place.world_size > 1 or not is_out_of_memory(error):
                raise
            self.cells.fail(index, out_of_memory_text(error))
        gc.collect()  # the error has gone; a cell's step is in a cycle
        self.cells.discard([index])
        return None

    def outlives(self, cell: TimedCell, call: Callable[[], T]) -> T | None:
        """The same for a cell that was prepared; nothing of it is called again."""
        failed = self.cells.failed
        result = None if cell.index in failed else self.within_memory(cell.index, call)
        if cell.index in failed:
            cell.step, cell.check, cell.correct_here = empty_step, None, False
            self.cells.discard([cell.index])
        return result

    def _verify_again(self, cell: TimedCell) -> None:
        """Verifies on other tokens after the last round, unless the cell is already wrong."""
        if not cell.correct:
            return
        self.enter_stage(cell.index, "check")
        self.cells.verify_again(cell.index)
        if not cell.resident:
            self.cells.drop([cell.index])

    def _progress_writer(self, wave: int, cells: Sequence[TimedCell]) -> Callable[[int], None]:
        """Writes, between rounds, how many are done; rank 0 also what they say so far, for people
        to watch: no record is made of it."""

        def write(done: int) -> None:
            medians = medians_ms(cells) if self.place.rank == 0 else {}
            self.log.write("progress", wave=wave, round=done, medians_ms=medians)

        return write

    def _prepare(self, index: int, resident: bool) -> TimedCell | None:
        """Builds, verifies and warms up a cell; None for one that computes something else."""
        self.enter_stage(index, "gate")
        if not self.cells.verify(index):
            return None
        timed = TimedCell(index, self.cells.built[index].call, resident=resident)
        timed.active = lambda: self._active(timed, resident)
        timed.check = partial(self.cells.compare, index)
        self.enter_stage(index, "warm-up")
        self.engine.size_block(timed)
        steady = self.engine.warm_up(timed)
        if not timed.correct:
            self.cells.discard([index])
            return None
        self.log.write("warmup", cell=index, samples=len(timed.warmup_ms), steady=steady)
        self.enter_stage(index, "phases")
        self.cells.inspect(index)
        if not resident:
            self._release(timed)
        return timed

    @contextmanager
    def _active(self, timed: TimedCell, resident: bool) -> Iterator[None]:
        """Around a cell's samples: builds and drops cells that do not fit in memory together."""
        self.enter_stage(timed.index, "round")
        if resident:
            yield
            return
        self.outlives(timed, partial(self._rebuild, timed))
        yield
        self._release(timed)

    def _rebuild(self, timed: TimedCell) -> None:
        self.cells.build(timed.index)
        timed.step = self.cells.built[timed.index].call
        for _ in range(REBUILT_STEPS):
            timed.step()
            self.cells.compare(timed.index, "when it was built again")

    def _release(self, timed: TimedCell) -> None:
        timed.step = empty_step
        self.cells.drop([timed.index])

    def _wait_for_launcher(self, wave: int) -> None:
        """Sleeps while the launcher writes and tracks the wave's records."""
        disarm_watchdog()
        deadline = time.monotonic() + 3600
        while not (self.launch_dir / f"go-{wave}").exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"no word from the launcher after wave {wave}")
            time.sleep(GO_POLL_S)
        self.ranks.barrier()


def medians_ms(cells: Sequence[TimedCell]) -> dict[int, float]:
    """Median over the rounds so far of every cell that is correct so far, by its index."""
    timed = [cell for cell in cells if cell.correct and cell.rounds_ms]
    return {cell.index: statistics.median(cell.rounds_ms) for cell in timed}


def turn_ms(threads: int) -> float:
    """Time in ms until all of a node's threads have had a core once; 0 where every one has a core
    of its own."""
    cores = usable_cores()
    return SLICE_MS * -(-threads // cores) if threads > cores else 0.0


def control_step(device: torch.device) -> Callable[[], None]:
    """A small step that does the same work every time."""
    x, y = torch.randn(2, 256, 256, device=device)

    def step() -> None:
        torch.mm(x, x, out=y)

    return step


def arm_watchdog(limit_s: float) -> None:
    """After `limit_s` every thread's stack goes to stderr and the process ends. Where even stderr
    hangs, a timer of the kernel ends it."""
    faulthandler.dump_traceback_later(limit_s, exit=True)
    signal.setitimer(signal.ITIMER_REAL, limit_s + DUMP_S)


def disarm_watchdog() -> None:
    faulthandler.cancel_dump_traceback_later()
    signal.setitimer(signal.ITIMER_REAL, 0)


def prepare(arguments: list[str]) -> None:
    """Imports what ranks of this plan need, in the process that they are forked from."""
    plan = load(Path(arguments[0]))
    modules = ["runners.rank.calibrate"] if plan.calibrate else []
    if any(cell.workload.mode == "train" for cell in plan.cells):
        modules.append(BACKWARD_MODULE)
    strategies = {cell.strategy.name for cell in plan.cells} & set(names())
    for name in [*modules, *(f"moe.strategies.{one}.layer" for one in sorted(strategies))]:
        importlib.import_module(name)


def main(arguments: list[str]) -> int:
    isolation.die_with_parent(int(os.environ.get("MOE_AGENT_PID", "0")) or None)
    faulthandler.enable()
    faulthandler.register(signal.SIGTERM, chain=True)  # stacks to stderr when others have ended
    plan = load(Path(arguments[0]))
    if plan.placement.backend == "mpi":
        export_environment()
    place = RankPlace.from_environment()
    log = RankLog(rank_path(Path(plan.launch_dir), place.rank))
    log.write("start", rank=place.rank, pid=os.getpid(), clock_ns=time.monotonic_ns())
    pinned = environment.pin(place.local_rank, place.local_ranks, plan.placement.threads)
    torch.set_num_threads(plan.placement.threads)
    try:
        worker = Worker(plan, place, log, pinned)
        worker.run()
        gc.collect()  # graphs in cycles: NCCL does not end while one is left that uses it
        worker.ranks.close()
    except BaseException as error:
        text = f"{type(error).__name__}: {error}"
        if is_out_of_memory(error):
            text = out_of_memory_text(error)
        log.write("error", message=text, clock_ns=time.monotonic_ns())
        raise
    log.write("exit")
    log.close()
    return 0
