"""The three sentences of `advise` on small problems, and commands that bench.py takes."""

from __future__ import annotations

import dataclasses
import itertools
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import runners.bench  # noqa: F401 registers the resolver that conf/ uses
from analysis import cli
from analysis.predict import command, measurement, problem, sentences
from analysis.predict.hardware import HardwareModel, Link
from analysis.predict.model import Prediction, longer, of_machine
from analysis.predict.problem import PredictionProblem
from analysis.predict.software import KernelModel, SoftwareProfile
from analysis.text import render
from moe.build import supports
from moe.cost.whole_memory import MemoryUse
from moe.spec import Cell, LayerSpec, RankLayout, StrategySpec, Unsupported, WorkloadSpec
from runners.config.cell import job_of
from runners.host import project_paths
from runners.host.machine import NodeResources

PERFECT = SoftwareProfile(
    "perfect", {"grouped": KernelModel(1.0, 1.0)}, 1.0, 0.0, 0.0, 0.0, {"every": {}}, {},
    fused_permutes=True,
)  # fmt: skip
TOY = HardwareModel(
    "toy", 8, 1e9, {"float32": 1e12, "bfloat16": 2e12}, 1e11,
    intra=Link(1e10, 1e-6), inter=Link(1e9, 1e-5, 1e-6), profile=PERFECT,
)  # fmt: skip
LAYER = LayerSpec(64, 128, 64, num_experts=8, topk=2, topk_requested=2)
GIB = float(1 << 30)


def setup(mode: str = "forward", per_rank: int = 1024) -> PredictionProblem:
    work = WorkloadSpec(tokens="sharded", mode=mode)
    return PredictionProblem("toy", LAYER, work, 1.0, per_rank, of_machine(TOY), TOY)


def form(
    name: str, ms: float, gib: float = 1.0, fits: bool = True, factor: float = 1.02, **knobs: Any
) -> Prediction:
    dispatcher = "alltoall" if name in ("ep", "dp_ep") else "local"
    work = WorkloadSpec(batch_size=8192, tokens="sharded")
    cell = Cell(
        LAYER, StrategySpec(name, **{"dispatcher": dispatcher, **knobs}), work,
        RankLayout(8, "nccl", "cuda", 1),
    )  # fmt: skip
    memory = MemoryUse({"layer": gib * GIB}, gib * GIB if fits else 0.0)
    return Prediction(cell, 1.0, {"experts": ms}, ms, ms / factor, ms * factor, memory,
                      "extrapolated")  # fmt: skip


def test_what_to_use_and_what_it_costs_beside_the_runner_up() -> None:
    ranked = [form("dp_ep", 2.0, 3.0, ep=4, overlap=2), form("tp", 3.0, 1.0)]
    use, cost, measure, typed, other = sentences.advice(setup(), ranked, {})
    assert use == (
        "For prefill with 1,024 tokens a rank on 8 ranks (toy), use dp_ep (ep 4, dp 2), dispatcher "
        "alltoall, overlap in 2 chunks: 2.00 ms (1.96 to 2.04, extrapolated) and 3.00 GiB a rank."
    )
    assert cost == (
        "The runner-up, tp (tp 8), takes 50% longer (3.00 ms) and 2.00 GiB less memory a rank; the "
        "difference is larger than the model's error."
    )
    assert measure.startswith("The cheapest measurement that could change this is ")
    assert measure.endswith(":")
    assert typed.startswith("    python runners/bench.py -m strategy=dp_ep ")
    assert other.startswith("    python runners/bench.py -m strategy=tp ")


def test_the_models_error_is_part_of_the_answer() -> None:
    # half-widths ln 1.02: together 2.8%, so 2% and 2.5% slower are not certain and 10% is
    ranked = [form("ep", 2.0), form("tp", 2.04, 1.5), form("simple", 2.05), form("fsdp", 2.2)]
    text = sentences.advice(setup(), ranked, {})[1]
    assert text == (
        "The runner-up, tp (tp 8), takes 2% longer (2.04 ms) and 512 MiB more memory a rank, which "
        "is within the model's error, as is 1 other form: the order is not certain."
    )
    same = sentences.advice(setup(), [form("ep", 2.0), form("tp", 2.0)], {})[1]
    assert same.startswith("The runner-up, tp (tp 8), takes as long (2.00 ms) and the same memory")


