"""The inputs of a prediction: the layer, the workload, the machine and its coefficients."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from analysis.data.cell_summary import CellSummary
from analysis.errors import InputError
from analysis.predict import (
    candidates,
    fit,
    hardware,
    model,
    observed,
    roofline,
    routing,
    whole_options,
)
from analysis.predict.fit import Measured
from analysis.predict.hardware import HardwareModel
from analysis.predict.model import MEASURED, MEASURED_HERE, Coefficients, Prediction
from analysis.predict.routing import CapturedRouting
from analysis.predict.whole import (
    DECODE,
    MODES,
    PREFILL,
    TOKENS_PER_RANK,
    TRAIN,
    Deployment,
)
from moe import spec
from moe.cost.whole_memory import MemoryUse
from moe.spec import TOKENS, Cell, LayerSpec, RankLayout, WorkloadSpec
from runners.records import emulation
from runners.records.emulation import Emulation

HERE = "here"
MAX_RANKS = 65536
DECODE_TOKENS = 128  # on a rank, at most, of what is called decode


def tokens_per_rank(work: WorkloadSpec, ranks: int) -> int:
    """Tokens that a rank starts with."""
    return work.batch_size if work.tokens == "replicated" else max(1, work.batch_size // ranks)


@dataclass
class PredictionProblem:
    """`fixed` is a cluster, whose memory is of a rank; `here` has the fields below it instead."""

    cluster: str
    layer: LayerSpec
    work: WorkloadSpec
    skew: float
    per_rank: int  # tokens per rank where the batch grows with the ranks; else 0
    coefficients: Coefficients
    fixed: HardwareModel | None = None  # a cluster's
    calibrations: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    emulation: Emulation | None = None  # whose ranks the records are of
    cores: int = 0
    memory_bytes: float = float("inf")  # of the machine of the records, for all its ranks
    known: list[Measured] = field(default_factory=list)
    intervals: Mapping[Cell, tuple[float, float, float]] = field(default_factory=dict)
    routing: CapturedRouting | None = None  # of --trace, instead of `skew`
    model: str = ""  # of conf/model; "" where the layer is that of the records
    whole: Deployment | None = None  # else the layer alone

    def machine(self, ranks: int) -> HardwareModel:
        """The cluster, or this machine by its calibration for the nearest number of ranks."""
        if self.fixed is not None:
            return self.fixed
        calibration = self.calibrations[observed.nearest(self.calibrations, ranks)]
        machine = observed.machine_of(calibration, ranks, self.emulation, self.memory_bytes)
        assert machine is not None  # `observed.calibrations` has usable ones only
        return machine

    def workload(self, ranks: int) -> WorkloadSpec:
        """The workload at this number of ranks, whose batch may grow with them."""
        batch = self.per_rank * ranks if self.per_rank else self.work.batch_size
        return dataclasses.replace(self.work, batch_size=batch)

    def placement(self, ranks: int) -> RankLayout:
        """The ranks on the cluster, or on this machine with its cores shared among them."""
        if self.fixed is not None:
            return RankLayout(ranks, "nccl", "cuda", 1)
        if self.emulation:
            return RankLayout(ranks, "gloo", "cpu", self.known[0].cell.placement.threads)
        backend = self.known[0].cell.placement.backend if self.known else "gloo"
        return RankLayout(ranks, backend, "cpu", max(1, self.cores // ranks))

    def tokens_per_rank(self, ranks: int) -> int:
        """Tokens that a rank starts with."""
        return tokens_per_rank(self.workload(ranks), ranks)

    def phase(self, ranks: int) -> str:
        """Of PHASES. Of one layer, a forward pass of few tokens on a rank is called decode."""
        if self.whole:
            return self.whole.plan.phase
        if self.work.mode == "train":
            return TRAIN
        return DECODE if self.tokens_per_rank(ranks) <= DECODE_TOKENS else PREFILL

    def in_phase(self, phase: str, tokens_per_rank: int, ranks: int) -> PredictionProblem:
        """The same problem in another phase, with so many tokens on each rank."""
        each = 1 if self.work.tokens == "replicated" else ranks
        work = dataclasses.replace(self.work, mode=MODES[phase], batch_size=tokens_per_rank * each)
        whole = self.whole.in_phase(phase) if self.whole else None
        return dataclasses.replace(self, work=work, per_rank=0, whole=whole)

    def skew_of(self, cell: Cell) -> float:
        """The busiest rank's slots over the mean: of the captured routing, else as stated."""
        return self.routing.skew(cell) if self.routing else self.skew

    def modelled(self, cell: Cell, skew: float) -> Prediction:
        """By the model, whatever the records have."""
        machine = self.machine(cell.placement.world_size)
        return self._of_model(model.predict(cell, machine, self.coefficients, skew))

    def predict(self, cell: Cell) -> Prediction:
        """Measured where a record has exactly this cell, else by the model."""
        if cell not in self.intervals:
            return self.modelled(cell, self.skew_of(cell))
        machine = self.machine(cell.placement.world_size)
        prediction = model.predict(cell, machine, self.coefficients, self.skew_of(cell))
        value, low, high = self.intervals[cell]
        return self._of_model(dataclasses.replace(
            prediction, total_ms=value, low_ms=low, high_ms=high, status=MEASURED, reason="",
            memory=MemoryUse(prediction.memory.parts), software=MEASURED_HERE,
        ))  # fmt: skip

    def _of_model(self, prediction: Prediction) -> Prediction:
        """Of the whole model, where one is asked for."""
        if not self.whole:
            return prediction
        cell = prediction.cell
        machine, forward = self.machine(cell.placement.world_size), None
        if self.whole.recomputes:
            work = dataclasses.replace(cell.workload, mode="forward")
            again = dataclasses.replace(cell, workload=work)
            forward = model.predict(again, machine, self.coefficients, prediction.skew)
        return self.whole.of(prediction, machine, forward)

    def refused(self, strategy: str) -> str:
        """Why a strategy is left out, or nothing."""
        return self.whole.refused(strategy) if self.whole else ""


