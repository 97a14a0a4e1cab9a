"""Type and meaning of every field of a record: path, type, meaning, a line each.

docs/records.md shows the lines; runners/packed/record_schema.py makes the record's schema of them,
and explains the types. `[]` in a path stands for the items of a list. What `cell` and `measure`
hold are knobs, documented by their dataclasses (moe/spec.py, runners/plan.py). Two parts are
documented elsewhere: samples (runners/records/record.py) and calibration
(runners/records/calibrations.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

from moe.knob import Knob, knobs
from moe.parallel.algorithms import EXCHANGE, LIBRARY
from moe.spec import DEVICES, Cell
from runners.host import environment, topology
from runners.plan import RAY, SHARED_FOLDER, STREAM, Measure
from runners.records.record import KINDS, OUTCOMES, READABLE, RULES

TYPED = ("samples", "calibration")
# Names below these paths are data, or a library's: one line describes all of them.
WHOLE = ("kernel.candidates_ms", "phases.per_rank_ns", "phases.per_pass_ns",
         "environment.versions", "environment.git",
         "environment.threads", "environment.variables", "environment.before", "environment.after",
         "environment.gpus", "environment.topology.nodes")  # fmt: skip
OPEN = {  # texts of a cell that are of no closed list
    "cell.strategy.name": "word",
    "cell.strategy.placement": "word",
    "cell.strategy.variant": "word",
    "cell.workload.trace_sha256": "sha256",
    "cell.workload.cache": "cache",
}
# Types that are closed lists.
CLOSED: dict[str, tuple[Any, ...]] = {
    "outcome": OUTCOMES,
    "kind": KINDS,
    "rule": RULES,
    "schema": READABLE,
    "device": DEVICES,
    "algorithm": ("", LIBRARY, EXCHANGE),
    "files": ("", SHARED_FOLDER, STREAM, RAY),
    "clock": (topology.END_BARRIER,),
    "network": ("own", "loopback", "between nodes", "emulated"),
    "how": ("measured", "chosen before", "asked for", "the system's own"),
    "method": environment.PEAK_METHODS,
    "cache": next(known.allowed for field, known in knobs(Measure) if field.name == "cache"),
}
HEADING = "| field | type | meaning |"
_OF_ANNOTATION = {"int": "int", "float": "number", "bool": "bool", "tuple[int, ...]": "int[]"}

_PARTS = """
key hex12 first 12 hex digits of the cell's sha256: equal where the same is measured
label label tells apart deliberate repeats of a cell
launch int which launch of the sweep, from 0
wave int which wave of the launch, from 0
sweep name name of the sweep's folder
outcome outcome how the attempt ended
notes sentences remarks
samples samples every block: its round, place in it, steps and kind, each rank's start and end in ns
host_waits int[] how often a step makes the host wait for the GPU, on every rank; null on a CPU
calibration calibration what the machine can do at best
created time when it was written
schema schema version of the record's form
"""
_CHECK = """
ok bool whether it agrees with the oracle; in `gate` itself: in all checks, and between them too
detail sentence what differs, in words
error number? largest relative error of a token's output, over tokens and ranks
tolerance number? its limit
rms number? relative root mean square error of all outputs of a rank, the largest of the ranks
rms_limit number? its limit
gradient_error number? largest relative error of a gradient; null but in mode=train
gradient_limit number? its limit
tokens_checked int? tokens that were compared with float64
rows_compared int? rows of the output that were compared with the plain computation
near_ties int? tokens that chose otherwise than float64 does, within rounding
seed int? drew the tokens that were checked
"""
_SAMPLES = "Samples, by columns: see the samples themselves"
_FIELDS = f"""
error.message sentence what ended the cell; null but where the outcome is failed
error.rank int? the rank it came from
error.log sentence that rank's log, from the sweep's folder
gate object the check before timing
gate.after object the check after timing, on other tokens
gate.float32 object the check of the twin in float32 of a cell in half precision
gate.changed object what a later step left that was not what was proven
gate.changed.what sentence which tensor
gate.changed.relative number? by how much of it, root mean square; null for no number
gate.changed.text sentence both, in words
gate.changed.when sentence the step it was seen after, in words
floor samples the empty block, among the cells' blocks; {_SAMPLES}
stop.rule rule what ended the rounds: fixed, precision, maximum, wall, interrupted or wrong
stop.rounds int rounds that count
stop.target number? measure.precision
warmup.samples int blocks before the first round
warmup.steady bool? whether the last of them agreed
phases.passes int steps whose phases were timed
phases.per_rank_ns map(number)[] ns by phase, of one step of every rank
phases.total_ns number[] that step's ns on every rank
phases.per_pass_ns map(number)[][] ns by phase, of every pass and in it of every rank
traffic[][].collective word of one step of a rank, a line for each collective and group
traffic[][].group word the ranks it is over: world, ep, tp ...
traffic[][].calls int how often
traffic[][].sent_bytes number to other ranks; what stays on the rank is not in it
traffic[][].received_bytes number from other ranks
traffic[][].algorithm algorithm exchange or library, of all_reduce and all_gather; else empty
exchanged.all_reduce int bytes of the largest message of all ranks that is exchanged; gloo only
exchanged.all_gather int the same
traffic[][].busbw_bytes number numerator of the bus bandwidth of nccl-tests
memory[].peak_bytes int? of every rank: the most it had while it was built, checked and timed first
memory[].current_bytes int? what it had when that was read
memory[].method method how both were read
memory[].restarted bool? whether the peak was counted from the cell's start, or from the process's
memory[].before_bytes int? what it had before the cell was built
memory[].weights_bytes int? of the rank's own weights
memory[].step_bytes int? the most of tensors alive at once in a step, beyond those before it
memory[].cache.bytes int of a cold cell on a GPU: what a step reads of a copy, weights and tokens
memory[].cache.sets int copies that it rotates over
memory[].cache.l2_bytes int? the GPU's cache
memory[].cache.cold_s number device time of reading those bytes of the copies in turn, for one copy
memory[].cache.warm_s number the same of one copy again and again
skew.expert_slots number[] slots of every expert
skew.rank_slots number[] slots of every rank
kernel.name word the kernel that ran
kernel.how how measured, chosen before, asked for, or the system's own
kernel.candidates_ms map(number) ms by kernel tried, of a graph's the GPU's; not where chosen before
kernel.out_of_memory word[] kernels for which a GPU's memory was not enough; absent for none
anchors.key hex12 the cell that was timed again and again through the wave
anchors.first samples its blocks at the wave's start; {_SAMPLES}
anchors.middle samples in its middle
anchors.last samples at its end
meta.model model? how the user asked for the layer
meta.scale number? its divisor
meta.overrides override[] the words of the command line
environment.versions map(version?) of Python, PyTorch, this project, libraries, CUDA and NCCL
environment.git git? of the clone: sha, and dirty, a hash of the changes; null where there is none
environment.system system? kernel and architecture
environment.host hex12? salted hash of the machine
environment.boot hex12? salted hash of its start
environment.cpu_model hardware? name of the CPU
environment.cores int? that may be used
environment.cpu_quota number? cores' worth of time that may be used; null for no limit
environment.affinity int[]? CPUs that the rank may run on
environment.governor word? of the CPU's frequency
environment.numa_nodes int? how many
environment.llc_bytes int? the last-level cache
environment.memory_total_bytes int? of the machine
environment.memory_available_bytes int? of it, before the launch
environment.local_ranks int? ranks on the machine
environment.threads map(int?) by library
environment.variables variables set, of those that change speed
environment.device device cpu or cuda
environment.gpus gpu[] name, memory and more of every GPU
environment.gpu_links word[][] between them
environment.network network? own, loopback, between nodes or emulated
environment.files files how files of other machines came: shared folder, stream to node 0, Ray
environment.emulated.dilation number of an emulated cluster: wall time for a second of CPU time
environment.emulated.ranks_per_node int ranks of a node
environment.emulated.intra_mbit_s number rate of a rank's link inside a node, frames included
environment.emulated.inter_mbit_s number the same between nodes
environment.emulated.mtu int bytes of a packet
environment.pinned int[]?[]? CPUs of every rank, or null
environment.before data state of host and process before the wave
environment.after data[] the same of every rank after it; `gpus`: clocks, power, throttling
environment.topology.node_of int[] of several nodes: the node of every rank
environment.topology.hosts hex12?[] salted hash of every node's machine
environment.topology.nodes node[] CPU, cores, memory and GPUs of every node
environment.topology.clock clock how times of several nodes were put together
"""


@dataclass(frozen=True)
class Line:
    """A field. Of a knob, `choices` are its values where its type is `choice`."""

    path: str
    type: str
    about: str
    choices: tuple[str, ...] = ()


def lines() -> list[Line]:
    """Every field: the record's own, those of the knobs, then all others."""
    fields = [*_lines(_PARTS), *_knobs("cell", Cell()), *_knobs("measure", Measure())]
    for line in _lines(_FIELDS):
        fields.append(line)
        if line.path in ("gate", "gate.after", "gate.float32"):
            fields += _lines(_CHECK, f"{line.path}.")
    return fields


