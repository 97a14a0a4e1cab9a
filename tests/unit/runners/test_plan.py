"""Groups, waves and the lines of ranks: worked examples."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe.spec import Cell, LayerSpec, RankLayout
from runners.errors import ConfigError
from runners.plan import (
    Job,
    LaunchPlan,
    Measure,
    by_shape,
    from_text,
    groups,
    load,
    save,
    shape_name,
    text_of,
    unique,
    waves,
)
from runners.records.rank_log import RankLog, RankReader, rank_path
from runners.records.sealed import RecordError, sealed
from runners.sweep.assemble import Assembler


def job(topk: int = 2, ranks: int = 2, label: str = "", samples: int = 10) -> Job:
    cell = Cell(
        layer=LayerSpec(topk=topk, topk_requested=topk), placement=RankLayout(world_size=ranks)
    )
    return Job(cell, Measure(samples=samples), label=label)


def plan_of(folder: Path, jobs: list[Job]) -> LaunchPlan:
    return LaunchPlan(
        launch=0,
        launch_dir=str(folder),
        measure=Measure(samples=2, samples_max=2),
        placement=RankLayout(world_size=2),
        cells=[j.cell for j in jobs],
        labels=[j.label for j in jobs],
        waves=[list(range(len(jobs)))],
        resident=[True],
    )


def test_a_group_shares_ranks_and_measure() -> None:
    jobs = [job(1, 2), job(2, 4), job(4, 2), job(1, 2, samples=3, label="x")]
    assert [len(g.jobs) for g in groups(jobs, "group")] == [2, 1, 1]
    assert [len(g.jobs) for g in groups(jobs, "cell")] == [1, 1, 1, 1]


def test_repeats_need_labels_only_when_measured_differently() -> None:
    assert len(unique([job(1), job(1), job(1, label="a")])) == 2
    with pytest.raises(ConfigError, match="label"):
        unique([job(1), job(1, samples=3)])


@given(st.integers(0, 100), st.integers(1, 40))
def test_waves_keep_every_job_once_in_nearly_equal_parts(count: int, size: int) -> None:
    jobs = [job(label=f"l{n}") for n in range(count)]
    split = waves(jobs, size)
    assert [j for wave in split for j in wave] == list(range(count))
    lengths = [len(wave) for wave in split]
    assert not lengths or (max(lengths) <= size and max(lengths) - min(lengths) <= 1)


@given(st.lists(st.integers(1, 9), max_size=60), st.integers(1, 20))
def test_what_is_compared_shares_a_wave(topks: list[int], size: int) -> None:
    jobs = [job(topk, label=f"l{n}") for n, topk in enumerate(topks)]
    split = waves(jobs, size)
    assert sorted(j for wave in split for j in wave) == list(range(len(jobs)))
    assert max(map(len, split), default=0) <= size
    for topk in set(topks):
        where = [n for n, wave in enumerate(split) for j in wave if topks[j] == topk]
        assert len(set(where)) == -(-len(where) // size)


def test_a_sweep_that_names_strategies_first_keeps_them_together() -> None:
    jobs = [job(topk, label=label) for label in "abc" for topk in (2, 4, 8)]
    assert waves(jobs, 8) == [[0, 3, 6, 1, 4, 7], [2, 5, 8]]
    assert waves(jobs, 6) == [[0, 3, 6, 1, 4, 7], [2, 5, 8]]
    assert waves(jobs, 2) == [[0, 3], [6], [1, 4], [7], [2, 5], [8]]


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, [job(1), job(2, label="a")])
    save(plan, tmp_path / "launch.json")
    assert load(tmp_path / "launch.json") == plan


def test_a_reader_waits_for_whole_lines_and_leaves_damaged_ones_out(tmp_path: Path) -> None:
    path = tmp_path / "rank0.jsonl"
    reader = RankReader(path)
    assert list(reader.new_lines()) == []
    log = RankLog(path)
    log.write("a")
    log.write("b", value=1)
    log.write("c")
    first, second, third = path.read_bytes().splitlines(keepends=True)
    edited = second.replace(b":1,", b":2,")
    path.write_bytes(first + b"\xff\xfe\n[1]\n" + edited + second + third[:9])
    assert list(reader.new_lines()) == [{"event": "a"}, {"event": "b", "value": 1}]
    assert reader.damaged == 3
    with path.open("ab") as file:
        file.write(third[9:])
    assert list(reader.new_lines()) == [{"event": "c"}]


def logs(tmp_path: Path) -> list[RankLog]:
    return [RankLog(rank_path(tmp_path, rank)) for rank in range(2)]


def sample(log: RankLog, cell: int, kind: str, number: int, start: int, end: int) -> None:
    log.write(
        "sample", cell=cell, kind=kind, round=number, position=0, steps=5, start_ns=start,
        end_ns=end,
    )  # fmt: skip


def test_records_hold_the_samples_that_every_rank_wrote(tmp_path: Path) -> None:
    jobs = [job(1), job(2)]
    zero, one = logs(tmp_path)
    for number in range(2):
        sample(zero, 0, "fixed", number, 10 + number, 20 + number)
        sample(one, 0, "fixed", number, 11 + number, 25 + number)
    sample(zero, 0, "fixed", 2, 50, 60)  # rank 1 died before it wrote this one
    sample(zero, 1, "fixed", 0, 1, 2)
    sample(one, 1, "fixed", 0, 1, 3)
    for log in (zero, one):
        log.write("info", cell=0, name="gate", value={"ok": True})
        log.write("info", cell=1, name="gate", value={"ok": False})
        log.write("stop", wave=0, rule="fixed")
    lines = Assembler(plan_of(tmp_path, jobs), jobs, "sweep")
    lines.update()
    good, wrong = (lines.record(index, 0, None) for index in (0, 1))
    assert (good.outcome, good.samples.steps) == ("measured", [5, 5])
    assert good.samples.start_ns == [[10, 11], [11, 12]]
    assert good.samples.end_ns == [[20, 25], [21, 26]]
    assert (wrong.outcome, wrong.samples.steps) == ("wrong", [])  # no time anywhere
    assert good.stop == {"rule": "fixed", "rounds": 2, "target": 0.03}
    lines.free_wave(0)
    assert not any(rank.samples or rank.info for rank in lines.ranks)


def changed(log: RankLog, cell: int) -> None:
    value = {"what": "the output", "relative": 0.5, "when": "after a block (long) of round 3",
             "text": "the output (relative change 0.5)"}  # fmt: skip
    log.write("info", cell=cell, name="changed", value=value)


def test_a_cell_that_turns_out_wrong_later_has_no_time_and_says_what_changed(
    tmp_path: Path,
) -> None:
    jobs = [job(1), job(2), job(4)]
    zero, one = logs(tmp_path)
    for log in (zero, one):
        for cell in range(3):
            log.write("info", cell=cell, name="gate", value={"ok": True, "detail": "fine"})
            log.write("info", cell=cell, name="phases",
                      value={"passes": 1, "per_phase_ns": {}, "total_ns": 5})  # fmt: skip
            for number in range(2):
                sample(log, cell, "fixed", number, 1, 5)
        sample(log, 1, "anchor-first", 0, 1, 5)  # the anchor was a cell that is wrong ...
        sample(log, 0, "anchor-middle", 0, 1, 6)  # ... so another one followed
        sample(log, 0, "anchor-last", 0, 1, 6)
        log.write("info", cell=0, name="gate_after", value={"ok": True, "detail": "fine"})
        bad = {"ok": False, "detail": "outputs differ from the oracle"}
        log.write("info", cell=2, name="gate_after", value=bad)
    changed(one, 1)
    lines = Assembler(plan_of(tmp_path, jobs), jobs, "sweep")
    lines.update()
    right, later, after = (lines.record(index, 0, None) for index in range(3))
    assert (right.outcome, len(right.samples.steps), right.notes) == ("measured", 2, [])
    assert right.anchors is not None
    assert set(right.anchors) == {"key", "middle", "last"} and right.anchors["key"] == jobs[0].key
    for wrong in (later, after):
        assert (wrong.outcome, wrong.samples.steps, wrong.phases) == ("wrong", [], None)
        assert wrong.gate is not None and wrong.gate["ok"] is False
    assert (later.gate or {})["detail"] == (
        "right at first, then the output (relative change 0.5) on rank 1, after a block (long) of "
        "round 3"
    )
    assert (after.gate or {})["detail"] == (
        "checked again after timing: outputs differ from the oracle"
    )


def test_a_cell_that_ended_before_its_second_check_says_so(tmp_path: Path) -> None:
    zero, one = logs(tmp_path)
    for log in (zero, one):
        log.write("info", cell=0, name="gate", value={"ok": True})
        for number in range(2):
            sample(log, 0, "fixed", number, 1, 5)
    lines = Assembler(plan_of(tmp_path, [job()]), [job()], "sweep")
    lines.update()
    found = lines.record(0, 0, None)
    assert found.outcome == "measured"
    assert found.notes == ["it ended before it was checked again on other tokens"]


def test_too_few_rounds_are_an_interrupted_attempt(tmp_path: Path) -> None:
    zero, one = logs(tmp_path)
    for log in (zero, one):
        sample(log, 0, "fixed", 0, 1, 2)
    lines = Assembler(plan_of(tmp_path, [job()]), [job()], "sweep")
    lines.update()
    assert lines.record(0, 0, None).outcome == "interrupted"


@pytest.mark.parametrize(
    ("errors", "exited", "failures", "rank", "words"),
    [
        # killed: the other rank only lost its peer, though it said so first
        ({0: "RuntimeError: Connection closed by peer"}, (), [(1, -9), (0, 1)], 1, "signal 9"),
        # the watchdog ends a stuck rank without a word
        ({0: "RuntimeError: Connection reset by peer"}, (), [(1, 1), (0, 1)], 1, "exit code 1"),
        # its own error beats the loss of a peer, whichever comes first
        ({0: "Connection closed by peer", 1: "ValueError: no"}, (), [(0, 1), (1, 1)], 1, "no"),
        # left early, with exit code 0
        ({0: "RuntimeError: Connection closed by peer"}, (), [(0, 1)], 1, "ended early"),
        # the agent ended the other one by SIGTERM: not its fault
        ({1: "MemoryError: here"}, (), [(0, -15), (1, 1)], 1, "here"),
        # said why, then aborted in the interpreter's end, as C++ threads may
        ({0: "Connection closed by peer", 1: "ValueError: no"}, (), [(1, -6), (0, 1)], 1, "no"),
    ],
)
def test_the_culprit_is_the_rank_that_caused_the_death(
    tmp_path: Path,
    errors: dict[int, str],
    exited: tuple[int, ...],
    failures: list[tuple[int, int]],
    rank: int,
    words: str,
) -> None:
    for number, log in enumerate(logs(tmp_path)):
        log.write("enter", cell=number, stage="round")
        if number in errors:
            log.write("error", message=errors[number], clock_ns=number)
        if number in exited:
            log.write("exit")
    lines = Assembler(plan_of(tmp_path, [job(1), job(2)]), [job(1), job(2)], "sweep")
    lines.update()
    found = lines.find_cause([{"rank": r, "exitcode": code, "pid": 0} for r, code in failures])
    assert found[:2] == (rank, rank)
    assert words in found[2]


def test_measure_counts_rounds_from_samples() -> None:
    measure = Measure(samples=10, samples_max=40, per_round=3)
    assert (measure.rounds_min, measure.rounds_max) == (4, 13)
    assert dataclasses.replace(measure, samples_max=1).rounds_max == 4


# Plans that are sent.


def test_a_plan_that_is_sent_is_the_one_that_is_written(tmp_path: Path) -> None:
    plan = dataclasses.replace(
        plan_of(tmp_path, [job(1), job(2, label="a")]),
        traces={"sha": "trace.npy"}, pass_env=["UCX_*"], files="Ray", kernels={"k": "bmm"},
    )  # fmt: skip
    save(plan, tmp_path / "launch.json")
    assert (tmp_path / "launch.json").read_text() == text_of(plan)
    assert from_text(text_of(plan)) == load(tmp_path / "launch.json") == plan


@pytest.mark.parametrize(
    ("before", "after", "fault"),
    [
        ('"launch":0', '"launch":1', "sha256 does not match"),
        ("}", "", "the plan of a launch: "),
    ],
)
def test_a_plan_that_was_changed_on_the_way_is_refused(
    tmp_path: Path, before: str, after: str, fault: str
) -> None:
    text = text_of(plan_of(tmp_path, [job()]))
    with pytest.raises(RecordError, match="the plan of a launch: ") as refused:
        from_text(text.replace(before, after))
    assert fault in str(refused.value)


@pytest.mark.parametrize("text", ["", "[1]", '{"launch":0}', "[" * 100_000])
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(RecordError, match="the plan of a launch: "):
        from_text(text)


def test_a_plan_of_another_version_is_refused(tmp_path: Path) -> None:
    content = dataclasses.asdict(plan_of(tmp_path, [job()])) | {"later": 1}
    with pytest.raises(RecordError, match=r"not the plan of a launch: .*later"):
        from_text(sealed(content))


# Shapes of ranks.


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (RankLayout(world_size=4), "1x4-gloo-1threads"),
        (RankLayout(world_size=4, nodes=2, threads=3), "2x2-gloo-3threads"),
        (RankLayout(world_size=4, device="cuda", backend="nccl"), "1x4-nccl-1threads"),
        (RankLayout(world_size=4, device="cuda"), "1x4-gloo-cuda-1threads"),  # through the host
        (RankLayout(world_size=4, backend="mpi"), "1x4-mpi-1threads"),
    ],
)
def test_the_name_of_a_shape(place: RankLayout, name: str) -> None:
    assert shape_name(place) == name


def test_cells_that_can_share_nodes_are_together_in_their_order() -> None:
    jobs = [job(1, 4), job(1, 2), job(2, 4), job(2, 2, samples=3)]
    assert by_shape(jobs) == {
        "1x4-gloo-1threads": [jobs[0], jobs[2]],
        "1x2-gloo-1threads": [jobs[1], jobs[3]],
    }
