"""One record as one flat row of JSON values, as the tracker logs it and the analysis loads it.

Writer (the W&B tracker) and reader (the analysis) share this file, so that every source of an
attempt gives the same row. Units are in the names. Every row has the same keys in the same order;
an unknown value is None.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from moe.spec import Cell, WorkloadSpec
from runners.records import emulation, forced_balance, stats
from runners.records.record import Record, Samples, current_name

# Cell fields whose plain name would be ambiguous in a flat row. Fields of the router get the prefix
# "router_"; all others keep their name.
RENAMED = {
    ("strategy", "name"): "strategy",
    ("strategy", "placement"): "expert_placement",
    ("workload", "kind"): "workload",
    ("workload", "parameter"): "workload_parameter",
    ("workload", "nominal_ep"): "workload_nominal_ep",
}
HEADLINE = (
    "median_duration_ms",
    "median_low_ms",
    "median_high_ms",
    "median_confidence",
    "avg_duration_ms",
    "std_duration_ms",
    "min_duration_ms",
    "max_duration_ms",
    "avg_throughput",
    "num_samples",
    "num_rounds",
    "latency_ms",
    "latency_low_ms",
    "latency_high_ms",
    "start_ms",
    "start_growth_low",
    "start_growth_high",
    "floor_ms",
)
# Row name -> path in the environment of a launch.
ENVIRONMENT = {
    "host": ("host",),
    "cpu_model": ("cpu_model",),
    "cores": ("cores",),
    "memory_total_bytes": ("memory_total_bytes",),
    "local_ranks": ("local_ranks",),
    "gpu_model": ("gpus", 0, "name"),
    "os": ("system",),
    "python_version": ("versions", "python"),
    "torch_version": ("versions", "torch"),
    "project_version": ("versions", "project"),
    "git_sha": ("git", "sha"),
    "git_dirty": ("git", "dirty"),
}


def workload_name(work: WorkloadSpec) -> str:
    """For people: its kind and, if it has one, its parameter: zipf(1.2), forced balance."""
    kind = forced_balance.label(work.kind)
    return f"{kind}({work.parameter:g})" if work.parameter else kind


def flat_config(cell: Cell) -> dict[str, Any]:
    """Every field of the cell under one stable flat name; tuples become lists."""
    flat: dict[str, Any] = {}
    for section in dataclasses.fields(cell):
        flat.update(_flat_section(section.name, getattr(cell, section.name)))
    return flat


def _flat_section(section: str, part: Any) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(part):
        value = getattr(part, item.name)
        if dataclasses.is_dataclass(value):
            flat.update({f"{item.name}_{k}": v for k, v in vars(value).items()})
            continue
        name = RENAMED.get((section, item.name), item.name)
        flat[name] = list(value) if isinstance(value, tuple) else value
    return flat


def cell_of(row: Mapping[str, Any]) -> Cell:
    """Inverse of `flat_config`; a missing field gets its default.

    Raises ValueError for a value of the wrong type.
    """
    sections = {
        item.name: _section_of(item.name, getattr(Cell(), item.name), row)
        for item in dataclasses.fields(Cell)
    }
    return Cell(**sections)


def _section_of(section: str, default: Any, row: Mapping[str, Any], prefix: str = "") -> Any:
    values = {}
    for item in dataclasses.fields(default):
        known = getattr(default, item.name)
        if dataclasses.is_dataclass(known):
            values[item.name] = _section_of(section, known, row, f"{item.name}_")
            continue
        name = prefix + item.name if prefix else RENAMED.get((section, item.name), item.name)
        value = row.get(name)
        values[item.name] = known if value is None else type(known)(value)
    if section == "strategy":
        values["name"] = current_name(values["name"])
    return dataclasses.replace(default, **values)


def row(record: Record, samples: bool = False) -> dict[str, Any]:
    """The whole attempt in one flat dict; with `samples`, also its sample columns."""
    values = {
        **_identity(record),
        **flat_config(record.cell),
        **_headline(record),
        **_trust(record),
        **_skew(record),
        **_phases(record),
        **_traffic(record),
        **_memory(record),
        **_environment(record),
    }
    if samples:
        values.update(sample_columns(record))
    return values


def sample_columns(record: Record) -> dict[str, list[Any]]:
    """Columns of all samples in the order taken; `sample_ms` is the makespan per step in ms.

    Empty unless the cell was measured and correct: nothing else may show a time.
    """
    good = record.outcome == "measured" and (record.gate or {}).get("ok")
    samples = record.samples if good else Samples()
    spans = [
        (max(ends) - min(starts)) / steps / 1e6
        for starts, ends, steps in zip(samples.start_ns, samples.end_ns, samples.steps, strict=True)
    ]
    return {
        "sample_ms": spans,
        "sample_round": list(samples.round),
        "sample_steps": list(samples.steps),
        "sample_kind": list(samples.kind),
    }


def _identity(record: Record) -> dict[str, Any]:
    return {
        "sweep": record.sweep,
        "key": record.key,
        "label": record.label,
        "launch": record.launch,
        "wave": record.wave,
        "cell_id": record.cell_id,
        "attempt_id": record.attempt_id,
        "outcome": record.outcome,
        "created": record.created,
        "model": str(record.meta.get("model") or ""),
        "scale": record.meta.get("scale"),
        "overrides": _plain(record.meta.get("overrides")),
    }


def _headline(record: Record) -> dict[str, Any]:
    figures = stats.headline(record)
    values = {"metric": stats.metric(record), **{name: figures.get(name) for name in HEADLINE}}
    rounds = stats.round_medians_ms(record.samples) if figures else {}
    values["round_medians_ms"] = list(rounds.values())
    values["round_numbers"] = list(rounds)
    values["timed_seconds"] = stats.timed_ns(record.samples) / 1e9
    values["steps_per_sample"] = max(record.samples.steps, default=None)
    values["void_samples"] = record.samples.kind.count("void")
    return values


def _trust(record: Record) -> dict[str, Any]:
    """What limits the figures: flags, verification, stop rule, warm-up, errors."""
    gate, stop, warm = record.gate or {}, record.stop or {}, record.warmup or {}
    error = record.error or {}
    return {
        "flags": stats.flags(record),
        "notes": [str(note) for note in record.notes],
        "error_message": error.get("message"),
        "error_rank": error.get("rank"),
        "error_log": _text(error.get("log")),
        "gate_ok": gate.get("ok"),
        "gate_error": _finite(gate.get("error")),
        "gate_tolerance": _finite(gate.get("tolerance")),
        "gate_rms": _finite(gate.get("rms")),
        "gate_rms_limit": _finite(gate.get("rms_limit")),
        "gate_gradient_error": _finite(gate.get("gradient_error")),
        "gate_gradient_limit": _finite(gate.get("gradient_limit")),
        "gate_tokens_checked": gate.get("tokens_checked"),
        "gate_rows_compared": gate.get("rows_compared"),
        "gate_near_ties": gate.get("near_ties"),
        "gate_detail": _text(gate.get("detail")),
        "stop_rule": stop.get("rule"),
        "stop_target": _finite(stop.get("target")),
        "warmup_samples": warm.get("samples"),
        "warmup_steady": warm.get("steady"),
        "drift": stats.drift(record),
        "anchor_medians_ms": stats.anchor_medians_ms(record),
        "kernel_ran": _text((record.kernel or {}).get("name")),
        "host_waits_max": max(record.host_waits or [], default=None),
    }


def _skew(record: Record) -> dict[str, Any]:
    skew = record.skew or {}
    return {
        "skew_lambda": busiest_over_mean(skew.get("rank_slots")),
        "expert_skew_lambda": busiest_over_mean(skew.get("expert_slots")),
        "rank_slots": list(skew.get("rank_slots") or []),
        "expert_slots": list(skew.get("expert_slots") or []),
    }


def busiest_over_mean(slots: list[float] | None) -> float | None:
    """lambda: slots of the busiest rank (or expert) over the mean; None without any slots."""
    if not slots or sum(slots) == 0:
        return None
    return max(slots) / statistics.fmean(slots)


def _in_ms(ranks: Sequence[Mapping[str, float]] | None) -> list[dict[str, float]]:
    """Every rank's phases, from ns."""
    return [{name: duration / 1e6 for name, duration in rank.items()} for rank in ranks or ()]


