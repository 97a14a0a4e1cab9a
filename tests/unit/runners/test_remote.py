"""Launches on nodes whose files are fetched, over connections with scripted answers."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moe.spec import Cell, RankLayout
from runners.config.hosts import Hosts
from runners.launch import remote
from runners.launch.local import LaunchProcess
from runners.launch.remote import NodeLost, RemoteLaunch
from runners.plan import Job, LaunchPlan, Measure, from_text, save
from runners.records.rank_log import RankLog, rank_path
from runners.records.record import Record
from runners.sweep import failure
from runners.sweep.assemble import Assembler
from runners.sweep.progress import Progress
from runners.sweep.settings import Settings
from runners.sweep.sweep import Sweep

PLACE = RankLayout(world_size=4, nodes=2)
LINES = "samples/rank2.jsonl"


class FakeNode:
    """A node's agent: answers polls from a list whose last one stays; `lost_at` is the number of
    the call at which it is lost, or a method."""

    def __init__(self, *answers: dict[str, Any], lost_at: int | str = "") -> None:
        self.answers, self.lost_at = list(answers) or [answer()], lost_at
        self.calls: list[tuple[str, Any]] = []
        self.on_poll: Callable[[], None] = lambda: None

    def call(self, method: str, *arguments: Any) -> Callable[[], Any]:
        self.calls.append((method, arguments))
        number = len(self.calls)

        def result() -> Any:
            if self.lost_at in (method, number):
                self.lost_at = method  # from here on
                raise NodeLost("node 1 was lost: planted")
            if method != "poll":
                return None
            self.on_poll()
            return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

        return result

    def methods(self) -> list[str]:
        return [name for name, _ in self.calls]


class Own:
    """Node 0's ranks, on this machine."""

    def __init__(self, running: bool = True, killed_by: int = 0) -> None:
        self._running, self._killed_by, self.ends = running, killed_by, 0

    def running(self) -> bool:
        return self._running

    def end(self) -> None:
        self.ends, self._running = self.ends + 1, False

    def killed_by(self) -> int:
        return self._killed_by


class FakeClock:
    def __init__(self) -> None:
        self.now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    clock = FakeClock()
    monkeypatch.setattr(remote, "time", SimpleNamespace(monotonic=clock))
    return clock


def answer(returncode: int | None = None, *chunks: list[Any]) -> dict[str, Any]:
    return {"returncode": returncode, "chunks": list(chunks)}


def piece(path: str, offset: int, data: bytes, damage: int = 0) -> list[Any]:
    return [path, offset, data, zlib.crc32(data) ^ damage]


def plan_of(folder: Path, place: RankLayout = PLACE, **fields: Any) -> LaunchPlan:
    folder.mkdir(parents=True, exist_ok=True)
    cells = [Cell(placement=place)]
    return LaunchPlan(
        0, str(folder), Measure(samples=2, samples_max=2, calibrate=False, anchors=0), place,
        cells, [""], [[0]], [True], **fields,
    )  # fmt: skip


def launch_of(
    folder: Path, *nodes: FakeNode, own: Any = None, place: RankLayout = PLACE
) -> RemoteLaunch:
    first = 1 if own else 0
    return RemoteLaunch(plan_of(folder, place), dict(enumerate(nodes, start=first)), own)


# The start.


def test_nodes_get_the_plan_and_its_traces_and_then_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "CHUNK_BYTES", 4)
    nodes = FakeNode(), FakeNode()
    plan = plan_of(tmp_path, traces={"sha": "trace-sha.npy"})
    (tmp_path / "trace-sha.npy").write_bytes(b"0123456789")
    RemoteLaunch(plan, dict(enumerate(nodes))).start(Hosts(nnodes=2, port=7), "token")
    for node in nodes:
        prepare, *pieces, start = node.calls
        assert prepare[0] == "prepare"
        assert from_text(prepare[1][0]) == plan
        assert pieces == [
            ("receive", ("trace-sha.npy", 0, b"0123")),
            ("receive", ("trace-sha.npy", 4, b"4567")),
            ("receive", ("trace-sha.npy", 8, b"89")),
        ]
        method, (hosts, token) = start
        assert (method, hosts["nnodes"], hosts["port"], token) == ("start", 2, 7, "token")