def _lines(text: str, below: str = "") -> Iterator[Line]:
    for line in text.strip().splitlines():
        path, kind, about = line.split(" ", 2)
        yield Line(f"{below}{path}", kind, about)


def _knobs(path: str, part: Any) -> Iterator[Line]:
    """Fields of a dataclass, those of dataclasses in it included."""
    for field, known in knobs(type(part)):
        yield _knob(f"{path}.{field.name}", str(field.type), known)
    for name, value in vars(part).items():
        if is_dataclass(value):
            yield from _knobs(f"{path}.{name}", value)


def _knob(path: str, annotation: str, known: Knob) -> Line:
    if annotation in _OF_ANNOTATION:
        return Line(path, _OF_ANNOTATION[annotation], known.about)
    if path in OPEN:
        return Line(path, OPEN[path], known.about)
    stored = [word for word in (known.words or {}).values() if isinstance(word, str)]
    return Line(path, "choice", known.about, (*known.allowed, *stored))


def documented() -> dict[str, str]:
    """Meaning of every field but the record's own parts, by path."""
    own = {line.path for line in _lines(_PARTS)}
    return {line.path: line.about for line in lines() if line.path not in own}


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
    rows = [f"| `{line.path}` | {line.type} | {line.about} |" for line in lines()]
    return "\n".join([HEADING, "|---|---|---|", *rows])