def make(options: argparse.Namespace, cells: Sequence[CellSummary]) -> PredictionProblem:
    """From the options, and where the cluster is `here` from the cells of its records.

    Raises InputError for options that do not fit together, and for too few cells.
    """
    _numbers(options)
    if options.one_layer:
        whole_options.of_one_layer(options, "leave out --one-layer")
    elif options.cluster == HERE and not options.phase:
        whole_options.of_one_layer(options, "add --model and --phase")
    if options.cluster == HERE and options.software:
        raise InputError(
            f"--software {options.software}: not with --cluster here, whose times are measured or "
            "fitted to them; leave it out, or name a cluster"
        )
    if options.cluster == HERE and not cells:
        raise InputError("--cluster here: needs records; give a SOURCE, or name another cluster")
    setup = _here(options, cells) if options.cluster == HERE else _cluster(options)
    setup.model = options.model
    return _with_routing(setup, options.trace) if options.trace else setup


def _numbers(options: argparse.Namespace) -> None:
    """Raises InputError for a number below 0; 0 is the default."""
    for name in ("scale", "batch_size", "tokens_per_rank", "topk"):
        value = getattr(options, name)
        if value < 0:
            option = name.replace("_", "-")
            raise InputError(f"--{option} {value}: allowed are numbers from 1; or leave it out")


def _with_routing(setup: PredictionProblem, path: str) -> PredictionProblem:
    captured = routing.read(path, setup.layer)
    work = dataclasses.replace(
        setup.work, kind="trace", parameter=0.0, nominal_ep=0, trace_sha256=captured.sha256
    )
    return dataclasses.replace(setup, routing=captured, work=work)


