"""A record, as a dict, in which every part that a record can have is there."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runners.records import record
from runners.records.calibrations import FIELDS
from tests.support import analysis_factory as factory

DATA = Path(__file__).parent / "data" / "records"
GPU = {"name": "NVIDIA H200", "driver_version": "580.159.04", "memory_total": "143771",
       "clocks_throttle_reasons_active": "0x0000000000000004", "power_draw": "[N/A]"}  # fmt: skip
CHECK = {"ok": True, "detail": "agrees", "error": 1e-7, "tolerance": 1e-4, "rms": 1e-8,
         "rms_limit": 1e-5, "gradient_error": None, "gradient_limit": None, "tokens_checked": 8,
         "rows_compared": 8, "near_ties": 0, "seed": 1}  # fmt: skip
CALIBRATION = {
    **factory.CALIBRATION, "created": "2026-11-28T01:42:32+00:00", "llc_bytes": 1 << 25,
    "nodes": 2, "tiers": {"intra": {"barrier": {"alpha_s": 1e-4, "points": [[0, 1e-4, 9e-5]]}}},
    "limit_s": 5.0, "took_s": 4.5, "left_out": ["1 of 4 sizes of all_reduce"],
}  # fmt: skip


def whole() -> dict[str, Any]:
    """Of two ranks on two nodes with GPUs, emulated, cold, failed and wrong in one: no real record
    has all of this."""
    assert set(FIELDS) <= set(CALIBRATION)
    content = record.to_dict(record.read(DATA / "schema-4.json"))
    gate = {**CHECK, "after": dict(CHECK), "float32": dict(CHECK)}
    gate["changed"] = {"what": "the output", "relative": 0.5, "text": "both", "when": "then"}
    cache = {"bytes": 1 << 20, "sets": 101, "l2_bytes": 50 << 20, "cold_s": 1e-6, "warm_s": 1e-6}
    node = {"cpu_model": "Intel(R) Xeon(R) CPU @ 2.30GHz", "cores": 2,
            "memory_total_bytes": 1 << 34,
            "gpus": [GPU], "gpu_links": [["X", "NV18"], ["NV18", "X"]]}  # fmt: skip
    content["environment"] |= {
        "gpus": [GPU, GPU], "gpu_links": [["X", "NV18"], ["NV18", "X"]], "governor": "performance",
        "cpu_quota": 1.5, "files": "shared folder", "network": "between nodes",
        "emulated": {"dilation": 20.0, "ranks_per_node": 2, "intra_mbit_s": 90.0,
                     "inter_mbit_s": 10.0, "mtu": 1500},
        "topology": {"node_of": [0, 1], "hosts": ["0123456789ab", None], "nodes": [node, node],
                     "clock": "end barrier inside the sample"},
        "pinned": [[0], None],
    }  # fmt: skip
    content["environment"]["after"][0]["gpus"] = [{"gpu": 0, "sm_mhz": [1, 2, 3], "reasons": 4}]
    content["environment"]["variables"]["KMP_AFFINITY"] = "granularity=fine,compact,1,0"
    content["memory"] = [{**rank, "cache": cache} for rank in content["memory"]]
    content["kernel"] |= {"out_of_memory": ["bmm"]}
    return {
        **content,
        "label": "again",
        "notes": ["a remark"],
        "error": {"message": "rank 1 died", "rank": 1, "log": "launches/0/logs/rank1"},
        "gate": gate,
        "phases": {"passes": 1, "per_rank_ns": [{"experts": 9}] * 2, "total_ns": [9, 9],
                   "per_pass_ns": [[{"experts": 9}] * 2]},
        "host_waits": [1, 1],
        "calibration": copy.deepcopy(CALIBRATION),
        "exchanged": {"all_reduce": 1024, "all_gather": 0},
    }  # fmt: skip


def without_sentences(content: dict[str, Any]) -> dict[str, Any]:
    """What a packed file has of `whole()`."""
    kept = copy.deepcopy(content)
    kept["notes"] = []
    kept["error"] |= {"message": "", "log": ""}
    for check in (kept["gate"], kept["gate"]["after"], kept["gate"]["float32"]):
        check["detail"] = ""
    kept["gate"]["changed"] |= {"what": "", "text": "", "when": ""}
    kept["environment"]["system"] = "Linux 6.18.44 x86_64"
    kept["calibration"]["left_out"] = []
    return kept


def leaves(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of single values, as keys and indices; of a list its first item alone."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield from leaves(value, (*path, name))
    elif isinstance(content, list | tuple) and content:
        yield from leaves(content[0], (*path, 0))
    else:
        yield path


def changed(content: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """A copy with another value at a path."""
    new: Any = as_read(content)
    parent = new
    for step in path[:-1]:
        parent = parent[step]
    parent[path[-1]] = value
    return dict(new)


def as_read(content: dict[str, Any]) -> dict[str, Any]:
    """As a file has it: tuples are lists."""
    return dict(json.loads(json.dumps(content)))