def test_a_form_with_another_overlap_is_no_runner_up_and_not_counted() -> None:
    ranked = [
        form("dp_ep", 2.0, ep=4, overlap=4), form("dp_ep", 2.01, ep=4, overlap=2),
        form("dp_ep", 2.02, ep=2, overlap=4), form("dp_ep", 2.03, ep=2), form("tp", 2.04),
    ]  # fmt: skip
    text = sentences.advice(setup(), ranked, {})[1]
    assert text.startswith("The runner-up, dp_ep (ep 2, dp 4), dispatcher alltoall, overlap in 4 ")
    assert "as is 1 other form: " in text  # tp
    assert "overlap in 2 chunks" in sentences.advice(setup(), ranked[:2], {})[1]


@pytest.mark.parametrize(("ratio", "words"), [
    (1.004, "as long"), (1.5, "50% longer"), (1.99, "99% longer"), (2.0, "2.00 times as long"),
    (13.23, "13.2 times as long"),
])  # fmt: skip
def test_how_much_longer(ratio: float, words: str) -> None:
    assert longer(ratio) == words


def test_one_token_is_not_plural() -> None:
    one = form("ep", 2.0)
    few = dataclasses.replace(one.cell, workload=WorkloadSpec(batch_size=8, tokens="sharded"))
    text = sentences.advice(setup(), [dataclasses.replace(one, cell=few)], {})[0]
    assert "with 1 token a rank on 8 ranks" in text


def test_forms_that_have_no_small_product_have_a_command_each(tmp_path: Path) -> None:
    """Two strategies with two degrees and two chunks would be more cells than anybody asked for."""
    case = make("--model", "qwen3_30b_a3b", "--mode", "train")
    work, place = case.workload(8), case.placement(8)
    forms = [
        StrategySpec("dp_ep", "alltoall", ep=2, overlap=4), StrategySpec("dp_ep", "dedup", ep=4),
        StrategySpec("tp"),
    ]  # fmt: skip
    contestants = [case.predict(Cell(case.layer, one, work, place)) for one in forms]
    result = measurement.cheapest(case, contestants)
    assert (len(result.commands), result.cells) == (3, 3)
    for command_line, one in zip(result.commands, forms, strict=True):
        assert {cell.strategy for cell in resolved(command_line, tmp_path)} == {one}


def test_what_does_not_fit_is_neither_advised_nor_a_runner_up() -> None:
    full = form("simple", 1.0, 9.0, fits=False)
    lines = sentences.advice(setup(), [form("ep", 2.0), form("tp", 3.0), full], {})
    assert "use ep (ep 8)" in lines[0]
    assert "simple" not in " ".join(lines)
    alone = sentences.advice(setup(), [form("ep", 2.0), full], {})
    assert alone[1].startswith("No other form fits")
    assert sentences.advice(setup(), [form("ep", 2.0)], {})[1].startswith(
        "No other form was asked for"
    )
    assert sentences.advice(setup(), [full, form("ep", 1.0, 5.0, fits=False)], {}) == [
        "Nothing fits the memory of a rank; the least is ep alltoall with 5.00 GiB; use more ranks "
        "or fewer tokens."
    ]


@pytest.mark.parametrize(("mode", "tokens", "phase"), [
    ("train", 64, "train"), ("forward", 129, "prefill"), ("forward", 128, "decode"),
])  # fmt: skip
def test_phases(mode: str, tokens: int, phase: str) -> None:
    assert setup(mode, tokens).phase(8) == phase