@pytest.mark.parametrize(
    ("lost_at", "calls"),
    [("prepare", ["prepare"]), ("start", ["prepare", "start"])],
)
def test_a_node_that_is_lost_at_the_start_ends_the_launch(
    tmp_path: Path, lost_at: str, calls: list[str]
) -> None:
    first, second = FakeNode(), FakeNode(lost_at=lost_at)
    launch = launch_of(tmp_path, first, second)
    launch.start(Hosts(), "token")
    assert first.methods() == second.methods() == calls
    assert not launch.running()
    assert launch.lost_node() == "node 1 was lost: planted"
    launch.end()
    assert "end" in first.methods()  # the other node's ranks are ended, too


def test_ranks_end_where_a_trace_cannot_be_read(tmp_path: Path) -> None:
    own, node = Own(), FakeNode()
    plan = plan_of(tmp_path, traces={"sha": "gone.npy"})
    launch = RemoteLaunch(plan, {1: node}, own)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        launch.start(Hosts(), "token")
    assert own.ends == 1
    assert "end" in node.methods()
    assert "start" not in node.methods()


# While ranks run.


def test_what_nodes_write_comes_into_the_launch_s_folder(tmp_path: Path) -> None:
    node = FakeNode(
        answer(None, piece(LINES, 0, b"one\n")),
        answer(None, piece(LINES, 4, b"two\n", damage=1)),
        answer(None, piece(LINES, 4, b"two\n"), piece("samples/rank0.jsonl", 0, b"of node 0")),
        answer(0),
    )
    launch = launch_of(tmp_path, node, own=(own := Own()))
    assert [launch.running() for _ in range(3)] == [True] * 3
    own.end()
    assert not launch.running()
    launch.end()
    assert (tmp_path / LINES).read_bytes() == b"one\ntwo\n"
    assert not (tmp_path / "samples" / "rank0.jsonl").exists()
    sizes = [dict(arguments[0]) for method, arguments in node.calls if method == "poll"]
    assert sizes[-1] == {LINES: 8}


def test_signals_are_passed_on_as_names(tmp_path: Path) -> None:
    node = FakeNode()
    launch = launch_of(tmp_path, node, own=Own())
    launch.running()
    for name in ("go-0", "stop", "launch.json", "other"):
        (tmp_path / name).touch()
    launch.running()
    polls = [arguments for _, arguments in node.calls]
    assert polls[0][1:] == ([], False)
    assert (sorted(polls[1][1]), polls[1][2]) == (["go-0", "stop"], False)


def test_the_others_are_given_a_limit_once_one_node_has_ended(
    tmp_path: Path, clock: FakeClock
) -> None:
    ended, late = FakeNode(answer(None), answer(None), answer(1)), FakeNode(answer(None))
    launch = launch_of(tmp_path, ended, late)
    assert launch.running()
    clock.now_s += 100  # nobody has ended: no limit
    assert launch.running()
    assert launch.running()
    clock.now_s += 4.9
    assert launch.running()
    clock.now_s += 0.2
    assert not launch.running()


def test_a_launch_has_ended_when_all_nodes_have(tmp_path: Path, clock: FakeClock) -> None:
    launch = launch_of(tmp_path, FakeNode(answer(0)), FakeNode(answer(None), answer(0)))
    assert launch.running()
    clock.now_s += 200  # node 0 was busy in between
    assert not launch.running()
    assert launch.killed_by() == 0


def test_a_node_lost_in_the_middle_ends_the_launch_and_the_others_ranks(tmp_path: Path) -> None:
    kept = FakeNode(answer(None), answer(None), answer(None, piece(LINES, 0, b"line\n")), answer(0))
    own, lost = Own(), FakeNode(answer(None), lost_at=2)
    place = RankLayout(world_size=6, nodes=3)
    launch = launch_of(tmp_path, kept, lost, own=own, place=place)
    assert launch.running()
    assert not launch.running()
    assert not launch.running()
    assert launch.lost_node() == "node 1 was lost: planted"
    launch.end()
    assert own.ends == 1
    assert kept.methods() == ["poll", "poll", "end", "poll", "poll"]
    assert (tmp_path / LINES).read_bytes() == b"line\n"  # what others had written still counts


def test_a_node_lost_at_the_end_is_lost(tmp_path: Path) -> None:
    node = FakeNode(lost_at="end")
    launch = launch_of(tmp_path, node, own=Own())
    assert launch.running()
    launch.end()
    assert launch.lost_node() == "node 1 was lost: planted"


# The end.


