"""A judge of predictions of an emulated cluster that knows good from bad."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest

import analysis
from analysis import cli
from analysis.data.cell_summary import summaries
from analysis.errors import InputError
from analysis.predict import features, observed
from analysis.stats.summarize import summarize
from benchmarks.cost_model import crossings
from benchmarks.cost_model import emulated as judge
from moe.spec import Cell
from runners.records.record import Record, Samples
from tests.support import analysis_factory as factory
from tests.support.emulated_cells import CALIBRATION, CLUSTER, MACHINE, cell, grid, measured, true_s


def slowed_beyond_4(of: Cell, seconds: float) -> float:
    """What the model does not know: the bytes of ep take four times as long on 8 ranks and more."""
    if of.strategy.name != "ep" or of.placement.world_size <= 4:
        return seconds
    wire = sum(v for (_, t), v in features.terms(features.busiest(of), MACHINE).items()
               if t == "wire")  # fmt: skip
    return seconds + 3 * wire


def test_a_right_model_meets_the_goals() -> None:
    judgement = judge.Judgement(measured())
    assert [v.met for v in judgement.verdicts()] == [True] * 5
    assert judgement.ranks.median < 0.05
    assert list(judgement.by_ranks) == [8, 16, 32]
    assert list(judgement.by_strategy) == ["dp_ep", "ep", "simple", "tp"]
    largest = judgement.by_ranks[32]
    of, _ = largest.pairs[0]  # 3 doublings of ranks, and one of the batch: 64 x 32 after 256 x 4
    assert largest.factor(of) == pytest.approx(largest.coefficients.spread * 1.15**4)
    rows = {row[0]: row[1] for row in judgement.rows()}
    assert rows["8 ranks"] == "24"
    assert rows["strategy tp left out"] == "30"


def test_a_planted_wrong_term_shows() -> None:
    """Misses are cells of ep beyond 4 ranks alone, whose largest phase moves bytes."""
    judgement = judge.Judgement(measured(slowed_beyond_4))
    lost = [row for row in judgement.misses() if row[1].endswith("ranks")]
    assert len(lost) >= 15  # of 18
    assert all(row[0].startswith("ep alltoall") for row in lost)
    assert all(row[5].startswith(("dispatch", "combine")) for row in lost)
    assert [v.met for v in judgement.verdicts()][2] is False
    assert "missed" in judge.text(judgement, markdown=True)


def test_few_cells_miss_the_goal() -> None:
    few = [m for m in measured() if m.cell.placement.world_size <= 8]
    for cells, met in ((few[:60], True), (few[:59], False)):
        first = judge.Judgement(cells).verdicts()[0]
        assert first == ("at least 60 cells", str(len(cells)), met)


def test_held_out_cells_bring_no_rates() -> None:
    """Machines of more ranks, and of a strategy left out, are those that were fitted."""
    cells = measured()
    usual = judge.Judgement(cells)
    faster = dataclasses.replace(MACHINE, matrix_flops_per_s={"float32": 1e12})
    beyond = [dataclasses.replace(m, machine=faster) if judge.ranks_of(m) > 4 else m for m in cells]
    other = judge.Judgement(beyond)
    assert other.ranks.errors == usual.ranks.errors
    assert [c.predicted for c in other.crossings] == [c.predicted for c in usual.crossings]
    on_two = [m for m in beyond if judge.ranks_of(m) in (4, 8)]
    near = judge.with_fitted_machine(next(m for m in beyond if judge.ranks_of(m) == 16), on_two)
    assert near.machine is faster
    assert judge.INPUTS in judge.text(usual, markdown=False)


def test_no_crossover_at_all_misses_the_goal() -> None:
    """Without ep and dp_ep no two strategies are compared: nothing can be right."""
    few = [m for m in measured() if m.cell.strategy.name in ("simple", "tp")]
    last = judge.Judgement(few).verdicts()[-1]
    assert last == ("crossovers within one grid step", "none in the grid", False)


def test_cells_that_are_not_judged_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [record_of(of) for of in grid()]
    records[3] = dataclasses.replace(records[3], outcome="failed", samples=Samples())
    records[5] = dataclasses.replace(records[5], calibration=None)
    judge.main(["report", str(factory.write_all(tmp_path, records))])
    assert capsys.readouterr().out.endswith(
        "\nleft out: 1 failed, 1 measured without a usable calibration or by another metric\n"
    )


def test_without_sweeps_the_newest_of_each_number_of_ranks_counts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run python -m benchmarks\.emulate\.grid"):
        judge.newest_grids(tmp_path)
    for name in ("2026-01-02_1_grid-8", "2026-01-03_1_grid-8", "2026-01-01_1_grid-16",
                 "2026-01-04_1_grid-8x", "2026-01-05_1_other"):  # fmt: skip
        (tmp_path / name).mkdir()
    assert [Path(one).name for one in judge.newest_grids(tmp_path)] == [
        "2026-01-03_1_grid-8", "2026-01-01_1_grid-16",
    ]  # fmt: skip


def test_slices_keep_every_other_knob_apart() -> None:
    """Sent in half the bytes, the same strategy is another cell, and no cell counts twice."""
    cells = measured(noise=0.0)
    halved = [
        dataclasses.replace(m, total_s=m.total_s / 2, cell=dataclasses.replace(
            m.cell, strategy=dataclasses.replace(m.cell.strategy, comm_dtype="bfloat16")))
        for m in cells
    ]  # fmt: skip
    alone, both = crossings.slices(cells), crossings.slices([*cells, *halved])
    assert len(both) == 2 * len(alone)
    for one in both:
        for a, b in one.pairs:
            assert a.cell.strategy.comm_dtype == b.cell.strategy.comm_dtype
    with pytest.raises(InputError, match="twice; name each sweep once"):
        crossings.slices([*cells, cells[-1]])


def slice_of(measured_: Sequence[float], predicted: Sequence[float]) -> crossings.Crossing:
    grid = list(range(2, 2 + len(measured_)))
    return crossings.Crossing("ranks", "", ("a", "b"), grid, list(measured_), list(predicted))


@pytest.mark.parametrize(("found", "said", "off"), [
    ([2.0, 1.5, 0.5, 0.25], [2.0, 0.5, 0.4, 0.3], 1.5 - 2 / 3),
    ([2.0, 1.5, 1.2, 1.1], [2.0, 1.5, 1.5, 0.5], 0.5),  # measured: after the end
    ([0.9, 0.8, 0.7, 0.6], [1.5, 0.5, 0.5, 0.5], 0.5),  # measured: before the start
    ([0.9, 0.8, 0.7, 0.6], [0.9, 0.8, 0.7, 0.6], 0.0),
    ([0.9, 0.8, 0.7, 0.6], [1.9, 1.8, 1.7, 1.6], 3.0),
    ([2.0, 0.5, 0.4, 0.3], [2.0, 1.9, 1.8, 1.7], 3 - 2 / 3),
])  # fmt: skip
def test_crossings_are_apart_by_grid_steps(
    found: list[float], said: list[float], off: float
) -> None:
    one = slice_of(found, said)
    assert one.off == pytest.approx(off)
    assert one.near is (off <= 1)
    assert one.crosses is (found != said)


def test_slices_are_along_ranks_and_topk_with_all_else_alike() -> None:
    cells = measured(noise=0.0)
    found = crossings.slices(cells)
    along_ranks = [one for one in found if one.axis == "ranks" and one.names[0] == "ep alltoall"]
    assert {tuple(one.grid) for one in along_ranks} == {(2, 4, 8, 16, 32)}
    assert len(along_ranks) == 3 * 2  # top-k and the batch of a rank; against tp
    along_topk = [one for one in found if one.axis == "top-k"]
    assert {tuple(one.grid) for one in along_topk} == {(1, 2, 4)}
    assert len(along_topk) == 2 * (1 + 4 * 3)  # on 2 ranks one pair, on 4 to 32 three
    for one in found:
        for a, b in one.pairs:
            assert a.cell.layer == b.cell.layer
            assert (a.cell.workload, a.cell.placement) == (b.cell.workload, b.cell.placement)


def test_a_crossing_is_predicted_without_its_own_cells() -> None:
    """Where every small measurement of a slice is spoilt, what predicts it does not know."""
    cells = measured(noise=0.0)
    judgement = judge.Judgement(cells)
    one = next(s for s in crossings.slices(cells) if s.axis == "ranks")
    own = {id(m) for pair in one.pairs for m in pair}
    spoilt = [dataclasses.replace(m, total_s=9 * m.total_s) if id(m) in own else m for m in cells]
    again = judge.Judgement(spoilt).crossings[0]
    assert again.predicted == pytest.approx(judgement.crossings[0].predicted)


def record_of(of: Cell) -> Record:
    ranks = of.placement.world_size
    environment = {**factory.ENVIRONMENT, "local_ranks": ranks, "emulated": asdict(CLUSTER)}
    scale = 1e3 * true_s(of) / factory.truth_ms(of)
    return factory.measured(
        of, scale=scale, rounds=6, noise=0.01, environment=environment, phases=None,
        skew={"expert_slots": [1] * 32, "rank_slots": [1] * ranks}, kernel={"name": "loop"},
        calibration={**CALIBRATION, "ranks": ranks, "shared": {
            "read_bytes_per_s": 5e8 * ranks, "matmul_flops_per_s": {"float32": 2e9 * ranks},
        }},
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    records = [record_of(of) for of in grid()]
    return str(factory.write_all(tmp_path_factory.mktemp("emulated"), records))


def test_predict_fits_a_cluster_as_dilated(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", folder, "--world-size", "64", "--strategy", "simple", "--topk", "4"]
    assert cli.main([*words, "--tokens-per-rank", "256", "--format", "csv"]) == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("64,simple,"))
    assert float(row.split(",")[2]) == pytest.approx(
        1e3 * true_s(cell("simple", 64, 4, 256)), rel=0.1
    )
    assert f"times are dilated, of a cluster that is {CLUSTER.words}" in out
    assert "cores" not in out


def test_advice_measures_on_the_same_emulated_cluster(
    folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One batch per rank, on ranks that are not measured: the command has the cluster's sizes."""
    words = ["advise", folder, "--world-size", "8", "--tokens-per-rank", "100"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert (
        " python -m benchmarks.emulate --dilation 20 --ranks-per-node 2 --intra 80 --inter 8 "
        "--mtu 1500 strategy="
    ) in " ".join(out.replace("\\\n", "").split())
    assert "bench.py" not in out
    assert "GPU" not in out
    assert "clusters.md" not in out


def test_blocks_of_a_fixed_length_are_fitted_where_most_have_them(tmp_path: Path) -> None:
    """One emulated step a block is a time as good as any; two kinds of time are never fitted
    together."""
    records = [record_of(of) for of in grid()[:12]]
    for one in records[:8]:
        one.measure = {**one.measure, "block": 1}
        ranks = one.cell.placement.world_size
        one.samples = factory.samples([5.0] * 4, ranks, random.Random(0), steps=1, fixed=True)
    cells = judge.load([str(factory.write_all(tmp_path / "most", records))])
    known = observed.measured(cells)
    assert [m.total_s for m in known] == [pytest.approx(5e-3, rel=0.01)] * 8
    real = [dataclasses.replace(one, environment=factory.ENVIRONMENT) for one in records[:8]]
    frame = analysis.load(str(factory.write_all(tmp_path / "real", real)))
    assert observed.measured(summaries(summarize(frame))) == []


def test_the_report_reads_records(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert judge.main(["report", folder]) == 0
    out = capsys.readouterr().out
    assert "all of more ranks" in out
    assert "every cell is in its interval" in out
    assert "missed" not in out
    assert "pairs cross nowhere, as predicted" in out
    known = observed.measured(judge.load([folder]))
    assert len(known) == len(grid())
    assert {m.machine.matrix_rate("float32") for m in known} == {2e9}


def test_only_one_emulated_cluster_is_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = factory.write_all(tmp_path / "real", factory.rich_records())
    assert judge.main(["report", str(real)]) == 2
    assert "allowed are sweeps of an emulated cluster" in capsys.readouterr().err
    few = factory.write_all(tmp_path / "few", [record_of(of) for of in grid()[:30]])
    assert judge.main(["report", str(few)]) == 2
    assert "no cell on more than 4 ranks" in capsys.readouterr().err
    assert judge.main(["report", str(real), str(few)]) == 2
    assert "cannot be compared" in capsys.readouterr().err
