"""The record: what one attempt at a cell left behind. Torch-free, shared with the analysis.

A record holds inputs only (config, environment, raw samples, counters). Everything derived from
them, such as a median, a fraction of a roofline or a verdict, is computed when it is read.
Layout on disk, below a sweep folder:

    cells/<key>[.<label>]/record-<launch>.json   one attempt: key + label + launch; its last field
                                                 is the checksum of all before it
    launches/<n>/samples/rank<r>.jsonl           every rank's own lines, flushed each round
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe.spec import Cell, LayerSpec, RankLayout, RouterSpec, StrategySpec, WorkloadSpec
from runners.records import emulation
from runners.records.sealed import RecordError, sealed, unsealed, write_atomic

# 2: every file carries the checksum of its content; a time is the mean over a block of steps
# 3: every sample has a kind; a time is a step's in steady state, by two lengths of block
# 4: the layer and the style of code of the project's starting point are called reference
SCHEMA = 4
COMPARABLE = (3, SCHEMA)  # in which a time means the same
READABLE = (2, *COMPARABLE)  # older ones are refused by name
FORMER_NAMES = {"reference": "seed", "peer_reference": "peer_seed"}  # until schema 3
KINDS = ("warmup", "short", "long", "latency", "fixed", "void")
# interrupted: there are samples, but of fewer rounds than the minimum; they are kept and count for
# nothing. checked: proven right, and not to be timed, as ranks on GPUs send through the host.
OUTCOMES = ("measured", "wrong", "failed", "interrupted", "checked")
RULES = ("", "fixed", "precision", "maximum", "wall", "interrupted", "wrong")  # that end rounds
GOOD = ("measured", "checked")  # nothing is left to do for the cell


@dataclass
class Samples:
    """Columnar: one entry per sample; start and end have one entry per rank, in ns of the host's
    shared monotonic clock. A sample is a block of `steps` steps between two barriers.

    kind: warmup (kept, never counted); short and long, whose difference is the time of a step;
    latency (one step); fixed (measure.block=N: exactly N steps, nothing else is taken); void
    (emulated ranks: one was late, so that its time is none of the cluster's; never counted).
    """

    round: list[int] = field(default_factory=list)
    position: list[int] = field(default_factory=list)  # place within its round's random order
    steps: list[int] = field(default_factory=list)
    kind: list[str] = field(default_factory=list)
    start_ns: list[list[int]] = field(default_factory=list)
    end_ns: list[list[int]] = field(default_factory=list)


@dataclass
class Record:
    """One attempt. The dict payloads are optional unless the outcome is "measured"; what they
    hold is listed in runners/packed/record_fields.py."""

    key: str
    cell: Cell
    label: str = ""
    launch: int = 0
    wave: int = 0
    sweep: str = ""
    outcome: str = "measured"
    notes: list[str] = field(default_factory=list)
    error: dict[str, Any] | None = None
    gate: dict[str, Any] | None = None
    samples: Samples = field(default_factory=Samples)
    floor: dict[str, Any] | None = None
    stop: dict[str, Any] | None = None
    warmup: dict[str, Any] | None = None
    phases: dict[str, Any] | None = None
    traffic: list[list[dict[str, Any]]] | None = None
    memory: list[dict[str, Any]] | None = None
    skew: dict[str, Any] | None = None
    kernel: dict[str, Any] | None = None
    host_waits: list[int] | None = None  # for the GPU in one step, on every rank; None on a CPU
    # Every record of a wave carries the wave's anchor samples, so that drift can be told from any
    # single record, and anchors are no W&B runs of their own.
    anchors: dict[str, Any] | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    measure: dict[str, Any] = field(default_factory=dict)  # the measure config that was used
    environment: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] | None = None
    exchanged: dict[str, int] | None = (
        None  # limits of moe.parallel.algorithms among all ranks; gloo only
    )
    created: str = ""  # ISO 8601, UTC
    schema: int = SCHEMA

    @property
    def cell_id(self) -> str:
        return f"{self.key}.{self.label}" if self.label else self.key

    @property
    def attempt_id(self) -> str:
        return f"{self.cell_id}-{self.launch}"


def cell_key(cell: Cell) -> str:
    """Twelve hex digits over the canonical JSON of the cell: equal where the same is measured."""
    return _key(cell, _redefined(cell))


def _key(cell: Cell, redefined: dict[str, str]) -> str:
    content = cell_to_dict(cell)
    if content["placement"]["nodes"] == 1:
        del content["placement"]["nodes"]  # keys from before there were nodes stay as they are
    if content["strategy"]["graph"] == "off":
        del content["strategy"]["graph"]  # nor from before there were graphs
    name = content["strategy"]["name"]
    content["strategy"]["name"] = FORMER_NAMES.get(name, name)  # a new name is no new cell
    if redefined:
        content["redefined"] = redefined
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _redefined(cell: Cell) -> dict[str, str]:
    """Fields whose meaning has changed since schema 3 began, where the cell has a use for them."""
    rule, found = cell.layer.router, {}
    if rule.aux_loss and cell.layer.topk > 1:
        found["router.aux_loss"] = "slots per token"  # was a share of slots, K times less
    shares = rule.score == "softmax" and rule.order == "before" and not rule.normalize
    if shares and cell.workload.kind != "learned":
        found["router.normalize"] = "of all experts"  # was of the prescribed ones only
    return found


def cell_to_dict(cell: Cell) -> dict[str, Any]:
    """As `dataclasses.asdict`, which takes ten times as long over what is two levels deep."""
    return {name: _section(part) for name, part in vars(cell).items()}


def _section(part: Any) -> dict[str, Any]:
    return {
        name: dict(vars(value)) if dataclasses.is_dataclass(value) else value
        for name, value in vars(part).items()
    }


def cell_from_dict(data: dict[str, Any]) -> Cell:
    """Inverse of `dataclasses.asdict`; raises KeyError or TypeError on unknown fields."""
    layer = dict(data["layer"])
    strategy = dict(data["strategy"])
    strategy["name"] = current_name(strategy["name"])
    router = RouterSpec(**layer.pop("router"))
    order = tuple(strategy.pop("expert_order"))
    return Cell(
        layer=LayerSpec(router=router, **layer),
        strategy=StrategySpec(expert_order=order, **strategy),
        workload=WorkloadSpec(**data["workload"]),
        placement=RankLayout(**data["placement"]),
    )


def current_name(name: str) -> str:
    """The present name of a model or strategy that a file names as it was called then."""
    return next((new for new, old in FORMER_NAMES.items() if old == name), name)


def to_dict(record: Record) -> dict[str, Any]:
    """As `dataclasses.asdict`, but the values below its fields are the record's own, not copies."""
    cell, samples = cell_to_dict(record.cell), dict(vars(record.samples))
    return {**vars(record), "cell": cell, "samples": samples}


def from_dict(data: dict[str, Any]) -> Record:
    """Checks shape and types of what a reader relies on; raises RecordError."""
    try:
        fields = dict(data)
        if fields.get("schema") not in READABLE:
            known = f"{', '.join(map(str, READABLE[:-1]))} and {SCHEMA}"
            raise RecordError(
                f"schema {fields.get('schema')!r}: this version reads {known}; measure again, or "
                "read it with the version that wrote it"
            )
        if fields["schema"] == 2:
            fields = _from_schema_2(fields)
        if fields["schema"] < SCHEMA and "model" in fields["meta"]:
            fields["meta"] = {**fields["meta"], "model": current_name(fields["meta"]["model"])}
        fields["cell"] = cell_from_dict(fields["cell"])
        fields["samples"] = Samples(**fields["samples"])
        record = Record(**fields)
        _check(record)
    except RecordError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RecordError(f"not a record: {error}") from error
    return record


def _from_schema_2(fields: dict[str, Any]) -> dict[str, Any]:
    """Samples flagged as warm-up or not get a kind; what was counted was a block of its own. Those
    of a record that has been read before have kinds already."""

    def renamed(samples: dict[str, Any]) -> dict[str, Any]:
        found = dict(samples)
        if "kind" in found:
            return found
        found["kind"] = ["warmup" if warm else "fixed" for warm in found.pop("warmup")]
        return found

    anchors = fields.get("anchors")
    if anchors:
        anchors = {n: renamed(v) if isinstance(v, dict) else v for n, v in anchors.items()}
    floor = renamed(fields["floor"]) if fields.get("floor") else None
    return {**fields, "samples": renamed(fields["samples"]), "floor": floor, "anchors": anchors}


def _check(record: Record) -> None:
    if record.outcome not in OUTCOMES:
        raise RecordError(f"outcome {record.outcome!r} is none of {', '.join(OUTCOMES)}")
    columns = vars(record.samples)
    if any(not isinstance(column, list) for column in columns.values()):
        raise RecordError("a column of samples is not a list")
    if len({len(column) for column in columns.values()}) != 1:
        raise RecordError("columns of samples differ in length")
    ranks = {len(row) for row in record.samples.start_ns + record.samples.end_ns}
    if len(ranks) > 1:
        raise RecordError("samples differ in their number of ranks")
    for starts, ends in zip(record.samples.start_ns, record.samples.end_ns, strict=True):
        if {*map(type, starts), *map(type, ends)} - {int}:
            raise RecordError("a sample time is not an integer")
        if any(map(operator.lt, ends, starts)):
            raise RecordError("a sample ends before it starts")
    if any(type(n) is not int or n < 1 for n in record.samples.steps):
        raise RecordError("a sample has no steps")
    if unknown := [kind for kind in record.samples.kind if kind not in KINDS]:
        raise RecordError(f"a sample's kind {unknown[0]!r} is none of {', '.join(KINDS)}")
    emulation.of_environment(record.environment)
    check_key(record)


def check_key(record: Record) -> None:
    """Raises RecordError for a cell that has been changed since the key was made of it."""
    if cell_key(record.cell) == record.key:
        return
    if _key(record.cell, {}) == record.key:
        names = " and ".join(_redefined(record.cell))
        raise RecordError(f"measured when {names} meant another function; measure it again")
    raise RecordError(f"key {record.key} does not belong to its cell")


def record_path(sweep_dir: Path, record: Record) -> Path:
    return sweep_dir / "cells" / record.cell_id / f"record-{record.launch}.json"


def write(sweep_dir: Path, record: Record) -> Path:
    path = record_path(sweep_dir, record)
    write_atomic(path, sealed(to_dict(record)))
    return path


def read(path: Path) -> Record:
    """Raises RecordError, naming the file, for anything that is not a whole record."""
    try:
        return from_dict(unsealed(path.read_bytes(), READABLE))
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise RecordError(f"{path}: {error}") from error


def read_all(sweep_dir: Path) -> tuple[list[Record], list[str]]:
    """The whole records below a sweep folder, in name order, and what is wrong with the others."""
    whole, faults = [], []
    for path in paths(sweep_dir):
        try:
            whole.append(read(path))
        except RecordError as error:
            faults.append(str(error))
    return whole, faults


def paths(sweep_dir: Path) -> Iterator[Path]:
    """Paths of all records below a sweep folder, in name order."""
    yield from sorted(sweep_dir.glob("cells/*/record-*.json"))
