"""What docs/records.md lists is what records hold: nothing more, and nothing less."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jsonschema
import pytest

from moe.spec import Cell, LayerSpec, RankLayout, StrategySpec
from runners.host import topology
from runners.launch.local import start
from runners.packed import record_fields, record_schema
from runners.plan import Job, Measure
from runners.records import record
from runners.records.emulation import KEY, Emulation
from runners.records.record import Record
from runners.sweep.launch import Launch, LaunchOutcome
from runners.sweep.progress import Progress
from runners.sweep.settings import Settings
from runners.sweep.sweep import Sweep
from tests.support.mutants import MUTANTS

ROOT = Path(__file__).resolve().parents[2]
MEASURE = Measure(
    samples=3, samples_max=3, block=2, warmup=1, warmup_max=1, anchors=2, phases=2, wave_cells=1,
    calibrate=False,
)  # fmt: skip
LATER = "gradient_lost_at_the_9th_call"  # right when it is checked first
# Sentences, and what is not handed on of the kernel's release.
FREE = re.compile(r"notes|detail|message|log|what|text|when|left_out\[\d+\]|environment\.system")
META = {"model": "reference", "scale": 1, "overrides": ["topk=2"]}


def jobs() -> list[Job]:
    """One whose gradients are checked, one in half precision, one that turns wrong later."""
    layer = LayerSpec(dim=16, hidden=32, dim_out=16, num_experts=4, topk=2, topk_requested=2)
    forward = Cell(
        layer, StrategySpec("ep", dispatcher="alltoall"), placement=RankLayout(world_size=2)
    )
    train = replace(forward, workload=replace(forward.workload, mode="train"))
    half = replace(forward, layer=replace(layer, dtype="bfloat16"))
    found = [Job(cell, MEASURE, meta=META) for cell in (train, half)]
    return [*found, Job(MUTANTS[LATER].cell, MEASURE, label=LATER, meta=META)]


def failed(one: Record, folder: Path) -> Record:
    """As a launch marks a cell in which a rank has died."""
    launch = Launch.__new__(Launch)
    launch.context = cast(Any, SimpleNamespace(sweep_dir=folder))
    log = folder.resolve() / "rank1"
    launch.outcome = LaunchOutcome(message="rank 1 died of signal 9", log=log)
    found = replace(one)
    launch._fail(found, 1)
    return found


def on_two_nodes(one: Record) -> Record:
    launches = [{"environment": dict(one.environment), "nodes": (0, 1)} for _ in range(2)]
    return replace(one, environment={**topology.environment(launches), "files": "Ray"})


def emulated(one: Record) -> Record:
    cluster = Emulation(20.0, 2, 90.0, 10.0)
    return replace(one, environment={**one.environment, KEY: dataclasses.asdict(cluster)})


def cold_on_a_gpu(one: Record) -> Record:
    cache = {"bytes": 1 << 20, "sets": 101, "l2_bytes": 50 << 20, "cold_s": 1e-6, "warm_s": 1e-6}
    return replace(one, memory=[{**rank, "cache": cache} for rank in one.memory or []])


def short_of_memory(one: Record) -> Record:
    """As of a GPU with too little memory for a kernel."""
    return replace(one, kernel={**(one.kernel or {}), "out_of_memory": ["bmm"]})


@pytest.mark.dist
def test_the_documented_fields_are_those_of_real_records(tmp_path: Path) -> None:
    Sweep(
        jobs(), Settings(tmp_path), Progress(), partial(start, worker="tests.dist.mutant_worker")
    ).run()
    found = [record.read(path) for path in record.paths(tmp_path)]
    assert sorted(one.outcome for one in found) == ["measured", "measured", "wrong"]
    found += [failed(found[0], tmp_path), on_two_nodes(found[0])]
    found += [short_of_memory(found[0]), cold_on_a_gpu(found[0]), emulated(found[0])]
    assert {one.outcome for one in found} <= set(record.OUTCOMES)
    held = set[str]().union(*(record_fields.leaves(record.to_dict(one)) for one in found))
    listed = set(record_fields.documented())
    parents = {path for path in listed if any(other.startswith(f"{path}.") for other in listed)}
    assert (sorted(held - listed), sorted(listed - held - parents)) == ([], [])
    validator = jsonschema.Draft202012Validator(record_schema.schema())
    for one in found:
        written = json.loads(json.dumps(record.to_dict(one)))
        assert list(validator.iter_errors(written)) == []
        _, withheld = record_schema.portable(written, names=())
        assert [path for path in withheld if not FREE.search(path)] == []


def test_every_part_of_a_record_is_documented() -> None:
    parts = {field.name for field in dataclasses.fields(Record)}
    text = (ROOT / "docs" / "records.md").read_text("utf-8")
    listed = {path.split(".")[0].removesuffix("[][]").removesuffix("[]")
              for path in record_fields.documented()}  # fmt: skip
    assert {part for part in parts if f"`{part}`" not in text} - listed == set()
    assert listed <= parts


def test_every_outcome_is_one_that_is_written() -> None:
    """By name in the code that makes records; a word that nothing writes is in no list."""
    code = "".join(path.read_text("utf-8") for path in (ROOT / "runners").glob("**/*.py")
                   if path.name != "record.py")  # fmt: skip
    lines = [line for line in code.splitlines() if "outcome" in line.split("=")[0] and "=" in line]
    for outcome in record.OUTCOMES:
        assert any(f'"{outcome}"' in line for line in lines), outcome
