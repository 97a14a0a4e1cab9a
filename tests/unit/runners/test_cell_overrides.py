"""From a recorded cell to overrides and back: the same cell, by Hydra itself."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

import runners.bench  # noqa: F401 registers the resolvers that conf/ uses
from moe.spec import DISPATCHERS, DTYPES, KERNELS, Cell, LayerSpec, Unsupported
from runners.config.cell import job_of
from runners.config.cell_overrides import Recorded, config_of, overrides_of, word
from runners.config.resolution import Composed, plain
from runners.config.schema import groups
from runners.config.validate import validate
from runners.errors import ConfigError
from runners.host import project_paths
from runners.host.machine import NodeResources
from runners.plan import Job
from runners.records.record import cell_key

MACHINE = NodeResources(cores=8, cuda_devices=8, nodes=4)
# Values of every knob that makes a cell another, at least one of them not its default.
AXES: dict[str, list[Any]] = {
    "num_experts": [2, 4, 8],
    "topk": [1, 2, 8],
    "topk_overflow": ["error", "clamp"],
    "dtype": list(DTYPES),
    "seed": [0, 7],
    "batch_size": [1, 8, 64],
    "tokens": ["replicated", "sharded"],
    "mode": ["forward", "train"],
    "world_size": [1, 2, 4, 8],
    "backend": ["auto", "gloo", "nccl"],
    "device": ["auto", "cpu", "cuda"],
    "threads": ["auto", 1, 3],
    "label": ["", "a", "007", "1e5", "null"],
    "hosts.ranks_per_node": ["auto", 1, 2],
    "hosts.nnodes": [1, 2],
    "model.name": ["reference", *groups()["model"], "another"],
    "model.dim": [32, 48],
    "model.hidden": [128, 96],
    "model.dim_out": [64, 32],
    "model.scale": [1, 2, 16],
    "model.activation": ["relu", "silu_gated"],
    "model.bias": ["none", "zero", "random"],
    "model.shared_experts": [0, 1],
    "model.router.kind": ["token_choice", "expert_choice"],
    "model.router.score": ["softmax", "sigmoid"],
    "model.router.order": ["before", "after"],
    "model.router.normalize": [None, True, False],
    "model.router.scale": [1.0, 2.5],
    "model.router.groups": [1, 2],
    "model.router.selection_bias": ["none", "balanced"],
    "model.router.aux_loss": [0.0, 1e-05],
    "model.router.capacity_factor": [0.0, 1.25],
    "model.router.drop": ["position", "probability"],
    "model.router.scope": ["rank", "global"],
    "strategy.name": ["serial", "simple", "dp", "tp", "ep", "ep_tp", "dp_ep", "fsdp",
                      "peer_transformers", "peer_deepspeed", "peer_of_somebody"],
    "strategy.dispatcher": ["auto", *DISPATCHERS],
    "strategy.ep": [0, 2],
    "strategy.tp": [0, 2],
    "strategy.overlap": [1, 2],
    "strategy.placement": ["contiguous", "round_robin", "by_node", [1, 0], [3, 1, 0, 2]],
    "strategy.hot_replicas": [0, 1],
    "strategy.comm_dtype": [None, "bfloat16"],
    "strategy.kernel": list(KERNELS),
    "strategy.slowdown": [0.0, 0.5],
    "strategy.variant": ["", "eager", "autoep"],
    "workload.kind": ["learned", "balanced", "zipf", "k_hot", "hot_rank", "imbalance"],
    "workload.parameter": [0.0, 1.2],
    "workload.nominal_ep": [0, 4],
    "measure.graph": ["off", "on"],
    "measure.cache": ["warm", "cold"],
    "measure.samples": [6, 3],
    "measure.samples_max": [40, 9],
    "measure.precision": [0.03, 0.0],
    "measure.block": ["auto", 1],
    "measure.order": ["random", "product"],
    "measure.launches": [1, 5],
    "measure.calibrate": [True, False],
}  # fmt: skip


def composed(overrides: list[str]) -> dict[str, Any]:
    with initialize_config_dir(version_base="1.3", config_dir=str(project_paths.CONF)):
        return plain(compose("config", overrides))


BASE = composed([])


def changed(values: dict[str, Any]) -> dict[str, Any]:
    config = copy.deepcopy(BASE)
    for path, value in values.items():
        node = config
        *parents, last = path.split(".")
        for parent in parents:
            node = node[parent]
        assert last in node
        node[last] = value
    return config


def recorded_of(job: Job) -> Recorded:
    """As a record has it."""
    model, scale = job.meta["model"], job.meta["scale"]
    return Recorded(job.cell, dataclasses.asdict(job.measure), job.label, model, scale)


def assert_same(job: Job, *more: str) -> Job:
    """The job that the overrides of its record give, by Hydra."""
    recorded = recorded_of(job)
    config = composed([*overrides_of(recorded).values(), *more])
    without_hydra = config_of(recorded)
    for section in set(config) - {"tracker", *(["workload"] if more else [])}:
        assert config[section] == without_hydra[section]
    return assert_equal(job, job_of(config, MACHINE))


def assert_equal(job: Job, again: Job) -> Job:
    assert again.cell == job.cell
    assert (again.cell_id, again.measure) == (job.cell_id, job.measure)
    assert (again.meta["model"], again.meta["scale"]) == (job.meta["model"], job.meta["scale"])
    return again


def accepted(values: dict[str, Any]) -> Job:
    """The job of those of the values that are accepted together, the earlier before the later."""
    kept: dict[str, Any] = {}
    job = job_of(changed(kept), MACHINE)
    for path, value in values.items():
        with contextlib.suppress(ConfigError, Unsupported):
            job = job_of(changed(kept | {path: value}), MACHINE)
            kept[path] = value
    return job


@pytest.mark.parametrize("seed", range(40))
def test_the_overrides_of_a_cell_give_the_same_cell(seed: int) -> None:
    draw = random.Random(seed)
    paths = draw.sample(sorted(AXES), len(AXES))
    assert_same(accepted({path: draw.choice(AXES[path]) for path in paths}))


@pytest.mark.parametrize("path", AXES)
def test_every_value_of_every_axis_comes_back(path: str) -> None:
    """By itself, or beside what it takes to be accepted; without Hydra."""
    beside = {
        "strategy.placement": {"strategy.name": "ep", "num_experts": 4, "world_size": 2},
        "topk": {"topk_overflow": "clamp", "num_experts": 2},
        "hosts.ranks_per_node": {"world_size": 4},
    }.get(path, {})
    jobs = []
    for value in AXES[path]:
        with contextlib.suppress(ConfigError, Unsupported):
            jobs.append(job_of(changed({**beside, path: value}), MACHINE))
    for job in jobs:
        assert_equal(job, job_of(config_of(recorded_of(job)), MACHINE))
    assert len(jobs) >= 2


def test_an_order_of_experts_over_nodes_comes_back_as_a_list() -> None:
    values = {"strategy.name": "ep", "strategy.placement": "by_node", "world_size": 4}
    job = job_of(changed(values | {"hosts.ranks_per_node": 2}), MACHINE)
    assert job.cell.placement.nodes == 2
    words = overrides_of(recorded_of(job))
    assert words["strategy.placement"] == "strategy.placement=[0,2,4,6,1,3,5,7]"
    assert words["hosts.ranks_per_node"] == "hosts.ranks_per_node=2"
    assert_same(job)


def test_recorded_choices_need_their_file(tmp_path: Path) -> None:
    files = {}
    for name, rows in (("right", [[0, 1], [2, 3]]), ("wrong", [[1, 0], [2, 3]])):
        files[name] = tmp_path / f"{name}.npz"
        np.savez(files[name], indices=np.array(rows))
    job = job_of(
        changed({"workload.kind": "trace", "workload.trace": str(files["right"])}), MACHINE
    )
    again = assert_same(job, f"workload.trace={files['right']}")
    assert again.trace == job.trace
    words = list(overrides_of(recorded_of(job)).values())
    sha256 = job.cell.workload.trace_sha256
    with pytest.raises(ConfigError, match=f"with choices of the sha256 {sha256}"):
        job_of(composed(words), MACHINE)
    with pytest.raises(ConfigError, match=f"allowed is workload.trace_sha256={sha256}"):
        job_of(composed([*words, f"workload.trace={files['wrong']}"]), MACHINE)


def test_a_known_model_stays_the_model_whatever_its_sizes() -> None:
    cell = Cell(LayerSpec(dim=100, hidden=14336 // 8, dim_out=512, activation="gelu"))
    words = overrides_of(Recorded(cell, {}, model="mixtral_8x7b", scale=8))
    assert words["model"] == "model=mixtral_8x7b"
    assert words["model.dim"] == "model.dim=800"
    assert "model.hidden" not in words  # as the file has it
    assert words["model.activation"] == "model.activation=gelu"


def test_a_model_of_another_project_keeps_its_name() -> None:
    words = overrides_of(Recorded(Cell(), {}, model="theirs", scale=1))
    assert words["model"] == "model=reference"
    assert words["model.name"] == "model.name=theirs"


@pytest.mark.parametrize(
    ("value", "text"),
    [("a", "a"), ("007", "'007'"), ("1e5", "'1e5'"), ("null", "'null'"), ("True", "'True'"),
     ("", "''"), (None, "null"), (True, "true"), (1e-05, "1e-05"), ([3, 1], "[3,1]")],
)  # fmt: skip
def test_a_value_is_written_so_that_hydra_reads_it_back(value: Any, text: str) -> None:
    assert word("label", value) == text
    assert composed([f"label={text}"])["label"] == value


@pytest.mark.parametrize(
    "value",
    ["${oc.env:HOME}", "a,b", "a b", "'", "x\ny", "$(id)", "[1,2]", {"a": 1}, ["a"], [[1]], b"a"],
)
def test_a_value_that_hydra_would_interpret_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^strategy\.variant="):
        word("strategy.variant", value)


def test_a_cell_that_no_overrides_give_is_named() -> None:
    cell = Cell(LayerSpec(weight_seed=3))  # its tokens have the seed 0
    with pytest.raises(ConfigError, match=r"^layer\.weight_seed=3: no overrides give it"):
        overrides_of(Recorded(cell, {}))


def test_a_setting_that_is_none_any_more_is_left_out() -> None:
    words = overrides_of(Recorded(Cell(), {"samples": 3, "former_setting": 1}))
    assert words["measure.samples"] == "measure.samples=3"
    assert not [path for path in words if "former" in path]


HOSTILE = [None, "x", "${oc.env:HOME}", -1, 0, 2**70, 1e308, float("inf"), [], [1, "a"], {"a": 1},
           True, "a,b", "\n", b"x"]  # fmt: skip


def fields_of(cell: Cell) -> list[tuple[str, str]]:
    parts = {**vars(cell), "router": cell.layer.router}
    names = [(name, one.name) for name, part in parts.items() for one in dataclasses.fields(part)]
    return [name for name in names if name != ("layer", "router")]


@pytest.mark.parametrize(("section", "name"), fields_of(Cell()))
def test_a_record_of_anybody_gives_overrides_or_one_line(section: str, name: str) -> None:
    for value in HOSTILE:
        cell = Cell()
        if section == "router":
            router = dataclasses.replace(cell.layer.router, **{name: value})
            cell = dataclasses.replace(cell, layer=dataclasses.replace(cell.layer, router=router))
        else:
            part = dataclasses.replace(getattr(cell, section), **{name: value})
            cell = dataclasses.replace(cell, **{section: part})
        with contextlib.suppress(TypeError):  # of JSON, which has no bytes
            cell_key(cell)
            recorded = Recorded(cell, {name: value}, scale=value)  # type: ignore[arg-type]
            check_hostile(recorded)


def check_hostile(recorded: Recorded) -> None:
    try:
        words = overrides_of(recorded)
        config = config_of(recorded)
    except ConfigError as error:
        assert "\n" not in str(error)
        return
    assert not [word for word in words.values() if set("${} \n,") & set(word) and "[" not in word]
    jobs, errors = validate([Composed(config, [])], MACHINE)
    assert len(jobs) + len(errors) == 1
