"""What a whole model's time and memory depend on: recomputation, ZeRO's stages, phases, options."""

from __future__ import annotations

import dataclasses

import pytest

from analysis import cli
from analysis.errors import InputError
from analysis.predict import command, network, plans, present, problem, whole
from analysis.predict.model import Prediction
from analysis.predict.problem import PredictionProblem
from moe import cost
from moe.cost import Call
from moe.parallel.traffic import GroupShape
from moe.strategies import names as strategy_names

TRAIN = ["--phase", "train"]


def setup(model: str, *words: str) -> PredictionProblem:
    options = ["advise", "--cluster", "h100", "--model", model, *words]
    return problem.make(cli.parser().parse_args(options), [])


def forms(made: PredictionProblem, ranks: int = 8, *names: str) -> list[Prediction]:
    return command.ranked(made, ranks, set(names or strategy_names()))[0]


def test_other_phases_are_as_if_asked_for_directly() -> None:
    recomputing = setup("olmoe_1b_7b", *TRAIN, "--recompute", "full", "--zero", "3")
    other = command.by_phase(recomputing, 8, set(strategy_names()))
    assert list(other) == ["prefill", "decode"]
    for phase, predictions in other.items():
        asked = forms(setup("olmoe_1b_7b", "--phase", phase))
        times = {p.cell.strategy: (p.total_ms, p.memory_bytes) for p in asked}
        assert {p.cell.strategy: (p.total_ms, p.memory_bytes) for p in predictions} == times


def test_fsdp_recomputes_with_the_weights_of_the_backward_pass() -> None:
    kept, again = (
        forms(setup("olmoe_1b_7b", *TRAIN, *words), 8, "fsdp")[0]
        for words in ([], ["--recompute", "full"])
    )
    forward = forms(setup("olmoe_1b_7b"), 8, "fsdp")[0]
    assert forward.phases_ms["dispatch"] > 0.5 * forward.total_ms
    expected = forward.total_ms - forward.phases_ms["dispatch"]
    assert again.total_ms - kept.total_ms == pytest.approx(expected)
    assert again.phases_ms["recompute"] == pytest.approx(expected)


def test_recomputation_starts_all_operations_of_the_forward_pass_again() -> None:
    kept, again = (
        forms(setup("olmoe_1b_7b", *TRAIN, "--tokens-per-rank", "64", *words), 8, "ep")
        for words in ([], ["--recompute", "full"])
    )
    decode = forms(setup("olmoe_1b_7b", "--tokens-per-rank", "64"), 8, "ep")
    for strategy in {p.cell.strategy for p in decode}:
        one, two, forward = (
            next(p.total_ms for p in some if p.cell.strategy == strategy)
            for some in (kept, again, decode)
        )
        assert two - one == pytest.approx(forward)


def test_zero_3_gathers_weights_twice_and_scatters_gradients() -> None:
    first, third = (setup("olmoe_1b_7b", *TRAIN, "--zero", stage) for stage in ("1", "3"))
    before = {p.cell.strategy: p for p in forms(first, 16, "dp_ep")}
    cluster = first.machine(16)
    for after in forms(third, 16, "dp_ep"):
        one = before[after.cell.strategy]
        load = cost.expected(after.cell, 0)
        calls = [c for c in cost.collectives(after.cell, load) if c.purpose == "gradients"]
        gather = 0.0
        for call in calls:  # half the bytes of a ring all-reduce
            half = Call("all_gather", call.group, "", call.sent_bytes / 2, call.received_bytes / 2,
                        call.calls)  # fmt: skip
            gather += 16e3 * network.call_times(half, cluster).total_s
        assert after.phases_ms["weights"] == pytest.approx(2 * gather)
        assert after.phases_ms["gradients"] == pytest.approx(gather)
        reduced = one.phases_ms["gradients"]
        assert after.total_ms == pytest.approx(one.total_ms + 3 * gather - reduced)
    # what one rank alone holds is not gathered: ep sends its router and nothing else
    ep = forms(third, 8, "ep")[0]
    assert ep.phases_ms["weights"] < 0.01 * ep.total_ms
    # fsdp gathers by itself, whatever the stage
    assert forms(third, 8, "fsdp")[0].total_ms == forms(first, 8, "fsdp")[0].total_ms


def test_an_exchange_of_gradients_sends_more_than_a_gather() -> None:
    group = GroupShape("dp", 4, 1)
    ring = whole._gather(Call("all_reduce", group, "gradients", 6.0, 6.0))
    assert (ring.collective, ring.sent_bytes) == ("all_gather", 3.0)  # (n-1)/n of 4 bytes
    exchanged = whole._gather(Call("all_reduce", group, "gradients", 12.0, 12.0, 1, "exchange"))
    assert exchanged.sent_bytes == 3.0