def _phases(record: Record) -> dict[str, Any]:
    """Phase times of every rank in ms, and their means over the ranks, which still add up."""
    phases = record.phases or {}
    per_rank = _in_ms(phases.get("per_rank_ns"))
    passes = [_in_ms(ranks) for ranks in phases.get("per_pass_ns") or []]
    names = list(dict.fromkeys(name for rank in per_rank for name in rank))
    means = {n: statistics.fmean(rank.get(n, 0.0) for rank in per_rank) for n in names}
    totals = [total / 1e6 for total in phases.get("total_ns") or []]
    return {
        "phase_ms": means,
        "phase_per_rank_ms": per_rank,
        "phase_passes_ms": passes,
        "phase_total_ms": statistics.fmean(totals) if totals else None,
    }


def _traffic(record: Record) -> dict[str, Any]:
    """Bytes per step: of the busiest rank, of all ranks, and of all ranks by collective."""
    ranks = record.traffic
    by_collective: dict[str, int] = {}
    for call in (call for rank in ranks or [] for call in rank):
        name = str(call.get("collective"))
        by_collective[name] = by_collective.get(name, 0) + int(call.get("sent_bytes") or 0)
    return {
        "sent_bytes_max": _busiest(ranks, "sent_bytes"),
        "received_bytes_max": _busiest(ranks, "received_bytes"),
        "busbw_bytes_max": _busiest(ranks, "busbw_bytes"),
        "sent_bytes_total": None if ranks is None else sum(by_collective.values()),
        "sent_bytes_by_collective": by_collective,
        "collective_calls_max": _busiest(ranks, "calls"),
        "traffic": [[dict(call) for call in rank] for rank in ranks or []],
    }


