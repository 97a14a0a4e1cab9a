"""Skews of captured choices by hand, and what is advised about them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from analysis import cli, numbers
from analysis.errors import InputError
from analysis.predict import problem, remedies, routing
from analysis.predict.routing import CapturedRouting
from moe.parallel.expert_order import order_for
from moe.parallel.expert_placement import places_of
from moe.spec import Cell, LayerSpec, RankLayout, StrategySpec, WorkloadSpec

# Experts 0 and 1 have 3 slots each of the first half, 2 and 3 one each.
CHOSEN = [0, 0, 0, 1, 1, 1, 2, 3]
JUDGED = [0, 0, 1, 0, 2, 0, 1, 3]


def captured(ids: list[int], experts: int = 4) -> CapturedRouting:
    return CapturedRouting("a.npz", "0", experts, np.array(ids)[:, None])


def cell(batch: int, ranks: int = 2, experts: int = 4, **knobs: Any) -> Cell:
    layer = LayerSpec(num_experts=experts, topk=1, topk_requested=1)
    strategy = StrategySpec(**{"name": "ep", "dispatcher": "alltoall", **knobs})
    work = WorkloadSpec(batch_size=batch, tokens="sharded")
    return Cell(layer, strategy, work, RankLayout(world_size=ranks))


def test_skews_of_placements_and_copies_by_hand() -> None:
    trace = captured(CHOSEN + JUDGED)
    assert trace.loads == [3, 3, 1, 1]
    assert trace.new_order(2) == (0, 2, 1, 3)
    anew = cell(8, placement="explicit", expert_order=(0, 2, 1, 3))
    # contiguous: experts 0 and 1 on rank 0, with 6 of 8 slots, over a mean of 4
    assert trace.skew(cell(8)) == 6 / 4
    # anew: rank 0 has experts 0 and 2, 4 + 1 slots of the second half; 3 + 1 of the first
    assert trace.skew(anew) == 5 / 4
    assert trace.skew(anew, chosen=True) == 1.0
    # copies: [0, 1, 2 | 2, 3, 0]. Tokens 0, 1, 3 and 5 choose expert 0; the odd ones are on rank 1,
    # with token 7 for expert 3. Token 4 takes the first copy of expert 2.
    assert trace.skew(cell(8, hot_replicas=2)) == 1.0
    assert trace.skew(cell(8, name="tp", dispatcher="local")) == 1.0


def test_steps_are_averaged_and_the_busiest_group_of_a_step_counts() -> None:
    # four windows of 4 tokens, two groups of ranks a step; rank 0 of a group has experts 0 and 1:
    # 3 and 2 slots in the first step, 4 and 1 (3 on rank 1) in the second, of a mean of 2
    judged = [0, 1, 0, 2, 0, 3, 1, 2, 0, 0, 1, 1, 2, 3, 2, 0]
    trace = captured([0] * 16 + judged)
    grouped = cell(8, ranks=4, name="dp_ep", ep=2)
    assert trace.skew(grouped) == (3 / 2 + 4 / 2) / 2
    # one group of all ranks, 16 tokens a step: rank 0 has 10 of them
    assert trace.skew(cell(16)) == 10 / 8
    # more tokens than rows: they repeat
    assert trace.skew(cell(64)) == 10 / 8
    # a step of two tokens: 2 1 1 1 2 2 0 1 slots on rank 0, of which the busiest has 2 or 1 of 2
    assert trace.skew(cell(2)) == (2 + 1 + 1 + 1 + 2 + 2 + 2 + 1) / 8


@pytest.mark.parametrize("copies", [0, 4, 8])
def test_slots_are_where_the_layer_computes_them(copies: int) -> None:
    draw = np.random.default_rng(copies)
    rows = np.array([draw.permutation(8)[:2] for _ in range(64)])
    trace = CapturedRouting("a.npz", "0", 8, rows)
    case = cell(32, ranks=4, experts=8, hot_replicas=copies, placement="round_robin")
    order = order_for(case, 4, trace.loads)
    places = places_of(order, 8, torch.device("cpu"))
    result = places.locate(torch.from_numpy(rows[32:].copy()), 0) // (len(order) // 4)
    slots = torch.bincount(result.flatten(), minlength=4)
    assert trace.skew(case) == pytest.approx(float(slots.max()) / 16)


def saved(path: Path, rows: Any) -> str:
    np.savez_compressed(path, indices=np.asarray(rows))
    return str(path)


def advised(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["advise", "--cluster", "h100", *words]) == 0
    return " ".join(capsys.readouterr().out.split())


OLMOE = ["--model", "olmoe_1b_7b", "--world-size", "8", "--strategy", "ep"]


def neighbours(shift: int, tokens: int = 1024) -> list[list[int]]:
    """Of 8 experts half are among the 8 hot ones from `shift` on, in turn, half among others."""
    return [
        [(shift + (t + i) % 8) % 64 for i in range(4)]
        + [(shift + 8 + (5 * t + 11 * i) % 56) % 64 for i in range(4)]
        for t in range(tokens)
    ]


def test_hot_neighbours_are_placed_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # rank 0 has 4 of 8 slots, 4 times its share
    path = saved(tmp_path / "hot.npz", neighbours(0) + neighbours(0))
    order = tmp_path / "order.txt"
    text = advised([*OLMOE, "--trace", path, "--placement", str(order)], capsys)
    assert "ranks that share the experts: place the experts anew: 1.0" in text
    assert "instead of 4.00 times the mean slots" in text
    assert "chosen on the first 1,024 rows" in text
    assert f"strategy.placement=contiguous,{order}" in text
    assert text.endswith(str(order))
    places = [int(word) for word in order.read_text("utf-8").split()]
    assert sorted(places) == list(range(64))
    assert [sum(e < 8 for e in places[r * 8 : r * 8 + 8]) for r in range(8)] == [1] * 8


def test_a_load_that_moves_is_not_mended_by_a_placement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second half's hot experts are those that the first half's placement has on one rank."""
    first = neighbours(0)
    trace = CapturedRouting("", "", 64, np.array(first * 2))
    order = trace.new_order(8)
    second = [[order[e] for e in row] for row in first]  # the first rank's are hot now
    text = advised([*OLMOE, "--trace", saved(tmp_path / "moving.npz", first + second)], capsys)
    assert "place the experts anew" not in text
    assert "placed anew, 4.00, it would take" in text
    assert "on its own rows the new placement has 1.0" in text