def test_kernels_keep_as_little_as_the_clusters_own_profile() -> None:
    options = ["advise", "--cluster", "h800_deepep", "--model", "olmoe_1b_7b"]
    for words in ([], ["--software", "fused"]):
        made = problem.make(cli.parser().parse_args([*options, *words]), [])
        assert made.whole is not None
        assert made.whole.plan.fused
    ours = setup("olmoe_1b_7b").whole
    assert ours is not None
    assert not ours.plan.fused


@pytest.mark.parametrize("phase", ["train", "prefill", "decode"])
def test_dp_is_simple_with_sharded_tokens_and_one_rank_has_no_copies_of_a_form(phase: str) -> None:
    made = setup("olmoe_1b_7b", "--phase", phase)
    names = {p.cell.strategy.name for p in forms(made)}
    assert "simple" in names
    assert "dp" not in names
    assert {p.cell.strategy.name for p in forms(made, 8, "dp")} == {"dp"}
    assert {p.cell.strategy.name for p in forms(made, 1)} == {"simple", "ep"}


def test_the_table_of_a_whole_model_has_no_rate_of_tokens() -> None:
    model = setup("olmoe_1b_7b")
    assert "tokens/s" not in present.table(forms(model), whole=True)[0]
    layer = setup("olmoe_1b_7b", "--one-layer")
    header, first, *_ = present.table(forms(layer))
    assert header[4] == "tokens/s"
    assert len(header) == len(first)


def test_what_is_not_timed_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "mixtral_8x7b", "--phase", "decode", "--world-size", "8"]
    assert cli.main(["advise", "--cluster", "h100", *words]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "use tp (tp 8)" in text
    assert "Its tp splits attention and vocabulary, too, which saves memory; the all-red" in text
    assert "the optimiser's step and a pipeline's bubble are not timed" in text
    assert "Training with adamw, master fp32, ZeRO 1 and no recomputation does not fit" in text


@pytest.mark.parametrize(("model", "words", "expected"), [
    # nothing but recomputation with ZeRO 3 fits
    ("qwen3_235b_a22b", TRAIN, "--recompute full --zero 3"),
    ("deepseek_v3", TRAIN, "--recompute full --zero 3 --layers 16"),
    ("deepseek_v3", ["--phase", "decode"], "--layers 31"),
    ("qwen3_235b_a22b", [*TRAIN, "--recompute", "full", "--zero", "2"], "--zero 3"),
])  # fmt: skip
def test_the_first_plan_that_fits_is_named(model: str, words: list[str], expected: str) -> None:
    made = setup(model, *words)
    predictions = forms(made, 64)
    assert not any(p.fits for p in predictions)
    fitting = plans.first_fitting(made, predictions)
    assert fitting is not None
    assert fitting.options == expected
    asked = setup(model, *words[:2], *expected.split()) if "--zero" in words else setup(
        model, *words, *expected.split())  # fmt: skip
    if "--zero" not in words:
        assert any(p.fits for p in forms(asked, 64))


def test_the_order_of_plans_keeps_what_was_asked_for() -> None:
    deployed = setup("olmoe_1b_7b", *TRAIN, "--zero", "2").whole
    assert deployed is not None
    steps = [(p.recompute, p.zero) for p in plans.on_all_layers(deployed.plan)]
    assert steps == [("full", 2), ("full", 3)]
    stages = [p.share.layers for p in plans.of_a_stage(deployed)]
    assert stages == [8, 4, 2, 1]
    prefill = dataclasses.replace(deployed.plan, phase="prefill")
    assert [*plans.on_all_layers(prefill)] == []


@pytest.mark.parametrize(("words", "message"), [
    (["--reserve", "80GB"], "--reserve 74.5 GiB: allowed are amounts below the 74.5 GiB of a rank"),
    (["--reserve", "1e-7MB"], "--reserve 1e-7MB: allowed are"),
    (["--skew", "100"], "--skew 100: allowed are 1 to 8, the ranks that share"),
    (["--world-size", "8,16"], "--world-size 8,16: advise takes one number of ranks; name one"),
    (["--software", "turbo"], "--software turbo: allowed are fused, ours; choose one"),
    (["--strategy", "nope"], "--strategy nope: allowed are serial, simple"),
    (["--dtype", "int3"], "--dtype int3: allowed are"),
])  # fmt: skip
def test_refusals_name_value_and_remedy(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["advise", "--cluster", "h100", "--model", "olmoe_1b_7b", "--world-size", "8", *words]
    assert cli.main(asked) == 2
    assert message in capsys.readouterr().err


def test_options_of_a_whole_model_are_refused_of_records() -> None:
    asked = cli.parser().parse_args(["advise", "--zero", "3"])
    with pytest.raises(InputError, match="--zero 3: not of one layer; add --model and --phase"):
        problem.make(asked, [])


def test_a_skew_that_is_cut_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "mixtral_8x7b", "--world-size", "8", "--skew", "6"]
    assert cli.main(["predict", "--cluster", "h100", *words]) == 0
    assert "used, by the ranks that share the experts: 4.00 on 4, 4.00 on 8" in " ".join(
        capsys.readouterr().out.split()
    )
