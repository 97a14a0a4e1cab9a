"""The columns of the frame: kind, unit (in the name) and meaning.

    python -m analysis.data.schema

writes docs/frame.md, which has them as a table.

Kinds are text, int, float, bool, list and dict; `list[float]` says what is in it, and so does
`dict[float]` of its values, whose names are texts.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from moe.spec import Cell
from runners.records import flat_row

HEADING = """<!-- Written by `python -m analysis.data.schema`: do not edit. -->

# The frame

What `analysis.load` returns and `python -m analysis export` writes ([analysis](analysis.md)): one
row per attempt (key, label and launch), with the same columns in the same order from every source.
Every value survives JSON. Units are in the names. Text that is not known is empty, and such numbers
are missing. The rows are made by `runners/records/flat_row.py`.
"""
KINDS = {bool: "bool", int: "int", float: "float", str: "text", list: "list"}
WORDS = {
    "text": "a text",
    "int": "a whole number of at most 64 bits",
    "float": "a finite number",
    "bool": "true or false",
    "list": "a list",
    "dict": "a mapping",
}


class Column(NamedTuple):
    """A column of the frame: its name, kind and meaning."""

    name: str
    kind: str
    about: str

    @property
    def outer(self) -> str:
        """The kind without what is in it."""
        return parts(self.kind)[0]


_OTHERS = """
sweep text name of the sweep the attempt belongs to
key text hash of what changes the quantity measured
label text tells apart deliberate repeats of one key
launch int number of the start of the ranks within the sweep
wave int number of the set of interleaved cells within the launch
cell_id text key, and label where there is one
attempt_id text cell_id and launch
outcome text measured, wrong, failed, interrupted, or checked (right, and not to be timed)
created text when the record was written, ISO 8601, UTC
model text name of the layer shape the user asked for
scale float divisor the model's sizes were asked with
overrides text the overrides of the command line that gave this cell
metric text what the times are: steady state, or the mean of a block (docs/methodology.md)
median_duration_ms float headline: median over rounds of the round's median time of a step
median_low_ms float lower end of its order-statistic interval
median_high_ms float upper end
median_confidence float confidence that interval reaches
avg_duration_ms float mean over all times of a step (the reference's figure)
std_duration_ms float their standard deviation
min_duration_ms float shortest of them
max_duration_ms float longest of them
avg_throughput float tokens per second: batch_size / (avg_duration_ms / 1000)
num_samples int times of a step: pairs of a short and a long block, or blocks of a fixed length
num_rounds int rounds with at least one of them
latency_ms float one step alone, from a start after a barrier to the last rank's end: median
latency_low_ms float lower end of its order-statistic interval
latency_high_ms float upper end
start_ms float what a block costs beside its steps
start_growth_low float fraction of a step's time that the start may still hold: lower end
start_growth_high float upper end
floor_ms float median makespan of an empty block among the others: what the barrier leaves
round_medians_ms list[float] median time of a step in every round, in the order of round_numbers
round_numbers list[int] numbers of those rounds; cells of one wave share them, so rounds pair up
timed_seconds float wall time inside samples of every kind
steps_per_sample int steps in the longest timed block
void_samples int samples of emulated ranks in which one was late: they count for nothing
flags list[text] what limits the use of the figures
notes list[text] remarks of the harness, such as a clamped top-k
error_message text why a failed attempt failed
error_rank int rank that failed
error_log text log to read
gate_ok bool whether the cell computed the right thing before, between and after its rounds
gate_error float largest error of a token's output against the oracle
gate_tolerance float largest such error that is taken for rounding
gate_rms float root mean square error of all outputs of a rank, the largest of the ranks
gate_rms_limit float largest such error that is taken for rounding
gate_gradient_error float largest error of a gradient (train)
gate_gradient_limit float largest such error that is taken for rounding
gate_tokens_checked int tokens compared with float64
gate_rows_compared int tokens compared in all
gate_near_ties int tokens that chose otherwise than in float64, within rounding
gate_detail text what the check found
stop_rule text rule that ended sampling
stop_target float relative half-width the stop rule aimed at
warmup_samples int samples of warm-up
warmup_steady bool whether a steady state was seen
drift float largest over smallest anchor median of the wave, minus 1
anchor_medians_ms dict[float] median of the wave's anchor cell: first, middle, last
kernel_ran text expert kernel that ran
host_waits_max int waits of the host for the GPU in one step, the most of any rank
skew_lambda float slots of the busiest rank over the mean of the ranks
expert_skew_lambda float slots of the busiest expert over the mean of the experts
rank_slots list[float] slots per rank
expert_slots list[float] slots per expert
phase_ms dict[float] mean over ranks of each phase, per step, from separate passes
phase_per_rank_ms list[dict[float]] the same for every rank
phase_passes_ms list[list[dict[float]]] the same for every pass, and in it for every rank
phase_total_ms float mean over ranks of the whole step in those passes
sent_bytes_max int bytes the busiest rank sends in a step
received_bytes_max int bytes the busiest rank receives in a step
busbw_bytes_max int bus-bandwidth bytes of the busiest rank in a step
sent_bytes_total int bytes all ranks send in a step
sent_bytes_by_collective dict[int] the same by collective
collective_calls_max int collectives of a step on the busiest rank
traffic list[list[dict]] every rank's collectives of a step
peak_bytes_max int peak memory of the largest rank
weights_bytes_max int weights of the largest rank
step_bytes_max int most bytes of tensors alive at once that a step adds, of the largest rank
memory_method text how peak memory was read
host text salted hash of the host: tells machines apart, names none
cpu_model text model of the processor
cores int usable cores of the host
memory_total_bytes int memory of the host
local_ranks int ranks on that host
gpu_model text model of the first GPU
os text operating system
python_version text Python of the ranks
torch_version text torch of the ranks
project_version text version of this project
git_sha text commit that ran
git_dirty text hash of uncommitted changes, empty for a clean tree
emulated bool whether the ranks were an emulated cluster's, whose times are dilated
emulation dict that cluster: environment.emulated of the record
environment dict everything recorded about the launch
measure dict how the cell was measured
calibration dict what the machine can do, as measured on it
"""

SAMPLES = (
    Column(
        "sample_ms", "list[float]", "makespan per step of every sample, by kind in the order taken"
    ),
    Column("sample_round", "list[int]", "round of every sample"),
    Column("sample_steps", "list[int]", "steps of every sample"),
    Column(
        "sample_kind", "list[text]", "warmup, short, long, latency, fixed or void, of every sample"
    ),
)
MAX_FLOAT = sys.float_info.max
IDENTITY_COUNT = 12  # columns of _OTHERS that come before the config


def config_columns() -> tuple[Column, ...]:
    """One column per field of the cell, named as in `runners.records.flat_row.flat_config`."""
    flat: dict[str, Any] = flat_row.flat_config(Cell())
    return tuple(
        Column(name, KINDS[type(value)], "config: field of the cell")
        for name, value in flat.items()
    )


CONFIG = tuple(column.name for column in config_columns())
# The parts of a workload, which the column `load` of the cells has as one text, since zipf 0.6 and
# zipf 1.2 under one name would be two cells at one place.
LOAD_PARTS = ("workload", "workload_parameter", "workload_nominal_ep", "trace_sha256")


@cache
def columns() -> tuple[Column, ...]:
    """All columns in their order: identity, config, figures, trust, details, environment."""
    others = [Column(*line.split(" ", 2)) for line in _OTHERS.strip().splitlines()]
    return (*others[:IDENTITY_COUNT], *config_columns(), *others[IDENTITY_COUNT:])


def is_numeric(column: str) -> bool:
    """Whether it is a column of numbers, or a figure that summarized cells alone have."""
    kinds = {c.name: c.kind for c in columns()}
    return kinds.get(column, "float") in ("int", "float")


def parts(kind: str) -> tuple[str, str]:
    """("list", "dict[float]") of list[dict[float]]; ("int", "") of int."""
    outer, _, inner = kind.partition("[")
    return outer, inner.removesuffix("]")


def holds(kind: str, value: Any) -> bool:
    """Whether a JSON value is of this kind and fits into the frame."""
    outer, inner = parts(kind)
    if outer == "list":
        return isinstance(value, list) and (not inner or all(holds(inner, v) for v in value))
    if outer == "dict":
        return isinstance(value, dict) and (
            not inner or all(holds("text", n) and holds(inner, v) for n, v in value.items())
        )
    if outer == "text":
        return isinstance(value, str) and _is_unicode(value)
    if outer == "bool":
        return isinstance(value, bool)
    return not isinstance(value, bool) and _is_number(value, whole=outer == "int")


def _is_unicode(text: str) -> bool:
    """False for lone surrogates, which JSON allows and which no file and no terminal takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_number(value: Any, whole: bool) -> bool:
    """Whole numbers may be written as 8.0, as a server may do."""
    if not isinstance(value, int | float):
        return False
    if not whole:
        return abs(value) <= MAX_FLOAT
    return -(2**63) <= value < 2**63 and value == int(value)


def words(kind: str) -> str:
    """The kind for an error: "a list, each a finite number"."""
    outer, inner = parts(kind)
    return f"{WORDS[outer]}, each {words(inner)}" if inner else WORDS[outer]


def markdown() -> str:
    """docs/frame.md."""
    lines = [HEADING, "| column | kind | meaning |", "|---|---|---|"]
    lines += [f"| `{c.name}` | {c.kind} | {c.about} |" for c in (*columns(), *SAMPLES)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    path = Path(__file__).resolve().parents[2] / "docs" / "frame.md"
    path.write_text(markdown(), "utf-8")
    print(path)