def _busiest(ranks: list[list[dict[str, Any]]] | None, field: str) -> int | None:
    if ranks is None:
        return None
    return max((sum(int(call.get(field) or 0) for call in rank) for rank in ranks), default=0)


def _memory(record: Record) -> dict[str, Any]:
    ranks = record.memory or []
    methods = [str(rank["method"]) for rank in ranks if rank.get("method")]
    return {
        "peak_bytes_max": max((rank.get("peak_bytes") or 0 for rank in ranks), default=None),
        "weights_bytes_max": max((rank.get("weights_bytes") or 0 for rank in ranks), default=None),
        "step_bytes_max": max(
            (rank["step_bytes"] for rank in ranks if "step_bytes" in rank), default=None
        ),
        "memory_method": methods[0] if methods else None,
    }


def machine_columns(environment: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of ENVIRONMENT; None for what is not in the environment."""
    return {name: _plain(_reach(environment, path)) for name, path in ENVIRONMENT.items()}


def _environment(record: Record) -> dict[str, Any]:
    source = record.environment
    cluster = source.get(emulation.KEY) or {}
    return {
        **machine_columns(source),
        "emulated": bool(cluster),
        "emulation": cluster,
        "environment": source,
        "measure": record.measure,
        "calibration": record.calibration or {},
    }


def _reach(source: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        try:
            source = source[step]
        except (KeyError, IndexError, TypeError):
            return None
    return source


def _plain(value: Any) -> Any:
    """Scalars unchanged, a list joined by spaces, anything else as text."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, (list, tuple)):
        return " ".join(str(word) for word in value)
    return str(value)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _finite(value: Any) -> float | None:
    """A finite number, else None: JSON has no NaN."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
