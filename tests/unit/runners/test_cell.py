"""Configs into cells: what is refused, in which words, and what the key depends on."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import runners.bench  # noqa: F401 registers the resolver that conf/ uses
from moe.build import supports
from moe.spec import Unsupported
from runners.config.cell import job_of
from runners.config.resolution import Composed
from runners.config.schema import OF_PREDICTIONS
from runners.config.validate import validate
from runners.errors import ConfigError
from runners.host import project_paths
from runners.host.machine import NodeResources
from runners.records import record
from runners.records.record import Record, cell_from_dict, cell_key
from runners.records.sealed import RecordError
from runners.sweep.titles import title

ROOT = Path(__file__).resolve().parents[3]
MACHINE = NodeResources(cores=2)
GROUPS = [
    (group.name, choice.stem)
    for group in sorted((ROOT / "conf").iterdir())
    if group.is_dir() and group.name not in OF_PREDICTIONS
    for choice in sorted(group.glob("*.yaml"))
]


def config(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        found = OmegaConf.to_container(compose("config", list(overrides)), resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


BASE = config()


def changed(path: str, value: object) -> dict[str, Any]:
    found = copy.deepcopy(BASE)
    node = found
    *parents, last = path.split(".")
    for parent in parents:
        node = node[parent]
    assert last in node
    node[last] = value
    return found


@pytest.mark.parametrize(("group", "choice"), GROUPS)
def test_every_choice_of_every_group_composes_into_a_cell(
    group: str, choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NNODES", "1")  # for hosts=auto
    found = config(f"{group}={choice}")
    if found["workload"]["kind"] == "trace":
        found["workload"]["kind"] = "learned"  # a trace needs its file
    cell = job_of(found, NodeResources(cores=2, cuda_devices=8)).cell
    assert cell.layer.num_experts >= cell.layer.topk >= 1
    assert job_of(found, NodeResources(cores=2, cuda_devices=8)).measure.samples >= 1


def test_the_defaults_are_the_seeds() -> None:
    assert project_paths.CODE == ROOT
    cell = job_of(BASE, MACHINE).cell
    sizes = (cell.layer.dim, cell.layer.hidden, cell.layer.dim_out, cell.layer.num_experts)
    assert sizes == (32, 128, 64, 8)
    assert (cell.workload.batch_size, cell.placement.world_size, cell.layer.topk) == (8, 8, 2)
    assert (cell.placement.backend, cell.placement.threads) == ("gloo", 1)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("world_size", 0),
        ("world_size", -2),
        ("batch_size", 2.5),
        ("batch_size", "many"),
        ("batch_size", True),
        ("topk", 0),
        ("topk", 2**40),
        ("dtype", "int3"),
        ("tokens", "here"),
        ("mode", "backwards"),
        ("threads", "all"),
        ("threads", 0),
        ("backend", "smoke"),
        ("label", "../up"),
        ("model.dim", 0),
        ("model.scale", 3),
        ("model.activation", "tanh"),
        ("model.router.normalize", "yes"),
        ("model.router.scale", float("nan")),
        ("strategy.dispatcher", "pigeon"),
        ("strategy.slowdown", -1),
        ("strategy.placement", "nowhere.txt"),
        ("workload.parameter", float("inf")),
        ("measure.cache", "tepid"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(path: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        job_of(changed(path, value), MACHINE)
    message = str(caught.value)
    assert path in message
    assert "allowed" in message
    assert str(value) in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("path", "value"),
    [("measure.samples", 0), ("measure.block", "big"), ("measure.order", "any"),
     ("measure.calibrate", 1), ("measure.precision", float("nan")),
     ("measure.calibration_limit_s", 0.5), ("measure.calibration_limit_s", "5 s")],
)  # fmt: skip
def test_a_bad_measure_value_is_named(path: str, value: object) -> None:
    with pytest.raises(ConfigError, match=path):
        job_of(changed(path, value), MACHINE)


@pytest.mark.parametrize("node", ["", "model", "model.router", "strategy", "workload", "tracker"])
def test_a_key_that_nothing_reads_is_refused(node: str) -> None:
    found = copy.deepcopy(BASE)
    target = found
    for part in filter(None, node.split(".")):
        target = target[part]
    target["bananas"] = 1
    with pytest.raises(ConfigError, match=r"bananas=1: no such key"):
        job_of(found, MACHINE)


def test_top_k_over_the_number_of_experts_is_refused_or_clamped_and_said() -> None:
    found = changed("topk", 16)
    with pytest.raises(ConfigError, match=r"topk=16: allowed is at most num_experts=8"):
        job_of(found, MACHINE)
    found["topk_overflow"] = "clamp"
    made = job_of(found, MACHINE)
    assert (made.cell.layer.topk, made.cell.layer.topk_requested) == (8, 16)
    assert made.notes == ("top-k 16 ran as 8: there are 8 experts",)


def test_nccl_without_enough_gpus_is_refused_and_auto_takes_it_only_with_enough() -> None:
    with pytest.raises(ConfigError, match="backend=nccl"):
        job_of(changed("backend", "nccl"), NodeResources(2, cuda_devices=4))
    assert job_of(BASE, NodeResources(2, cuda_devices=4)).cell.placement.backend == "gloo"
    place = job_of(BASE, NodeResources(2, cuda_devices=8)).cell.placement
    assert (place.backend, place.device) == ("nccl", "cuda")


@pytest.mark.parametrize(
    ("overrides", "gpus", "found"),
    [
        ({}, 8, ("nccl", "cuda")),
        ({}, 4, ("gloo", "cpu")),
        ({"device": "cpu"}, 8, ("gloo", "cpu")),
        ({"device": "cuda"}, 8, ("nccl", "cuda")),
        ({"device": "cuda"}, 1, ("gloo", "cuda")),
        ({"device": "cuda", "backend": "gloo"}, 8, ("gloo", "cuda")),
        ({"device": "cpu", "backend": "gloo"}, 0, ("gloo", "cpu")),
        ({"backend": "gloo"}, 8, ("gloo", "cpu")),
        ({"world_size": 1, "device": "cuda", "backend": "gloo"}, 1, ("nccl", "cuda")),
        ({"world_size": 1, "device": "cuda"}, 1, ("nccl", "cuda")),
        ({"world_size": 1, "backend": "gloo"}, 1, ("gloo", "cpu")),
    ],
)
def test_where_ranks_compute_and_by_what_they_send(
    overrides: dict[str, Any], gpus: int, found: tuple[str, str]
) -> None:
    place = job_of({**BASE, **overrides}, NodeResources(2, cuda_devices=gpus)).cell.placement
    assert (place.backend, place.device) == found
    assert place.staged is (found == ("gloo", "cuda"))


@pytest.mark.parametrize(
    ("overrides", "gpus", "words"),
    [
        ({"device": "cuda"}, 0, "device=cuda: allowed with at least one CUDA device per node, here "
         "are 0; set device=cpu"),
        ({"device": "cuda", "backend": "mpi"}, 8, "device=cuda: allowed with backend=mpi is cpu; "
         "set backend=auto, or device=cpu"),
        ({"device": "cpu", "backend": "nccl"}, 8, "device=cpu: allowed with backend=nccl is cuda; "
         "set device=auto, or backend=gloo"),
        ({"device": "cuda", "backend": "nccl"}, 1, "backend=nccl: allowed with at least 8 CUDA "
         "devices per node for world_size=8, here are 1; lower world_size or set backend=gloo; "
         "device=cuda backend=gloo checks it, without timing it, on fewer GPUs"),
        ({"backend": "nccl"}, 0, "backend=nccl: allowed with at least 8 CUDA devices per node for "
         "world_size=8, here are 0; lower world_size or set backend=gloo"),
        ({"device": "tpu"}, 0, "device='tpu': allowed are auto, cpu, cuda; set device to one of "
         "them"),
    ],
)  # fmt: skip
def test_devices_and_backends_that_do_not_go_together_are_refused(
    overrides: dict[str, Any], gpus: int, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        job_of({**BASE, **overrides}, NodeResources(2, cuda_devices=gpus))
    assert str(caught.value) == words


def test_a_layer_that_the_gpu_cannot_hold_is_refused_with_all_other_errors() -> None:
    overrides = ("model=mixtral_8x7b", "model.scale=1", "world_size=1", "dtype=bfloat16")
    composed = [Composed(config(*overrides, f"strategy={name}"), []) for name in ("simple", "ep")]
    small, large = (NodeResources(2, 1, gpu_memory_bytes=gib << 30) for gib in (4, 80))
    jobs, errors = validate(composed, small)
    assert not jobs
    assert [words.split(" GiB of GPU memory")[0] for words in errors.values()] == [
        "model.scale=1: with simple a rank takes 5.4", "model.scale=1: with ep a rank takes 5.4"
    ]  # fmt: skip
    jobs, errors = validate(composed, large)
    assert not errors
    assert {job.cell.placement.device for job in jobs.values()} == {"cuda"}


def test_another_systems_own_messages_do_not_go_through_the_host() -> None:
    overrides = ("strategy=peer_torchtitan", "model=mixtral_8x7b", "dtype=bfloat16", "device=cuda",
                 "tokens=sharded", "world_size=2")  # fmt: skip
    cell = job_of(config(*overrides), NodeResources(2, cuda_devices=1)).cell
    with pytest.raises(Unsupported, match=r"device=cuda: allowed is cpu for strategy=peer_tor"):
        supports(cell)
    supports(job_of(config(*overrides), NodeResources(2, cuda_devices=2)).cell)


def test_threads_are_cores_over_ranks_and_serial_has_every_core() -> None:
    assert job_of(changed("world_size", 2), NodeResources(16)).cell.placement.threads == 8
    found = changed("strategy.name", "serial")
    made = job_of(found, NodeResources(16))
    assert (made.cell.placement.world_size, made.cell.placement.threads) == (1, 16)
    assert "one rank" in made.notes[0]


def test_the_key_ignores_how_it_is_measured_but_not_what() -> None:
    key = cell_key(job_of(BASE, MACHINE).cell)
    for path, value in [("measure.samples", 99), ("label", "a"), ("tracker.mode", "disabled")]:
        assert cell_key(job_of(changed(path, value), MACHINE).cell) == key
    for path, value in [("batch_size", 9), ("measure.cache", "cold"), ("model.bias", "random")]:
        assert cell_key(job_of(changed(path, value), MACHINE).cell) != key


def test_a_cell_survives_its_dictionary() -> None:
    cell = job_of(BASE, MACHINE).cell
    assert cell_from_dict(dataclasses.asdict(cell)) == cell


# Whether gates are renormalised.


@pytest.mark.parametrize(
    ("kind", "asked", "found"),
    [
        ("token_choice", None, True),  # Mixtral, GShard and most others
        ("expert_choice", None, False),  # Zhou et al., arXiv 2202.09368, section 3.2
        ("token_choice", True, True),
        ("token_choice", False, False),
        ("expert_choice", True, True),
        ("expert_choice", False, False),
    ],
)
def test_gates_are_renormalised_as_asked_or_by_kind(
    kind: str, asked: bool | None, found: bool
) -> None:
    made = changed("model.router.normalize", asked)
    made["model"]["router"]["kind"] = kind
    assert job_of(made, MACHINE).cell.layer.router.normalize is found


def test_no_preset_says_more_of_it_than_it_must() -> None:
    """Only OLMoE's gates are not renormalised though tokens choose; experts that choose may be
    tried with any model whose config leaves it open."""
    left_open = {}
    for group, name in GROUPS:
        if group == "model":
            left_open[name] = config(f"model={name}")["model"]["router"]["normalize"]
    assert {name for name, value in left_open.items() if value is not None} == {"olmoe_1b_7b"}
    assert left_open["olmoe_1b_7b"] is False


def test_what_is_allowed_for_normalize_is_said_in_full() -> None:
    with pytest.raises(ConfigError) as caught:
        job_of(changed("model.router.normalize", 1), MACHINE)
    words = "model.router.normalize=1: allowed are true, false, null; set model.router.normalize"
    assert str(caught.value).startswith(words)


# Keys. Those below were made before the balancing loss and the gates of prescribed choices changed.

KEPT = {
    "10dffe9a2716": (),
    "21cda6c61251": ("model=mixtral_8x7b", "strategy=ep", "tokens=sharded", "mode=train",
                     "world_size=4", "model.bias=none"),
    "2ec550244b72": ("workload=zipf", "strategy=tp", "batch_size=64", "world_size=2"),
    "2270139d1085": (
        "model=olmoe_1b_7b", "strategy=ep", "strategy.dispatcher=alltoall", "world_size=2",
        "model.bias=none",
    ),
    "a697354e7a7d": ("workload=balanced", "model.router.order=after",
                     "model.router.normalize=false"),
    "21b33df7be78": ("workload=balanced", "model.router.score=sigmoid",
                     "model.router.normalize=false"),
    "97c5495626c1": ("model.router.kind=expert_choice", "model.router.normalize=false"),
    "a812be6978c8": ("model.router.capacity_factor=1.0", "model.router.drop=probability"),
}  # fmt: skip
REDEFINED = {
    "19771a15dbb2": (("mode=train", "model.router.aux_loss=0.01"), "router.aux_loss"),
    "e48d02956a5a": (("workload=balanced", "model.router.normalize=false"), "router.normalize"),
    "0e2bc1a3c27c": (("workload=zipf", "mode=train", "model.router.normalize=false",
                      "model.router.aux_loss=0.01"), "router.aux_loss and router.normalize"),
}  # fmt: skip


@pytest.mark.parametrize(("key", "overrides"), KEPT.items(), ids=list(KEPT))
def test_a_cell_that_means_what_it_did_keeps_its_key(key: str, overrides: tuple[str, ...]) -> None:
    cell = job_of(config(*overrides), MACHINE).cell
    assert cell_key(cell) == key
    made = Record(key=key, cell=cell)
    assert record.from_dict(record.to_dict(made)) == made


@pytest.mark.parametrize(
    ("key", "overrides", "names"),
    [(key, *row) for key, row in REDEFINED.items()],
    ids=[names for _, names in REDEFINED.values()],
)
def test_a_cell_that_means_another_function_has_a_new_key_and_its_old_records_are_refused(
    key: str, overrides: tuple[str, ...], names: str, tmp_path: Path
) -> None:
    cell = job_of(config(*overrides), MACHINE).cell
    fresh = Record(key=cell_key(cell), cell=cell)
    assert fresh.key != key
    path = record.write(tmp_path, fresh)
    assert record.read(path) == fresh
    old = record.write(tmp_path, Record(key=key, cell=cell))
    with pytest.raises(RecordError) as caught:
        record.read(old)
    assert str(caught.value) == (
        f"{old}: measured when {names} meant another function; measure it again"
    )
    strange = Record(key="0" * 12, cell=cell)
    with pytest.raises(RecordError, match="key 000000000000 does not belong to its cell"):
        record.from_dict(record.to_dict(strange))


@pytest.mark.parametrize(
    ("overrides", "meant"),
    [
        (("strategy=ep",), "local"),
        (("strategy=ep_tp", "strategy.ep=4", "strategy.tp=2"), "local"),
        (("strategy=dp_ep", "strategy.ep=4", "mode=train"), "local"),
        (("strategy=ep", "strategy.overlap=2", "batch_size=64"), "alltoall"),
        (("strategy=ep", "tokens=sharded"), "alltoall"),
        (("strategy=dp_ep", "tokens=sharded", "strategy.overlap=3"), "alltoall"),
        (("strategy=ep_tp", "tokens=sharded"), "alltoall"),
        (("strategy=tp", "tokens=sharded"), "local"),
    ],
)
def test_dispatcher_auto_and_what_it_means_are_one_cell(
    overrides: tuple[str, ...], meant: str
) -> None:
    usual = job_of(config(*overrides), MACHINE).cell
    named = job_of(config(*overrides, f"strategy.dispatcher={meant}"), MACHINE).cell
    auto = job_of(config(*overrides, "strategy.dispatcher=auto"), MACHINE).cell
    assert usual.strategy.dispatcher == meant
    assert cell_key(usual) == cell_key(named) == cell_key(auto)
    supports(usual)


def test_progress_says_which_dispatcher_a_cell_has() -> None:
    assert title(job_of(config("strategy=ep"), MACHINE).cell).startswith("ep local k=2")
    assert title(job_of(config("strategy=tp"), MACHINE).cell).startswith("tp k=2")
