"""Every refusal of a cell by strategies and their rules, by name; and that what is near it is
accepted."""

from __future__ import annotations

import ast
import dataclasses
import math
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest

from moe import build
from moe.build import supports
from moe.parallel import rules, symm_mem_limits
from moe.parallel.rules import StrategyRules
from moe.spec import (
    Cell,
    LayerSpec,
    RankLayout,
    RouterSpec,
    StrategySpec,
    Unsupported,
    WorkloadSpec,
)
from moe.strategies import checks, names, rules_of

PARTS = {
    "layer": LayerSpec,
    "strategy": StrategySpec,
    "workload": WorkloadSpec,
    "placement": RankLayout,
}


def cell(changes: dict[str, Any]) -> Cell:
    """A cell of ep alltoall, 8 experts of 32 hidden units on 4 ranks, but for `changes`."""
    values: dict[str, dict[str, Any]] = {
        "layer": {"dim": 16, "hidden": 32, "dim_out": 16, "num_experts": 8, "topk": 2},
        "strategy": {"name": "ep", "dispatcher": "alltoall"},
        "workload": {"batch_size": 8},
        "placement": {"world_size": 4},
        "router": {},
    }
    for name, value in changes.items():
        part, _, field = name.partition(".")
        values[part][field] = value
    layer = LayerSpec(**values["layer"], router=RouterSpec(**values.pop("router")))
    return Cell(layer, *(PARTS[part](**values[part]) for part in list(PARTS)[1:]))


SIMPLE = {"strategy.name": "simple", "strategy.dispatcher": "local"}
TP = {"strategy.name": "tp", "strategy.dispatcher": "local"}
GRAPH = {
    "strategy.graph": "on", "strategy.dispatcher": "local", "placement.device": "cuda",
    "placement.backend": "nccl",
}  # fmt: skip
SYMM_MEM = {
    "strategy.dispatcher": "symm_mem", "placement.device": "cuda", "placement.backend": "nccl",
}  # fmt: skip
NAMED = "strategy.dispatcher=symm_mem"
CHOICE = {"router.kind": "expert_choice"}
GROUPS = {"router.groups": 4, "router.group_topk": 2}

