"""What a sweep says of itself while it runs, under a fake clock."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from moe.spec import Cell, LayerSpec, RankLayout, StrategySpec
from runners.config.slurm_launcher import Slurm
from runners.plan import Job, LaunchPlan, Measure
from runners.records.rank_log import RankLog, RankReader
from runners.records.record import Record, Samples, cell_key
from runners.sweep import slurm
from runners.sweep.activity import RankStage, activity, round_text
from runners.sweep.assemble import RankLines
from runners.sweep.best import BestSoFar
from runners.sweep.estimate import Estimate, duration, rounds_left_s
from runners.sweep.parts import LaunchWork, all_parts
from runners.sweep.progress import PLAIN_EVERY_S, Progress
from runners.sweep.screen import Frame, Screen, clock_time
from runners.sweep.settings import Settings
from runners.sweep.sweep import Sweep
from runners.sweep.titles import SettingTitles, strategy_title

PLACE = RankLayout(world_size=2)
FIXED = Measure(samples=6, samples_max=6, anchors=0, calibrate=False)  # long blocks of 0.1 s
OPEN = replace(FIXED, samples_max=40)


class FakeClock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def cell(strategy: str = "simple", topk: int = 2, **options: Any) -> Cell:
    return Cell(
        layer=LayerSpec(topk=topk, topk_requested=topk),
        strategy=StrategySpec(name=strategy, **options),
        placement=PLACE,
    )


CELLS = [cell(), cell("tp"), cell(topk=4), cell("tp", topk=4)]


def plan_of(
    waves: list[list[int]], measure: Measure = FIXED, cells: list[Cell] = CELLS, launch: int = 0
) -> LaunchPlan:
    labels, resident = [""] * len(cells), [True] * len(waves)
    return LaunchPlan(launch, "", measure, PLACE, cells, labels, waves, resident)


def work(*wave_cells: int, measure: Measure = FIXED, calibrates: bool = False) -> LaunchWork:
    return LaunchWork(measure, PLACE, wave_cells, calibrates)


def record_of(one: Cell, step_ms: float, outcome: str = "measured") -> Record:
    rounds = range(6)
    samples = Samples(
        round=[*rounds], position=[0] * 6, steps=[1] * 6, kind=["fixed"] * 6,
        start_ns=[[0, 0] for _ in rounds], end_ns=[[0, int(step_ms * 1e6)] for _ in rounds],
    )  # fmt: skip
    return Record(
        key=cell_key(one), cell=one, sweep="s", outcome=outcome, samples=samples, gate={"ok": True}
    )


# How long it takes.


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "1 s"), (0, "1 s"), (0.2, "1 s"), (9.1, "10 s"), (10.1, "15 s"), (61, "65 s"),
     (91, "2 min"), (5400, "90 min"), (5401, "1.6 h"), (7200, "2 h")],
)  # fmt: skip
def test_durations_are_rounded_up_and_never_zero(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_before_anything_is_measured_the_settings_say_how_long_it_takes() -> None:
    clock = FakeClock()
    estimate = Estimate([work(2)], clock=clock)
    # start; two cells of checks, block lengths and two warm-up samples; rounds; other tokens
    expected_s = 3 + 2 * (0.2 + 2 * 0.1 + 2 * 0.025) + 6 * 2 * 0.125 + 2 * 0.1
    most_s = 30 + 2 * (10 + 8 * 0.025) + (2 * 6 + 1) * 2 * 0.125 + 2 * 2
    assert estimate.whole == pytest.approx((expected_s, most_s))
    assert str(estimate.whole) == "about 6 s, perhaps 60 s"
    assert estimate.outlook().text(clock()) == "about 6 s left"
    clock.now_s += 2
    assert estimate.outlook().text(clock()) == "about 4 s left"


def test_rounds_without_a_fixed_number_take_their_wall_limit_unless_their_maximum_is_shorter() -> (
    None
):
    rounds = {n: all_parts([work(2, measure=replace(OPEN, samples_max=n))], False)[2] for n in
              (6, 8, 40)}  # fmt: skip
    assert [rounds[n].expected_s for n in rounds] == pytest.approx([1.5, 2.0, 2.4])
    slow = work(2, measure=replace(OPEN, samples=20))
    assert all_parts([slow], False)[2].expected_s == pytest.approx(20 * 2 * 0.125)


def test_launches_calibrations_and_runs_add_up() -> None:
    alone, twice = Estimate([work(2)]).whole, Estimate([work(2), work(2)]).whole
    assert twice.expected_s == pytest.approx(2 * alone.expected_s)
    calibrated = Estimate([work(2, calibrates=True)]).whole
    assert calibrated.expected_s == pytest.approx(alone.expected_s + 5)
    assert Estimate([work(2)], tracked=True).whole == alone  # written beside the tables
    assert Estimate([work(2), work(2)], tracked=True).whole.expected_s > twice.expected_s + 3
    assert Estimate([]).whole == (0, 0)


def test_waves_that_took_longer_lengthen_those_ahead() -> None:
    clock, plan = FakeClock(), plan_of([[0, 1], [2, 3]])
    estimate = Estimate([work(2, 2)], clock=clock)
    estimate.begin_launch(plan, 0)
    before_s = estimate.outlook().after_s
    clock.now_s += 3
    estimate.update(plan, RankStage(0, "gate"))
    assert estimate.outlook().after_s == pytest.approx(before_s - 0.9)  # all as expected
    clock.now_s += 0.9
    estimate.update(plan, RankStage(0, "round"))
    for done in range(1, 7):
        clock.now_s += 1.5  # six times the expected 0.25 s
        estimate.update(plan, RankStage(0, "round", 0, done))
        left_s = (6 - done) * 1.5
        assert estimate.outlook().part_ends - clock() == pytest.approx(left_s)
    estimate.update(plan, RankStage(1, "check", 0, 6))
    longer = (9 + 3) / (1.5 + 3)  # three seconds of the constants still count
    ahead_s = 0.9 + 1.5 * longer + 0.2
    assert estimate.outlook().after_s == pytest.approx(ahead_s)


def test_cells_that_are_prepared_say_how_long_the_others_need() -> None:
    clock, plan = FakeClock(), plan_of([[0, 2, 1, 3]])
    estimate = Estimate([work(4)], clock=clock)
    estimate.begin_launch(plan, 0)
    estimate.update(plan, RankStage(0, "gate"))
    clock.now_s += 10
    estimate.update(plan, RankStage(2, "gate"))  # the second of the wave
    assert estimate.outlook().part_ends == pytest.approx(clock() + 30)


def test_a_passed_estimate_says_so() -> None:
    clock, plan = FakeClock(), plan_of([[0, 1]])
    estimate = Estimate([work(2)], clock=clock)
    estimate.begin_launch(plan, 0)
    clock.now_s += 7
    assert estimate.outlook().text(clock()) == "about 3 s left"  # the ranks still start
    clock.now_s += 1
    assert estimate.outlook().text(clock()) == "longer than expected, about 3 s left"
    estimate.update(plan, RankStage(0, "round"))
    clock.now_s += 60
    assert "longer than expected" in estimate.outlook().text(clock())
    estimate.update(plan, RankStage(1, "check", 0, 6))
    clock.now_s += 60
    assert estimate.outlook().text(clock()) == "longer than expected"


def test_a_launch_that_is_made_again_starts_anew_and_teaches_nothing() -> None:
    clock, plan = FakeClock(), plan_of([[0, 1]])
    estimate = Estimate([work(2), work(2)], clock=clock)
    estimate.begin_launch(plan, 1)
    ahead_s = estimate.outlook().after_s
    clock.now_s += 3
    estimate.update(plan, RankStage(0, "round"))
    clock.now_s += 100
    estimate.begin_launch(plan, 1)
    assert estimate.outlook().part_ends == pytest.approx(clock() + 3)
    assert estimate.outlook().after_s == pytest.approx(ahead_s)
    assert "rounds" not in estimate.took


def test_a_stage_moves_the_estimate_on_within_its_launch_only() -> None:
    clock, plan = FakeClock(), plan_of([[0, 1]])
    estimate = Estimate([work(2), work(2, calibrates=True)], clock=clock)
    estimate.begin_launch(plan, 1)
    estimate.update(plan, RankStage(1, "check", 0, 6))
    for cell_index, stage in ((-1, "floor"), (-1, "new"), (-1, "calibrate"), (0, "gate")):
        estimate.update(plan, RankStage(cell_index, stage))
        assert [part.kind for part in estimate.chain] == ["finish"]
    estimate.begin_launch(plan, 0)
    assert [part.kind for part in estimate.chain] == ["start", "prepare", "rounds", "finish"]


def test_the_first_launch_of_ranks_that_are_alike_calibrates(tmp_path: Path) -> None:
    measure = replace(FIXED, calibrate=True, launches=2, wave_cells=2)
    four = replace(PLACE, world_size=4)
    cells = [*CELLS, replace(CELLS[0], placement=four)]
    shown = io.StringIO()
    sweep = Sweep([Job(one, measure) for one in cells], Settings(tmp_path), Progress(shown))
    launches = sweep._work(sweep._launches())
    assert [one.calibrates for one in launches] == [True, False, True, False]
    assert [one.wave_cells for one in launches] == [(2, 2), (2, 2), (1,), (1,)]
    sweep._begin_progress(sweep._launches())
    assert shown.getvalue().startswith("5 cells in 4 launches: about ")


@pytest.mark.parametrize("measure", [FIXED, OPEN, replace(OPEN, order="product", anchors=6)])
def test_time_is_left_as_long_as_rounds_run(measure: Measure) -> None:
    """Also past the minimum, past the wall limit, and where ranks do what no setting says."""
    for done in range(1, 60):
        left_s = rounds_left_s(work(2, measure=measure), 2, done, done * 1.0, expected_s=2.4)
        if done < measure.rounds_min:
            assert left_s >= (measure.rounds_min - done) * 0.5
        elif measure is OPEN and done < measure.rounds_max:
            assert left_s == pytest.approx(1.0)  # the round that has begun
        assert left_s >= 0


# What is done now.


def test_no_count_passes_its_limit() -> None:
    assert [round_text(FIXED, done) for done in (0, 5, 6, 9)] == [
        "round 1 of 6", "round 6 of 6", "round 6 of 6", "round 6 of 6"
    ]  # fmt: skip
    assert [round_text(OPEN, done) for done in (0, 5, 6, 39, 40, 50)] == [
        "round 1, at least 6, at most 40", "round 6, at most 40", "round 7, at most 40",
        "round 40, at most 40", "round 40, at most 40", "round 40, at most 40",
    ]  # fmt: skip
    assert round_text(replace(OPEN, order="product"), 7) == "round 6 of 6"


def test_rounds_of_the_wave_before_are_not_those_of_this_one() -> None:
    plan = plan_of([[0, 1], [2, 3]])
    assert activity(plan, RankStage(2, "round", wave=0, rounds=6)) == "round 1 of 6, wave 2 of 2"
    assert activity(plan, RankStage(2, "round", wave=1, rounds=2)) == "round 3 of 6, wave 2 of 2"


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (RankStage(), "starting 2 ranks on gloo"),
        (RankStage(-1, "environment"), "starting 2 ranks on gloo"),
        (RankStage(-1, "calibrate"), "calibrating, once for 2 ranks on gloo, at most 5 s"),
        (RankStage(-1, "settle"), "waiting for steady times"),
        (RankStage(-1, "floor"), "timing the empty block"),
        (
            RankStage(1, "gate"),
            "checking the output of tp k=2 batch=8 ranks=2 float32",
        ),
        (RankStage(1, "warm-up"), "warming up tp k=2 batch=8 ranks=2 float32"),
        (RankStage(1, "phases"), "timing the parts of tp k=2 batch=8 ranks=2 float32"),
        (RankStage(1, "check"), "checking tp k=2 batch=8 ranks=2 float32 again, on other tokens"),
        (RankStage(-1, "new"), "new"),
    ],
)
def test_every_stage_has_its_words(at: RankStage, text: str) -> None:
    assert activity(plan_of([[0, 1]]), at) == text


# What is best so far.


def test_the_fastest_of_every_setting_and_the_next_one() -> None:
    best = BestSoFar(CELLS)
    assert best.lines() == []
    best.add_rounds(plan_of([[0, 1, 2, 3]]), {0: 0.33, 1: 1.7, 3: 2.0})
    assert best.lines() == [
        "best so far:", "  k=2: simple 0.33 ms (next tp 1.7 ms)", "  k=4: tp 2 ms"
    ]  # fmt: skip
    best.add_rounds(plan_of([[0, 1, 2, 3]]), {0: 0.4, 1: 0.3})  # replaces what that launch said
    # cell 3 is no longer among them: it was found wrong
    assert best.lines()[1:] == ["  k=2: tp 0.3 ms (next simple 0.4 ms)"]
    best.add_rounds(plan_of([[0, 1, 2, 3]], launch=1), {1: 0.7})  # the median over launches
    assert best.lines()[1] == "  k=2: simple 0.4 ms (next tp 0.5 ms)"
    best.add(CELLS[0], "", 0, None)  # wrong, as it turned out
    best.add(CELLS[1], "", 0, -0.1)  # noise
    assert best.lines()[1] == "  k=2: tp 0.7 ms"


def test_one_setting_needs_no_name_and_many_are_cut() -> None:
    alone = BestSoFar(CELLS[:2])
    alone.add_rounds(plan_of([[0, 1]]), {0: 0.5, 1: 1.5})
    assert alone.lines() == ["best so far: simple 0.5 ms (next tp 1.5 ms)"]
    many = [cell(topk=k) for k in range(1, 19)]
    best, plan = BestSoFar(many), plan_of([list(range(6)), list(range(6, 18))], cells=many)
    best.add_rounds(plan, dict.fromkeys(range(6), 1.0))
    best.add_rounds(plan, dict.fromkeys(range(6, 18), 2.0))  # the wave that runs comes first
    shown = best.lines()
    assert shown[1:7] == [f"  k={k}: simple 2 ms" for k in range(7, 13)]
    assert shown[7:] == ["  and 12 more"]


def test_names_say_what_differs() -> None:
    wide = replace(CELLS[0], layer=replace(CELLS[0].layer, dim=64))
    assert SettingTitles([*CELLS, wide]).title(wide) == "k=2 dim=64"
    assert SettingTitles([CELLS[0], cell("tp", kernel="loop")]).varied == []
    alone = replace(CELLS[0], placement=RankLayout(world_size=1, threads=2))  # as serial has it
    assert SettingTitles([*CELLS, alone]).title(alone) == "k=2 ranks=1"
    assert strategy_title(cell("ep", overlap=2), "a") == "ep local overlap=2 [a]"


def test_medians_are_read_from_rank_0_and_older_logs_have_none(tmp_path: Path) -> None:
    log = RankLog(tmp_path / "rank0.jsonl")
    log.write("enter", cell=2, stage="round", clock_ns=1)
    log.write("progress", wave=0, round=1, medians_ms={0: 0.25, 2: 1.5})
    lines = RankLines(RankReader(tmp_path / "rank0.jsonl"))
    lines.update()
    assert lines.progress == RankStage(2, "round", 0, 1, {0: 0.25, 2: 1.5})
    log.write("progress", wave=0, round=2)
    log.write("progress", wave=0, round=3, medians_ms=[1, 2])
    lines.update()
    assert (lines.progress.rounds, lines.progress.medians_ms) == (2, {})
    assert lines.reader.damaged == 1


# Without a terminal.


def test_plain_lines_are_few_and_end_with_the_last_cell() -> None:
    clock, shown, plan = FakeClock(), io.StringIO(), plan_of([[0, 1]])
    progress = Progress(shown, clock)
    progress.begin(2, [Job(one, FIXED) for one in CELLS[:2]], [work(2)])
    progress.begin_launch(plan, 0)
    progress.update(plan, RankStage())
    stages = [RankStage(0, "gate"), *(RankStage(0, "round", 0, done) for done in range(6))]
    for at in stages:
        clock.now_s += 3
        for _ in range(3):
            progress.update(plan, replace(at, medians_ms={0: 1.0}))
    for one in CELLS[:2]:
        progress.show_live("writing records")
        progress.cell_done(record_of(one, 0.5))
    progress.end()
    clock.now_s += 2 * PLAIN_EVERY_S
    progress.update(plan, RankStage(1, "check", 0, 6))
    progress.show_live("writing W&B runs")
    assert shown.getvalue().splitlines() == [
        "2 cells in 1 launch: about 6 s, perhaps 60 s",
        "[0/2] starting 2 ranks on gloo, about 6 s left",
        "[0/2] round 1 of 6, about 2 s left",
        "[0/2] round 3 of 6, longer than expected, about 15 s left",
        "[0/2] round 5 of 6, longer than expected, about 7 s left",
        "[1/2] simple k=2 batch=8 ranks=2 float32: 0.5 ms",
        "[2/2] tp k=2 batch=8 ranks=2 float32: 0.5 ms",
    ]


def test_several_launches_are_numbered() -> None:
    clock, shown = FakeClock(), io.StringIO()
    progress = Progress(shown, clock)
    progress.begin(4, [Job(one, FIXED) for one in CELLS[:2]], [work(2), work(2)])
    progress.begin_launch(plan_of([[0, 1]]), 1)
    progress.update(plan_of([[0, 1]]), RankStage())
    assert "2 cells in 2 launches: about 15 s" in shown.getvalue()
    assert "[0/4] starting 2 ranks on gloo, launch 1 of 2, about 15 s left" in shown.getvalue()


def test_jobs_of_a_cluster_are_counted_while_they_are_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, polls = io.StringIO(), [{"7", "8"}, {"8"}, set()]
    clock = FakeClock()
    monkeypatch.setattr(slurm, "unfinished_jobs", lambda ids: polls.pop(0))
    monkeypatch.setattr(slurm.time, "sleep", lambda s: setattr(clock, "now_s", clock() + 10))
    jobs = [Job(one, FIXED) for one in CELLS[:2]]
    watched = slurm.SlurmSweep(jobs, Settings(tmp_path), Progress(shown, clock), Slurm(), "")
    watched.progress.begin(2, jobs)
    watched.queued = {"a": "7", "b": "8"}
    watched._watch()
    assert shown.getvalue().splitlines() == [
        "[0/2] jobs: 2 queued or running, 0 ended",
        "[0/2] jobs: 1 queued or running, 1 ended",
    ]


# On a terminal.


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("width", [12, 60, 120])
def test_no_line_is_longer_than_the_terminal_is_wide(width: int, encoding: str) -> None:
    clock = FakeClock()
    screen = Screen(clock)
    estimate = Estimate([work(2)], clock=clock)
    clock.now_s += 4000
    best = ("best so far:", f"  {'dim=64 ' * 20}: simple 0.33 ms", "  名前" * 30)
    screen.frame = Frame(3, 8, 1000.0, f"warming up {'tp ' * 50}", estimate.outlook(), best)
    out = io.TextIOWrapper(io.BytesIO(), encoding)
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    lines = "".join(s.text for s in console.render(screen) if not s.control).splitlines()
    assert len(lines) == 5
    assert all(cell_len(line) < width for line in lines)
    if width >= 60:
        assert "3/8 done  1:06:40  longer than expected" in lines[0]
        done, rest = ("━", "─") if encoding == "utf-8" else ("=", "-")
        columns = lines[0].count(done) + lines[0].count(rest)
        assert lines[0].count(done) == columns * 3 // 8


def test_elapsed_time_is_shown_as_on_a_clock() -> None:
    assert [clock_time(s) for s in (0, 65.9, 3600)] == ["0:00", "1:05", "1:00:00"]


@pytest.mark.parametrize("terminal", ["dumb", "xterm"])
def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(
    monkeypatch: pytest.MonkeyPatch, terminal: str
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", terminal)
    shown = Terminal()
    progress = Progress(shown, FakeClock())
    progress.begin(2, [Job(one, FIXED) for one in CELLS[:2]], [work(2)])
    progress.update(plan_of([[0, 1]]), RankStage(0, "round", 0, 1, {0: 0.33, 1: 1.7}))
    progress.cell_done(record_of(CELLS[0], 0.5))
    progress.end()
    assert "[1/2] simple k=2 batch=8 ranks=2 float32: 0.5 ms" in shown.getvalue()
    assert ("\x1b" in shown.getvalue()) == (terminal == "xterm")
    assert ("best so far: simple 0.5 ms (next tp 1.7 ms)" in shown.getvalue()) == (
        terminal == "xterm"
    )