def test_other_phases_say_what_they_would_use_and_what_the_advised_form_takes() -> None:
    ep, tp = form("ep", 2.0), form("tp", 3.0)
    full = form("ep", 2.0, fits=False)
    by_phase = {
        "train": [ep, tp],  # the same form: no line
        "decode": [form("tp", 1.0), form("ep", 1.5)],
        "prefill": [form("tp", 1.0), full],
    }
    assert sentences.other_phases(setup(), ep, by_phase) == [
        "Decode (1,024 tokens a rank) would rather use tp (tp 8): 1.00 ms, where the form above "
        "takes 50% longer.",
        "Prefill (1,024 tokens a rank) would rather use tp (tp 8): 1.00 ms, where the form above "
        "does not fit.",
    ]
    slow = {"decode": [form("tp", 1.0, factor=2.0), form("ep", 2.5, factor=2.0)]}
    assert sentences.other_phases(setup(), ep, slow)[0].endswith(
        "where the form above takes 2.50 times as long (within the model's error)."
    )
    assert sentences.other_phases(setup(), ep, {"train": [full]}) == [
        "Training does not fit the memory of these ranks in any form."
    ]


def make(*words: str) -> PredictionProblem:
    """Of one layer, as the cheapest measurement is."""
    options = ["advise", "--cluster", "h100", "--one-layer", *words]
    return problem.make(cli.parser().parse_args(options), [])


def test_phases_are_predicted_with_their_own_mode_and_tokens() -> None:
    result = command.by_phase(make("--model", "olmoe_1b_7b"), 8, {"ep"})
    assert list(result) == ["train", "decode"]
    work = {phase: ranked[0].cell.workload for phase, ranked in result.items()}
    assert (work["train"].mode, work["train"].batch_size) == ("train", 8 * 4096)
    assert (work["decode"].mode, work["decode"].batch_size) == ("forward", 8 * 64)
    few = command.by_phase(make("--model", "olmoe_1b_7b", "--tokens-per-rank", "16"), 8, {"ep"})
    assert {phase: ranked[0].cell.workload.batch_size for phase, ranked in few.items()} == {
        "train": 8 * 4096, "prefill": 8 * 4096
    }  # fmt: skip


def resolved(text: str, folder: Path) -> set[Cell]:
    """The cells that bench.py measures for a command: the product of its words, each once."""
    head, *words = shlex.split(text.split("bench.py ")[1])
    assert head == "-m"
    skip = "on_invalid=skip" in words
    lists = [
        [f"{key}={value}" for value in values.split(",")]
        for key, _, values in (word.partition("=") for word in words)
    ]
    cells = set()
    machine = NodeResources(cores=64, cuda_devices=8)
    for job in itertools.product(*lists):
        with initialize_config_dir(version_base="1.3", config_dir=str(project_paths.CONF)):
            result = OmegaConf.to_container(compose("config", list(job)), resolve=True)
        assert isinstance(result, dict)
        cell = job_of({str(k): v for k, v in result.items()}, machine).cell
        try:
            supports(cell)
        except Unsupported:
            assert skip
            continue
        cells.add(cell)
    return cells


@pytest.mark.parametrize("words", [
    ["--model", "olmoe_1b_7b", "--strategy", "ep,tp"],
    ["--model", "deepseek_v3", "--tokens-per-rank", "128", "--strategy", "ep"],
    ["--model", "mixtral_8x7b", "--strategy", "simple,dp_ep", "--skew", "1.3"],
    ["--model", "qwen3_30b_a3b", "--strategy", "ep", "--mode", "train", "--scale", "2"],
])  # fmt: skip
def test_the_command_measures_what_the_sentence_counts(words: list[str], tmp_path: Path) -> None:
    case = make(*words)
    asked = set(words[words.index("--strategy") + 1].split(","))
    ranked = command.ranked(case, 8, asked)[0]
    rivals = [next(p for p in ranked if p.cell.strategy.name == name) for name in sorted(asked)]
    contestants = rivals if len(rivals) > 1 else ranked[:2]
    result = measurement.cheapest(case, contestants)
    cells = set().union(*(resolved(command, tmp_path) for command in result.commands))
    assert len(cells) == result.cells
    assert {p.cell.strategy for p in contestants} <= {cell.strategy for cell in cells}
    layer = next(iter(cells)).layer
    assert {cell.placement.world_size for cell in cells} == {result.ranks}
    assert layer.num_experts == (result.experts or case.layer.num_experts)
    assert (layer.dim, layer.hidden, layer.dtype) == (
        case.layer.dim, case.layer.hidden, case.layer.dtype
    )  # fmt: skip
    works = {(c.workload.mode, c.workload.tokens, c.workload.batch_size) for c in cells}
    assert works == {(case.work.mode, "sharded", case.per_rank * result.ranks)}
    kinds = {(c.workload.kind, c.workload.parameter) for c in cells}
    assert kinds == {("imbalance", 1.3) if case.skew > 1 else ("learned", 0.0)}