# change -> words of the message, the first of them at its start
REFUSED: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    (
        {**TP, "strategy.dispatcher": "dedup"},
        ("strategy.dispatcher=dedup", "for strategy=tp", "local"),
    ),
    ({"router.capacity_factor": -1.0}, ("model.router.capacity_factor=-1.0", "from 0")),
    ({"router.aux_loss": math.nan}, ("model.router.aux_loss=nan", "from 0")),
    ({"strategy.slowdown": -0.1}, ("strategy.slowdown=-0.1", "from 0")),
    ({"strategy.name": "pp"}, ("strategy=pp", "serial|simple|dp|tp|ep|ep_tp|dp_ep|fsdp")),
    ({"strategy.kernel": "fast"}, ("strategy.kernel=fast", "auto|loop|bmm|dense|grouped")),
    ({"layer.dtype": "float64"}, ("dtype=float64", "float32|bfloat16|float16")),
    ({"layer.activation": "tanh"}, ("model.activation=tanh", "relu|identity|gelu|silu_gated")),
    ({"layer.bias": "one"}, ("model.bias=one", "none|zero|random")),
    ({"workload.tokens": "split"}, ("tokens=split", "replicated|sharded")),
    ({"workload.mode": "infer"}, ("mode=infer", "forward|train")),
    ({"layer.dim": 0}, ("model.dim=0", "whole numbers from 1", "set model.dim to one")),
    ({"layer.hidden": 1.5}, ("model.hidden=1.5", "whole numbers")),
    ({"layer.dim_out": True}, ("model.dim_out=True", "whole numbers")),
    ({"layer.num_experts": -8}, ("model.num_experts=-8",)),
    ({"layer.topk": 0}, ("model.topk=0",)),
    ({"workload.batch_size": 0}, ("batch_size=0", "from 1")),
    ({"placement.world_size": 0}, ("world_size=0", "from 1")),
    ({"placement.threads": 0}, ("threads=0", "from 1")),
    ({"layer.shared_experts": -1}, ("model.shared_experts=-1", "from 0")),
    ({"layer.topk": 9}, ("topk=9", "1 to num_experts=8", "topk_overflow=clamp")),
    # routers
    ({"router.kind": "random"}, ("model.router.kind=random", "token_choice|expert_choice")),
    ({"router.score": "relu"}, ("model.router.score=relu", "softmax|sigmoid")),
    ({"router.order": "never"}, ("model.router.order=never", "before|after")),
    ({"router.selection_bias": "some"}, ("model.router.selection_bias=some", "none|balanced")),
    ({"router.drop": "random"}, ("model.router.drop=random", "position|first_choices|probability")),
    ({"router.scope": "node"}, ("model.router.scope=node", "rank|global")),
    ({"router.groups": 0}, ("model.router.groups=0", "from 1")),
    (
        {"router.score": "sigmoid", "router.order": "after"},
        ("router.order=after", "with score=sigmoid", "before"),
    ),
    ({"router.aux_loss": 0.1}, ("mode=forward", "with router.aux_loss", "train")),
    (
        {**CHOICE, "router.order": "after"},
        ("router.order=after", "with kind=expert_choice", "before"),
    ),
    ({**CHOICE, **GROUPS}, ("router.groups=4", "with kind=expert_choice", "allowed is 1")),
    (
        {**CHOICE, "router.selection_bias": "balanced"},
        ("router.selection_bias=balanced", "with kind=expert_choice", "none"),
    ),
    (
        {**CHOICE, "router.aux_loss": 0.1, "workload.mode": "train"},
        ("router.aux_loss=0.1", "with kind=expert_choice", "allowed is 0.0"),
    ),
    ({"router.groups": 3}, ("router.groups=3", "divisors of num_experts=8")),
    ({**GROUPS, "router.group_topk": 5}, ("router.group_topk=5", "1|2|3|4")),
    (
        {**GROUPS, "layer.topk": 5},
        ("topk=5", "at most 4, the experts of router.group_topk=2 groups"),
    ),
    # CUDA graphs
    ({**GRAPH, "placement.device": "cpu"}, ("measure.graph=on", "on GPUs with backend=nccl")),
    ({**GRAPH, "strategy.graph": "both"}, ("measure.graph=both", "off|on", "of one cell")),
    (
        {**GRAPH, "strategy.slowdown": 0.1},
        ("measure.graph=on", "off with strategy.slowdown", "waits"),
    ),
    (
        {**GRAPH, "strategy.dispatcher": "dedup"},
        ("measure.graph=on", "strategy.dispatcher=dedup", "number of rows", "another dispatcher"),
    ),
    (
        {**GRAPH, "strategy.kernel": "bmm"},
        ("measure.graph=on", "strategy.kernel=bmm", "strategy.kernel=auto|grouped|dense"),
    ),
    (
        {**GRAPH, "strategy.kernel": "grouped"},
        ("measure.graph=on", "strategy.kernel=grouped and dtype=float32", "dtype=bfloat16"),
    ),
    (
        {**GRAPH, "strategy.name": "peer_transformers"},
        ("measure.graph=on", "off with strategy=peer_transformers", "measure.graph=off"),
    ),
    (
        {**GRAPH, "strategy.name": "peer_liger"},
        ("measure.graph=on", "off with strategy=peer_liger, whose host may wait"),
    ),
    (
        {**GRAPH, "strategy.name": "peer_grouped"},
        ("measure.graph=on", "strategy=peer_grouped and dtype=float32", "off or dtype=bfloat16"),
    ),
    (
        {
            **GRAPH,
            "strategy.name": "peer_grouped",
            "layer.dtype": "bfloat16",
            "placement.device": "cpu",
        },
        ("measure.graph=on", "on GPUs with backend=nccl"),
    ),
    # how experts are spread
    (
        {"strategy.name": "serial", "workload.tokens": "sharded"},
        ("tokens=sharded", "replicated for strategy=serial", "strategy=simple"),
    ),
    ({**TP, "strategy.ep": 2}, ("strategy.ep=2", "for strategy=tp", "allowed is 0")),
    ({"strategy.tp": 2}, ("strategy.tp=2", "for strategy=ep", "allowed is 0")),
    ({"strategy.ep": 2}, ("strategy.ep, strategy.tp=(2, 1)", "product of world_size=4")),
    (
        {"strategy.name": "ep_tp", "strategy.ep": 2, "strategy.tp": 4},
        ("strategy.ep, strategy.tp=(2, 4)", "world_size=4"),
    ),
    (
        {"strategy.name": "dp_ep", "strategy.ep": 3},
        ("strategy.ep, strategy.tp=(3, 1)", "world_size=4"),
    ),
    (
        {"strategy.name": "ep_tp", "strategy.ep": -2, "strategy.tp": -2},
        ("strategy.ep=-2", "whole numbers from 0"),
    ),
    ({"layer.num_experts": 6}, ("num_experts=6", "multiples of 4", "strategy.ep")),
    ({**TP, "layer.hidden": 30}, ("layer.hidden=30", "multiples of 4", "strategy.tp")),
    # dispatch
    (
        {"strategy.dispatcher": "allgather"},
        ("strategy.dispatcher=allgather", "with tokens=replicated", "local|alltoall|dedup"),
    ),
    (
        {"strategy.dispatcher": "local", "workload.tokens": "sharded"},
        ("strategy.dispatcher=local", "with tokens=sharded", "alltoall|dedup|allgather"),
    ),
    (
        {
            "strategy.name": "dp_ep",
            "strategy.dispatcher": "allgather",
            "workload.tokens": "sharded",
        },
        ("strategy.dispatcher=allgather", "with tokens=sharded", "alltoall|dedup"),
    ),
    ({"strategy.overlap": 0}, ("strategy.overlap=0", "from 1")),
    (
        {"strategy.overlap": 2, "strategy.dispatcher": "dedup"},
        ("strategy.overlap=2", "1 without strategy.dispatcher=alltoall"),
    ),
    ({**SIMPLE, "strategy.overlap": 2}, ("strategy.overlap=2", "strategy.overlap=1")),
    ({"strategy.comm_dtype": "int8"}, ("strategy.comm_dtype=int8", "float32|bfloat16|float16")),
    (
        {**SIMPLE, "strategy.comm_dtype": "bfloat16"},
        (
            "strategy.comm_dtype=bfloat16",
            "for strategy=simple, which sends nothing",
        ),
    ),
    # placement and copies
    (
        {**TP, "strategy.placement": "round_robin"},
        ("strategy.placement=round_robin", "for strategy=tp", "contiguous"),
    ),
    (
        {"strategy.placement": "explicit", "strategy.expert_order": (0, 1, 2)},
        ("strategy.placement=3 expert ids", "8, every expert once"),
    ),
    (
        {"strategy.placement": "explicit", "strategy.expert_order": (0,) * 8},
        ("strategy.placement=8 expert ids", "8, every expert once"),
    ),
    ({"strategy.hot_replicas": -1}, ("strategy.hot_replicas=-1", "from 0")),
    (
        {"strategy.name": "ep_tp", "strategy.hot_replicas": 2},
        ("strategy.hot_replicas=2", "0 for strategy=ep_tp", "strategy=ep"),
    ),
    ({"strategy.hot_replicas": 3}, ("strategy.hot_replicas=3", "multiples of 4 up to 24")),
    ({"strategy.hot_replicas": 28}, ("strategy.hot_replicas=28", "up to 24")),
    # kernels
    (
        {"strategy.kernel": "grouped", "layer.dim": 6},
        ("strategy.kernel=grouped", "16 bytes, which 6 is not", "strategy.kernel=auto"),
    ),
    (
        {**TP, "strategy.kernel": "grouped", "layer.hidden": 24},
        ("strategy.kernel=grouped", "16 bytes, which 6 is not"),
    ),
]


