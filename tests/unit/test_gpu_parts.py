"""The parts of the GPU script that need no GPU: budgets, deadlines, summaries, the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import (
    bench,
    budget,
    forms,
    kernels,
    page,
    parts,
    rows,
    summary,
    sweep,
    waits,
)
from moe.parallel.comm import Comm
from moe.spec import RankLayout
from tests.support import fake_cuda

RUN: dict[str, Any] = {
    "date": "2030-01-02", "command": "python -m benchmarks.gpu --out x", "dry_run": False,
    "budget_s": 398.0, "wall_s": 300.0, "limits": {"cells": 24, "largest": 0.9, "above": []},
}  # fmt: skip
FORM = {"strategy": "ep", "dispatcher": "alltoall", "kernel": "grouped", "dtype": "bfloat16",
        "mode": "train", "router": "softmax"}  # fmt: skip


def ended(part: str, cut: bool = False) -> dict[str, Any]:
    return {"part": part, "end": True, "seconds": 3.0, "cut": cut}


def measured(model: str, batch: int, sweep: str, strategy: str, ms: float) -> dict[str, Any]:
    return {"part": "bench", "ok": True, "model": model, "batch": batch, "sweep": sweep,
            "strategy": strategy, "ms": ms}  # fmt: skip


def all_cells(ours_ms: float, again_ms: float, theirs_ms: float) -> list[dict[str, Any]]:
    """Every model and batch in its two sweeps; the second has a slower variant."""
    return [
        row
        for model in bench.MODELS for batch in bench.BATCHES
        for row in (
            measured(model, batch, "a", "simple", ours_ms),
            measured(model, batch, "a", "peer_transformers grouped_mm", theirs_ms),
            measured(model, batch, "b", "simple", again_ms),
            measured(model, batch, "b", "peer_transformers eager", 9.0),
        )
    ]  # fmt: skip


def kernel_row(strategy: str, ms: float, **changed: Any) -> dict[str, Any]:
    """By default of Qwen3's layer, forward, with many tokens: 19.8 TFLOP."""
    return {"part": "kernels", "ok": True, "sweep": "forward", "model": "qwen3_30b_a3b",
            "batch": 32_768, "mode": "forward", "graph": "off", "strategy": strategy, "ms": ms,
            "TFLOP_s": 19_800 / ms * 1e-1, "read_MB": 1208.0, **changed}  # fmt: skip


def kernel_rows() -> list[dict[str, Any]]:
    token = {"batch": 1, "graph": "on", "sweep": "graph", "TFLOP_s": 1.0}
    return [
        kernel_row("simple liger", 6.0),  # 330 TFLOP/s
        kernel_row("simple grouped", 8.0),
        kernel_row("peer_transformers grouped_mm", 7.2),
        kernel_row("peer_liger", 5.9),  # ours is slower by 1.7%
        kernel_row("simple liger", 0.055, **token),
        kernel_row("simple grouped", 0.3, **token, model="mixtral_8x7b", read_MB=704.0),
    ]


def good_rows() -> list[dict[str, Any]]:
    """Of a run that meets every point."""
    return [
        {"part": "facts", "card": "NVIDIA H100", "driver": "580.1", "git": {"sha": "abc"},
         "versions": {"torch": "2.11.0+cu130", "triton": None}},
        {"part": "facts", "fact": "copy_TB_s", "value": 3.0},
        {"part": "forms", "ok": True, **FORM, "row_share": 0.2, "waits": 1},
        {"part": "forms", "ok": True, **FORM, "dtype": "float32", "row_share": 0.1, "waits": 2},
        ended("forms"),
        {"part": "waits", "ok": True, **FORM, "budget": 1, "waits": 1},
        {"part": "waits", "ok": True, **FORM, "batch": 1, "eager_ms": 0.5, "graph_ms": 0.25},
        ended("waits"),
        *({"part": "ranks", "ok": True, **FORM, "world_size": size} for size in (2, 4)),
        ended("ranks"),
        *kernel_rows(),
        ended("kernels"),
        *all_cells(1.0, 1.02, 1.1),
        ended("bench"),
    ]  # fmt: skip


@pytest.mark.parametrize(("strategy", "dispatcher", "kernel", "most"), [
    ("simple", "local", "grouped", 0), ("dp", "local", "dense", 0), ("tp", "local", "grouped", 0),
    ("fsdp", "local", "dense", 0), ("ep", "local", "grouped", 0), ("ep", "allgather", "dense", 0),
    ("ep", "alltoall", "grouped", 1), ("dp_ep", "alltoall", "dense", 1),
    ("ep_tp", "alltoall", "grouped", 1), ("ep", "dedup", "grouped", 1),
    ("ep_tp", "dedup", "dense", 1), ("ep", "symm_mem", "grouped", 0),
    ("simple", "local", "loop", None), ("ep", "alltoall", "bmm", None),
    ("peer_transformers", "local", "grouped", None),
])  # fmt: skip
def test_the_budget_of_waits(strategy: str, dispatcher: str, kernel: str, most: int | None) -> None:
    assert budget.host_waits(strategy, dispatcher, kernel) == most