def test_one_expert_a_rank_needs_copies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [[0, 1 + t % 7] for t in range(2048)]
    path = saved(tmp_path / "one.npz", rows)
    words = ["--model", "mixtral_8x7b", "--world-size", "8", "--strategy", "ep", "--trace", path]
    text = advised(words, capsys)
    # expert 0 has half of all slots: 4 times a rank's share, wherever it is
    assert "copies of hot experts: " in text
    assert "instead of 4.00 times the mean slots" in text
    assert "placed anew, 4.00, it would save nothing" in text
    copies = int(re.findall(r"add (\d+) copies", text)[0]) // 8
    expert = 32 * 3 * 4096 * 14336 * 2  # bytes of three matrices of all layers, in bfloat16
    assert f"takes {numbers.bytes_text(copies * expert)} a rank" in text
    assert "strategy.hot_replicas=0," in text


def test_even_choices_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path / "even.npz", [[(t + 8 * i) % 64 for i in range(8)] for t in range(1024)])
    text = advised([*OLMOE, "--trace", path], capsys)
    assert "leave the experts where they are: 1.00 times the mean slots" in text
    assert "to measure that" not in text
    assert "1.00 on 8" in text


def test_what_has_no_skew_says_so_and_predict_has_remedies_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path / "hot.npz", neighbours(0) + neighbours(0))
    words = ["--model", "olmoe_1b_7b", "--world-size", "8", "--strategy", "ep,simple"]
    text = advised([*words, "--trace", path], capsys)
    assert "use simple" in text
    assert "simple itself has no skew" in text
    assert cli.main(["predict", "--cluster", "h100", *words, "--trace", path]) == 0
    assert "place the experts anew" in " ".join(capsys.readouterr().out.split())


def test_a_remedy_saves_what_the_model_says_of_its_skew(tmp_path: Path) -> None:
    path = saved(tmp_path / "hot.npz", neighbours(0) + neighbours(0))
    words = ["advise", "--cluster", "h100", *OLMOE, "--trace", path]
    setup = problem.make(cli.parser().parse_args(words), [])
    layer = setup.layer
    case = Cell(layer, StrategySpec("ep", "alltoall"), setup.workload(8), setup.placement(8))
    result = remedies.of_form(setup, case)
    assert result.plain.skew == 4.0
    assert result.plain.total_ms == setup.modelled(case, 4.0).total_ms
    assert result.placed.total_ms == setup.modelled(case, result.placed.skew).total_ms
    even = setup.modelled(case, 1.0).total_ms
    assert result.saved(result.balanced) == 1 - even / result.plain.total_ms
    assert result.copied is not None
    copies = result.copied.cell.strategy.hot_replicas // 8
    expert = 16 * 3 * layer.dim * layer.hidden * 2  # three matrices of all layers, in bfloat16
    assert result.copies_bytes == pytest.approx(copies * expert)


