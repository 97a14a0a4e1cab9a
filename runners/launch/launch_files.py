"""Where the ranks and agents of a launch leave failures and logs, below the launch's folder.

One node: failures.json, logs/*/attempt_0/<rank>/stderr.log, logs/agent.log. Several nodes, each
with an agent: agents/<node>/failures.json, logs/node<node>/*/attempt_0/<rank of the node>/...
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FAILURES = "failures.json"
AGENT_LOG = "agent.log"


def agent_folder(launch_dir: Path, node: int) -> Path:
    """Folder of one of several agents."""
    return launch_dir / "agents" / str(node)


def node_logs(launch_dir: Path, node: int) -> Path:
    """Folder of the logs of one of several nodes."""
    return launch_dir / "logs" / f"node{node}"


def failures(launch_dir: Path) -> list[dict[str, Any]]:
    """{rank, exitcode, pid} of every rank that an agent saw fail, node 0's first."""
    paths = sorted(launch_dir.glob(f"agents/*/{FAILURES}"), key=lambda path: int(path.parent.name))
    entries: list[dict[str, Any]] = []
    for path in (launch_dir / FAILURES, *paths):
        try:
            entries += json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            continue
    return entries


def log_path(launch_dir: Path, rank: int, ranks_per_node: int = 0) -> Path:
    """The file of a rank's stderr, or its agent's log where there is none. `ranks_per_node` of 0:
    one agent, or none, for all ranks."""
    logs = launch_dir / "logs"
    if ranks_per_node:
        node, rank = divmod(rank, ranks_per_node)  # torchrun counts within the node
        logs = node_logs(launch_dir, node)
    paths = sorted(logs.glob(f"*/attempt_0/{rank}/stderr.log"))
    return paths[0] if paths else logs / AGENT_LOG