def test_fewer_ranks_where_ratios_and_phases_stay_else_all() -> None:
    """dp_ep with ep=2 sends nothing between its replicas in a forward pass: one replica more than
    one is enough. In training it sums gradients over them, farther on more ranks."""
    forms = [StrategySpec("dp_ep", "alltoall", ep=2, overlap=n) for n in (1, 2)]

    def cheapest(mode: str) -> measurement.Measurement:
        case = setup(mode)
        work, place = case.workload(64), case.placement(64)
        predicted = [case.predict(Cell(LAYER, one, work, place)) for one in forms]
        return measurement.cheapest(case, predicted)

    assert (cheapest("forward").ranks, cheapest("forward").nodes) == (4, 1)
    assert cheapest("train").ranks > 8


def test_a_reduced_layer_keeps_the_experts_on_a_rank() -> None:
    case = make("--model", "deepseek_v3", "--tokens-per-rank", "128")
    ranked = command.ranked(case, 8, {"ep"})[0]
    result = measurement.cheapest(case, ranked[:2])
    assert (result.ranks, result.experts) == (4, 128)  # 32 on a rank, as 256 on 8
    assert " num_experts=128 " in result.commands[0]
    assert result.where(case, 8).startswith("3 cells on 4 GPUs, with 128 experts, where the model ")
    assert result.where(case, 4) == "3 cells on 4 GPUs, with 128 experts"


def test_a_command_can_be_copied_from_every_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    word = "w" * 60
    texts = ["Measure:", f"    python bench.py {word} 'a b' {word}"]
    assert render.commands(texts, "text") == (
        f"Measure:\n    python bench.py {word} 'a b' \\\n      {word}"
    )
    assert render.commands(texts, "markdown") == (
        f"- Measure:\n  `python bench.py {word} 'a b' {word}`"
    )
    assert render.commands(texts, "csv") == f"# Measure:\n# python bench.py {word} 'a b' {word}"


def test_commands_with_a_trace_and_a_placement_can_be_typed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [[(t + i) % 8 for i in range(4)] + [8 + (t + 7 * i) % 56 for i in range(4)]
            for t in range(512)]  # fmt: skip
    trace, order = tmp_path / "it's, hot.npz", tmp_path / "order.txt"
    np.savez(trace, indices=rows)
    words = ["--model", "olmoe_1b_7b", "--strategy", "ep", "--trace", str(trace)]
    assert cli.main(["advise", "--cluster", "h100", *words, "--placement", str(order)]) == 0
    text = capsys.readouterr().out
    typed = text[text.rindex("python runners/bench.py") :].split("\n\n")[0]
    words = shlex.split(typed.replace("\\\n", " "))  # as a shell joins them
    assert typed.count("\n") == typed.count(" \\\n") > 2
    assert f"strategy.placement=contiguous,{order}" in words
    quoted = next(word for word in words if word.startswith("workload.trace="))
    one = ["model=olmoe_1b_7b", "model.scale=1", "strategy=ep", "workload=trace", "tokens=sharded",
           f"strategy.placement={order}", "world_size=8", quoted]  # fmt: skip
    with initialize_config_dir(version_base="1.3", config_dir=str(project_paths.CONF)):
        result = OmegaConf.to_container(compose("config", one), resolve=True)
    assert isinstance(result, dict)
    job = job_of({str(k): v for k, v in result.items()}, NodeResources(cores=64, cuda_devices=8))
    assert job.trace is not None
    assert job.trace.count == 512
    assert len(job.cell.strategy.expert_order) == 64
