"""Real ranks behind a node's agent whose files are fetched: they come as from a local launch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe.spec import Cell, LayerSpec, RankLayout, StrategySpec, WorkloadSpec
from runners.config.hosts import Hosts
from runners.launch.local import RunningLaunch, start
from runners.launch.node_agent import NodeAgent
from runners.launch.remote import RemoteLaunch
from runners.plan import RAY, Job, LaunchPlan, Measure, save
from runners.records import record
from runners.records.routing_trace import read_trace
from runners.sweep.progress import Progress
from runners.sweep.result import SweepResult
from runners.sweep.settings import Settings
from runners.sweep.sweep import Sweep

MEASURE = Measure(samples=2, samples_max=2, block=1, anchors=0, phases=1, calibrate=False,
                  wave_cells=1, warmup_max=2)  # fmt: skip
LAYER = LayerSpec(dim=16, hidden=16, dim_out=16, num_experts=4, topk=2, topk_requested=2)


class InProcess:
    """The connection to an agent of this process."""

    def __init__(self, agent: NodeAgent) -> None:
        self.agent = agent

    def call(self, method: str, *arguments: Any) -> Callable[[], Any]:
        return lambda: getattr(self.agent, method)(*arguments)


def jobs(folder: Path) -> list[Job]:
    """Two waves; the second reads recorded choices."""
    np.savez(folder / "rows.npz", indices=np.array([[3, 0], [1, 2], [2, 3]]))
    trace = read_trace(str(folder / "rows.npz"), 2, 4)
    place, strategy = RankLayout(world_size=2), StrategySpec("ep", kernel="bmm")
    work = WorkloadSpec(batch_size=4)
    recorded = replace(work, kind="trace", trace_sha256=trace.sha256)
    return [
        Job(Cell(LAYER, strategy, work, place), MEASURE),
        Job(Cell(LAYER, strategy, recorded, place), MEASURE, trace=trace),
    ]


def measured(folder: Path, how: Callable[[LaunchPlan], RunningLaunch]) -> SweepResult:
    result = Sweep(jobs(folder.parent), Settings(folder), Progress(), how).run()
    assert set(result.outcomes.values()) == {"measured"}, result.failures or result.warnings
    return result


def contents(folder: Path, *patterns: str) -> dict[str, bytes]:
    """By name; empty files are not sent."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for pattern in patterns
        for path in folder.glob(pattern)
        if path.is_file() and path.stat().st_size
    }


@pytest.mark.dist
def test_fetched_files_are_equal_and_records_are_as_from_a_local_launch(tmp_path: Path) -> None:
    agent = NodeAgent()

    def remotely(plan: LaunchPlan) -> RunningLaunch:
        plan.files = RAY
        (Path(plan.launch_dir) / "logs").mkdir(parents=True)
        save(plan, Path(plan.launch_dir) / "launch.json")
        launch = RemoteLaunch(plan, {0: InProcess(agent)})
        launch.start(Hosts(), "token")
        return launch

    try:
        measured(tmp_path / "remote", remotely)
        on_node, here = agent.folder / "0", tmp_path / "remote" / "launches" / "0"
        patterns = ("samples/*", "logs/**/*", "trace-*")
        files = contents(here, *patterns)
        assert files == contents(on_node, *patterns)
        assert {"samples/rank0.jsonl", "samples/rank1.jsonl"} <= set(files)
        assert [len(data) for name, data in files.items() if "trace" in name] == [3 * 2 * 4]
        assert agent.poll({}, [], True)["returncode"] == 0  # ranks ended by themselves
    finally:
        agent.close()
    measured(tmp_path / "local", start)
    remote, local = (
        {one.cell_id: one for one in map(record.read, record.paths(tmp_path / name))}
        for name in ("remote", "local")
    )
    assert remote.keys() == local.keys()
    for cell_id, one in remote.items():
        assert one.environment.pop("files") == RAY
        assert vars(one).keys() == vars(local[cell_id]).keys()
        assert one.environment.keys() == local[cell_id].environment.keys()
        assert one.skew == local[cell_id].skew
        assert one.traffic == local[cell_id].traffic
        assert len(one.samples.round) == len(local[cell_id].samples.round)
