"""A run's rows as one summary, which is what benchmarks/gpu/results/ keeps. Stdlib only.

card, driver, versions, git, date, command, dry_run
facts      {copy_TB_s, bf16_TFLOP_s, launch_us, wait_us}
forms      {passed, failed, refused}: the check at one rank; shares: {dtype: {row, rms, gradient}},
           the largest errors as shares of their limits
waits      {passed, failed, refused}: forms against their budget; seen: {form: waits of a step}
graphs     [{form, batch, eager_ms, graph_ms}]
ranks      {world_size: {passed, failed, refused}}: the check by several ranks on one GPU
cells      [{model, batch, simple_ms, transformers, transformers_ms, ratio, repeat}]: ratio is
           transformers' time over ours, transformers' best variant; repeat is the larger over the
           smaller of two measurements of ours
kernels    [{sweep, model, batch, mode, graph, strategy, ms, TFLOP_s, read_MB}]: read_MB are the
           weights that a step has to read
limits     {cells, largest, above}: fractions of a cell's limit; or {unknown: why}
parts      {name: {seconds, cut}}; budget_s, wall_s, within_budget
failures   the first rows of what failed
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.gpu import kernel_figures
from benchmarks.gpu.bench import OURS, PEER

SCHEMA = 1
SHOWN_FAILURES = 20
KINDS = ("row", "rms", "gradient")
Row = dict[str, Any]


def summary_of(rows: Sequence[Row], about: Row) -> Row:
    """The summary of a run; `about` has date, command, dry_run, budget_s, wall_s and limits."""
    by_part: dict[str, list[Row]] = {}
    for row in rows:
        by_part.setdefault(row["part"], []).append(row)
    forms, waited = by_part.get("forms", []), by_part.get("waits", [])
    known: Row = {}
    for row in by_part.get("facts", []):
        known |= {key: row[key] for key in ("card", "driver", "versions", "git") if key in row}
    ranks: dict[str, list[Row]] = {}
    for row in by_part.get("ranks", []):
        if "world_size" in row:
            ranks.setdefault(str(row["world_size"]), []).append(row)
    return {
        "schema": SCHEMA,
        **known,
        **about,
        "facts": {row["fact"]: row["value"] for row in by_part.get("facts", []) if "fact" in row},
        "forms": counts(forms) | {"shares": shares(forms)},
        "waits": counts([row for row in waited if "budget" in row]) | {"seen": seen(forms)},
        "graphs": [
            {"form": form_name(row), **{k: row[k] for k in ("batch", "eager_ms", "graph_ms")}}
            for row in waited if "graph_ms" in row
        ],
        "ranks": {size: counts(group) for size, group in ranks.items()},
        "cells": cells(by_part.get("bench", [])),
        "kernels": kernel_figures.figures(by_part.get("kernels", [])),
        "parts": {
            row["part"]: {"seconds": row["seconds"], "cut": row["cut"]}
            for row in rows if row.get("end")
        },
        "within_budget": about["wall_s"] <= about["budget_s"],
        "failures": [row for row in rows if row.get("ok") is False][:SHOWN_FAILURES],
    }  # fmt: skip


def counts(rows: Iterable[Row]) -> dict[str, int]:
    """How many passed, failed and were refused."""
    kept = {"passed": 0, "failed": 0, "refused": 0}
    for row in rows:
        if "refused" in row:
            kept["refused"] += 1
        elif "ok" in row:
            kept["passed" if row["ok"] else "failed"] += 1
    return kept


def shares(rows: Iterable[Row]) -> dict[str, dict[str, float]]:
    """The largest error of each kind by dtype, as a share of its limit."""
    most: dict[str, dict[str, float]] = {}
    for row in rows:
        for kind in KINDS:
            if f"{kind}_share" in row:
                known = most.setdefault(row["dtype"], {})
                known[kind] = max(known.get(kind, 0.0), row[f"{kind}_share"])
    return most


def form_name(row: Row) -> str:
    """A form without its dtype: what its number of waits depends on."""
    overlap = f"overlap={row['overlap']}" if "overlap" in row else ""
    names = [row["strategy"], row["dispatcher"], overlap, row["kernel"], row["mode"]]
    names += [row["router"]] if row.get("router", "softmax") != "softmax" else []
    return " ".join(filter(None, names))


def seen(rows: Iterable[Row]) -> dict[str, int]:
    """The most waits of a step by form, over dtypes."""
    most: dict[str, int] = {}
    for row in rows:
        if row.get("waits") is not None:
            name = form_name(row)
            most[name] = max(most.get(name, 0), row["waits"])
    return most


def cells(rows: Sequence[Row]) -> list[Row]:
    """Our time beside the best of transformers' for every model and batch, from the same sweep."""
    times: dict[tuple[str, int], dict[str, dict[str, float]]] = {}
    for row in rows:
        if row.get("ms"):
            sweeps = times.setdefault((row["model"], row["batch"]), {})
            sweeps.setdefault(row["sweep"], {})[row["strategy"]] = row["ms"]
    found = []
    for (model, batch), sweeps in times.items():
        ours = [of[OURS] for of in sweeps.values() if OURS in of]
        pairs = [
            (of[name] / of[OURS], name, of[name], of[OURS])
            for of in sweeps.values() if OURS in of
            for name in of if name.startswith(PEER)
        ]  # fmt: skip
        cell: Row = {"model": model, "batch": batch}
        if ours:
            cell["simple_ms"] = ours[0]
        if pairs:
            ratio, name, theirs, beside = min(pairs)
            cell |= {"simple_ms": beside, "transformers": name.removeprefix(PEER).strip(),
                     "transformers_ms": theirs, "ratio": ratio}  # fmt: skip
        if len(ours) > 1:
            cell["repeat"] = max(ours) / min(ours)
        found.append(cell)
    return found


def ratios(summary: Row) -> list[float]:
    return [cell["ratio"] for cell in summary["cells"] if "ratio" in cell]


def geometric_mean(values: Sequence[float]) -> float:
    """NaN for none."""
    return math.exp(math.fsum(map(math.log, values)) / len(values)) if values else math.nan


def file_name(summary: Row) -> str:
    """GPU-TORCH-DATE.json, in letters that any file system has."""
    card = re.sub(r"[^a-z0-9]+", "-", str(summary.get("card", "unknown")).lower()).strip("-")
    torch = re.sub(r"[^\w.]+", "-", str(summary.get("versions", {}).get("torch", "unknown")))
    return f"{card}-{torch}-{summary['date']}.json"