REFUSED += [({**SYMM_MEM, **changes}, words) for changes, words in (
    ({"placement.device": "cpu"}, (NAMED, "on GPUs with backend=nccl")),
    ({"placement.backend": "gloo"}, (NAMED, "device=cuda backend=nccl")),
    ({"placement.world_size": 1}, (NAMED, "at least 2 ranks, each with a GPU", "=alltoall")),
    ({"strategy.name": "dp_ep", "strategy.ep": 1}, (NAMED, "at least 2 ranks", "raise world_size")),
    ({"placement.nodes": 2}, (NAMED, "on one node", "hosts.nnodes=1")),
    ({"placement.world_size": 32, "layer.num_experts": 32}, (NAMED, "at most 16 ranks", "not 32")),
    ({"layer.num_experts": 128}, (NAMED, "at most 16 experts on a rank", "not 32", "raise world")),
    ({"layer.num_experts": 64, "strategy.hot_replicas": 4}, (NAMED, "at most 16", "not 17")),
    ({"layer.dim": 18}, (NAMED, "16 bytes, which 18 is not", "other sizes")),
    ({"strategy.comm_dtype": "bfloat16"}, ("strategy.comm_dtype=bfloat16", "with strategy.dis")),
    ({"strategy.kernel": "dense"}, ("strategy.kernel=dense", "auto|grouped|liger|triton with ")),
    ({"strategy.overlap": 2}, ("strategy.overlap=2", "1 without strategy.dispatcher=alltoall")),
    ({"strategy.graph": "on"}, ("measure.graph=on", "off with strategy.dispatcher=symm_mem")),
)]  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), REFUSED, ids=[words[0] for _, words in REFUSED])
def test_what_is_not_done_is_refused_by_name(
    changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(Unsupported) as refused:
        supports(cell(changes))
    message = str(refused.value)
    assert message.startswith(f"{words[0]}: allowed is ")
    for word in words[1:]:
        assert word in message
    assert message.count("; ") >= 1 and not message.endswith("; ")  # and what to do


ACCEPTED: list[dict[str, Any]] = [
    {},
    {"layer.topk": 8},
    {**GROUPS, "layer.topk": 4},
    {**CHOICE},
    {"router.aux_loss": 0.1, "workload.mode": "train"},
    {"router.drop": "first_choices", "router.capacity_factor": 1.0},
    {"router.drop": "probability", "router.scope": "global", "router.capacity_factor": 1.0},
    {"router.score": "sigmoid", "router.selection_bias": "balanced"},
    {"strategy.dispatcher": "allgather", "workload.tokens": "sharded"},
    {"strategy.overlap": 3, "strategy.comm_dtype": "bfloat16"},
    {"strategy.hot_replicas": 24},
    {"strategy.placement": "explicit", "strategy.expert_order": (3, 1, 0, 2, 7, 6, 5, 4)},
    {"strategy.name": "ep_tp", "strategy.ep": 2, "strategy.tp": 2},
    {"strategy.name": "dp_ep", "strategy.dispatcher": "dedup", "layer.num_experts": 6},
    {"strategy.kernel": "grouped"},
    {**TP, "strategy.tp": 4},
    {**SIMPLE, "placement.world_size": 3, "layer.num_experts": 5, "layer.hidden": 7},
    {"workload.batch_size": 1},
    GRAPH,
    SYMM_MEM,
    {**SYMM_MEM, "layer.num_experts": 64, "workload.tokens": "sharded", **CHOICE},
    {**SYMM_MEM, "placement.world_size": 16, "layer.num_experts": 16, "strategy.hot_replicas": 16},
    {**SYMM_MEM, "strategy.name": "dp_ep", "strategy.ep": 2, "router.capacity_factor": 1.0},
    {**SYMM_MEM, "strategy.name": "ep_tp", "strategy.ep": 2, "strategy.kernel": "grouped"},
    {**SYMM_MEM, "layer.dtype": "bfloat16", "strategy.comm_dtype": "bfloat16"},
]


@pytest.mark.parametrize("changes", ACCEPTED, ids=lambda changes: ", ".join(changes) or "plain")
def test_what_is_near_it_is_accepted(changes: dict[str, Any]) -> None:
    supports(cell(changes))


CHECKS = ("one_of", "whole", "at_least_0", "Unsupported")
RULES = [sys.modules[type(rules_of(name)).__module__] for name in names()]
REFUSING = [str(module.__file__) for module in (build, checks, rules, symm_mem_limits, *RULES)]


def refusals() -> dict[tuple[str, int], str]:
    """File, first line and source of every call that can refuse a cell."""
    calls = {}
    for file in REFUSING:
        text = Path(file).read_text("utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and (
                node.func.id in CHECKS
            ):  # fmt: skip
                calls[file, node.lineno] = ast.get_source_segment(text, node) or ""
    return calls


def test_no_refusal_is_missing_from_the_table() -> None:
    seen = set()
    for changes, _ in REFUSED:
        try:
            supports(cell(changes))
        except Unsupported as error:
            frames = [
                frame
                for frame in traceback.extract_tb(error.__traceback__)
                if frame.filename in REFUSING
            ]
            seen.add((frames[-1].filename, frames[-1].lineno))
    assert {place: text for place, text in refusals().items() if place not in seen} == {}


def test_refusals_are_looked_for_in_every_strategy() -> None:
    files = {Path(file).parent.name for file, _ in refusals()}
    assert {"moe", "strategies", "parallel", "serial"} <= files
    assert len({module.__file__ for module in RULES}) == len(names())


def test_a_mutant_that_forgets_a_check_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StrategyRules, "refuse_placement", lambda self, cell: None)
    changes, words = next(row for row in REFUSED if row[0].get("strategy.hot_replicas", 0) > 0)
    with pytest.raises(pytest.fail.Exception):
        test_what_is_not_done_is_refused_by_name(changes, words)
    assert dataclasses.is_dataclass(cell(changes))