def test_all_that_was_written_is_fetched_at_the_end_once(tmp_path: Path) -> None:
    node = FakeNode(
        answer(None), answer(None), answer(-15, piece(LINES, 0, b"one\n")),
        answer(-15, piece(LINES, 4, b"two\n", damage=1)), answer(-15, piece(LINES, 4, b"two\n")),
        answer(-15),
    )  # fmt: skip
    own = Own()
    launch = launch_of(tmp_path, node, own=own)
    assert launch.running()
    launch.end()
    assert (tmp_path / LINES).read_bytes() == b"one\ntwo\n"
    assert node.methods() == ["poll", "poll", "end", *["poll"] * 4]
    assert [arguments[2] for method, arguments in node.calls if method == "poll"] == [
        False, False, True, True, True, True
    ]  # fmt: skip
    assert launch.killed_by() == 0  # it was ended, not killed
    launch.end()
    assert (len(node.calls), own.ends) == (7, 1)
    assert not launch.running()
    assert len(node.calls) == 7


def test_fetching_at_the_end_has_a_limit(tmp_path: Path, clock: FakeClock) -> None:
    node = FakeNode(answer(0, piece("samples/rank0.jsonl", 0, b"of node 0")))
    node.on_poll = lambda: setattr(clock, "now_s", clock.now_s + 25)
    launch_of(tmp_path, node, own=Own(running=False)).end()
    assert node.methods() == ["poll", "end", "poll", "poll", "poll"]  # 60 s after the end


@pytest.mark.parametrize(
    ("codes", "own_signal", "sign"),
    [((0, 0), 0, 0), ((1, 0), 0, 0), ((-9, 0), 0, 9), ((0, -11), 0, 11), ((1, 0), 6, 6)],
)
def test_the_signal_that_killed_a_parent(
    tmp_path: Path, codes: tuple[int, int], own_signal: int, sign: int
) -> None:
    own = Own(running=False, killed_by=own_signal) if own_signal else None
    launch = launch_of(tmp_path, *(FakeNode(answer(code)) for code in codes), own=own)
    assert not launch.running()
    launch.end()
    assert launch.killed_by() == sign


def test_a_node_that_is_ended_late_was_not_killed(tmp_path: Path, clock: FakeClock) -> None:
    """A rank has died on node 0, those of node 1 hang until they are killed: the rank's cell is
    the cause, as on one machine."""
    late = FakeNode(answer(None), answer(None), answer(None), answer(-9))
    launch = launch_of(tmp_path, FakeNode(answer(1)), late)
    assert launch.running()
    clock.now_s += 6
    assert not launch.running()
    launch.end()
    assert not launch.running()
    assert launch.killed_by() == 0