def test_the_forms_cross_what_they_name() -> None:
    every = forms.forms()
    on_tiles = 2 * ((14 + 11) * 2 + 8 * 2)  # liger and triton
    assert len(every) == (14 + 11 + 11) * 4 * 2 + 8 * 2 * 2 + 3 * 2 * 6 + on_tiles
    dry = forms.dry_forms()
    on_cpu = {"grouped", "loop", "bmm", "dense"}
    assert {f.strategy.kernel for f in dry} == on_cpu
    assert {f.strategy.kernel for f in every} == {*on_cpu, "liger", "triton"}
    for kernel in ("liger", "triton"):
        assert {f.dtype for f in every if f.strategy.kernel == kernel} == {"bfloat16", "float16"}
    places = [{(f.strategy.name, f.strategy.dispatcher) for f in group} for group in (dry, every)]
    assert places[0] == places[1]
    assert {(f.dtype, f.mode) for f in dry} == {(f.dtype, f.mode) for f in every}
    assert {f.router for f in dry} == {f.router for f in every}
    assert {most for _, most in waits.limited()} == {0, 1}


def test_parts_share_the_budget_and_a_named_part_has_it_alone() -> None:
    ends = parts.deadlines(list(parts.PARTS), 540)
    assert [round(end) for end in ends.values()] == [5, 69, 85, 118, 323, 528]
    ends = parts.deadlines(["forms", "waits"], 540)  # 64 and 16 of 80
    assert {name: round(end) for name, end in ends.items()} == {"forms": 422, "waits": 528}


def test_a_row_is_on_disk_at_once_and_a_torn_one_is_left_out(tmp_path: Path) -> None:
    time_s = 5.0
    taken = rows.Rows(tmp_path, 2.0, clock=lambda: time_s)
    part = rows.Part("forms", taken, 9.0, tmp_path, tiny=True)
    part.add(ok=True, kernel="loop")
    part.add(ok=False)
    part.add(refused="why")
    with taken.path.open("a") as file:
        file.write('{"part": "for')
    assert rows.read(taken.path) == [
        {"part": "forms", "at_s": 3.0, "ok": True, "kernel": "loop"},
        {"part": "forms", "at_s": 3.0, "ok": False},
        {"part": "forms", "at_s": 3.0, "refused": "why"},
    ]
    assert taken.failed == 1
    assert (part.left_s(), part.is_over()) == (4.0, False)
    time_s = 9.5
    assert (part.left_s(), part.is_over()) == (0.0, True)


