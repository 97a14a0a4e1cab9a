"""Sweeps over the shapes of ranks that run at once and write into one folder."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from moe.spec import Cell, LayerSpec, RankLayout
from runners.config.ray_options import RayOptions
from runners.errors import ConfigError
from runners.launch.remote import NoNodes
from runners.plan import Job, LaunchPlan, Measure, save
from runners.records import record
from runners.records.rank_log import RankLog, rank_path
from runners.sweep import ray_sweep, shape_sweep
from runners.sweep.activity import RankStage
from runners.sweep.launch import on_interrupt
from runners.sweep.progress import Progress
from runners.sweep.ray_sweep import RaySweep, SharedProgress
from runners.sweep.settings import Settings
from runners.sweep.shape_sweep import ShapeSweep
from runners.sweep.sweep import Sweep
from tests.support import started

SOON_S = 20.0
interruptible = started.interruptible
MEASURE = Measure(samples=2, samples_max=2, anchors=0, calibrate=False)
ONE, TWO = RankLayout(world_size=1), RankLayout(world_size=2)


def job(place: RankLayout = ONE, topk: int = 2) -> Job:
    return Job(Cell(layer=LayerSpec(topk=topk, topk_requested=topk), placement=place), MEASURE)


def shape_sweep_of(folder: Path, *jobs: Job) -> ShapeSweep:
    return ShapeSweep(list(jobs), Settings(folder), Progress(io.StringIO()))


def plan_of(folder: Path, number: int, *jobs: Job) -> LaunchPlan:
    launch_dir = folder / "launches" / str(number)
    cells = [one.cell for one in jobs]
    indices = list(range(len(cells)))
    return LaunchPlan(
        number, str(launch_dir), MEASURE, cells[0].placement, cells, [""] * len(cells), [indices],
        [True],
    )  # fmt: skip


# One folder.


def test_launches_of_sweeps_at_once_have_different_numbers(tmp_path: Path) -> None:
    (tmp_path / "launches" / "3").mkdir(parents=True)
    sweeps = [shape_sweep_of(tmp_path, job()) for _ in range(2)]
    numbers: list[list[int]] = [[], []]

    def take(which: int) -> None:
        numbers[which] += [sweeps[which].next_launch() for _ in range(20)]

    threads = [threading.Thread(target=take, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON_S)
    assert sorted(numbers[0] + numbers[1]) == [*range(3), *range(4, 41)]


def test_a_shape_recovers_its_own_launches_only(tmp_path: Path) -> None:
    own, other = job(ONE), job(TWO)
    for number, one in enumerate((own, other)):
        plan = plan_of(tmp_path, number, one)
        save(plan, Path(plan.launch_dir) / "launch.json")
        for rank in range(one.cell.placement.world_size):
            log = RankLog(rank_path(Path(plan.launch_dir), rank))
            for turn in range(2):
                log.write("sample", cell=0, kind="long", round=turn, position=0, steps=1,
                          start_ns=turn, end_ns=turn + 1)  # fmt: skip
            log.close()
    (tmp_path / "launches" / "2").mkdir()
    (tmp_path / "launches" / "2" / "launch.json").write_text("{")  # being written
    sweep = shape_sweep_of(tmp_path, own)
    assert [one.launch for one in sweep.recovered({own.cell_id: own})] == [0]


def test_one_tracker_at_a_time_and_own_records_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [job(ONE), job(TWO)]
    sweeps = [shape_sweep_of(tmp_path, one) for one in jobs]
    records = [record.Record(key=one.key, cell=one.cell, sweep="s", outcome="measured")
               for one in jobs]  # fmt: skip
    began, running, most, tracked = threading.Barrier(2), [0], [0], []

    def track(sweep: Sweep, ones: list[record.Record]) -> None:
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.05)
        tracked.append([one.cell_id for one in ones])
        running[0] -= 1

    monkeypatch.setattr(Sweep, "track", track)

    def begin(sweep: ShapeSweep) -> None:
        began.wait(SOON_S)
        sweep.track(records)

    threads = [threading.Thread(target=begin, args=(sweep,)) for sweep in sweeps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON_S)
    assert most == [1]
    assert sorted(tracked) == sorted([[one.cell_id] for one in jobs])


def test_a_lock_is_given_back_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "lock"
    with (
        pytest.raises(ValueError, match="planted"),
        shape_sweep.file_lock(path, shape_sweep.fcntl.LOCK_EX),
    ):
        raise ValueError("planted")
    with shape_sweep.file_lock(path, shape_sweep.fcntl.LOCK_EX | shape_sweep.fcntl.LOCK_NB):
        pass


def test_an_interrupt_ends_a_shape_without_a_cell_at_fault(tmp_path: Path) -> None:
    sweep = shape_sweep_of(tmp_path, job())
    assert not sweep.context().interrupted()
    sweep.interrupt()
    assert sweep.context().interrupted()


# One display.


class LoudFile(io.StringIO):
    """Notices two writers at once."""

    def __init__(self) -> None:
        super().__init__()
        self.writers = self.most = 0

    def write(self, text: str) -> int:
        self.writers += 1
        self.most = max(self.most, self.writers)
        time.sleep(0.002)
        self.writers -= 1
        return super().write(text)


def shared_progress(file: io.StringIO) -> SharedProgress:
    progress = SharedProgress()
    progress.console.file = file
    progress.live = False
    return progress


def test_lines_of_sweeps_at_once_do_not_mix() -> None:
    progress = shared_progress(file := LoudFile())
    plan = plan_of(Path(), 0, job())
    one = record.Record(key="k", cell=plan.cells[0], sweep="s", outcome="failed")

    def show(number: int) -> None:
        for turn in range(5):
            progress.print_line(f"line {number} {turn}")
            progress.update(plan, RankStage(0, "gate"))
            progress.show(f"text {number} {turn}", at_once=True)
            progress.cell_done(one)

    threads = [threading.Thread(target=show, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON_S)
    assert file.most == 1
    lines = file.getvalue().splitlines()
    assert {f"line {n} {t}" for n in range(3) for t in range(5)} <= set(lines)


def test_a_sweep_that_ends_does_not_end_the_display_of_the_others() -> None:
    progress = shared_progress(io.StringIO())
    progress.begin(2, [job()])
    progress.end()
    assert not progress.ended
    progress.end_all()
    assert progress.ended


# Interrupts.


@pytest.mark.usefixtures("interruptible")
def test_the_first_interrupt_makes_the_call_and_the_second_raises() -> None:
    called = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), on_interrupt(called.set) as interrupted:
        assert not interrupted()
        os.kill(os.getpid(), signal.SIGINT)
        assert called.wait(SOON_S)
        assert interrupted()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(SOON_S)
    assert signal.getsignal(signal.SIGINT) == before


def test_outside_of_the_main_thread_signals_are_left_to_the_caller() -> None:
    before, inside = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with on_interrupt(lambda: None) as interrupted:
            inside.append((signal.getsignal(signal.SIGINT), interrupted()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(SOON_S)
    assert inside == [(before, False)]


# All shapes, on a cluster whose ranks do not start.


class Unstarted:
    """A launch whose ranks end without a word."""

    def __init__(self, plan: LaunchPlan) -> None:
        self.launch_dir = Path(plan.launch_dir)

    def running(self) -> bool:
        return False

    def end(self) -> None: ...

    def killed_by(self) -> int:
        return 0

    def lost_node(self) -> str:
        return ""

    def failures(self) -> list[dict[str, Any]]:
        return []

    def log_path(self, rank: int) -> Path:
        return self.launch_dir / "logs" / "agent.log"


class FakeGroup:
    """A placement group; `starts` has what a start does, by number of ranks."""

    starts: ClassVar[dict[int, Callable[[FakeGroup, LaunchPlan], Any]]] = {}
    all: ClassVar[list[FakeGroup]] = []

    def __init__(
        self, cluster: Any, place: RankLayout, interface: str, interrupted: Any, waiting: Any
    ) -> None:
        self.placement, self.interrupted, self.releases = place, interrupted, 0
        self.facts: dict[str, Any] = {}
        FakeGroup.all.append(self)

    def __call__(self, plan: LaunchPlan) -> Any:
        return FakeGroup.starts[self.placement.world_size](self, plan)

    def place(self) -> None:
        """It always has its nodes."""

    def release(self) -> None:
        self.releases += 1


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(ray_sweep, "RayGroup", FakeGroup)
    monkeypatch.setattr(FakeGroup, "all", [])
    return SimpleNamespace(facts=lambda: [{"host": "x"}], options=RayOptions(max_restarts=1))


def ray_sweep_of(folder: Path, cluster: Any) -> RaySweep:
    sweep = RaySweep([job(ONE), job(TWO), job(TWO, topk=4)], Settings(folder), cluster, "")
    sweep.progress.console.file, sweep.progress.live = io.StringIO(), False
    return sweep


def test_all_shapes_are_in_the_result(tmp_path: Path, cluster: Any) -> None:
    met = threading.Barrier(2)

    def first_start(group: FakeGroup, plan: LaunchPlan) -> Unstarted:
        if plan.launch < 2:
            met.wait(SOON_S)  # both shapes at once
        return Unstarted(plan)

    FakeGroup.starts = {1: first_start, 2: first_start}
    sweep = ray_sweep_of(tmp_path, cluster)
    assert [len(one.state.jobs) for one in sweep.sweeps] == [1, 2]
    assert [one.max_restarts for one in sweep.sweeps] == [1, 1]
    result = sweep.run()
    assert result.outcomes == {one.cell_id: "failed" for one in sweep.jobs}
    assert len(result.failures) == 3
    assert (result.exit_code, result.interrupted, result.broken) == (1, False, False)
    assert [group.releases for group in FakeGroup.all] == [1, 1]
    assert sweep.progress.ended
    assert len(list(tmp_path.glob("launches/*"))) == 6  # three attempts of each shape


def test_an_error_of_one_shape_ends_the_others_and_is_raised(tmp_path: Path, cluster: Any) -> None:
    ended = []

    def fail(group: FakeGroup, plan: LaunchPlan) -> Unstarted:
        raise ConfigError("planted")

    def wait(group: FakeGroup, plan: LaunchPlan) -> Unstarted:
        deadline = time.monotonic() + SOON_S
        while not group.interrupted() and time.monotonic() < deadline:
            time.sleep(0.01)
        ended.append(group.interrupted())
        return Unstarted(plan)

    FakeGroup.starts = {1: fail, 2: wait}
    with pytest.raises(ConfigError, match="planted"):
        ray_sweep_of(tmp_path, cluster).run()
    assert ended == [True]
    assert [group.releases for group in FakeGroup.all] == [1, 1]


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_reaches_every_shape_and_a_second_one_releases_all(
    tmp_path: Path, cluster: Any
) -> None:
    begun = threading.Barrier(3)
    released = threading.Event()

    def wait(group: FakeGroup, plan: LaunchPlan) -> Unstarted:
        begun.wait(SOON_S)
        deadline = time.monotonic() + SOON_S
        while not (group.interrupted() and group.releases) and time.monotonic() < deadline:
            time.sleep(0.01)
        released.set()
        return Unstarted(plan)

    def interrupt() -> None:
        begun.wait(SOON_S)
        os.kill(os.getpid(), signal.SIGINT)
        deadline = time.monotonic() + SOON_S
        while not all(one.interrupted() for one in FakeGroup.all) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    FakeGroup.starts = {1: wait, 2: wait}
    thread = threading.Thread(target=interrupt)
    thread.start()
    result = ray_sweep_of(tmp_path, cluster).run()
    thread.join(SOON_S)
    assert (result.interrupted, result.exit_code, result.failures) == (True, 130, [])
    assert set(result.outcomes.values()) == {"interrupted"}
    assert released.is_set()


def test_a_folder_that_cannot_be_written_ends_the_sweep_before_any_start(
    tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError("No space left on device")

    FakeGroup.starts = {}
    monkeypatch.setattr(ray_sweep.folder, "write_plan", full)
    result = ray_sweep_of(tmp_path, cluster).run()
    assert (result.broken, result.exit_code) == (True, 1)
    assert result.warnings == ["No space left on device; nothing was measured"]


def test_no_room_in_the_cluster_is_a_warning_of_its_shape(tmp_path: Path, cluster: Any) -> None:
    def no_room(group: FakeGroup, plan: LaunchPlan) -> Unstarted:
        raise NoNodes("hydra.launcher.wait_s=1: the cluster had no room for 2 nodes")

    FakeGroup.starts = {1: lambda group, plan: Unstarted(plan), 2: no_room}
    sweep = ray_sweep_of(tmp_path, cluster)
    result = sweep.run()
    assert list(result.outcomes.values()) == ["failed", "interrupted", "interrupted"]
    assert not result.broken  # tables of the other shape are shown
    assert result.warnings == [
        "hydra.launcher.wait_s=1: the cluster had no room for 2 nodes; "
        f"resume={sweep.settings.sweep_dir} hydra/launcher=ray goes on"
    ]