def test_ranks_end_also_where_the_disk_of_the_first_node_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, node = Own(), FakeNode(answer(None, piece(LINES, 0, b"line\n")))
    launch = launch_of(tmp_path, node, own=own)

    def full(*arguments: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(remote.ReceivedFiles, "add", full)
    with pytest.raises(OSError, match="No space left"):
        launch.running()
    with pytest.raises(OSError, match="No space left"):
        launch.end()
    assert own.ends == 1
    assert "end" in node.methods()


# Failures and logs.


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_failures_and_logs_of_two_nodes(tmp_path: Path) -> None:
    launch = launch_of(tmp_path, FakeNode(), own=Own())
    assert launch.failures() == []
    assert launch.log_path(3) == tmp_path / "logs" / "node1" / "agent.log"
    second, first = {"rank": 3, "exitcode": -9, "pid": 5}, {"rank": 0, "exitcode": 1, "pid": 6}
    write(tmp_path / "agents" / "1" / "failures.json", json.dumps([second]))
    write(tmp_path / "agents" / "0" / "failures.json", json.dumps([first]))
    assert launch.failures() == [first, second]
    log = tmp_path / "logs" / "node1" / "none_x" / "attempt_0" / "1" / "stderr.log"
    write(log, "")
    assert launch.log_path(3) == log
    write(tmp_path / "agents" / "0" / "failures.json", "[{")  # not yet whole
    assert launch.failures() == [second]


def test_failures_of_twelve_nodes_are_in_their_order(tmp_path: Path) -> None:
    for node in (10, 2):
        write(tmp_path / "agents" / str(node) / "failures.json", json.dumps([{"rank": node}]))
    assert launch_of(tmp_path, own=Own()).failures() == [{"rank": 2}, {"rank": 10}]


def test_failures_and_logs_of_one_node(tmp_path: Path) -> None:
    launch = launch_of(tmp_path, FakeNode(), place=RankLayout(world_size=2))
    assert launch.log_path(1) == tmp_path / "logs" / "agent.log"
    log = tmp_path / "logs" / "none_x" / "attempt_0" / "1" / "stderr.log"
    write(log, "")
    assert launch.log_path(1) == log
    write(tmp_path / "failures.json", '[{"rank": 1, "exitcode": 1, "pid": 5}]')
    assert launch.failures() == [{"rank": 1, "exitcode": 1, "pid": 5}]


# What a lost node means for cells.


def test_a_lost_node_makes_no_cell_fail(tmp_path: Path) -> None:
    """Even where ranks of other nodes log the loss of their peer as an error."""
    plan = plan_of(tmp_path)
    for rank in range(2):
        log = RankLog(rank_path(tmp_path, rank))
        log.write("enter", cell=0, stage="round", clock_ns=1)
        log.write("error", cell=0, message="ValueError: planted", clock_ns=5)
        log.close()
    lines = Assembler(plan, [Job(plan.cells[0], plan.measure)], "sweep")
    lines.update()
    launch = launch_of(tmp_path, FakeNode(lost_at="poll"), own=Own())
    assert failure.find(lines, launch, 0).cell == 0
    assert not launch.running()
    assert failure.find(lines, launch, 0) == (0, -1, "node 1 was lost: planted")
    assert failure.find(lines, launch, 300.0) == (0, -1, "node 1 was lost: planted")


def losing(starts: list[int], lost: int) -> Callable[[LaunchPlan], Any]:
    """A start whose node is lost `lost` times, after which the ranks are killed at their start."""

    def start(plan: LaunchPlan) -> Any:
        starts.append(plan.launch)
        (Path(plan.launch_dir) / "logs").mkdir(parents=True, exist_ok=True)
        save(plan, Path(plan.launch_dir) / "launch.json")
        if len(starts) > lost:
            raise OSError("no more nodes are lost")
        launch = RemoteLaunch(plan, {1: FakeNode(lost_at="prepare")}, Own())  # type: ignore[arg-type]
        launch.start(Hosts(), "token")
        return launch

    return start


def sweep_of(folder: Path, starts: list[int], lost: int) -> Sweep:
    plan = plan_of(folder)
    jobs = [Job(plan.cells[0], plan.measure)]
    return Sweep(jobs, Settings(folder / "sweep"), Progress(), losing(starts, lost))


@pytest.mark.parametrize("most", [0, 2])
def test_a_lost_node_is_replaced_a_limited_number_of_times(
    tmp_path: Path, most: int, capsys: pytest.CaptureFixture[str]
) -> None:
    starts: list[int] = []
    sweep = sweep_of(tmp_path, starts, lost=100)
    sweep.max_restarts = most
    result = sweep.run()
    assert starts == list(range(most + 1))
    assert list(result.outcomes.values()) == ["interrupted"]
    assert (result.failures, result.exit_code) == ([], 1)
    folder = tmp_path / "sweep"
    assert result.warnings == [
        f"node 1 was lost: planted; allowed are {most} new starts of launches after that; "
        f"resume={folder} goes on"
    ]
    assert capsys.readouterr().err.count("node 1 was lost: planted; starting again\n") == most


def test_a_sweep_goes_on_after_a_lost_node(tmp_path: Path) -> None:
    starts: list[int] = []
    result = sweep_of(tmp_path, starts, lost=3).run()  # as often as nodes are replaced by default
    assert starts == [0, 1, 2, 3]
    assert result.warnings == ["no more nodes are lost; the sweep stops, earlier records are kept"]
    assert not list((tmp_path / "sweep").glob("cells/*/record-*.json"))


def test_local_launches_lose_no_node(tmp_path: Path) -> None:
    process = SimpleNamespace(poll=lambda: 0, returncode=0)
    assert LaunchProcess(process, tmp_path).lost_node() == ""  # type: ignore[arg-type]


def test_records_say_how_the_files_came(tmp_path: Path) -> None:
    def record(files: str) -> Record:
        plan = plan_of(tmp_path, files=files)
        return Assembler(plan, [Job(plan.cells[0], plan.measure)], "s").record(0, 0, None)

    assert record("Ray").environment["files"] == "Ray"
    assert "files" not in record("").environment
