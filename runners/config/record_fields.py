"""Meaning of every field of a record, a path and its meaning a line; docs/records.md shows it.

`[]` stands for the items of a list. What `cell` and `measure` hold are knobs, documented by their
dataclasses (moe/spec.py, runners/plan.py). Two parts are documented elsewhere: samples
(runners/records/record.py) and calibration (runners/records/calibrations.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

from moe.knob import knobs
from moe.spec import Cell
from runners.plan import Measure

TYPED = ("samples", "calibration")
# Names below these paths are data, or a library's: one line describes all of them.
WHOLE = ("kernel.candidates_ms", "phases.per_rank_ns", "phases.per_pass_ns",
         "environment.versions", "environment.git",
         "environment.threads", "environment.variables", "environment.before", "environment.after",
         "environment.gpus", "environment.topology.nodes")  # fmt: skip

_CHECK = """
ok whether it agrees with the oracle; in `gate` itself: in all checks, and between them too
detail what differs, in words
error largest relative error of a token's output, over tokens and ranks
tolerance its limit
rms relative root mean square error of all outputs of a rank, the largest of the ranks
rms_limit its limit
gradient_error largest relative error of a gradient; null but in mode=train
gradient_limit its limit
tokens_checked tokens that were compared with float64
rows_compared rows of the output that were compared with the plain computation
near_ties tokens that chose otherwise than float64 does, within rounding
seed drew the tokens that were checked
"""
_SAMPLES = "Samples, by columns: see the samples themselves"
_FIELDS = f"""
error.message what ended the cell; null but where the outcome is failed
error.rank the rank it came from
error.log that rank's log, from the sweep's folder
gate the check before timing
gate.after the check after timing, on other tokens
gate.float32 the check of the twin in float32 of a cell in half precision
gate.changed what a later step left that was not what was proven
gate.changed.what which tensor
gate.changed.relative by how much of it, root mean square; null for no number
gate.changed.text both, in words
gate.changed.when the step it was seen after, in words
floor the empty block, among the cells' blocks; {_SAMPLES}
stop.rule what ended the rounds: fixed, precision, maximum, wall, interrupted or wrong
stop.rounds rounds that count
stop.target measure.precision
warmup.samples blocks before the first round
warmup.steady whether the last of them agreed
phases.passes steps whose phases were timed
phases.per_rank_ns ns by phase, of one step of every rank
phases.total_ns that step's ns on every rank
phases.per_pass_ns ns by phase, of every pass and in it of every rank
traffic[][].collective of one step of a rank, a line for each collective and group
traffic[][].group the ranks it is over: world, ep, tp ...
traffic[][].calls how often
traffic[][].sent_bytes to other ranks; what stays on the rank is not in it
traffic[][].received_bytes from other ranks
traffic[][].algorithm exchange or library, of all_reduce and all_gather; else empty
exchanged.all_reduce bytes of the largest message of all ranks that is exchanged; gloo only
exchanged.all_gather the same
traffic[][].busbw_bytes numerator of the bus bandwidth of nccl-tests
memory[].peak_bytes of every rank: the most it had while the cell was built, checked and timed first
memory[].current_bytes what it had when that was read
memory[].method how both were read
memory[].restarted whether the peak was counted from the cell's start, or from the process's
memory[].before_bytes what it had before the cell was built
memory[].weights_bytes of the rank's own weights
memory[].step_bytes the most of tensors alive at once in a step, beyond those before it
memory[].cache.bytes of a cold cell on a GPU: what a step reads of a copy, weights and tokens
memory[].cache.sets copies that it rotates over
memory[].cache.l2_bytes the GPU's cache
memory[].cache.cold_s device time of reading those bytes of the copies in turn, for one copy
memory[].cache.warm_s the same of one copy again and again
skew.expert_slots slots of every expert
skew.rank_slots slots of every rank
kernel.name the kernel that ran
kernel.how measured, chosen before, asked for, or the system's own
kernel.candidates_ms ms by kernel tried, for a graph's step the GPU's alone; not where chosen before
kernel.out_of_memory kernels for which a GPU's memory was not enough; absent where it was for all
anchors.key the cell that was timed again and again through the wave
anchors.first its blocks at the wave's start; {_SAMPLES}
anchors.middle in its middle
anchors.last at its end
meta.model how the user asked for the layer
meta.scale its divisor
meta.overrides the words of the command line
environment.versions of Python, PyTorch, this project and libraries; on a GPU of CUDA and NCCL
environment.git of the clone: sha, and dirty, a hash of the changes; null where there is none
environment.system kernel and architecture
environment.host salted hash of the machine
environment.boot salted hash of its start
environment.cpu_model name of the CPU
environment.cores that may be used
environment.cpu_quota cores' worth of time that may be used; null for no limit
environment.affinity CPUs that the rank may run on
environment.governor of the CPU's frequency
environment.numa_nodes how many
environment.llc_bytes the last-level cache
environment.memory_total_bytes of the machine
environment.memory_available_bytes of it, before the launch
environment.local_ranks ranks on the machine
environment.threads by library
environment.variables set, of those that change speed
environment.device cpu or cuda
environment.gpus name, memory and more of every GPU
environment.gpu_links between them
environment.network own, loopback or between nodes
environment.files how files of other machines came: shared folder, stream to node 0, Ray
environment.emulated.dilation of an emulated cluster: wall time for each second of a rank's CPU time
environment.emulated.ranks_per_node ranks of a node
environment.emulated.intra_mbit_s rate of a rank's link inside a node, frames included
environment.emulated.inter_mbit_s the same between nodes
environment.emulated.mtu bytes of a packet
environment.pinned CPUs of every rank, or null
environment.before state of host and process before the wave
environment.after the same of every rank after it; `gpus`: clocks, power, throttling in the wave
environment.topology.node_of of several nodes: the node of every rank
environment.topology.hosts salted hash of every node's machine
environment.topology.nodes CPU, cores, memory and GPUs of every node
environment.topology.clock how times of several nodes were put together
"""


def documented() -> dict[str, str]:
    """Meaning of every field, by path."""
    meanings = dict(_knobs("cell", Cell()) | _knobs("measure", Measure()))
    for path, about in _lines(_FIELDS):
        meanings[path] = about
        if path in ("gate", "gate.after", "gate.float32"):
            meanings |= {f"{path}.{name}": meaning for name, meaning in _lines(_CHECK)}
    return meanings


def _knobs(path: str, part: Any) -> dict[str, str]:
    """Help of a dataclass's fields, those of dataclasses in it included."""
    about = {f"{path}.{field.name}": known.about for field, known in knobs(type(part))}
    for name, value in vars(part).items():
        if is_dataclass(value):
            about |= _knobs(f"{path}.{name}", value)
    return about


def _lines(text: str) -> Iterator[tuple[str, str]]:
    for line in text.strip().splitlines():
        path, _, about = line.partition(" ")
        yield path, about


def leaves(content: Mapping[str, Any]) -> set[str]:
    """Paths that a record, as a dict, holds in the parts that are documented here."""
    paths: set[str] = set()
    for name, part in content.items():
        if name not in TYPED and _holds_names(part):
            paths |= _below(name, part)
    return paths


def _below(path: str, part: Any) -> set[str]:
    if path in WHOLE or not _holds_names(part) or "start_ns" in part:
        return {path}
    if isinstance(part, list):
        return set().union(*(_below(f"{path}[]", item) for item in part))
    return set().union(*(_below(f"{path}.{name}", value) for name, value in part.items()))


def _holds_names(part: Any) -> bool:
    if isinstance(part, list):
        return any(map(_holds_names, part))
    return isinstance(part, dict)


def markdown() -> str:
    """The table of docs/records.md."""
    rows = [f"| `{path}` | {about} |" for path, about in documented().items()]
    return "\n".join(["| field | meaning |", "|---|---|", *rows])