def test_a_graph_is_timed_where_it_gives_the_steps_output(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    form = waits.GRAPH_FORMS[0]
    monkeypatch.setattr(waits, "GRAPH_LAYER", forms.layer_of(tiny=True))
    monkeypatch.setattr(waits, "median_ms", lambda step, device, seconds: step() or 0.5)
    monkeypatch.setattr(waits, "one_rank", lambda tiny: forms.one_rank(tiny=True))
    row = waits.graph_row(form, 4, Comm(torch.device("cpu"), 1, 0))
    assert row["refused"].startswith("measure.graph=on: allowed is off but on GPUs")
    monkeypatch.setattr(waits, "one_rank", lambda tiny: RankLayout(1, "nccl", "cuda", 1))
    with fake_cuda.FakeCuda():
        row = waits.graph_row(form, 4, Comm(fake_cuda.DEVICE, 1, 0))
        assert row == {"ok": True, "eager_ms": 0.5, "graph_ms": 0.5}
        right = fake_cuda.Graph.replay

        def wrong(self: fake_cuda.Graph) -> None:
            right(self)
            self.operations[-1][1].zero_()

        monkeypatch.setattr(fake_cuda.Graph, "replay", wrong)
        assert waits.graph_row(form, 4, Comm(fake_cuda.DEVICE, 1, 0))["ok"] is False


def test_a_step_over_its_budget_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[Any] = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(waits.waits, "count", lambda step, device: 1)
    device = torch.device("cuda", 0)
    assert waits.judged(lambda: None, device, 1) == {"ok": True, "waits": 1}
    assert modes == []  # only a budget of 0 is judged in that mode
    assert waits.judged(lambda: None, device, 0) == {"ok": False, "waits": 1}
    assert modes == ["error", 0]

    def waiting() -> None:
        if modes[-1] == "error":
            raise RuntimeError("called a synchronizing CUDA operation")

    monkeypatch.setattr(waits.waits, "count", lambda step, device: 0)
    row = waits.judged(waiting, device, 0)
    assert not row["ok"] and "synchronizing CUDA operation at an unknown line" in row["error"]
    assert modes[-1] == 0


def test_the_line_of_a_wait_is_the_projects_own() -> None:
    with pytest.raises(AttributeError) as caught:
        forms.build.supports(None)  # type: ignore[arg-type]
    assert waits.line_of(caught.value).startswith("moe/build.py:")


def test_a_summary_has_what_the_rows_say() -> None:
    failed = {"part": "ranks", "ok": False, **FORM, "world_size": 4, "error": "e"}
    made = summary.summary_of([*good_rows(), failed], RUN)
    assert (made["card"], made["facts"]) == ("NVIDIA H100", {"copy_TB_s": 3.0})
    assert made["forms"] == {
        "passed": 2, "failed": 0, "refused": 0,
        "shares": {"bfloat16": {"row": 0.2}, "float32": {"row": 0.1}},
    }  # fmt: skip
    assert made["waits"]["passed"] == 1
    assert made["waits"]["seen"] == {"ep alltoall grouped train": 2}
    assert made["graphs"] == [
        {"form": "ep alltoall grouped train", "batch": 1, "eager_ms": 0.5, "graph_ms": 0.25}
    ]
    assert made["ranks"]["4"] == {"passed": 1, "failed": 1, "refused": 0}
    assert made["failures"] == [failed]
    assert made["within_budget"]
    assert made["parts"]["bench"] == {"seconds": 3.0, "cut": False}
    assert summary.file_name(made) == "nvidia-h100-2.11.0-cu130-2030-01-02.json"


def test_a_cell_is_compared_with_the_best_variant_in_its_own_sweep() -> None:
    group = [
        measured("m", 1, "a", "simple", 2.0),
        measured("m", 1, "a", "peer_transformers grouped_mm", 3.0),
        measured("m", 1, "b", "simple", 2.5),
        measured("m", 1, "b", "peer_transformers batched_mm", 2.0),
        measured("m", 8, "a", "simple", 4.0),
    ]
    assert summary.cells(group) == [
        {"model": "m", "batch": 1, "simple_ms": 2.5, "transformers": "batched_mm",
         "transformers_ms": 2.0, "ratio": 0.8, "repeat": 1.25},
        {"model": "m", "batch": 8, "simple_ms": 4.0},
    ]  # fmt: skip


def met(made: dict[str, Any]) -> list[bool]:
    return [holds(made) for _, holds in page.POINTS]


def test_a_good_run_meets_every_point() -> None:
    assert met(summary.summary_of(good_rows(), RUN)) == [True] * 8


def slower(taken: list[dict[str, Any]], graph: str, model: str, ms: float) -> None:
    for row in taken:
        if (row.get("graph"), row.get("model")) == (graph, model):
            row["ms"] = ms


@pytest.mark.parametrize(("change", "point"), [
    (lambda taken: taken.append({"part": "ranks", "ok": False, **FORM, "world_size": 2}), 0),
    (lambda taken: taken.append({"part": "forms", "refused": "x", **FORM}), 0),
    (lambda taken: taken.append(ended("forms", cut=True)), 0),
    (lambda taken: taken.append({"part": "waits", "ok": False, **FORM, "budget": 0}), 1),
    (lambda taken: taken.append(ended("waits", cut=True)), 1),
    (lambda taken: taken.append(measured("qwen3_30b_a3b", 1, "c", "simple", 1.01)) or taken.append(
        measured("qwen3_30b_a3b", 1, "c", "peer_transformers x", 0.97)), 2),
    (lambda taken: taken.append(measured("qwen3_30b_a3b", 1, "c", "simple", 1.04)), 3),
    (lambda taken: taken.remove(kernel_row("simple liger", 6.0)) or taken.append(
        kernel_row("simple liger", 6.0, TFLOP_s=319.0)), 4),
    (lambda taken: slower(taken, "on", "qwen3_30b_a3b", 0.061), 5),
    (lambda taken: slower(taken, "on", "mixtral_8x7b", 0.31), 5),  # of 0.305: 1.3 * 704 MB / 3 TB/s
    (lambda taken: taken.append(kernel_row("peer_moe_ops", 5.8)), 6),  # ours is slower by 3.4%
    (lambda taken: taken.append(kernel_row("peer_transformers eager", 6.8)), 6),  # 1.13
    (lambda taken: taken.append(ended("kernels", cut=True)), 6),
])  # fmt: skip
def test_one_fault_leaves_its_point_open(change: Any, point: int) -> None:
    taken = good_rows()
    change(taken)
    found = met(summary.summary_of(taken, RUN))
    assert [number for number, holds in enumerate(found) if not holds] == [point]


def test_points_stay_open_without_limits_or_time_or_cells() -> None:
    made = summary.summary_of(good_rows(), RUN | {"limits": {"unknown": "no calibration"}})
    assert met(made)[3] is False
    assert met(summary.summary_of(good_rows(), RUN | {"wall_s": 399.0}))[7] is False
    fewer = [row for row in good_rows() if row.get("batch") != 128]
    assert met(summary.summary_of(fewer, RUN))[2] is False
    slower = [row | ({"ms": 1.04} if row.get("ms") == 1.1 else {}) for row in good_rows()]
    assert met(summary.summary_of(slower, RUN))[2] is False  # the mean
    assert met(summary.summary_of([], RUN))[:7] == [False] * 7


def test_a_page_without_results_says_so(tmp_path: Path) -> None:
    text = page.markdown(tmp_path)
    assert "The present script has not run on a GPU yet" in text
    assert text.count("- [ ]") == 10 and text.count("Open.") == 10 and "[x]" not in text


def test_a_page_has_the_figures_of_its_results(tmp_path: Path) -> None:
    made = summary.summary_of(good_rows(), RUN)
    (tmp_path / "h100.json").write_text(json.dumps(made), "utf-8")
    text = page.markdown(tmp_path)
    assert "has not run on a GPU" not in text
    assert text.count("- [x]") == 8
    link = "[NVIDIA H100, 2030-01-02, torch 2.11.0+cu130](#nvidia-h100-2030-01-02-torch-2110cu130)"
    assert f"Shown by {link}." in text
    assert "## NVIDIA H100, 2030-01-02, torch 2.11.0+cu130" in text
    assert "transformers' time over ours: least 1.10, geometric mean 1.10, over 12 cells" in text
    assert "| deepseek_v3 | 16384 | 1.000 | 1.100 | grouped_mm | 1.10 |" in text
    assert "| ep alltoall grouped train | 1 | 0.500 | 0.250 |" in text
    assert "| qwen3_30b_a3b | 1 | forward, graph | simple liger | 0.055 | 1 |" in text
    assert "24 cells, the largest fraction 90%; above: none" in text


@pytest.mark.parametrize(("change", "message"), [
    ({"dry_run": True}, "x.json: dry_run=true: allowed is a run on a GPU; remove it"),
    ({"schema": 0}, "x.json: schema=0: allowed is 1; make it with the present script"),
])  # fmt: skip
def test_what_is_not_of_a_gpu_is_no_result(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    made = summary.summary_of(good_rows(), RUN) | change
    (tmp_path / "x.json").write_text(json.dumps(made), "utf-8")
    with pytest.raises(ValueError, match=message):
        page.markdown(tmp_path)


def test_the_sweeps_are_those_of_the_issue() -> None:
    cases = bench.cases(tiny=False)
    command = " ".join(sweep.command_of(cases[2], bench.MEASURE, Path("out"), tiny=False))
    for word in ("tracker=none", "backend=nccl", "world_size=1", "dtype=bfloat16", "model.scale=1",
                 "tokens=sharded", "model=deepseek_v3", "strategy=simple,peer_transformers",
                 "batch_size=1,128,1024,16384", "hydra.sweep.dir=out/sweeps/deepseek_v3",
                 "model.shared_experts=0"):  # fmt: skip
        assert word in command.split()
    assert [case.settings["model"] for case in cases] == [*bench.MODELS, *bench.MODELS]


def test_every_sweep_of_kernels_has_time_for_its_start_and_a_wave() -> None:
    """On an H200 a sweep's first wave was timed 20 s after its start, with few kernels to compile;
    in training after 35 s."""
    whole = parts.PARTS["kernels"][0]
    times = {name: seconds - sweep.INTERRUPT_S for name, seconds in kernels.SHARES.items()}
    assert times["forward"] >= 60 and times["graph"] >= 30 and times["train"] >= 45
    assert whole - sum(kernels.SHARES.values()) >= kernels.LEAST_S


def test_the_sweeps_of_kernels_are_those_of_the_issue() -> None:
    commands = {
        case.name: sweep.command_of(case, kernels.MEASURE, Path("out"), tiny=False)
        for case in kernels.cases(tiny=False)
    }
    assert list(commands) == ["forward", "graph", "train", "rivals"]
    both = "model=qwen3_30b_a3b,mixtral_8x7b"
    ours = "strategy=simple_liger,simple_triton,simple_grouped"
    assert {both, ours, "batch_size=1", "measure.graph=on"} <= {*commands["graph"]}
    assert {both, f"{ours},peer_grouped,peer_transformers", "batch_size=32768,4096,128,1",
            "workload=balanced"} <= {*commands["forward"]}  # fmt: skip
    assert {both, "batch_size=4096", "mode=train"} <= {*commands["train"]}
    assert (
        "strategy=simple_liger,simple_triton,peer_grouped,peer_liger,peer_moe_ops"
        in commands["rivals"]
    )