def _cluster(options: argparse.Namespace) -> PredictionProblem:
    cluster = hardware.with_profile(hardware.load(options.cluster), options.software)
    if not options.model:
        raise InputError(f"--model: missing; --cluster {options.cluster} needs a layer's shape")
    layer = candidates.model_layer(
        options.model, options.scale or 1, options.topk, options.dtype or "bfloat16"
    )
    deployed = None
    if not options.one_layer:
        deployed = whole_options.deployment(options, roofline.profile_of(cluster).name)
    work, per_rank = _work(
        options, WorkloadSpec(tokens="sharded"), TOKENS_PER_RANK[PREFILL], deployed
    )
    return PredictionProblem(cluster.name, candidates.plain(layer), work, options.skew or 1.0,
                             per_rank, model.of_machine(cluster), cluster,
                             whole=deployed)  # fmt: skip


def _here(options: argparse.Namespace, cells: Sequence[CellSummary]) -> PredictionProblem:
    known = observed.measured(cells)
    coefficients = fit.fit(known)
    layer, first = known[0].cell.layer, known[0].cell.workload
    deployed = None
    if options.phase:
        if not options.model:
            raise InputError(f"--phase {options.phase}: needs --model, the whole model's name")
        deployed, first = whole_options.deployment(options, ""), WorkloadSpec(tokens="sharded")
    if options.model:
        dtype = options.dtype or layer.dtype
        asked = candidates.model_layer(options.model, options.scale or 1, options.topk, dtype)
        layer = candidates.plain(asked)
    elif options.topk:
        layer = dataclasses.replace(layer, topk=options.topk, topk_requested=options.topk)
    work, per_rank = _work(options, first, 0, deployed)
    intervals = {
        _plain_cell(summary.cell): (summary.median_ms, summary.low_ms, summary.high_ms)
        for summary in cells
        if observed.of_cell(summary)
    }
    return PredictionProblem(HERE, layer, work, options.skew or 1.0, per_rank, coefficients,
                             None, observed.calibrations(cells),
                             emulation.of_values(cells[0].emulation), cells[0].cores or 1,
                             observed.memory_bytes(cells), known, intervals,
                             whole=deployed)  # fmt: skip


def _plain_cell(cell: Cell) -> Cell:
    """Without the dispatcher where a strategy has none, as `candidates` writes it."""
    if cell.strategy.name in candidates.EXPERT_PARALLEL:
        return cell
    strategy = dataclasses.replace(cell.strategy, dispatcher="local")
    return dataclasses.replace(cell, strategy=strategy)


def _work(
    options: argparse.Namespace, base: WorkloadSpec, per_rank: int, deployed: Deployment | None
) -> tuple[WorkloadSpec, int]:
    mode, tokens = options.mode or base.mode, options.tokens or base.tokens
    if deployed:
        mode, per_rank = MODES[deployed.plan.phase], TOKENS_PER_RANK[deployed.plan.phase]
    whole_options.one_of("mode", mode, spec.MODES)
    whole_options.one_of("tokens", tokens, TOKENS)
    if options.batch_size and options.tokens_per_rank:
        raise InputError(
            f"--tokens-per-rank {options.tokens_per_rank}: not together with --batch-size "
            f"{options.batch_size}; leave one out"
        )
    if options.trace and options.skew is not None:
        raise InputError(
            f"--skew {options.skew:g}: not together with --trace, which has a skew of its own; "
            "leave --skew out"
        )
    if options.skew is not None and not options.skew >= 1:
        raise InputError(
            f"--skew {options.skew:g}: allowed are numbers from 1, which is even; choose one, or "
            "leave it out"
        )
    each = options.tokens_per_rank or (0 if options.batch_size else per_rank)
    batch = options.batch_size or base.batch_size
    return dataclasses.replace(base, batch_size=batch, mode=mode, tokens=tokens), each


def world_sizes(text: str) -> list[int]:
    """ "8..64" is 8, 16, 32, 64; "8,12" is 8 and 12. Raises InputError."""
    try:
        if ".." in text:
            low, high = (int(part) for part in text.split(".."))
            sizes = []
            while 0 < low <= high:
                sizes.append(low)
                low *= 2
        else:
            sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1 or max(sizes) > MAX_RANKS:
        raise InputError(
            f"--world-size {text}: allowed are numbers up to {MAX_RANKS}, such as 8..4096 or 8,16"
        )
    return sizes
