"""The strategy of docs/extending.md, added to a copy of the project: two files and one of
configuration are enough."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from runners.records import record
from tests.support.copies import ROOT, changed_files, copy_project, run_in

NAME = "dp_tp"
QUICK = ["measure=quick", "report=false", "tracker=none"]
COST = """
import json, sys
from pathlib import Path
from moe import cost
from runners.records import record
one = record.read(Path(sys.argv[1]))
print(json.dumps([
    [[*key, *sums] for key, sums in cost.totals(cost.collectives(
        one.cell, cost.expected(one.cell, rank), rank, one.exchanged)).items()]
    for rank in range(one.cell.placement.world_size)]))
"""


def blocks() -> dict[str, str]:
    """The code blocks of the documentation that begin with the name of their file."""
    text = (ROOT / "docs" / "extending.md").read_text("utf-8")
    return dict(re.findall(r"```\w+\n# (\S+)\n(.*?)```", text, re.S))


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with the files of the example."""
    folder = copy_project(tmp_path_factory.mktemp("strategy"))
    assert len(blocks()) == 3
    for name, text in blocks().items():
        assert not (folder / name).exists()
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    assert changed_files(folder) == set(blocks())
    return folder


def bench(copy: Path, folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    where = [f"hydra.sweep.dir={folder}", f"hydra.run.dir={folder}"]
    return run_in(copy, "runners/bench.py", *overrides, *QUICK, *where)


def traffic_of(rows: list[dict[str, Any]]) -> dict[tuple[str, str], list[float]]:
    names = ("calls", "sent_bytes", "received_bytes")
    sums: dict[tuple[str, str], list[float]] = {}
    for row in rows:  # one for each algorithm
        key = row["collective"], row["group"]
        sums[key] = [a + row[name] for a, name in zip(sums.get(key, (0, 0, 0)), names, strict=True)]
    return sums


@pytest.mark.dist
@pytest.mark.parametrize(
    "overrides",
    [["world_size=2"], ["world_size=4", "mode=train", "model.shared_experts=1"]],
    ids=["2 ranks", "4 ranks, training"],
)
def test_the_new_strategy_is_measured_and_sends_what_its_rules_say(
    copy: Path, tmp_path: Path, overrides: list[str]
) -> None:
    done = bench(copy, tmp_path / "run", f"strategy={NAME}", *overrides)
    assert done.returncode == 0, done.stderr
    (path,) = record.paths(tmp_path / "run")
    one = record.read(path)
    assert (one.outcome, one.cell.strategy.name) == ("measured", NAME)
    assert (one.gate or {})["ok"]
    answer = run_in(copy, "-c", COST, str(path))
    assert answer.returncode == 0, answer.stderr
    computed = [{(r[0], r[1]): r[2:] for r in rows} for rows in json.loads(answer.stdout)]
    measured = [traffic_of(rows) for rows in one.traffic or []]
    assert len(measured) == one.cell.placement.world_size
    assert measured == computed
    assert ("all_reduce", "tp") in measured[0]


def test_its_own_refusal_is_one_line(copy: Path, tmp_path: Path) -> None:
    done = bench(copy, tmp_path / "run", f"strategy={NAME}", "world_size=2", "tokens=sharded")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: tokens=sharded: allowed is replicated for strategy=dp_tp; "
        "set tokens=replicated or use strategy=ep_tp"
    ]


def test_an_unknown_strategy_is_told_of_it(copy: Path, tmp_path: Path) -> None:
    done = bench(copy, tmp_path / "run", "strategy=tp", "strategy.name=psychic", "world_size=2")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "allowed are serial, simple, dp, tp, ep, ep_tp, dp_ep, fsdp, dp_tp, " in line


def test_the_strategy_is_no_part_of_this_project() -> None:
    assert NAME not in {path.stem for path in (ROOT / "conf" / "strategy").iterdir()}
    assert not (ROOT / "moe" / "strategies" / NAME).exists()