@pytest.mark.parametrize(("words", "named"), [
    (["--skew", "1.3", "--trace", "{hot}"], "--skew 1.3: not together with --trace"),
    (["--skew", "nan"], "--skew nan: allowed are numbers from 1"),
    (["--skew", "0.5"], "--skew 0.5: allowed are numbers from 1"),
    (["--trace", "nowhere.npz"], "--trace nowhere.npz: it cannot be read"),
    (["--trace", "{hot}", "--topk", "4"], "its rows have 8 ids, allowed is topk=4"),
    (["--trace", "{high}"], "its ids go from 0 to 64, allowed are 0 to num_experts-1=63"),
    (["--trace", "{one}"], "1 row; allowed are 2 or more"),
    (["--placement", "order.txt"], "--placement order.txt: only with --trace"),
    (["--trace", "{hot}", "--placement", "{absent}/order.txt"], "absent/order.txt: No such file"),
])  # fmt: skip
def test_refusals(
    words: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "absent": str(tmp_path / "absent"),
        "hot": saved(tmp_path / "hot.npz", neighbours(0)),
        "high": saved(tmp_path / "high.npz", [[0, 1, 2, 3, 4, 5, 6, 64]] * 2),
        "one": saved(tmp_path / "one.npz", [[0, 1, 2, 3, 4, 5, 6, 7]]),
    }
    asked = [word.format(**files) for word in words]
    assert cli.main(["advise", "--cluster", "h100", *OLMOE, *asked]) == 2
    assert named in capsys.readouterr().err


def test_a_trace_is_read_as_the_runner_reads_it(tmp_path: Path) -> None:
    layer = LayerSpec(num_experts=4, topk=2, topk_requested=2)
    result = routing.read(saved(tmp_path / "a.npz", [[0, 1], [2, 3], [1, 0]]), layer)
    assert result.chosen_NK.tolist() == [[0, 1]]
    assert result.judged_NK.tolist() == [[2, 3], [1, 0]]
    with pytest.raises(InputError, match="row 0 is"):
        routing.read(saved(tmp_path / "b.npz", [[1, 1], [2, 3]]), layer)
    assert dataclasses.replace(result, path="b").skew(cell(2)) > 0


def test_a_placement_without_a_form_that_splits_experts_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace, order = saved(tmp_path / "hot.npz", neighbours(0)), tmp_path / "order.txt"
    words = ["--model", "olmoe_1b_7b", "--world-size", "8", "--strategy", "simple"]
    asked = [*words, "--trace", trace, "--placement", str(order)]
    assert cli.main(["advise", "--cluster", "h100", *asked]) == 2
    assert f"--placement {order}: no form that fits splits the experts" in capsys.readouterr().err
    assert not order.exists()


@pytest.mark.parametrize(("part", "words"), [
    (-0.004, "would save nothing"), (0.0, "would save nothing"),
    (0.2, "would save 20% of the step"), (-0.31, "would take 31% longer"),
    (-12.23, "would take 13.2 times as long"),
])  # fmt: skip
def test_effects_of_remedies(part: float, words: str) -> None:
    assert remedies.effect(part) == words


def test_remedies_at_several_numbers_of_ranks_name_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = saved(tmp_path / "hot.npz", neighbours(0) + neighbours(0))
    words = ["--model", "olmoe_1b_7b", "--strategy", "ep", "--trace", trace]
    assert cli.main(["predict", "--cluster", "h100", *words, "--world-size", "4,8"]) == 0
    text = capsys.readouterr().out
    for ranks in (4, 8):
        assert re.search(rf"on {ranks} ranks, ep [a-z0-9= ]+, busiest of {ranks} ", text)
    assert cli.main(["predict", "--cluster", "h100", *words, "--world-size", "8"]) == 0
    assert "on 8 ranks, ep" not in capsys.readouterr().out
