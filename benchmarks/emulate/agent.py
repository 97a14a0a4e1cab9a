"""Sets up the links of an emulated launch, runs its ranks, and ends them. Started by `launch`, in a
mount namespace of its own:

    python -m benchmarks.emulate.agent PLAN RATES
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from pathlib import Path

from benchmarks.emulate import forks, network, rank, rates
from benchmarks.emulate.start_gate import StartGate
from runners.host import isolation
from runners.launch import launch_files
from runners.plan import load
from runners.rank import worker
from runners.rank.process_group import RankPlace

GATE_MARGIN_S = 60.0  # beyond a cell's limit


def main(arguments: list[str]) -> int:
    plan_path, rates_path = arguments
    isolation.die_with_parent(int(os.environ.get("MOE_LAUNCHER_PID", "0")) or None, signal.SIGTERM)
    plan, known = load(Path(plan_path)), rates.load(Path(rates_path))
    ranks, launch_dir = plan.placement.world_size, Path(plan.launch_dir)
    try:
        network.set_up(ranks, known.cluster)
    except network.NetworkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    os.environ["MOE_AGENT_PID"] = str(os.getpid())
    worker.prepare([plan_path])
    gate = StartGate(ranks, plan.measure.cell_limit_s + GATE_MARGIN_S)
    gc.collect()
    gc.freeze()

    def body(place: RankPlace) -> int:
        _write_to_log(launch_dir, place.rank)
        return rank.main(plan_path, place, gate, known)

    failures = forks.run(ranks, known.cluster, body)
    if failures:
        (launch_dir / launch_files.FAILURES).write_text(json.dumps(failures))
    return 1 if failures else 0


def _write_to_log(launch_dir: Path, number: int) -> None:
    """This process's output goes to the rank's log."""
    path = launch_files.log_path(launch_dir, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
